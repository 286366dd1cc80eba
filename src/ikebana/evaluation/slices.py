"""Slices: test photos with a property in common, compared with the others.

A property is a number, such as brightness, or a text, such as the file type. Each slice is tested
for a lower accuracy than the rest. Many tests would find some by chance, so their p-values are
corrected.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ikebana.evaluation.statistics import adjust_p_values, effective_sample_size, wilson_interval

# The probability that any slice is reported although none scores worse.
SIGNIFICANCE_LEVEL = 0.05
# A smaller slice, or one that leaves fewer other photos, is not tested.
MIN_SLICE_PHOTOS = 10
# A text property with more values divides the photos too finely.
MAX_TEXT_VALUES = 20
# Quantiles that divide a number into ranges. The first list is used whose outer ranges are large
# enough. These ranges are narrow, because the extremes are the photos that networks fail on.
RANGE_QUANTILES = ((0.1, 0.25, 0.5, 0.75, 0.9), (0.25, 0.5, 0.75), (0.5,))
# The ends of ranges are rounded, so that the text of a slice says exactly which photos it has.
SIGNIFICANT_DIGITS = 3
# Slices in the report; evaluation.json has all.
MAX_DESCRIBED_SLICES = 2

# Property → one value per photo: float, NaN where unknown; or text, empty where unknown.
Properties = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Slice:
    """Test photos with one property in common.

    Attributes:
        name: of the property, such as "brightness".
        value: the text, or the range, such as "below 62"; the upper end of a range is excluded.
        accuracy_interval: Wilson's 95% interval, for other photos of this kind.
        accuracy_of_others: accuracy on all other test photos with a known value.
        p_value: of the hypothesis that the slice scores no worse, corrected for all slices.
    """

    name: str
    value: str
    n: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    accuracy_of_others: float
    p_value: float

    def describe(self) -> str:
        """Return one line for the report."""
        low, high = self.accuracy_interval
        return (
            f"scores worse where {self.name} is {self.value}: accuracy {self.accuracy:.3f} ({low:.3f} to {high:.3f}) "
            f"on {self.n} photos, {self.accuracy_of_others:.3f} on the others"
        )


@dataclass(frozen=True)
class Slices:
    """All slices that were tested, the most significant first."""

    tested: tuple[Slice, ...]
    significance_level: float = SIGNIFICANCE_LEVEL

    @property
    def worse(self) -> tuple[Slice, ...]:
        """The slices that score significantly worse than the other photos."""
        return tuple(tested for tested in self.tested if tested.p_value <= self.significance_level)

    def describe(self) -> str:
        """Return the worst slices, one per line; empty if none is significant.

        That no slice is significant is not reported: with few photos it proves nothing.
        """
        lines = [worse.describe() for worse in self.worse[:MAX_DESCRIBED_SLICES]]
        if rest := len(self.worse) - len(lines):
            lines.append(f"and on {rest} more groups of photos: see slices in evaluation.json")
        return "\n".join(lines)


def from_json(values: Mapping[str, Any]) -> Slices:
    """Read the slices from a run's `evaluation.json`.

    Raises:
        KeyError, TypeError, ValueError: a value is missing or of the wrong type.
    """
    tested = []
    for entry in values["tested"]:
        low, high = map(float, entry["accuracy_interval"])
        tested.append(Slice(**{**entry, "accuracy_interval": (low, high)}))
    return Slices(tuple(tested), float(values["significance_level"]))


def score_slices(is_right: np.ndarray, properties: Properties, groups: np.ndarray | None = None) -> Slices | None:
    """Score every slice and test whether it is worse than the rest.

    The test is Fisher's exact test, one-sided. In groups, photos are right or wrong together, which
    makes differences by chance larger. The normal quantile of the p-value is therefore divided by
    the square root of the design effect. Without groups the test stays exact.

    Args:
        is_right: bool [photos].
        groups: int [photos], photos of one group are not independent; None if all are.
    Returns:
        None if no slice is large enough.
    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70, for the correction; it holds
        for slices that overlap. Rao and Scott 1984, Annals of Statistics 12, 46-60, for the design
        effect.
    """
    members = [
        (name, value, is_inside, is_known)
        for name, values in properties.items()
        for value, is_inside, is_known in _divide(values)
        if min(is_inside.sum(), (is_known & ~is_inside).sum()) >= MIN_SLICE_PHOTOS
    ]
    if not members:
        return None
    numbers = np.arange(len(is_right)) if groups is None else groups
    design_effect = max(1.0, len(is_right) / effective_sample_size(is_right, numbers))
    p_values = np.array(
        [
            correct_for_groups(compute_p_value(is_right[is_inside], is_right[is_known & ~is_inside]), design_effect)
            for _, _, is_inside, is_known in members
        ]
    )
    slices = [
        _score_slice(name, value, is_right[is_inside], is_right[is_known & ~is_inside], numbers[is_inside], p_value)
        for (name, value, is_inside, is_known), p_value in zip(members, adjust_p_values(p_values), strict=True)
    ]
    return Slices(
        tuple(sorted(slices, key=lambda tested: (tested.p_value, tested.accuracy - tested.accuracy_of_others)))
    )


def _score_slice(
    name: str, value: str, inside: np.ndarray, outside: np.ndarray, groups: np.ndarray, p_value: float
) -> Slice:
    accuracy, n_effective = float(inside.mean()), effective_sample_size(inside, groups)
    interval = wilson_interval(accuracy * n_effective, n_effective)
    return Slice(name, value, len(inside), accuracy, interval, float(outside.mean()), float(p_value))


def _divide(values: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield each value of a property, and bool [photos]: inside, known."""
    if values.dtype.kind == "f":
        yield from _divide_number(values)
        return
    is_known = values != ""
    texts = sorted(set(values[is_known].tolist()))
    for text in texts if len(texts) <= MAX_TEXT_VALUES else ():
        yield text, values == text, is_known


