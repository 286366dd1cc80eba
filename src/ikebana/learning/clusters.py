"""How much less photos tell that belong together in groups."""

import numpy as np


def design_effect(values: np.ndarray, groups: np.ndarray) -> float:
    """How many times larger the variance of a mean over photos is than it would be if each photo stood for itself; at least 1.

    values  bool or float [photos]
    groups  whole numbers [photos]
    source  the variance of a ratio over clusters (Cochran, Sampling Techniques, 1977, 11.8)
    """
    (_, number), off = np.unique(groups, return_inverse=True), values - values.mean()
    several, alone = int(number.max()) + 1, float(off @ off)
    if not alone or several < 2:
        return 1.0
    together = np.bincount(number, off)
    return max(1.0, several / (several - 1) * float(together @ together) / alone)
