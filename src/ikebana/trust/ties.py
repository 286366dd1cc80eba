"""Photos in the order of a score, where those of equal score are taken together or not at all."""

import numpy as np


def descending(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where one may stop on the way down.

    scores   [photos]
    returns  the photos, the highest score first; and bool [photos]: whether no later one has the same score
    """
    order = np.argsort(-scores, kind="stable")
    return order, np.append(np.diff(scores[order]) != 0, True)
