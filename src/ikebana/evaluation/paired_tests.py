"""Statistics of two classifiers on the same photos: test, interval, photos needed.

The unit is the group of duplicates or related photos: it counts once, however many photos it has.
"""

import math

import numpy as np

from ikebana.evaluation.statistics import NORMAL_QUANTILE

BOOTSTRAP_DRAWS = 10_000
# Of the forecast of test photos that would decide, as usual in study planning.
POWER_QUANTILE = 0.8416212335729143
# Added to the bootstrapped photos, half a photo that each one alone classifies correctly: where two
# classifiers never differ, the interval is not empty (Agresti and Min 2005, Statistics in Medicine 24).
PSEUDO_PHOTOS = ((1.0, 0.5), (-1.0, 0.5), (0.0, 1.0))


def compute_sign_flip_p_value(differences: np.ndarray) -> float:
    """Compute the exact two-sided p-value that groups favour neither classifier.

    If both are equally good, the sign of each group's difference is arbitrary. The p-value is the
    share of all assignments of signs whose sum is at least as far from 0. With one photo per group
    this is McNemar's exact test: a binomial test of the photos that one classifier alone gets right.

    Args:
        differences: int [groups], difference of the photos classified correctly.
    Source: Fisher's randomisation test for pairs; McNemar 1947, Psychometrika 12. The distribution
        of the sum is computed from its characteristic function, a product of cosines.
    """
    magnitudes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    if not len(magnitudes):
        return 1.0
    divisor = math.gcd(*magnitudes.tolist())
    magnitudes, observed = magnitudes // divisor, abs(int(differences.sum())) // divisor
    largest = int(magnitudes @ counts)
    size = 2 * largest + 1
    angles = 2 * np.pi * np.arange(size) / size
    transform = np.ones(size)
    for magnitude, count in zip(magnitudes.tolist(), counts.tolist(), strict=True):
        transform *= np.cos(magnitude * angles) ** count
    # Entry s is the probability of the sum s; negative sums are at the end.
    shares = np.fft.ifft(transform).real
    tail = 2 * float(shares[observed : largest + 1].sum()) if observed else 1.0
    # Rounding must not give less than the two most extreme assignments.
    return min(1.0, max(tail, 2.0 ** (1 - min(int(counts.sum()), 1000))))


def bootstrap_interval(sums: np.ndarray, sizes: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Compute a 95% interval of the difference of accuracies by resampling groups.

    Args:
        sums: float [groups], difference of the photos classified correctly.
        sizes: int [groups], photos.
    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, 13.3 (percentile interval).
    """
    pairs, counts = np.unique(np.stack([sums, sizes.astype(float)]), axis=1, return_counts=True)
    values = np.concatenate((pairs[0], [value for value, _ in PSEUDO_PHOTOS]))
    photos = np.concatenate((pairs[1], np.ones(len(PSEUDO_PHOTOS))))
    weights = np.concatenate((counts.astype(float), [weight for _, weight in PSEUDO_PHOTOS]))
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(round(weights.sum()), weights / weights.sum(), size=BOOTSTRAP_DRAWS)
    low, high = np.quantile((draws @ values) / (draws @ photos), (0.025, 0.975))
    return float(low), float(high)


def forecast_photos_needed(sums: np.ndarray, sizes: np.ndarray, comparisons: int = 1) -> int | None:
    """Forecast how many test photos would show the difference with a probability of 80%.

    It assumes that the difference is really as large as on these photos, which is uncertain.

    Args:
        sums: float [groups], difference of the photos classified correctly.
        sizes: int [groups], photos.
        comparisons: that are made together, whose p-values are corrected.
    Returns:
        Two significant digits; None if the photos show no difference.
    """
    n, groups = int(sizes.sum()), len(sizes)
    difference = float(sums.sum()) / n
    if not difference or groups < 2:
        return None
    residuals = sums - difference * sizes
    standard_error = math.sqrt(groups / (groups - 1) * float(residuals @ residuals)) / n
    needed = n * ((_compute_quantile(comparisons) + POWER_QUANTILE) * standard_error / difference) ** 2
    digits = 10 ** max(0, len(str(math.ceil(needed))) - 2)
    return math.ceil(needed / digits) * digits


def _compute_quantile(comparisons: int) -> float:
    if comparisons == 1:
        return NORMAL_QUANTILE
    from scipy.special import ndtri

    return float(ndtri(1 - 0.025 / comparisons))


def sum_by_group(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum values by group.

    Args:
        values: int or float [photos].
        groups: int [photos], group numbers.
    Returns:
        The sums, float [groups], and the photos, int [groups].
    """
    _, numbers = np.unique(groups, return_inverse=True)
    return np.bincount(numbers, values), np.bincount(numbers)
