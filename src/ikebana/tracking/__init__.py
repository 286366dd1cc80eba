"""Follow a training while it runs: a live page, TensorBoard, MLflow."""
