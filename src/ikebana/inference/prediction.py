"""The prediction for one photo, by a run's network or by an exported model file."""

from collections.abc import Sequence
from dataclasses import dataclass

from ikebana.evaluation.candidate_sets import CandidateRule

STATUS_OK = "ok"
NOT_SURE = "not sure"
# The photo is unlike the training photos.
UNKNOWN = "unknown"
# Classes that repr() shows for a prediction that is "not sure": at least and at most.
MIN_REPR_CLASSES, MAX_REPR_CLASSES = 2, 5


@dataclass(frozen=True, repr=False)
class Prediction:
    """The predicted class of a photo and its confidence, or why there is none."""

    # "" for a photo without a path.
    path: str
    # None if not sure, unlike the training photos, or unusable.
    label: str | None
    # The probability of the most probable class; 0 if the photo is unusable.
    confidence: float
    # The probability of each class; empty if the photo is unusable.
    probabilities: dict[str, float]
    # "ok", "not sure", "unknown", or the reason why the photo is unusable.
    status: str = STATUS_OK
    # The classes that contain the true one with a stated probability, the most probable first; empty
    # if the photo is unusable, or calibration had too few photos.
    candidates: tuple[str, ...] = ()
    # Share of known photos that resemble the training photos less, 0 to 1; None if the photo is
    # unusable, or calibration had too few photos.
    familiarity: float | None = None

    @property
    def closest_class(self) -> str | None:
        """The most probable class, also of a photo without a label; None if unusable."""
        return max(self.probabilities, key=self.probabilities.__getitem__) if self.is_usable else None

    @property
    def is_usable(self) -> bool:
        """Whether the photo could be classified."""
        return bool(self.probabilities)

    def __repr__(self) -> str:
        if self.label is not None:
            return f'Prediction("{self.label}", {self.confidence:.2f})'
        if not self.is_usable:
            return f"Prediction({self.status})"
        if self.status == UNKNOWN:
            return f'Prediction("{UNKNOWN}": unlike the training photos, closest to {self.closest_class})'
        count = min(max(len(self.candidates), MIN_REPR_CLASSES), MAX_REPR_CLASSES)
        top = sorted(self.probabilities.items(), key=lambda item: -item[1])[:count]
        return f'Prediction("{NOT_SURE}": {", ".join(f"{name} {value:.2f}" for name, value in top)})'

    def _repr_html_(self) -> str:
        from ikebana.inference.views import render_prediction

        return render_prediction(self)


def to_prediction(
    probabilities: Sequence[float],
    classes: Sequence[str],
    threshold: float | None = None,
    path: str = "",
    *,
    candidate_rule: CandidateRule | None = None,
    familiarity: float | None = None,
    familiarity_threshold: float | None = None,
) -> Prediction:
    """Turn the probabilities [classes] of one photo into a prediction.

    Args:
        threshold: the confidence below which the prediction is "not sure"; None if it never is.
        candidate_rule: selects the candidate classes; None if there are none.
        familiarity: how much the photo resembles the training photos, 0 to 1.
        familiarity_threshold: the familiarity below which the photo is unknown; None if none is.
    """
    values = [float(probability) for probability in probabilities]
    best = max(range(len(values)), key=values.__getitem__)
    is_sure = threshold is None or values[best] >= threshold
    label, status = (classes[best], STATUS_OK) if is_sure else (None, NOT_SURE)
    if familiarity is not None and familiarity_threshold is not None and familiarity < familiarity_threshold:
        label, status = None, UNKNOWN
    indices = candidate_rule.select(values, is_sure) if candidate_rule is not None else ()
    candidates = tuple(classes[index] for index in indices)
    by_class = dict(zip(classes, values, strict=True))
    return Prediction(path, label, values[best], by_class, status, candidates, familiarity)


def unusable_prediction(path: str, reason: str) -> Prediction:
    """Make the prediction for a photo that cannot be classified."""
    return Prediction(path, None, 0.0, {}, reason)
