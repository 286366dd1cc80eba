"""Export of a run to an ONNX file or web folder, verified on test photos."""
