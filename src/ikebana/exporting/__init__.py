"""From a run to an ONNX file or a web folder, verified on the test photos."""
