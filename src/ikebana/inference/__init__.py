"""Prediction from one ONNX file, the same everywhere; without torch."""
