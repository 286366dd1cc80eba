"""What a network says of photos it has not learned from → how much its confidence is worth, and when it should say "not sure"."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ikebana.errors import PhotosError
from ikebana.trust.ties import descending

SMALLEST = float(np.finfo(np.float32).tiny)  # a probability of 0 has no logarithm
COLDEST, HOTTEST = 0.05, 20.0  # temperatures that are considered
FEW = 20  # photos; with fewer, confidence is left as the network has it
ENOUGH = 10  # answers that must have been as often right as that: a single one says nothing
RIGHT = 0.95  # of the answers that are given should be right, if saying "not sure" can bring that about
NO_THRESHOLD = (
    f'there is no threshold for "not sure" (it takes {FEW} validation photos that no choice was made by): '
    "every photo gets a label"
)
EVEN = 0.5  # nobody should be told a name that is as probably wrong as right


@dataclass(frozen=True)
class Calibration:
    """How to read a network's confidence."""

    temperature: float = 1.0  # divides the logits; above 1 the network was over-confident
    threshold: float | None = (
        None  # the confidence below which the answer is "not sure"; None if there was no way to tell
    )
    photos: int = 0  # validation photos that both come from

    def applied(self, probabilities: np.ndarray) -> np.ndarray:
        """The probabilities as they would be with the logits divided by the temperature: [photos, classes].

        Temperature 1 changes no bit; no temperature changes which class is the most probable.
        """
        if self.temperature == 1:
            return probabilities
        from scipy.special import softmax

        logits = np.log(np.maximum(probabilities, SMALLEST)) / self.temperature
        return softmax(logits, axis=1).astype(probabilities.dtype)


def calibrate(probabilities: np.ndarray, labels: np.ndarray) -> Calibration:
    """Temperature and threshold, from photos that served neither for training nor for choices.

    probabilities  float [photos, classes]
    labels         class indices [photos]
    returns        the network's own confidence and no threshold, if there are fewer than 20 photos or all are of one class
    """
    if len(labels) < FEW or len(np.unique(labels)) < 2:
        return Calibration(photos=len(labels))
    found = Calibration(temperature(np.log(np.maximum(probabilities, SMALLEST)), labels))
    return Calibration(found.temperature, threshold(found.applied(probabilities), labels), len(labels))


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The number to divide logits by so that "80 % sure" is right 80 % of the time.

    The order of the classes never changes, so neither does accuracy. Of n photos one more is thought to be wrong than was
    seen to be, so that no network is called infallible by a few photos that it got right: after n right answers the next may
    be expected with (n + 1) / (n + 2), no more.

    logits   float [photos, classes], of photos the network was not trained on
    labels   class indices [photos]
    returns  between 0.05 and 20; above 1 means the network was over-confident
    raises   PhotosError if the photos are all of one class
    source   Guo et al. 2017, arXiv:1706.04599, section 4.2; the targets are Platt's, 1999, section 2.2
    """
    from scipy.optimize import minimize_scalar

    if len(np.unique(labels)) < 2:
        raise PhotosError(
            f"all {len(labels)} validation photos are of one class, so confidence cannot be checked",
            advice="hold out more photos (--parts 0.6,0.2,0.2), or at least 5 of each of 2 classes",
        )
    exact = logits.astype(np.float64)
    doubt = 1 / (len(labels) + 2)
    targets = np.full(exact.shape, doubt / (exact.shape[1] - 1))
    targets[np.arange(len(labels)), labels] = 1 - doubt

    def surprise(log_temperature: float) -> float:
        cooled = exact / np.exp(log_temperature)
        cooled -= cooled.max(1, keepdims=True)
        return float((np.log(np.exp(cooled).sum(1)) - (targets * cooled).sum(1)).mean())

    # The surprise has one valley in 1 / temperature, so a bounded search cannot be caught in another one.
    bounds = (np.log(COLDEST), np.log(HOTTEST))
    found: Any = minimize_scalar(surprise, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    return float(np.exp(found.x))


def threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The least confidence from which on at least 95 % of the answers are right, and there are ten of them; at least 0.5.

    Where even the surest answers are not as often right as that, the confidence of the surest half.

    probabilities  float [photos, classes], calibrated
    labels         class indices [photos]
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    order, ends = descending(confidence)
    answers = np.arange(1, len(order) + 1)
    good = np.flatnonzero((np.cumsum(right[order]) / answers >= RIGHT) & (answers >= ENOUGH) & ends)
    last = good[-1] if len(good) else len(order) // 2
    if last == len(order) - 1:  # all of them may be answered
        return EVEN
    return float(max(EVEN, confidence[order[last]]))


def from_json(values: Mapping[str, Any]) -> Calibration:
    """The calibration of a run's `calibration.json`.

    raises  ValueError if it is none
    """
    try:
        threshold = None if values["threshold"] is None else float(values["threshold"])
        found = Calibration(float(values["temperature"]), threshold, int(values.get("photos", 0)))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not 0 < found.temperature < float("inf") or (threshold is not None and not 0 <= threshold <= 1):
        raise ValueError(f"temperature {found.temperature}, threshold {threshold}")
    return found
