"""Probabilities + labels → Evaluation: accuracy with its interval, per class, confusion, calibration."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ikebana.learning.clusters import design_effect
from ikebana.trust import leakage
from ikebana.trust.calibration import NO_THRESHOLD
from ikebana.trust.leakage import Leakage

BINS = 15  # of confidence, as Guo et al. 2017 (arXiv:1706.04599) use
NORMAL = 1.959963984540054  # standard deviations on either side that hold 95 % of a normal distribution
NEARLY = 0.9  # of the test photos: if they tell as much as so many would by themselves, nothing is said of it
WEIGHTED = "weighted avg"  # the longest name in scikit-learn's report
SURE_OF_NOTHING = 1e-7  # a probability below this costs no more than this in the log loss (Keras clips there too)


@dataclass(frozen=True)
class PerClass:
    """How one class fared. Each is 0 where it would divide by nothing, as in scikit-learn's report."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Evaluation:
    """How good a network is on photos that it has never seen."""

    accuracy: float
    accuracy_interval: tuple[
        float, float
    ]  # 95 %, Wilson: what other photos, and other groups, of the same kind would give
    n: int
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]  # rows are the truth, columns the prediction
    per_class: Mapping[str, PerClass]
    balanced_accuracy: float  # mean recall over the classes that have test photos
    log_loss: float
    expected_calibration_error: float
    report: str  # in scikit-learn's layout
    note: str = ""  # what one must know to read the score rightly
    threshold: float | None = None  # the confidence below which the answer is "not sure"
    answered: float | None = None  # share of the photos at or above it
    answered_accuracy: float | None = None  # of those
    leakage: Leakage | None = None  # how much of the score may be memory; None if nobody looked
    n_effective: float | None = None  # how many photos that have nothing to do with each other would tell as much
    seconds: Mapping[str, float] = field(default_factory=dict)  # that each stage of the run took; told when it ends

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `evaluation.json`."""
        values = asdict(self)
        del values["report"]
        return values

    def __repr__(self) -> str:
        low, high = self.accuracy_interval
        note = "".join(f"{line}\n" for line in (self._untested(), self._answers(), self._memory(), self.note) if line)
        worth = "" if self.n_effective is None or self.n_effective > NEARLY * self.n else self._worth()
        return f"accuracy {self.accuracy:.3f} ({low:.3f} to {high:.3f}) on {self.n} test photos{worth}\n{note}\n{self.report}"

    def _worth(self) -> str:
        """What the photos tell, in words, where they belong together in groups."""
        return f", in groups whose photos fare alike: they tell as much as {self.n_effective:.0f} would by themselves"

    def _untested(self) -> str:
        """The classes of which no photo was tested, in words; nothing if there are none."""
        names = [name for name, each in self.per_class.items() if not each.support]
        return f"no photo of {' and '.join(names)} was tested: the score says nothing of them" if names else ""

    def _answers(self) -> str:
        """What saying "not sure" changes, in words."""
        if self.threshold is None or self.answered is None:
            return NO_THRESHOLD
        right = f", right in {self.answered_accuracy:.1%} of these" if self.answered_accuracy is not None else ""
        return f"sure (confidence {self.threshold:.2f} or more) of {self.answered:.1%} of them{right}"

    def _memory(self) -> str:
        """What twins do to the score, in words; nothing if there are none."""
        return repr(self.leakage) if self.leakage is not None else ""

    def _repr_html_(self) -> str:
        import html

        return f"<pre>{html.escape(repr(self))}</pre>"


def from_json(values: Mapping[str, Any], report: str) -> Evaluation:
    """The evaluation that `to_json` wrote.

    raises  ValueError if it is none
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
                "per_class": {name: PerClass(**each) for name, each in values["per_class"].items()},
                "leakage": leakage.from_json(values["leakage"]) if values["leakage"] is not None else None,
            },
            report=report,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def evaluate(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    note: str = "",
    threshold: float | None = None,
    leaked: Leakage | None = None,
    groups: np.ndarray | None = None,
) -> Evaluation:
    """Score the predictions of photos that were never used for a choice.

    probabilities  float [photos, classes], rows sum to 1
    labels         class indices [photos]; at least one photo
    note           what one must know to read the score rightly
    threshold      the confidence below which the answer is "not sure", if it may be
    leaked         how much of the score may be memory, if somebody looked
    groups         whole numbers [photos]: those of one group belong together; None if each stands for itself
    """
    predicted = probabilities.argmax(1)
    right = int((predicted == labels).sum())
    worth = float(len(labels)) if groups is None else effective(predicted == labels, groups)
    confusion = _confusion(labels, predicted, len(classes))
    per_class = _class_by_class(confusion, classes)
    sure = answered(probabilities, labels, threshold) if threshold is not None else (None, None)
    return Evaluation(
        accuracy=right / len(labels),
        accuracy_interval=interval(right / len(labels) * worth, worth),
        n=len(labels),
        classes=tuple(classes),
        confusion=tuple(tuple(int(number) for number in row) for row in confusion),
        per_class=per_class,
        balanced_accuracy=float(np.mean([each.recall for each in per_class.values() if each.support])),
        log_loss=log_loss(probabilities, labels),
        expected_calibration_error=calibration_error(probabilities, labels),
        report=classification_report(per_class, right / len(labels)),
        note=note,
        threshold=threshold,
        answered=sure[0],
        answered_accuracy=sure[1],
        leakage=leaked,
        n_effective=worth,
    )


