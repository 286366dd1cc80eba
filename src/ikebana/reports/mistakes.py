"""What a run's network answered to each test photo, and which labels that makes suspect."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

from ikebana.auditing import label_confidence, label_errors
from ikebana.data.dataset import STATUS_USED
from ikebana.data.split import find_groups
from ikebana.runs.run import Run

NOT_SURE, UNKNOWN = "not sure", "unknown"
# A less accurate network contradicts too many right labels: only those with a stated probability count.
MIN_ACCURACY_TO_DOUBT = 0.8


@dataclass(frozen=True)
class ScoredPhoto:
    """A held-out photo and the network's answer.

    Attributes:
        predicted: the most probable class.
        confidence: its probability.
        label_confidence: the probability of the photo's label.
        status: "" if the photo gets an answer, otherwise "not sure" or "unknown".
    """

    path: str
    sha256: str
    split: str
    label: str
    predicted: str
    confidence: float
    label_confidence: float
    status: str

    @property
    def is_correct(self) -> bool:
        return self.predicted == self.label


@dataclass(frozen=True)
class SuspectPhoto:
    """A held-out photo whose label may be wrong.

    Attributes:
        suggested: the class that the network suggests.
        probability: that the label is wrong; None if it is small or not known.
    """

    photo: ScoredPhoto
    suggested: str
    probability: float | None


@dataclass(frozen=True)
class HeldOutPhotos:
    """The validation and test photos of a run.

    Attributes:
        probabilities: float32 [photos, classes].
        labels: class indices [photos].
    """

    photos: tuple[ScoredPhoto, ...]
    probabilities: np.ndarray
    labels: np.ndarray

    @property
    def is_test(self) -> np.ndarray:
        """Whether each photo is a test photo: bool [photos]."""
        return np.array([photo.split == "test" for photo in self.photos], bool)

    @property
    def test(self) -> list[ScoredPhoto]:
        return [photo for photo in self.photos if photo.split == "test"]


def read_held_out(run: Run) -> HeldOutPhotos:
    """Read the predictions of a run; RunError if its tables are damaged."""
    hashes = run.dataset.filter(status=STATUS_USED).select("path", "sha256").unique("path", keep="first")
    table = run.predictions.join(hashes, "path", "left", maintain_order="left")
    probabilities = table.select(f"p:{name}" for name in run.classes).to_numpy()
    best = probabilities.argmax(1) if len(table) else np.zeros(0, int)
    index = {name: number for number, name in enumerate(run.classes)}
    labels = np.array([index[name] for name in table["label"]], int)
    rows = np.arange(len(table))
    statuses = _find_statuses(run, table, probabilities)
    columns = (
        *(table[name].to_list() for name in ("path", "sha256", "split", "label")),
        [run.classes[number] for number in best],
        probabilities[rows, best].astype(float).tolist(),
        probabilities[rows, labels].astype(float).tolist(),
        statuses,
    )
    photos = tuple(ScoredPhoto(*values) for values in zip(*columns, strict=True))
    return HeldOutPhotos(photos, probabilities, labels)


def _find_statuses(run: Run, table: pl.DataFrame, probabilities: np.ndarray) -> list[str]:
    """Return for each photo "", "not sure" or "unknown", as the exported network answers."""
    threshold, unknown = run.calibration.threshold, run.evaluation.unknown_objects
    is_sure = np.ones(len(table), bool) if threshold is None else probabilities.max(1) >= threshold
    is_known = np.ones(len(table), bool)
    if unknown is not None and "familiarity" in table.columns:
        is_known = table["familiarity"].fill_null(1.0).to_numpy() >= unknown.threshold
    return np.where(~is_known, UNKNOWN, np.where(is_sure, "", NOT_SURE)).tolist()


def group_by_cell(photos: Iterable[ScoredPhoto]) -> dict[tuple[str, str], list[ScoredPhoto]]:
    """Group photos by label and predicted class, the most confident first."""
    cells: dict[tuple[str, str], list[ScoredPhoto]] = defaultdict(list)
    for photo in sorted(photos, key=lambda photo: -photo.confidence):
        cells[photo.label, photo.predicted].append(photo)
    return dict(cells)


def find_worst_mistakes(photos: Iterable[ScoredPhoto], count: int) -> list[ScoredPhoto]:
    """Find the most confident mistakes; those that were given as an answer come first."""
    wrong = [photo for photo in photos if not photo.is_correct]
    return sorted(wrong, key=lambda photo: (bool(photo.status), -photo.confidence))[:count]


def find_suspect_labels(run: Run, held_out: HeldOutPhotos) -> list[SuspectPhoto]:
    """Find held-out photos whose label is probably wrong, the most probable error first.

    The network was trained on none of these labels, so it cannot have memorised a wrong one.
    """
    if not held_out.photos:
        return []
    used = run.dataset.filter(status=STATUS_USED)
    group_of_path = dict(zip(used["path"], find_groups(used), strict=True))
    groups = np.array([group_of_path[photo.path] for photo in held_out.photos])
    trained = set(used.filter(split="train")["label"])
    is_known = np.array([photo.label in trained for photo in held_out.photos])
    errors = label_confidence.estimate_errors(held_out.probabilities, held_out.labels, groups, is_known)
    suspects = label_errors.find_suspect_labels(held_out.probabilities, held_out.labels, errors)
    is_accurate = run.evaluation.accuracy >= MIN_ACCURACY_TO_DOUBT
    return [
        SuspectPhoto(held_out.photos[suspect.photo], run.classes[suspect.suggested_label], suspect.confidence)
        for suspect in suspects
        if is_known[suspect.photo] and (is_accurate or suspect.confidence is not None)
    ]
