"""Export, prediction and serving: one ONNX file that predicts the same everywhere."""
