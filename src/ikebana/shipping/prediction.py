"""What is said of one photo, whoever says it: a run's own network, or the file that was made of it."""

from collections.abc import Sequence
from dataclasses import dataclass

USED = "used"
NOT_SURE = "not sure"
RUNNERS_UP = 2  # classes that are named where the answer is "not sure"


@dataclass(frozen=True, repr=False)
class Prediction:
    """What a photo shows, how sure that is, or why nothing can be said."""

    path: str  # "" for a picture that has none
    label: str | None  # None if it is not sure, or the photo could not be used
    confidence: float  # the probability of the most probable class; 0 if the photo could not be used
    probabilities: dict[str, float]  # of each class; empty if the photo could not be used
    status: str = USED  # "used", "not sure", or the reason why the photo could not be used

    @property
    def usable(self) -> bool:
        """Whether the photo could be looked at."""
        return bool(self.probabilities)

    def __repr__(self) -> str:
        if self.label is not None:
            return f'Prediction("{self.label}", {self.confidence:.2f})'
        if not self.usable:
            return f"Prediction({self.status})"
        first = sorted(self.probabilities.items(), key=lambda each: -each[1])[:RUNNERS_UP]
        return f'Prediction("{NOT_SURE}": {", ".join(f"{name} {value:.2f}" for name, value in first)})'


def said(
    probabilities: Sequence[float], classes: Sequence[str], threshold: float | None = None, path: str = ""
) -> Prediction:
    """The answer that these probabilities give.

    threshold  the confidence below which the answer is "not sure"; None if there is no such
    """
    values = [float(each) for each in probabilities]
    best = max(range(len(values)), key=values.__getitem__)
    sure = threshold is None or values[best] >= threshold
    label, status = (classes[best], USED) if sure else (None, NOT_SURE)
    return Prediction(path, label, values[best], dict(zip(classes, values, strict=True)), status)


def unusable(path: str, reason: str) -> Prediction:
    """What there is to say of a photo that could not be looked at."""
    return Prediction(path, None, 0.0, {}, reason)
