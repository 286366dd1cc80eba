"""Leakage: test photos with a duplicate in training, also for a naive shuffle."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ikebana.data import split
from ikebana.data.dataset import Dataset, to_strings
from ikebana.recipe import Recipe


@dataclass(frozen=True)
class NaiveShuffle:
    """The same photos in a shuffle that ignores duplicates, with the same seed and fractions.

    Other photos of a group are not duplicates: a network trained on some photos of a plant may
    still be wrong on the others.

    Attributes:
        n: test photos.
        with_duplicate: of these, photos with a duplicate in training or validation.
        accuracy: estimate, if a network is right on every photo whose duplicate it was trained on.
    """

    n: int
    with_duplicate: int
    accuracy: float


@dataclass(frozen=True)
class Leakage:
    """Paths of test photos with a duplicate or a group member in training or validation.

    Attributes:
        accuracy_on_leaked: test accuracy on these photos; None if there are none.
        accuracy_on_others: test accuracy without them.
    """

    photos: tuple[str, ...]
    accuracy_on_leaked: float | None
    accuracy_on_others: float | None
    naive_shuffle: NaiveShuffle

    def __repr__(self) -> str:
        return self.describe()

    def describe(self, accuracy_interval: tuple[float, float] | None = None) -> str:
        """Describe leaked photos, and what a naive shuffle would have shown.

        Args:
            accuracy_interval: of the test accuracy; a naive shuffle within it is not mentioned.
        """
        naive, others, count = self.naive_shuffle, self.accuracy_on_others, len(self.photos)
        lines = []
        if count and others is not None:
            lines.append(
                f"leakage: {count} test photo{'s' * (count != 1)} with a duplicate or group member in training or validation; "
                f"accuracy {self.accuracy_on_leaked:.3f} on leaked photos, {others:.3f} on the others"
            )
        elif count:
            lines.append(
                f"leakage: all {count} test photos have a duplicate or group member in training or validation, "
                "so the score is inflated"
            )
        is_within = accuracy_interval is not None and accuracy_interval[0] <= naive.accuracy <= accuracy_interval[1]
        if naive.with_duplicate > count and not is_within:
            lines.append(
                f"a naive shuffle would have leaked {naive.with_duplicate} test photos "
                f"and shown an accuracy of about {naive.accuracy:.3f}"
            )
        return "\n".join(lines)


def measure_leakage(dataset: Dataset, recipe: Recipe, is_right: np.ndarray) -> Leakage:
    """Measure what duplicates do to the score, and would have done in a naive shuffle.

    Args:
        dataset: opened and split.
        recipe: gives fractions and seed of the naive shuffle.
        is_right: bool, whether each test photo was classified correctly, in the table's order.
    """
    used = dataset.used_photos
    groups, labels = split.find_groups(used), to_strings(used["label"])
    is_leaked = np.array(split.flag_leaked(groups, to_strings(used["split"])), bool)
    naive_splits = split.assign_shuffled(labels, dataset.classes, recipe.split_fractions, recipe.split_seed)
    without_groups = used.with_columns(group=pl.lit(None, pl.String))
    naive_leaked = split.flag_leaked(split.find_groups(without_groups), naive_splits)
    others = _mean(is_right[~is_leaked])
    share = sum(naive_leaked) / max(len(naive_leaked), 1)
    # No network was trained on the naive shuffle. Assume this one's accuracy on photos without a
    # duplicate, and 1 on the others.
    estimate = (1 - share) * (others if others is not None else 1.0) + share
    return Leakage(
        tuple(used.filter(pl.col("split") == "test").filter(pl.Series(is_leaked, dtype=pl.Boolean))["path"]),
        _mean(is_right[is_leaked]),
        others,
        NaiveShuffle(len(naive_leaked), sum(naive_leaked), estimate),
    )


def from_json(values: Mapping[str, Any]) -> Leakage:
    """Read the leakage from an evaluation's `to_json`."""
    naive = NaiveShuffle(**values["naive_shuffle"])
    return Leakage(**{**values, "photos": tuple(values["photos"]), "naive_shuffle": naive})


def _mean(is_right: np.ndarray) -> float | None:
    return float(is_right.mean()) if len(is_right) else None
