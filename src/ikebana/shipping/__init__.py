"""What goes out: one ONNX file that predicts the same everywhere."""
