"""A run's network looks at new photos."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ikebana import progress
from ikebana.errors import PhotosError, UnreadablePhoto
from ikebana.photos import kept, pixels
from ikebana.photos.dataset import USED
from ikebana.photos.loose import LoosePhoto, can_open, find
from ikebana.places import written
from ikebana.run import Run, open_run

CHUNK = 128  # photos decoded, then shown to the network, at a time: memory stays flat for any number of them


@dataclass(frozen=True)
class Prediction:
    """What the network says of one photo, or why it could not look at it."""

    path: str
    label: str | None  # None if the photo could not be used
    confidence: float  # the probability of `label`
    probabilities: dict[str, float]
    status: str = USED

    def __repr__(self) -> str:
        said = f"{self.label!r}, {self.confidence:.2f}" if self.label is not None else self.status
        return f"Prediction({self.path}: {said})"


def predict(
    run: Run | str | Path, photos: str | Path | Iterable[str | Path], out: str | Path | None = None
) -> list[Prediction]:
    """Predict photos: any files, folders, globs or archives.

    out      also write them as CSV: path, label, confidence, status, and a column `p:<class>` for each class
    returns  one Prediction a path; photos that cannot be used say why in their status
    raises   PhotosError if there is no usable photo at all; RunError if the run has no weights
    """
    made = run if isinstance(run, Run) else open_run(run)
    found, ignored = find(photos)
    predictions = list(stream(made, found))
    usable = sum(each.label is not None for each in predictions)
    if not usable:
        raise PhotosError(
            f"none of {len(found)} paths can be used; the first: {predictions[0].status}", where=found[0].path
        )
    if out is not None:
        write_csv(Path(out), made.classes, predictions)
    aside = "".join(f"\n  {each.path}: {each.status}" for each in predictions if each.label is None)
    progress.say(
        f"{usable} photo{'s' * (usable != 1)} predicted, {len(found) - usable} set aside, {ignored} hidden files ignored{aside}"
    )
    return predictions


def stream(run: Run, photos: list[LoosePhoto]) -> Iterator[Prediction]:
    """Predictions in the order of the photos, a chunk at a time, under a bar."""
    from ikebana.learning import checkpoint, device, inference, networks

    setting = device.prepare()
    network = networks.build(run.recipe, len(run.classes))
    checkpoint.load_weights(run.weights, network)
    network.to(setting.device)
    with progress.stage("predict", len(photos)) as bar:
        for start in range(0, len(photos), CHUNK):
            chunk = photos[start : start + CHUNK]
            array, statuses = _opened(chunk, run)
            rows = np.flatnonzero([status == USED for status in statuses])
            shown = inference.unlabelled(array, rows)
            probabilities = iter(run.calibration.applied(inference.probabilities_of(network, shown, setting)))
            for photo, status in zip(chunk, statuses, strict=True):
                yield _said(photo.path, status, next(probabilities) if status == USED else None, run.classes)
            bar.advance(len(chunk))


def _opened(chunk: list[LoosePhoto], run: Run) -> tuple[np.ndarray, list[str]]:
    """The chunk's pixels by the very function that training used, and each photo's status."""
    side, fit = run.recipe.side, run.recipe.fit
    array = np.zeros((len(chunk), side, side, 3), np.uint8)

    def open_rows(rows: range) -> list[str]:
        return [_open(chunk[row], array[row], run) if can_open(chunk[row]) else chunk[row].status for row in rows]

    def _open(photo: LoosePhoto, target: np.ndarray, run: Run) -> str:
        try:
            target[:] = pixels.decode(kept.read_bytes(photo.file), side, fit).pixels
        except UnreadablePhoto as reason:
            return reason.what
        except OSError as error:
            return f"unreadable: {error.strerror or error}"
        return USED

    eighths = [range(start, min(start + CHUNK // 8, len(chunk))) for start in range(0, len(chunk), CHUNK // 8)]
    return array, [status for part in kept.in_threads(open_rows, eighths) for status in part]


def _said(path: str, status: str, probabilities: np.ndarray | None, classes: tuple[str, ...]) -> Prediction:
    if probabilities is None:
        return Prediction(path, None, 0.0, {}, status)
    best = int(probabilities.argmax())
    by_class = {name: float(value) for name, value in zip(classes, probabilities, strict=True)}
    return Prediction(path, classes[best], float(probabilities[best]), by_class)


def write_csv(file: Path | None, classes: tuple[str, ...], predictions: Iterable[Prediction]) -> None:
    """One line a path, those that could not be used too; to standard output if there is no file."""
    if file is None:
        import sys

        _rows(csv.writer(sys.stdout, lineterminator="\n"), classes, predictions)
        return
    with written(file) as beside, beside.open("w", encoding="utf-8", newline="") as out:
        _rows(csv.writer(out, lineterminator="\n"), classes, predictions)


def _rows(writer: Any, classes: tuple[str, ...], predictions: Iterable[Prediction]) -> None:
    writer.writerow(["path", "label", "confidence", "status", *(f"p:{name}" for name in classes)])
    for each in predictions:
        numbers = [f"{each.probabilities[name]:.6f}" if each.probabilities else "" for name in classes]
        confidence = f"{each.confidence:.6f}" if each.label is not None else ""
        writer.writerow([each.path, each.label or "", confidence, each.status, *numbers])
