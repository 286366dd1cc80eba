"""Learning curves: accuracy by the number of training photos, and a cautious extrapolation.

The error of a classifier with n training photos mostly follows a power law, a + b n^-c. A few sizes
do not determine all three numbers. So several exponents c are taken as equally plausible, weighted
by how well they fit: from c = 0, where each doubling gains as much as the one before, to c = 2, where
hardly anything is left to gain. The stated interval contains the uncertainty of the exponent, of the
scored photos and of the photos that are added.

Source of the power law: Hestness et al. 2017, arXiv:1712.00409.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# 0 is the logarithm.
EXPONENTS = (0.0, 0.25, 0.5, 1.0, 2.0)
BOOTSTRAP_DRAWS = 400
# Of the stated intervals.
LEVEL = 0.9
# More photos than there are now cannot be extrapolated to.
MAX_GROWTH = 2.0
# Photos that a suggestion adds: half of the present ones in hundreds, but at least this many.
MIN_ADDED_PHOTOS = 100
SEED = 0
# Middle of the interval of a gain from which more photos are suggested.
MIN_LIKELY_GAIN = 0.005


@dataclass(frozen=True)
class Forecast:
    """The accuracy or recall that is expected with more photos.

    Attributes:
        added: photos to add, of the kind that there is.
        low, high: 90% interval of the new value.
    """

    added: int
    low: float
    high: float


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy by the number of all photos, or recall by those of one class.

    Attributes:
        name: the class; "" for all classes together.
        photos: photos of the collection that each point stands for, ascending; the last is all.
        values: accuracy or recall with these.
        intervals: 90% interval of each value, for other scored photos of the same kind.
        forecast: with more photos.
    """

    name: str
    photos: tuple[int, ...]
    values: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    forecast: Forecast

    @property
    def gain(self) -> tuple[float, float]:
        """The lowest and highest gain that the added photos may bring."""
        return self.forecast.low - self.values[-1], self.forecast.high - self.values[-1]

    @property
    def is_gain_likely(self) -> bool:
        """Whether the added photos gain even at the lower end, or clearly gain on average."""
        return self.gain[0] > 0 or sum(self.gain) / 2 >= MIN_LIKELY_GAIN

    def describe(self) -> str:
        """Describe what more photos would change, on one line."""
        # The change alone: another accuracy would compete with the test accuracy.
        score, noun = ("its recall", f" of {self.name}") if self.name else ("the accuracy", "")
        amount = (
            "twice as many photos" if self.forecast.added == self.photos[-1] else f"{self.forecast.added:,} more photos"
        )
        low, high = (_format_points(change) for change in self.gain)
        return f"{amount}{noun} may change {score} by {low} to {high} points"


def _format_points(change: float) -> str:
    """Format a change in percentage points, never as -0.0."""
    return f"{round(100 * change, 1) + 0.0:+.1f}"


def make_learning_curve(
    name: str, photos: Sequence[int], right_shares: np.ndarray, groups: np.ndarray, added: int | None = None
) -> LearningCurve:
    """Make a learning curve and its forecast.

    Args:
        name: the class; "" for all classes together.
        photos: photos of the collection that each size stands for, ascending; the last is all.
        right_shares: float [sizes, photos], the share of repetitions in which a scored photo was
            classified correctly after training with a size.
        groups: a number per scored photo; photos of one group are drawn together.
        added: photos to add; by default half of the present ones, but at least 100, and at most as
            many as there are.
    """
    errors = 1 - _bootstrap_means(right_shares, groups)
    observed = 1 - right_shares.mean(1)
    growth = np.array(photos) / photos[-1]
    if added is None:
        added = min(photos[-1], max(MIN_ADDED_PHOTOS, 100 * (photos[-1] // 200)))
    target = min(1 + added / photos[-1], MAX_GROWTH)
    low, high = _forecast(errors, observed, growth, target)
    margins = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    return LearningCurve(
        name,
        tuple(int(count) for count in photos),
        tuple(float(value) for value in 1 - observed),
        tuple((float(lowest), float(highest)) for lowest, highest in np.quantile(1 - errors, margins, axis=0).T),
        Forecast(added, low, high),
    )


def _bootstrap_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Draw groups of photos with replacement: means float [draws, sizes]."""
    _, numbers = np.unique(groups, return_inverse=True)
    sizes = np.bincount(numbers).astype(float)
    sums = np.stack([np.bincount(numbers, row) for row in values])
    rng = np.random.default_rng(SEED)
    drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), BOOTSTRAP_DRAWS).astype(float)
    return (drawn @ sums.T) / (drawn @ sizes)[:, None]


def _forecast(errors: np.ndarray, observed: np.ndarray, growth: np.ndarray, target: float) -> tuple[float, float]:
    """Return the 90% interval of accuracy with `target` times the photos.

    Args:
        errors: float [draws, sizes], bootstrapped.
        observed: float [sizes].
        growth: float [sizes], number of photos relative to the present one; the last is 1.
    """
    # The scored photos stay the same, so only differences between sizes are uncertain.
    noise = float(np.diff(errors, axis=1).std(0).mean())
    # Even where nothing changed, the next photo may be different.
    noise = max(noise, 1e-6)
    gains, weights = [], []
    for exponent in EXPONENTS:
        basis = _evaluate_basis(growth, exponent)
        _, residuals = _fit(observed[None], basis)
        slopes, _ = _fit(errors, basis)
        step = _evaluate_basis(np.array([1.0, target]), exponent)
        gains.append(slopes * (step[0] - step[1]))
        weights.append(np.exp(-float(residuals[0]) / (2 * noise**2)))
    # Which photos are added is chance too, by as much as halving the present ones showed.
    chance = np.random.default_rng(SEED).normal(0, noise * np.sqrt(np.log2(target)), errors.shape[0])
    gain = np.stack(gains) + chance
    low, high = _weighted_quantiles(gain.ravel(), np.repeat(weights, errors.shape[0]))
    present = 1 - float(observed[-1])
    return max(0.0, present + low), min(1.0, present + high)


def _evaluate_basis(growth: np.ndarray, exponent: float) -> np.ndarray:
    return growth**-exponent if exponent else -np.log2(growth)


def _fit(errors: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit a + b * basis to each row, with neither below 0.

    Returns:
        b, and the sum of squared residuals: float [rows] each.
    """
    centred = basis - basis.mean()
    slopes = np.maximum(0.0, (errors - errors.mean(1, keepdims=True)) @ centred / (centred @ centred))
    offsets = errors.mean(1) - slopes * basis.mean()
    through_zero = offsets < 0
    slopes = np.where(through_zero, errors @ basis / (basis @ basis), slopes)
    offsets = np.maximum(offsets, 0.0)
    residuals = np.square(errors - offsets[:, None] - slopes[:, None] * basis).sum(1)
    return slopes, residuals


def _weighted_quantiles(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    order = np.argsort(values)
    shares = np.cumsum(weights[order]) / weights.sum()
    low, high = np.searchsorted(shares, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(values[order[low]]), float(values[order[min(high, len(values) - 1)]])


def all_from_json(values: Iterable[Mapping[str, Any]]) -> tuple[LearningCurve, ...]:
    """Read learning curves that were written as plain values."""
    return tuple(from_json(curve) for curve in values)


def from_json(values: Mapping[str, Any]) -> LearningCurve:
    """Read a learning curve that was written as plain values."""
    return LearningCurve(
        str(values["name"]),
        tuple(values["photos"]),
        tuple(values["values"]),
        tuple((float(low), float(high)) for low, high in values["intervals"]),
        Forecast(**values["forecast"]),
    )