def _divide_number(values: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    is_known = np.isfinite(values)
    quantiles = next((shares for shares in RANGE_QUANTILES if shares[0] * is_known.sum() >= MIN_SLICE_PHOTOS), ())
    if not quantiles:
        return
    edges = sorted({_round(edge) for edge in np.quantile(values[is_known], quantiles).tolist()})
    numbers = np.searchsorted(edges, np.where(is_known, values, 0.0), side="right")
    names = [
        f"below {_format(edges[0])}",
        *(f"{_format(low)} to {_format(high)}" for low, high in pairwise(edges)),
        f"{_format(edges[-1])} or more",
    ]
    for number, name in enumerate(names):
        yield name, is_known & (numbers == number), is_known


def _round(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def _format(value: float) -> str:
    return f"{value:,.10g}"


def compute_p_value(inside: np.ndarray, outside: np.ndarray) -> float:
    """Compute the p-value of Fisher's exact test, one-sided.

    The hypothesis is that photos inside are wrong no more often than those outside.

    Args:
        inside, outside: bool [photos], whether each photo is classified correctly.
    """
    total, size = len(inside) + len(outside), len(inside)
    wrong_inside, wrong = int((~inside).sum()), int((~inside).sum() + (~outside).sum())
    log_factorials = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, total + 1)))))

    def log_choose(n: int, k: np.ndarray | int) -> np.ndarray:
        return log_factorials[n] - log_factorials[k] - log_factorials[n - k]

    counts = np.arange(wrong_inside, min(size, wrong) + 1)
    log_shares = log_choose(wrong, counts) + log_choose(total - wrong, size - counts) - log_choose(total, size)
    return min(1.0, float(np.exp(log_shares).sum()))


def correct_for_groups(p_value: float, design_effect: float) -> float:
    """Return the p-value corrected for the design effect of groups."""
    if design_effect <= 1:
        return p_value
    from scipy.special import ndtr, ndtri

    return float(ndtr(ndtri(p_value) / np.sqrt(design_effect)))
