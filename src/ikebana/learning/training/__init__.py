"""Training: loop, steps, optimisers, checkpoints, the logistic head."""
