"""Scores of predictions: accuracy with its interval, per class, confusion matrix, calibration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from ikebana.evaluation import coverage as candidate_coverage
from ikebana.evaluation import (
    cross_validation,
    leakage,
    learning_curves,
    risk_coverage,
    robustness,
    slices,
    unknown_objects,
)
from ikebana.evaluation.calibration import NO_THRESHOLD_MESSAGE, Calibration
from ikebana.evaluation.coverage import CandidateScores, score_candidates
from ikebana.evaluation.cross_validation import CrossValidation
from ikebana.evaluation.leakage import Leakage
from ikebana.evaluation.learning_curves import LearningCurve
from ikebana.evaluation.risk_coverage import RiskCoverage, trace_curve
from ikebana.evaluation.robustness import Robustness
from ikebana.evaluation.slices import Slices
from ikebana.evaluation.statistics import effective_sample_size, wilson_interval
from ikebana.evaluation.unknown_objects import UnknownObjects

# As in Guo et al. 2017 (arXiv:1706.04599).
CONFIDENCE_BINS = 15
# The effective sample size is mentioned if it is at most this share of the test photos.
MAX_MENTIONED_SHARE = 0.9
# An accuracy whose interval is wider than this is called uncertain.
MAX_INTERVAL_WIDTH = 0.3
# Of the lower end of the interval. A weaker network contradicts too many right labels, and is of little use.
MIN_USEFUL_ACCURACY = 0.6
# With fewer calibration photos, the threshold of "not sure" is a rough estimate (bench/threshold_spread.py).
MIN_CALIBRATION_PHOTOS = 200
# The longest name in scikit-learn's report.
WEIGHTED_AVERAGE = "weighted avg"
# The log loss clips lower probabilities, as in Keras.
MIN_LOG_LOSS_PROBABILITY = 1e-7

Part = TypeVar("Part")


@dataclass(frozen=True)
class PerClass:
    """Scores of one class: 0 where the divisor is 0, as in scikit-learn's report."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Evaluation:
    """Scores of a network on test photos, which it was not trained on.

    Attributes:
        accuracy_interval: Wilson's 95% interval, for other photos and groups of the same kind.
        confusion: rows are the true classes, columns the predicted ones.
        balanced_accuracy: mean recall over the classes that have test photos.
        report: in scikit-learn's layout.
        note: what the reader must know to understand the score.
        threshold: the confidence below which the answer is "not sure".
        answered_share: share of the photos at or above the threshold.
        answered_accuracy: accuracy on these photos.
        leakage: None if it was not measured.
        n_effective: number of independent photos that would be as informative.
        slices: groups of test photos compared with the others; None if none was large enough.
        robustness: accuracy on changed test photos; None if it was not measured.
        cross_validation: scores over all photos; None if the recipe is not cross-validated.
        learning_curves: what more photos would bring; None if it was not measured.
        seconds: duration of each stage of the run.
        candidates: coverage of the candidate classes.
        risk_coverage: share of wrong answers as the threshold falls.
        unknown_objects: how often photos of something else are recognised as such.
        calibration_photos: validation photos that determined the threshold; None if not recorded.
    """

    accuracy: float
    accuracy_interval: tuple[float, float]
    n: int
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    per_class: Mapping[str, PerClass]
    balanced_accuracy: float
    log_loss: float
    expected_calibration_error: float
    report: str
    note: str = ""
    threshold: float | None = None
    answered_share: float | None = None
    answered_accuracy: float | None = None
    leakage: Leakage | None = None
    n_effective: float | None = None
    slices: Slices | None = None
    robustness: Robustness | None = None
    cross_validation: CrossValidation | None = None
    learning_curves: tuple[LearningCurve, ...] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    candidates: CandidateScores | None = None
    risk_coverage: RiskCoverage | None = None
    unknown_objects: UnknownObjects | None = None
    calibration_photos: int | None = None

    @property
    def is_threshold_rough(self) -> bool:
        """Whether too few photos determined the threshold for a good estimate."""
        return (
            self.threshold is not None
            and self.calibration_photos is not None
            and self.calibration_photos < MIN_CALIBRATION_PHOTOS
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `evaluation.json`."""
        values = asdict(self)
        del values["report"]
        return values

    def __repr__(self) -> str:
        headline, *notes = self.describe_lines()
        note = "".join(f"{line}\n" for line in notes)
        return f"{headline}\n{note}\n{self.report}"

    def describe_lines(self) -> list[str]:
        """Return the accuracy, and what the reader must know to understand it."""
        low, high = self.accuracy_interval
        notes = (
            self.cross_validation.describe() if self.cross_validation is not None else "",
            *(curve.describe() for curve in self.learning_curves or ()),
            self._describe_uncertainty(),
            self._describe_untested(),
            self._describe_answers(),
            self.risk_coverage.describe() if self.risk_coverage is not None else "",
            self._describe_candidates(),
            self.unknown_objects.describe() if self.unknown_objects is not None else "",
            self._describe_leakage(),
            self.slices.describe() if self.slices is not None else "",
            self.robustness.describe() if self.robustness is not None else "",
            self.note,
        )
        is_mentioned = self.n_effective is not None and self.n_effective <= MAX_MENTIONED_SHARE * self.n
        worth = self._describe_sample_size() if is_mentioned else ""
        headline = f"accuracy {self.accuracy:.3f} ({low:.3f} to {high:.3f}) on {self.n} test photos{worth}"
        return [headline, *(line for line in notes if line)]

    def _describe_sample_size(self) -> str:
        return f" in groups, equivalent to {self.n_effective:.0f} independent photos"

    def _describe_uncertainty(self) -> str:
        low, high = self.accuracy_interval
        if high - low <= MAX_INTERVAL_WIDTH:
            return ""
        return f"too few test photos for a meaningful score: the accuracy may be anywhere from {low:.0%} to {high:.0%}"

    def _describe_untested(self) -> str:
        names = [name for name, scores in self.per_class.items() if not scores.support]
        classes = "this class" if len(names) == 1 else "these classes"
        return f"no test photos of {' and '.join(names)}: the score does not cover {classes}" if names else ""

    def _describe_answers(self) -> str:
        if self.threshold is None or self.answered_share is None:
            return NO_THRESHOLD_MESSAGE
        right = f" and is right in {self.answered_accuracy:.1%} of those" if self.answered_accuracy is not None else ""
        rest = f'"not sure" below confidence {self.threshold:.3g}'
        answers = f"gives an answer for {self.answered_share:.1%} of the test photos{right}; says {rest}"
        if not self.is_threshold_rough:
            return answers
        return f"{answers}\n  (a rough estimate from {self.calibration_photos} photos; more validation photos make it reliable)"

    def _describe_candidates(self) -> str:
        # Without a threshold there are no candidates either, for the same reason.
        return self.candidates.describe() if self.candidates is not None and self.threshold is not None else ""

    def _describe_leakage(self) -> str:
        return self.leakage.describe(self.accuracy_interval) if self.leakage is not None else ""

    def _repr_html_(self) -> str:
        from ikebana.evaluation.evaluation_view import render_evaluation

        return render_evaluation(self)


def from_json(values: Mapping[str, Any], report: str) -> Evaluation:
    """Read an evaluation that `to_json` wrote.

    Raises:
        ValueError: a value is missing or of the wrong type.
    """
    try:
        low, high = map(float, values["accuracy_interval"])
        return Evaluation(
            **{
                **values,
                "accuracy": float(values["accuracy"]),
                "accuracy_interval": (low, high),
                "n": int(values["n"]),
                "classes": tuple(values["classes"]),
                "confusion": tuple(tuple(row) for row in values["confusion"]),
                "per_class": {name: PerClass(**scores) for name, scores in values["per_class"].items()},
                "leakage": leakage.from_json(values["leakage"]) if values["leakage"] is not None else None,
                "slices": _read_optional(values, "slices", slices.from_json),
                "robustness": _read_optional(values, "robustness", robustness.from_json),
                "candidates": _read_optional(values, "candidates", candidate_coverage.from_json),
                "risk_coverage": _read_optional(values, "risk_coverage", risk_coverage.from_json),
                "cross_validation": _read_optional(values, "cross_validation", cross_validation.from_json),
                "unknown_objects": _read_optional(values, "unknown_objects", unknown_objects.from_json),
                "learning_curves": _read_optional(values, "learning_curves", learning_curves.all_from_json),
            },
            report=report,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _read_optional(values: Mapping[str, Any], name: str, read: Callable[[Any], Part]) -> Part | None:
    """Read a part of an evaluation; None if it is null or missing."""
    return read(values[name]) if values.get(name) is not None else None


def evaluate(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    note: str = "",
    threshold: float | None = None,
    leakage: Leakage | None = None,
    groups: np.ndarray | None = None,
) -> Evaluation:
    """Score the predictions of photos that were never used for model selection.

    Args:
        probabilities: float [photos, classes], rows sum to 1.
        labels: class indices [photos]; at least one photo.
        classes: class names.
        note: what the reader must know to understand the score.
        threshold: the confidence below which the answer is "not sure"; None if there is none.
        leakage: the measured leakage; None if it was not measured.
        groups: int [photos], photos of one group are not independent; None if all are.
    """
    predicted = probabilities.argmax(1)
    right = int((predicted == labels).sum())
    n_effective = float(len(labels)) if groups is None else effective_sample_size(predicted == labels, groups)
    confusion = _count_confusion(labels, predicted, len(classes))
    per_class = _score_classes(confusion, classes)
    sure, sure_accuracy = score_answered(probabilities, labels, threshold) if threshold is not None else (None, None)
    return Evaluation(
        accuracy=right / len(labels),
        accuracy_interval=wilson_interval(right / len(labels) * n_effective, n_effective),
        n=len(labels),
        classes=tuple(classes),
        confusion=tuple(tuple(int(number) for number in row) for row in confusion),
        per_class=per_class,
        balanced_accuracy=float(np.mean([scores.recall for scores in per_class.values() if scores.support])),
        log_loss=log_loss(probabilities, labels),
        expected_calibration_error=calibration_error(probabilities, labels),
        report=classification_report(per_class, right / len(labels)),
        note=note,
        threshold=threshold,
        answered_share=sure,
        answered_accuracy=sure_accuracy,
        leakage=leakage,
        n_effective=n_effective,
    )


def score_confidence(
    evaluation: Evaluation,
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    calibration: Calibration,
    coverage: float,
    is_known: np.ndarray | None = None,
) -> Evaluation:
    """Add the scores of threshold and candidates to an evaluation of the same photos.

    Args:
        probabilities: float [photos, classes], calibrated.
        labels: class indices [photos].
        groups: int [photos]; None if all photos are independent.
        coverage: the requested coverage of the candidates.
        is_known: bool [photos], whether a photo is familiar enough to be answered; None if all are.
    """
    threshold, share, accuracy = calibration.threshold, None, None
    if threshold is not None:
        share, accuracy = score_answered(probabilities, labels, threshold, is_known)
    return replace(
        evaluation,
        threshold=threshold,
        calibration_photos=calibration.photos,
        answered_share=share,
        answered_accuracy=accuracy,
        candidates=score_candidates(
            probabilities,
            labels,
            groups,
            classes=evaluation.classes,
            calibration=calibration,
            coverage=coverage,
            is_known=is_known,
        ),
        risk_coverage=trace_curve(probabilities, labels, calibration.guarantee),
    )


def _count_confusion(labels: np.ndarray, predicted: np.ndarray, class_count: int) -> np.ndarray:
    """Count photos per true class (row) and predicted class (column)."""
    cells = np.bincount(labels * class_count + predicted, minlength=class_count * class_count)
    return cells.reshape(class_count, class_count)


def _score_classes(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, PerClass]:
    right, predicted, support = (
        counts.astype(float) for counts in (confusion.diagonal(), confusion.sum(0), confusion.sum(1))
    )
    columns = [
        np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
        for numerator, denominator in ((right, predicted), (right, support), (2 * right, predicted + support))
    ]
    rows = zip(classes, *(column.tolist() for column in columns), support.tolist(), strict=True)
    return {name: PerClass(precision, recall, f1, int(support)) for name, precision, recall, f1, support in rows}


def classification_report(per_class: Mapping[str, PerClass], accuracy: float) -> str:
    """Format precision, recall, F1 and support of each class exactly like scikit-learn.

    Importing scikit-learn for this alone would take a tenth of a run on cached features.
    """
    scores = np.array([(row.precision, row.recall, row.f1) for row in per_class.values()])
    # Contiguous columns, as in scikit-learn: another order of summation rounds 0.375 differently.
    columns = scores.T.copy()
    support = np.array([row.support for row in per_class.values()])
    total = int(support.sum())
    width = max(len(WEIGHTED_AVERAGE), *map(len, per_class))

    def format_row(name: str, values: np.ndarray, count: int) -> str:
        return f"{name:>{width}} " + "".join(f" {value:>9.2f}" for value in values) + f" {count:>9}\n"

    weighted = np.array([np.average(column, weights=support) for column in columns])
    return (
        f"{'':>{width}} "
        + "".join(f" {name:>9}" for name in ("precision", "recall", "f1-score", "support"))
        + "\n\n"
        + "".join(format_row(name, row, count) for name, row, count in zip(per_class, scores, support, strict=True))
        + f"\n{'accuracy':>{width}} {'':>20}"
        + format_row("", np.array([accuracy]), total)[width + 1 :]
        + format_row("macro avg", np.array([np.average(column) for column in columns]), total)
        + format_row(WEIGHTED_AVERAGE, weighted, total)
    )


def score_answered(
    probabilities: np.ndarray, labels: np.ndarray, threshold: float, is_known: np.ndarray | None = None
) -> tuple[float, float | None]:
    """Return the share of answered photos and the accuracy on them.

    The accuracy is None if no photo is answered.

    Args:
        is_known: bool [photos], whether a photo is familiar enough to be answered; None if all are.
    """
    is_sure = probabilities.max(1) >= threshold
    if is_known is not None:
        is_sure &= is_known
    is_right = probabilities.argmax(1) == labels
    return float(is_sure.mean()), float(is_right[is_sure].mean()) if is_sure.any() else None


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy in nats: 0 is perfect, log(classes) is guessing."""
    given = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(given, MIN_LOG_LOSS_PROBABILITY)).mean())


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the expected calibration error, with bins of equal width.

    Source: Guo et al. 2017, arXiv:1706.04599, section 2.
    """
    confidence = probabilities.max(1)
    is_right = probabilities.argmax(1) == labels
    bins = np.minimum((confidence * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    gaps = np.bincount(bins, confidence - is_right, CONFIDENCE_BINS)
    return float(np.abs(gaps).sum() / len(labels))
