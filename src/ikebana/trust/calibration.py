"""What a network says of photos it has not learned from → how much its confidence is worth, and when it should say "not sure"."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ikebana.errors import PhotosError
from ikebana.trust.ties import descending

SMALLEST = float(np.finfo(np.float32).tiny)  # a probability of 0 has no logarithm
COLDEST, HOTTEST = 0.05, 20.0  # temperatures that are considered
FEW = 20  # groups of photos; with fewer, confidence is left as the network has it
RIGHT = 0.95  # of the answers that are given should be right, if saying "not sure" can bring that about
NO_THRESHOLD = (
    f'there is no threshold for "not sure" (it takes {FEW} validation photos, of as many groups, that no choice was made by): '
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


def calibrate(probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> Calibration:
    """Temperature and threshold, from photos that served neither for training nor for choices.

    probabilities  float [photos, classes]
    labels         class indices [photos]
    groups         a number for each photo: ten copies of one, or ten photos of one subject, say little more than one does;
                   each photo by itself if not given
    returns        the network's own confidence and no threshold, if there are fewer than 20 groups or all photos are of one
                   class
    """
    several = len(labels) if groups is None else len(np.unique(groups))
    if several < FEW or len(np.unique(labels)) < 2:
        return Calibration(photos=len(labels))
    found = Calibration(temperature(np.log(np.maximum(probabilities, SMALLEST)), labels, several))
    return Calibration(found.temperature, threshold(found.applied(probabilities), labels, groups), len(labels))


def temperature(logits: np.ndarray, labels: np.ndarray, groups: int | None = None) -> float:
    """The number to divide logits by so that "80 % sure" is right 80 % of the time.

    The order of the classes never changes, so neither does accuracy. Of n photos one more is thought to be wrong than was
    seen to be, so that no network is called infallible by a few photos that it got right: after n right answers the next may
    be expected with (n + 1) / (n + 2), no more.

    logits   float [photos, classes], of photos the network was not trained on
    labels   class indices [photos]
    groups   how many of the photos are independent of each other, n; all if not given
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
    doubt = 1 / ((len(labels) if groups is None else groups) + 2)
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


def threshold(probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> float:
    """The least confidence from which on the next answer may be expected to be right with 95 %; at least 0.5.

    Of n answers of which r were right, the next is with (r + 1) / (n + 2): the share that was seen would flatter, since of all
    places to stop at the luckiest is taken. So there are 18 answers at least. Where even the surest are not as often right as
    that, the confidence of the surest half.

    probabilities  float [photos, classes], calibrated
    labels         class indices [photos]
    groups         a number for each photo: n is how many of them there are among the answers; as many as photos if not given
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    order, ends = descending(confidence)
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    new = np.zeros(len(order), bool)
    new[np.unique((np.arange(len(order)) if groups is None else groups)[order], return_index=True)[1]] = True
    several = np.cumsum(new)
    good = np.flatnonzero(((share * several + 1) / (several + 2) >= RIGHT) & ends)
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
        found = Calibration(float(values["temperature"]), threshold, int(values["photos"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not 0 < found.temperature < float("inf") or (threshold is not None and not 0 <= threshold <= 1):
        raise ValueError(f"temperature {found.temperature}, threshold {threshold}")
    return found
