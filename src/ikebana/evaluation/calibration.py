"""Calibration of a network's confidence, and the threshold below which it is "not sure"."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ikebana.errors import PhotosError
from ikebana.evaluation import candidate_sets, error_guarantee
from ikebana.evaluation.candidate_sets import MIN_CALIBRATION_GROUPS, CandidateRule
from ikebana.evaluation.error_guarantee import Guarantee
from ikebana.evaluation.statistics import sort_descending

# A probability of 0 has no logarithm.
MIN_PROBABILITY = float(np.finfo(np.float32).tiny)
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
# With as many wrong groups of photos, the errors alone determine the temperature.
SUFFICIENT_ERRORS = 3
# Accuracy that the answers other than "not sure" should have.
TARGET_ACCURACY = 0.95
NO_THRESHOLD_SUMMARY = 'too few validation photos to know when to say "not sure", so every photo gets a label'
NO_THRESHOLD_MESSAGE = (
    f"{NO_THRESHOLD_SUMMARY} (calibration takes half of them, and at least {MIN_CALIBRATION_GROUPS} independent ones)"
)
# Probability with which the candidate classes contain the true one.
DEFAULT_COVERAGE = 0.9
# Below this confidence, a label is more probably wrong than right.
MIN_THRESHOLD = 0.5


@dataclass(frozen=True)
class Calibration:
    """Temperature that divides the logits, threshold for "not sure", limits of the candidates.

    Above temperature 1 the network is over-confident. Threshold and candidates are None if the
    `photos` validation photos cannot determine them. The guarantee is None if the user asked for
    none.
    """

    temperature: float = 1.0
    threshold: float | None = None
    photos: int = 0
    candidates: CandidateRule | None = None
    guarantee: Guarantee | None = None

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Divide the logits by the temperature: probabilities [photos, classes].

        Temperature 1 changes no bit. No temperature changes which class is the most probable.
        """
        if self.temperature == 1:
            return probabilities
        from scipy.special import softmax

        logits = np.log(np.maximum(probabilities, MIN_PROBABILITY)) / self.temperature
        return softmax(logits, axis=1).astype(probabilities.dtype)


def calibrate(
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    coverage: float = DEFAULT_COVERAGE,
    at_most_wrong: float | None = None,
    is_known: np.ndarray | None = None,
) -> Calibration:
    """Calibrate on photos used neither for training nor model selection.

    Args:
        probabilities: float [photos, classes].
        labels: class indices [photos].
        groups: a number per photo; None if each photo is its own group. Ten copies of a photo, or
            ten photos of one subject, are hardly more informative than one.
        coverage: the probability with which the candidate classes contain the true one.
        at_most_wrong: the share of wrong answers that the threshold should guarantee; None for the
            threshold of `choose_threshold`.
        is_known: bool [photos], whether a photo is familiar enough to be answered; None if all are.
    Returns:
        Temperature 1, no threshold and no candidates if there are fewer than 20 groups or only one
        class.
    """
    group_count = len(labels) if groups is None else len(np.unique(groups))
    if group_count < MIN_CALIBRATION_GROUPS or len(np.unique(labels)) < 2:
        guarantee = None if at_most_wrong is None else _refuse(group_count, at_most_wrong)
        return Calibration(photos=len(labels), guarantee=guarantee)
    temperature = fit_temperature(np.log(np.maximum(probabilities, MIN_PROBABILITY)), labels, groups)
    calibration = Calibration(temperature, photos=len(labels))
    calibrated = calibration.apply(probabilities)
    return set_threshold(
        calibration, calibrated, labels, groups, coverage=coverage, at_most_wrong=at_most_wrong, is_known=is_known
    )


def set_threshold(
    calibration: Calibration,
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None,
    *,
    coverage: float,
    at_most_wrong: float | None,
    is_known: np.ndarray | None = None,
) -> Calibration:
    """Choose threshold and candidates for calibrated probabilities; see `calibrate`."""
    threshold, guarantee = None, None
    # A photo that is unlike the training photos gets no answer, so it cannot be a wrong one.
    known = np.ones(len(labels), bool) if is_known is None else is_known
    answerable = probabilities[known], labels[known], None if groups is None else groups[known]
    if at_most_wrong is not None:
        threshold, guarantee = error_guarantee.guarantee_threshold(*answerable, at_most_wrong)
    if threshold is None:
        threshold = choose_threshold(*answerable)
    threshold = max(MIN_THRESHOLD, threshold)
    candidates = candidate_sets.choose_rule(probabilities, labels, groups, threshold, coverage)
    return replace(calibration, threshold=threshold, candidates=candidates, guarantee=guarantee)


