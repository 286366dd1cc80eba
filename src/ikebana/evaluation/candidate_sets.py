"""Candidate classes of a photo: sets that contain the true class with a stated probability.

Classes are ranked by probability. The score of a class is the probability mass of the classes
ranked before it: 0 for the first. The candidates are the classes whose score is at most a limit,
which comes from photos with known classes (split conformal prediction). So there is always at least
one candidate, and a photo gets more of them where the network hesitates. A photo that is "not sure"
gets at least two, because one class is no alternative. More candidates only raise the coverage.

Only numpy is needed here: a program that loads a model file uses the same rule.

Source: Romano, Sesia and Candès 2020, arXiv:2006.02544, section 2.1 with u = 0; Angelopoulos and
Bates 2021, arXiv:2107.07511, sections 1 and 4.1 (limits per category).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# With fewer groups of photos, there are neither candidates nor a threshold.
MIN_CALIBRATION_GROUPS = 20
# The text of a run or a model file without candidates.
NO_CANDIDATES_MESSAGE = "too few validation photos to name candidate classes with the requested coverage"
# Probabilities in float32 may add up to slightly more than 1.
MAX_MASS = 1.01
# Of a photo that is "not sure", if there are as many classes.
MIN_UNSURE_CANDIDATES = 2


@dataclass(frozen=True)
class CandidateRule:
    """The limits that make candidate sets contain the true class with probability `coverage`."""

    # Of the photos that get a label, and of those that are "not sure".
    coverage: float
    # Largest probability mass ranked before a candidate, for photos that get a label.
    limit: float
    # The same for photos that are "not sure".
    unsure_limit: float

    def select(self, probabilities: Sequence[float], is_sure: bool) -> list[int]:
        """Select the candidates of one photo, the most probable first.

        Args:
            probabilities: [classes].
            is_sure: whether the photo gets a label.
        Returns:
            Class indices: at least one, or two without a label.
        """
        limit = self.limit if is_sure else self.unsure_limit
        min_count = 1 if is_sure else MIN_UNSURE_CANDIDATES
        candidates, mass = [], 0.0
        for index in sorted(range(len(probabilities)), key=lambda index: -probabilities[index]):
            if mass > limit and len(candidates) >= min_count:
                break
            candidates.append(index)
            mass += probabilities[index]
        return candidates


def score_classes(probabilities: np.ndarray) -> np.ndarray:
    """Compute the probability mass ranked before each class: float64 [photos, classes].

    Summed in the order of the ranks, as `CandidateRule.select` and the web page do, so that all of
    them compare the same number with the limit.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities.astype(np.float64), order, axis=1)
    before = np.zeros(ranked.shape)
    before[:, 1:] = np.cumsum(ranked, axis=1)[:, :-1]
    scores = np.empty(ranked.shape)
    np.put_along_axis(scores, order, before, axis=1)
    return scores


def are_candidates(probabilities: np.ndarray, rule: CandidateRule, is_sure: np.ndarray) -> np.ndarray:
    """Select the candidates of many photos, as `CandidateRule.select`: bool [photos, classes].

    Args:
        probabilities: float [photos, classes].
        is_sure: bool [photos], whether a photo gets a label.
    """
    limits = np.where(is_sure, rule.limit, rule.unsure_limit)
    min_counts = np.where(is_sure, 1, MIN_UNSURE_CANDIDATES)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
    return (score_classes(probabilities) <= limits[:, None]) | (ranks < min_counts[:, None])


def select_one_per_group(groups: np.ndarray | None, count: int) -> np.ndarray:
    """Select one photo of each group: row indices in ascending order.

    Photos of one group are not independent, so only one of them counts. A fixed seed draws it, since
    the first photo of a group may be the best one.

    Args:
        groups: int [photos]; None if each photo is its own group.
        count: the number of photos.
    """
    if groups is None:
        return np.arange(count)
    drawn = np.random.default_rng(0).permutation(count)
    _, first = np.unique(groups[drawn], return_index=True)
    return np.sort(drawn[first])


def count_needed_groups(coverage: float) -> int:
    """Return the number of independent photos from which a limit exists."""
    # Rounded, since 0.9 / (1 - 0.9) is 9.000000000000002.
    return math.ceil(round(coverage / (1 - coverage), 6))


def compute_limit(scores: np.ndarray, coverage: float) -> float | None:
    """Compute the limit that the next score does not exceed with probability `coverage`.

    Args:
        scores: float [photos], of the true classes of independent photos.
    Returns:
        The k-th smallest score, k = ceil((n + 1) coverage); None if there are too few.
    """
    if len(scores) < count_needed_groups(coverage):
        return None
    k = min(len(scores), math.ceil(round((len(scores) + 1) * coverage, 6)))
    return float(np.partition(scores, k - 1)[k - 1])


def choose_rule(
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None,
    threshold: float | None,
    coverage: float,
) -> CandidateRule | None:
    """Choose the limits on photos used neither for training nor model selection.

    Photos that get a label and photos that are "not sure" have limits of their own, so the coverage
    holds for both kinds. If one kind has too few photos, both share one limit, and the coverage
    holds for all photos together.

    Args:
        probabilities: float [photos, classes], calibrated.
        labels: class indices [photos].
        groups: int [photos]; one photo per group counts.
        threshold: the confidence below which a photo is "not sure"; None if none is.
    Returns:
        None if the photos are too few.
    """
    chosen = select_one_per_group(groups, len(labels))
    scores = score_classes(probabilities[chosen])[np.arange(len(chosen)), labels[chosen]]
    is_sure = probabilities[chosen].max(1) >= (0 if threshold is None else threshold)
    shared_limit = compute_limit(scores, coverage)
    if shared_limit is None:
        return None
    limit, unsure_limit = compute_limit(scores[is_sure], coverage), compute_limit(scores[~is_sure], coverage)
    if limit is None or unsure_limit is None:
        return CandidateRule(coverage, shared_limit, shared_limit)
    return CandidateRule(coverage, limit, unsure_limit)


def from_json(values: Mapping[str, Any] | None) -> CandidateRule | None:
    """Read the rule from JSON, possibly untrusted; None is the rule of too few photos.

    Raises:
        ValueError: a value is missing or out of range.
    """
    if values is None:
        return None
    try:
        numbers = [values[name] for name in ("coverage", "limit", "unsure_limit")]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if any(type(number) not in (int, float) or not 0 <= number <= MAX_MASS for number in numbers) or numbers[0] >= 1:
        raise ValueError("the limits of the candidates are out of range")
    return CandidateRule(*map(float, numbers))