def _confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How often each class (a row) was called what (a column)."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def _class_by_class(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, PerClass]:
    """How each class fared."""
    right, called, truth = (each.astype(float) for each in (confusion.diagonal(), confusion.sum(0), confusion.sum(1)))
    some = [
        np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
        for part, whole in ((right, called), (right, truth), (2 * right, called + truth))
    ]
    rows = zip(classes, *(each.tolist() for each in some), truth.tolist(), strict=True)
    return {name: PerClass(precision, recall, f1, int(support)) for name, precision, recall, f1, support in rows}


def classification_report(per_class: Mapping[str, PerClass], accuracy: float) -> str:
    """Precision, recall, F1 and support of each class, in scikit-learn's layout, to the letter; importing it for this alone
    would take a tenth of a run on kept features."""
    scores = np.array([(each.precision, each.recall, each.f1) for each in per_class.values()])
    columns = scores.T.copy()  # averaged one by one, as there: sums taken in another order round 0.375 another way
    support = np.array([each.support for each in per_class.values()])
    whole = int(support.sum())
    width = max(len(WEIGHTED), *map(len, per_class))

    def row(name: str, values: np.ndarray, count: int) -> str:
        return f"{name:>{width}} " + "".join(f" {value:>9.2f}" for value in values) + f" {count:>9}\n"

    return (
        f"{'':>{width}} "
        + "".join(f" {name:>9}" for name in ("precision", "recall", "f1-score", "support"))
        + "\n\n"
        + "".join(row(name, line, count) for name, line, count in zip(per_class, scores, support, strict=True))
        + f"\n{'accuracy':>{width}} {'':>20}"
        + row("", np.array([accuracy]), whole)[width + 1 :]
        + row("macro avg", np.array([np.average(each) for each in columns]), whole)
        + row(WEIGHTED, np.array([np.average(each, weights=support) for each in columns]), whole)
    )


def answered(probabilities: np.ndarray, labels: np.ndarray, threshold: float) -> tuple[float, float | None]:
    """The share of photos of which the network is sure, and how often it is right there; None if it is sure of none."""
    sure = probabilities.max(1) >= threshold
    right = probabilities.argmax(1) == labels
    return float(sure.mean()), float(right[sure].mean()) if sure.any() else None


def effective(right: np.ndarray, groups: np.ndarray) -> float:
    """How many photos that have nothing to do with each other would tell the accuracy as exactly as these do.

    Photos of one plant, patient or film fare alike, so ten plants of thirty photos each are no three hundred plants. Fewer groups
    also tell less surely how far groups differ.

    right   bool [photos]
    groups  whole numbers [photos]
    source  the variance of a ratio over clusters (Cochran, Sampling Techniques, 1977, 11.8); Korn and Graubard, Survey
            Methodology 24 (1998), divide n by its design effect and by the square of Student's t over the normal's
    """
    n, several = len(right), len(np.unique(groups))
    if (
        several in (1, n) or right.all() or not right.any()
    ):  # nothing differs, so that nothing says how far groups would
        return float(several)
    from scipy.special import stdtrit

    student = stdtrit(several - 1, 0.975)  # standard deviations on either side that hold 95 %
    return max(1.0, n / design_effect(right, groups) * (NORMAL / float(student)) ** 2)


def interval(right: float, n: float) -> tuple[float, float]:
    """Where the accuracy on very many such photos lies, 95 times of 100 (Wilson's interval, which stays within 0 and 1)."""
    share, spread = right / n, NORMAL**2 / n
    middle = (share + spread / 2) / (1 + spread)
    reach = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return min(share, max(0.0, middle - reach)), max(share, min(1.0, middle + reach))


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean surprise at the truth, in nats: 0 is perfect, log(classes) is guessing."""
    given = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(given, SURE_OF_NOTHING)).mean())


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """How far "80 % sure" is from right 80 % of the time, on average over the photos.

    source  Guo et al. 2017, arXiv:1706.04599, section 2; bins of equal width
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, confidence - right, BINS)
    return float(np.abs(gaps).sum() / len(labels))