def _refuse(group_count: int, at_most_wrong: float) -> Guarantee:
    reason = error_guarantee.describe_shortage(group_count, at_most_wrong)
    return Guarantee(at_most_wrong, False, reason or "all calibration photos are of one class")


def fit_temperature(logits: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Fit the temperature with which 80% confidence is right 80% of the time.

    The order of the classes, and so accuracy, does not change. If no photo was wrong, an error is
    assumed for the next one, as `compute_assumed_error` describes. A few right answers then do not
    make a network infallible.

    Args:
        logits: float [photos, classes], of photos the network was not trained on.
        labels: class indices [photos].
        groups: a number per photo; None if each photo is its own group.
    Returns:
        Between 0.05 and 20; above 1 the network is over-confident.
    Raises:
        PhotosError: all photos are of one class.
    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2; Platt 1999, section 2.2.
    """
    from scipy.optimize import minimize_scalar

    if len(np.unique(labels)) < 2:
        raise PhotosError(
            f"all {len(labels)} validation photos are of one class, so confidence cannot be calibrated",
            advice="use a larger validation split: --split-fractions 0.6,0.2,0.2",
        )
    exact = logits.astype(np.float64)
    error_rate = compute_assumed_error(exact.argmax(1) != labels, groups)
    targets = np.full(exact.shape, error_rate / (exact.shape[1] - 1))
    targets[np.arange(len(labels)), labels] = 1 - error_rate

    def cross_entropy(log_temperature: float) -> float:
        scaled = exact / np.exp(log_temperature)
        scaled -= scaled.max(1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(1)) - (targets * scaled).sum(1)).mean())

    # Cross-entropy is convex in 1 / temperature, so a bounded search finds its only minimum.
    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    minimum: Any = minimize_scalar(cross_entropy, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    return float(np.exp(minimum.x))


def compute_assumed_error(is_wrong: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Compute the share of each photo's target that the other classes get.

    Without any error, no temperature is too low. Platt's targets then assume one error among n
    photos: after n right answers, the next is right with probability (n + 1) / (n + 2). They spread
    that error over all photos, the surest too, where it costs most. It would outweigh errors that
    occurred, and make the network under-confident. So it gets smaller with each of these.

    Args:
        is_wrong: bool [photos].
        groups: a number per photo; None if each photo is its own group. n counts groups.
    Source: Platt 1999, section 2.2, if no photo is wrong.
    """
    _, numbers = np.unique(np.arange(len(is_wrong)) if groups is None else groups, return_inverse=True)
    sizes = np.bincount(numbers)
    wrong_groups = float((np.bincount(numbers, is_wrong) / sizes).sum())
    return max(0.0, 1 - wrong_groups / SUFFICIENT_ERRORS) / (len(sizes) + 2)


def choose_threshold(probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Choose the lowest confidence from which 95% of answers are expected to be right.

    If r of n answers were right, the next is right with probability (r + 1) / (n + 2). The observed
    share would be optimistic, because the luckiest of all thresholds is taken. So at least 18
    answers are needed. If no threshold reaches 95%, it is the median confidence.

    Args:
        probabilities: float [photos, classes], calibrated.
        labels: class indices [photos].
        groups: a number per photo; n counts the groups among the answers. None to count photos.
    Returns:
        At least 0.5.
    """
    confidence, is_right = probabilities.max(1), probabilities.argmax(1) == labels
    order, is_end = sort_descending(confidence)
    accuracy = np.cumsum(is_right[order]) / np.arange(1, len(order) + 1)
    is_new_group = np.zeros(len(order), bool)
    sorted_groups = (np.arange(len(order)) if groups is None else groups)[order]
    is_new_group[np.unique(sorted_groups, return_index=True)[1]] = True
    n = np.cumsum(is_new_group)
    good = np.flatnonzero(((accuracy * n + 1) / (n + 2) >= TARGET_ACCURACY) & is_end)
    last = good[-1] if len(good) else len(order) // 2
    # All photos may be answered.
    if last == len(order) - 1:
        return MIN_THRESHOLD
    return float(max(MIN_THRESHOLD, confidence[order[last]]))


def from_json(values: Mapping[str, Any]) -> Calibration:
    """Read the calibration from a run's `calibration.json`.

    Raises:
        ValueError: a value is missing or out of range.
    """
    try:
        threshold = None if values["threshold"] is None else float(values["threshold"])
        candidates = candidate_sets.from_json(values.get("candidates"))
        guarantee = error_guarantee.from_json(values.get("guarantee"))
        temperature, photos = float(values["temperature"]), int(values["photos"])
        calibration = Calibration(temperature, threshold, photos, candidates, guarantee)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not 0 < calibration.temperature < float("inf") or (threshold is not None and not 0 <= threshold <= 1):
        raise ValueError(f"temperature {calibration.temperature}, threshold {threshold}")
    return calibration
