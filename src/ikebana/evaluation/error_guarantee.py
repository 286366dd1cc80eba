"""A threshold for "not sure" that guarantees a limit on the share of wrong answers.

Photos are sorted by confidence. Thresholds are tested one after the other, from the highest to the
lowest. A test passes if so few errors above the threshold would be improbable at the largest
allowed share of errors (binomial law). The first failure ends the sequence. The lowest threshold
that passed is chosen.

One failure among the most confident photos, such as a wrong label, would end a single sequence at
once. So there are two, which start at different numbers of answers and share the error probability. If
the first reaches the start of the second, it adds its share to it (fallback procedure).

The guarantee is exact if answers with less confidence are not right more often. Tests simulate
that, and the opposite.

Source: Angelopoulos et al. 2021, Learn then Test, arXiv:2110.01052, section 2; Wiens and Dmitrienko
2005, The fallback procedure (J. Biopharm. Stat. 15).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ikebana.evaluation.candidate_sets import MIN_CALIBRATION_GROUPS, select_one_per_group
from ikebana.evaluation.statistics import sort_descending
from ikebana.system.percentages import format_share

# The guarantee holds with this probability, over the draw of the calibration photos.
GUARANTEE_CONFIDENCE = 0.9
# The shares of the photos at which sequences of tests start.
START_SHARES = (0.1, 0.5)


@dataclass(frozen=True)
class Guarantee:
    """Whether at most `at_most_wrong` of the answers are wrong, and why not.

    Attributes:
        at_most_wrong: the share of wrong answers that the user allows.
        holds: whether the threshold has the guarantee.
        reason: why it has not; otherwise "".
        confidence: with what probability it holds, over the draw of the calibration photos.
    """

    at_most_wrong: float
    holds: bool
    reason: str = ""
    confidence: float = GUARANTEE_CONFIDENCE

    def describe(self) -> str:
        """Describe it in one line."""
        if not self.holds:
            return f"{self.reason}; the threshold has no guarantee"
        return f"at most {format_share(self.at_most_wrong)} of all answers are wrong, with {self.confidence:.0%} confidence"


def count_needed_answers(max_error: float, error_probability: float = 1 - GUARANTEE_CONFIDENCE) -> int:
    """Return how many right answers, without a wrong one, show at most `max_error`."""
    return math.ceil(round(math.log(error_probability) / math.log1p(-max_error), 6))


def count_groups_for_guarantee(max_error: float) -> int:
    """Return how many independent calibration photos the guarantee needs at least."""
    return max(MIN_CALIBRATION_GROUPS, count_needed_answers(max_error))


def describe_shortage(group_count: int, max_error: float) -> str:
    """Describe why so few independent photos cannot give the guarantee; empty if they may."""
    needed = count_groups_for_guarantee(max_error)
    if group_count >= needed:
        return ""
    photos = "1 independent photo" if group_count == 1 else f"{group_count} independent photos"
    return (
        f"at most {format_share(max_error)} wrong answers cannot be guaranteed: calibration has {photos} "
        f"and needs at least {needed}"
    )


def find_lowest_limit(group_count: int) -> float | None:
    """Return the lowest share of wrong answers that can be guaranteed, rounded up to 0.1%.

    None if so few photos can guarantee none.
    """
    if group_count < MIN_CALIBRATION_GROUPS:
        return None
    limit = 1 - (1 - GUARANTEE_CONFIDENCE) ** (1 / group_count)
    return math.ceil(1000 * limit - 1e-6) / 1000


def find_guaranteed_threshold(
    probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray | None, max_error: float
) -> float | None:
    """Find the lowest confidence from which at most `max_error` of the answers are wrong.

    Args:
        probabilities: float [photos, classes], calibrated.
        labels: class indices [photos].
        groups: int [photos]; one photo per group counts.
        max_error: the largest allowed share of wrong answers, between 0 and 1.
    Returns:
        A confidence; None if no threshold has the guarantee.
    """
    from scipy.special import bdtr

    chosen = select_one_per_group(groups, len(labels))
    confidence = probabilities[chosen].max(1)
    order, is_end = sort_descending(confidence)
    wrong = np.cumsum((probabilities[chosen].argmax(1) != labels[chosen])[order])
    # The probability of so few errors if exactly `max_error` of the answers were wrong.
    p_values = bdtr(wrong, np.arange(1, len(order) + 1), max_error)
    starts, level, last = plan_starts(len(order), max_error), 0.0, None
    for index, (p_value, may_end) in enumerate(zip(p_values, is_end, strict=True)):
        level += starts.get(index + 1, 0.0)
        if level and may_end:
            level, last = (level, index) if p_value <= level else (0.0, last)
    return None if last is None else float(confidence[order[last]])


def plan_starts(count: int, max_error: float) -> dict[int, float]:
    """Plan where the sequences of tests start: number of answers → error probability.

    Args:
        count: the number of independent photos.
    """
    error_probability = 1 - GUARANTEE_CONFIDENCE
    shared = error_probability / len(START_SHARES)
    first = count_needed_answers(max_error, shared)
    if first > count:
        return {count_needed_answers(max_error): error_probability}
    starts: dict[int, float] = {}
    for share in START_SHARES:
        start = max(first, math.ceil(share * count))
        starts[start] = starts.get(start, 0.0) + shared
    return starts


def guarantee_threshold(
    probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray | None, max_error: float
) -> tuple[float | None, Guarantee]:
    """Return the threshold with the guarantee, or None and the reason why there is none.

    The arguments are those of `find_guaranteed_threshold`.
    """
    group_count = len(labels) if groups is None else len(np.unique(groups))
    if shortage := describe_shortage(group_count, max_error):
        return None, Guarantee(max_error, False, shortage)
    threshold = find_guaranteed_threshold(probabilities, labels, groups, max_error)
    if threshold is not None:
        return threshold, Guarantee(max_error, True)
    reason = (
        f"at most {format_share(max_error)} wrong answers cannot be guaranteed: "
        f"the {group_count} independent calibration photos show it for no threshold"
    )
    return None, Guarantee(max_error, False, reason)


def from_json(values: Mapping[str, Any] | None) -> Guarantee | None:
    """Read a guarantee from a run's JSON files; ValueError if it is damaged."""
    try:
        return None if values is None else Guarantee(**values)
    except TypeError as error:
        raise ValueError(str(error)) from None
