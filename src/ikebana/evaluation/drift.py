"""Drift: whether photos are less familiar than photos like those of the training.

A photo's familiarity is the share of calibration photos that score lower. So the familiarity of
photos like them is spread evenly over 0 to 1. Photos of something else, or from another camera,
gather near 0. The test compares the two samples; it needs no photo, only counts.

The test is one-sided: photos that the network was trained on are more familiar than others, which
is no reason to distrust a prediction.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

# Intervals of familiarity in which photos are counted.
BINS = 1000
# Below this p-value, photos are reported to differ.
SIGNIFICANT_P_VALUE = 0.001


@dataclass(frozen=True)
class Drift:
    """A comparison of some photos with the calibration photos.

    Attributes:
        photos: number of photos that were compared.
        median_familiarity: 0 to 1; about 0.5 for photos like the calibration photos.
        p_value: how probable it is that photos like them look so unfamiliar, or more so.
    """

    photos: int
    median_familiarity: float
    p_value: float

    @property
    def is_significant(self) -> bool:
        """Whether the photos are less familiar than chance explains."""
        return self.p_value < SIGNIFICANT_P_VALUE

    def describe(self) -> str:
        """Say in one sentence how the photos differ."""
        p_value = f"p = {self.p_value:.1g}" if self.p_value >= 1e-6 else "p < 0.000001"
        return (
            f"all together, these photos are less like the training photos than the calibration photos were: their median "
            f"familiarity is {self.median_familiarity:.2f} instead of 0.50 ({p_value}); predictions may be less "
            "accurate than the test score says"
        )


class FamiliarityCounts:
    """Numbers of photos per interval of familiarity."""

    def __init__(self, values: Iterable[float | None] = ()):
        self.counts = np.zeros(BINS, np.int64)
        for value in values:
            self.add(value)

    def add(self, familiarity: float | None) -> None:
        """Count one photo; one without a familiarity is left out."""
        if familiarity is not None:
            self.counts[min(int(familiarity * BINS), BINS - 1)] += 1

    def compare(self, known_photos: int | None) -> Drift | None:
        """Test whether the photos are less familiar than the calibration photos.

        This is Smirnov's one-sided two-sample test, with its asymptotic p-value, which is a little
        too high for small samples. It counts on independent photos: frames of one video are not.

        Args:
            known_photos: number of calibration photos; None if it is not known.
        Returns:
            None without any photo, or if the number of calibration photos is not known.
        Source: Smirnov 1939; Hodges 1958, The significance probability of the Smirnov two-sample test.
        """
        photos = int(self.counts.sum())
        if not photos or not known_photos:
            return None
        below = np.cumsum(self.counts) / photos
        edges = np.arange(1, BINS + 1)
        # The calibration photo of rank k has the familiarity k / (known_photos + 1).
        known_below = np.minimum(edges * (known_photos + 1) // BINS, known_photos) / known_photos
        excess = max(0.0, float((below - known_below).max()))
        size = photos * known_photos / (photos + known_photos)
        median = float(edges[np.searchsorted(below, 0.5)] - 0.5) / BINS
        return Drift(photos, median, float(np.exp(-2 * size * excess**2)))
