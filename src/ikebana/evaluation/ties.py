"""Sort photos by score so that ties are taken together or not at all."""

import numpy as np


def descending(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort in descending order and mark where a selection may end.

    Args:
        scores: float [photos].
    Returns:
        The photos, the highest score first, and bool [photos]: whether no later one has the same
        score.
    """
    order = np.argsort(-scores, kind="stable")
    return order, np.append(np.diff(scores[order]) != 0, True)
