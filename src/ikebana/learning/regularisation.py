"""Selection of the regularisation of a linear head."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Result = TypeVar("Result")


def select_regularisation(
    grid: Sequence[float], evaluate: Callable[[float], tuple[float, Result]], patience: int | None = None
) -> tuple[float, Result]:
    """Return the inverse L2 strength with the lowest loss, and its result.

    Args:
        grid: inverse L2 strengths in the order of trial; of equal losses the first one wins.
        evaluate: computes the loss at a strength, and a result to keep if it is the best.
        patience: worse strengths in a row after which the others are not tried; None to try all.
    """
    (lowest_loss, result), best, worse = evaluate(grid[0]), grid[0], 0
    for inverse_l2 in grid[1:]:
        if worse == patience:
            break
        loss, candidate = evaluate(inverse_l2)
        worse += 1
        if loss < lowest_loss:
            lowest_loss, result, best, worse = loss, candidate, inverse_l2, 0
    return best, result
