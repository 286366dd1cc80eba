"""Classes of which there are few photos."""

import numpy as np


def log_shares(labels: np.ndarray, classes: int) -> np.ndarray:
    """The logarithm of each class's share of the photos: float [classes], 0 for a class that has none.

    What a network learns from few photos of a class includes that it is rare. Taken off the logits, its share no longer
    counts: what is named is the class that speaks most clearly for itself, not the most frequent one.

    labels   class indices, at least one
    source   Menon et al. 2021, arXiv:2007.07314: logit adjustment
    """
    counts = np.bincount(labels, minlength=classes)
    return np.log(np.where(counts, counts, len(labels)) / len(labels))
