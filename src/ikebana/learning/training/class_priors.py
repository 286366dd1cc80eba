"""Correction for class imbalance."""

import numpy as np


def compute_log_priors(labels: np.ndarray, classes: int) -> np.ndarray:
    """Compute the logarithm of each class's prior: its share of the photos.

    A model trained on imbalanced classes also learns how rare each one is. Logit adjustment adds the
    log priors to the logits in the loss, or subtracts them from the logits of a fitted model.
    Predictions then do not favour frequent classes.

    Args:
        labels: int64 [photos], class indices, at least one.
    Returns:
        float64 [classes], 0 for a class without photos.
    Source: Menon et al. 2021, arXiv:2007.07314.
    """
    counts = np.bincount(labels, minlength=classes)
    return np.log(np.where(counts, counts, len(labels)) / len(labels))
