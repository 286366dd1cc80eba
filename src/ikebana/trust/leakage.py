"""How much of a score may be memory: test photos whose twin was learned from, and what a naive shuffle would have done."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ikebana.photos import split
from ikebana.photos.dataset import Dataset, texts
from ikebana.recipe import Recipe


@dataclass(frozen=True)
class NaiveShuffle:
    """The same photos in one shuffle that knows of no twins, with the same seed and the same shares.

    Other photos of a group are no twins: a network that has learned from some photos of a plant is not sure to know the others.
    """

    n: int  # test photos
    with_twin: int  # of them, those with a twin in training or validation
    accuracy: float  # about what it would have shown, if a network is right on photos whose twin it has learned


@dataclass(frozen=True)
class Leakage:
    """Test photos whose twin, or another photo of their group, lies in training or validation."""

    photos: tuple[str, ...]  # their paths
    accuracy_of_them: float | None
    accuracy_of_others: float | None  # the score without them
    naive_shuffle: NaiveShuffle

    def __repr__(self) -> str:
        naive, others = self.naive_shuffle, self.accuracy_of_others
        lines = []
        if self.photos and others is not None:
            lines.append(
                f"test photos with a twin, or one of their group, among those learned from: {len(self.photos)}; "
                f"accuracy {self.accuracy_of_them:.3f} on them, {others:.3f} on the others"
            )
        elif self.photos:
            lines.append(
                f"all {len(self.photos)} test photos have a twin, or one of their group, among those learned from: "
                "the score is memory"
            )
        if naive.with_twin > len(self.photos):
            lines.append(
                f"in a naive shuffle, test photos with a twin among those learned from: {naive.with_twin}; accuracy shown: "
                f"about {naive.accuracy:.3f}"
            )
        return "\n".join(lines)


def leakage(dataset: Dataset, recipe: Recipe, right: np.ndarray) -> Leakage:
    """What twins do to the score, and would have done in a naive shuffle.

    right  bool, whether each test photo was named correctly, in the table's order
    """
    used = dataset.used
    group, labels = split.groups(used), texts(used["label"])
    seen = np.array(split.twins_seen(group, texts(used["split"])), bool)
    naive = split.shuffled(labels, dataset.classes, recipe.parts, recipe.split_seed)
    theirs = split.twins_seen(split.groups(used.with_columns(group=pl.lit(None, pl.String))), naive)
    others = _share(right[~seen])
    share = sum(theirs) / max(len(theirs), 1)
    # Nobody knows how a network fares that was not trained: on photos without a twin as this one does, on the others perfectly.
    guessed = (1 - share) * (others if others is not None else 1.0) + share
    return Leakage(
        tuple(used.filter(pl.col("split") == "test").filter(pl.Series(seen, dtype=pl.Boolean))["path"]),
        _share(right[seen]),
        others,
        NaiveShuffle(len(theirs), sum(theirs), guessed),
    )


def from_json(values: Mapping[str, Any]) -> Leakage:
    """The leakage that an evaluation's `to_json` wrote."""
    naive = NaiveShuffle(**values["naive_shuffle"])
    return Leakage(**{**values, "photos": tuple(values["photos"]), "naive_shuffle": naive})


def _share(right: np.ndarray) -> float | None:
    return float(right.mean()) if len(right) else None
