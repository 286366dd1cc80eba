"""How often photos of something that a network was never trained on are recognised."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ikebana.evaluation.statistics import wilson_interval
from ikebana.system.percentages import format_percentage


@dataclass(frozen=True)
class Detection:
    """How well one kind of unknown photos is distinguished from known ones.

    Attributes:
        photos: unknown photos of this kind.
        detected: share of them that is called unknown.
        interval: Wilson's 95% interval of this share.
        auroc: area under the ROC curve of familiarity, known test photos against these.
    """

    photos: int
    detected: float
    interval: tuple[float, float]
    auroc: float


@dataclass(frozen=True)
class UnknownObjects:
    """Detection rates at the threshold of familiarity.

    Attributes:
        threshold: familiarity below which a photo is called unknown.
        known_photos: test photos of known classes.
        known_kept: share of them that is not called unknown.
        known_kept_interval: Wilson's 95% interval of this share.
        left_out: per class: what a head that was trained without it says about its test photos.
        drawn: per kind of drawn image.
        mean_left_out: mean share of photos of left-out classes that are called unknown; 0 without any.
        note: what the reader must know to understand the rates.
    """

    threshold: float
    known_photos: int
    known_kept: float
    known_kept_interval: tuple[float, float]
    left_out: Mapping[str, Detection]
    drawn: Mapping[str, Detection]
    note: str = ""
    # Derived, for readers of `evaluation.json`.
    mean_left_out: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean_left_out", _average(self.left_out).detected if self.left_out else 0.0)

    def describe(self) -> str:
        """Describe the rates in one or two lines for the terminal."""
        drawn = _average(self.drawn)
        lines = (
            f'calls {format_percentage(1 - self.known_kept)} of the test photos "unknown", and '
            f"{format_percentage(drawn.detected)} of drawn images"
        )
        if self.left_out:
            shares = [detection.detected for detection in self.left_out.values()]
            mean, low, high = map(format_percentage, (self.mean_left_out, min(shares), max(shares)))
            of_class = f"{low} to {high}, on average {mean}" if low != high else mean
            lines += f"\n  of a class that was left out of training, {of_class}"
        return lines + (f"\n{self.note}" if self.note else "")


def _average(detections: Mapping[str, Detection]) -> Detection:
    """Average over kinds, each of the same weight."""
    values = list(detections.values())
    detected, auroc = (float(np.mean([getattr(value, name) for value in values])) for name in ("detected", "auroc"))
    photos = sum(value.photos for value in values)
    return Detection(photos, detected, wilson_interval(detected * photos, photos), auroc)


def measure_detection(known: np.ndarray, unknown: np.ndarray, threshold: float) -> Detection:
    """Compare the familiarity of known and unknown photos, float [photos] each."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([known, unknown]))
    # The Mann-Whitney statistic: the share of pairs in which the known photo is more familiar.
    wins = ranks[: len(known)].sum() - len(known) * (len(known) + 1) / 2
    detected = float((unknown < threshold).mean())
    interval = wilson_interval(detected * len(unknown), len(unknown))
    return Detection(len(unknown), detected, interval, float(wins / (len(known) * len(unknown))))


def from_json(values: Mapping[str, Any]) -> UnknownObjects:
    """Read what `asdict` wrote.

    Raises:
        KeyError, TypeError, ValueError: a value is missing or of the wrong type.
    """
    low, high = map(float, values["known_kept_interval"])
    kinds = {
        name: {kind: _read(detection) for kind, detection in values[name].items()} for name in ("left_out", "drawn")
    }
    fields = {name: value for name, value in values.items() if name != "mean_left_out"}
    return UnknownObjects(**{**fields, **kinds, "known_kept_interval": (low, high)})


def _read(values: Mapping[str, Any]) -> Detection:
    low, high = map(float, values["interval"])
    return Detection(**{**values, "interval": (low, high)})
