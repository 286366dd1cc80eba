"""Evaluation of a model: arrays in, scores and reports out, without torch."""
