"""The design effect: how much less information photos carry that come in groups."""

import numpy as np


def design_effect(values: np.ndarray, groups: np.ndarray) -> float:
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
