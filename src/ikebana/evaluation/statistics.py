"""Statistics of grouped photos: design effect, effective sample size, Wilson interval, ties."""

import math

import numpy as np


def compute_design_effect(values: np.ndarray, groups: np.ndarray) -> float:
    """Compute the variance of the mean relative to that of independent photos; at least 1.

    Args:
        values: bool or float [photos].
        groups: int [photos], group numbers.
    Source: Cochran, Sampling Techniques, 1977, 11.8 (variance of a ratio over clusters).
    """
    (_, numbers), deviations = np.unique(groups, return_inverse=True), values - values.mean()
    count, independent = int(numbers.max()) + 1, float(deviations @ deviations)
    if not independent or count < 2:
        return 1.0
    group_sums = np.bincount(numbers, deviations)
    return max(1.0, count / (count - 1) * float(group_sums @ group_sums) / independent)


def sort_descending(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort in descending order and mark where a selection may end.

    Args:
        scores: float [photos].
    Returns:
        The photos, the highest score first, and bool [photos]: whether no later one has the same
        score.
    """
    order = np.argsort(-scores, kind="stable")
    return order, np.append(np.diff(scores[order]) != 0, True)


# 97.5% quantile of the standard normal distribution.
NORMAL_QUANTILE = 1.959963984540054


def effective_sample_size(values: np.ndarray, groups: np.ndarray) -> float:
    """Return the number of independent photos that would give the same precision.

    Photos of one plant, patient or film tend to be right or wrong together. With fewer groups, the
    variance between groups is also known less precisely.

    Args:
        values: bool [photos], which are right; or float [photos], the share of runs that are right.
        groups: int [photos].
    Source: variance of a ratio over clusters, Cochran 1977, Sampling Techniques, 11.8. Korn and
        Graubard 1998, Survey Methodology 24, divide n by the design effect and by the square of
        Student's t over the normal quantile.
    """
    n, group_count = len(values), len(np.unique(groups))
    # Without any difference, the variance between groups is unknown.
    if group_count in (1, n) or values.min() == values.max():
        return float(group_count)
    from scipy.special import stdtrit

    t_quantile = stdtrit(group_count - 1, 0.975)
    return max(1.0, n / compute_design_effect(values, groups) * (NORMAL_QUANTILE / float(t_quantile)) ** 2)


def wilson_interval(right: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95% interval of an accuracy, which stays within 0 and 1."""
    share, spread = right / n, NORMAL_QUANTILE**2 / n
    middle = (share + spread / 2) / (1 + spread)
    reach = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return min(share, max(0.0, middle - reach)), max(share, min(1.0, middle + reach))


def adjust_p_values(p_values: np.ndarray) -> np.ndarray:
    """Correct p-values of several tests by Holm's method: float [tests].

    A test is significant if its corrected p-value is at most the level for all tests together.
    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    order, count = np.argsort(p_values, kind="stable"), len(p_values)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(np.maximum.accumulate((count - np.arange(count)) * p_values[order]), 1.0)
    return adjusted
