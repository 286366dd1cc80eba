"""A cross-validated score: heads fitted to other photos predict every photo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ikebana.evaluation.statistics import effective_sample_size, wilson_interval


@dataclass(frozen=True)
class CrossValidation:
    """Scores over all photos of a collection, each predicted once.

    Attributes:
        accuracy_interval: Wilson's 95% interval, for other training photos and other scored ones.
        n: number of photos.
        n_effective: number of independent photos that would be as informative. Heads of overlapping
            training photos are not independent, so it is lower than n.
        accuracy_by_fold: accuracy of each fold's photos.
        recall: by class, of the classes that have photos.
    """

    accuracy: float
    accuracy_interval: tuple[float, float]
    n: int
    n_effective: float
    accuracy_by_fold: tuple[float, ...]
    recall: Mapping[str, float]

    def describe(self) -> str:
        """Describe the score on one line."""
        low, high = self.accuracy_interval
        return f"cross-validated accuracy {self.accuracy:.3f} ({low:.3f} to {high:.3f}) on all {self.n:,} photos"


def score_cross_validation(
    predicted: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: np.ndarray, classes: Sequence[str]
) -> CrossValidation:
    """Score the predictions of all photos.

    Args:
        predicted: class indices [photos], each from a head that was not fitted to the photo's group.
        labels: class indices [photos].
        groups: a number per photo; photos of one group are not independent.
        folds: the number of the fold [photos] in which the photo was predicted, of three or more.
        classes: class names.
    """
    is_right = predicted == labels
    numbers = np.unique(folds)
    # Heads share training photos, so the variance grows by the ratio of scored to training photos: one
    # fold of K to K - 2. This is measured (bench/records.md). An unbiased estimate does not exist (Bengio
    # and Grandvalet 2004, JMLR 5).
    n_effective = effective_sample_size(is_right, groups) / (1 + 1 / (len(numbers) - 2))
    accuracy = float(is_right.mean())
    return CrossValidation(
        accuracy,
        wilson_interval(accuracy * n_effective, n_effective),
        len(labels),
        n_effective,
        tuple(float(is_right[folds == fold].mean()) for fold in numbers),
        {classes[int(label)]: float(is_right[labels == label].mean()) for label in np.unique(labels)},
    )


def from_json(values: Mapping[str, Any]) -> CrossValidation:
    """Read a cross-validated score from an evaluation's `to_json`."""
    low, high = map(float, values["accuracy_interval"])
    folds = tuple(float(accuracy) for accuracy in values["accuracy_by_fold"])
    return CrossValidation(**{**values, "accuracy_interval": (low, high), "accuracy_by_fold": folds})
