"""Says what any number of photos show, with a model file or with a run's own network: `ikebana predict`."""

import csv
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, tee
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ikebana import progress
from ikebana.errors import PhotosError, UnreadablePhoto, UsageError
from ikebana.machine import within_memory
from ikebana.photos import loose
from ikebana.photos.loose import LoosePhoto, Search
from ikebana.places import to_write
from ikebana.run import Run, open_run
from ikebana.shipping import classifier, table
from ikebana.shipping.classifier import BATCH, Classifier, Look
from ikebana.shipping.prediction import NOT_SURE, Prediction
from ikebana.shipping.sorting import Sorter
from ikebana.shipping.table import Table
from ikebana.trust.calibration import NO_THRESHOLD

Model: TypeAlias = Classifier | Run | str | Path
Receiver: TypeAlias = Callable[[Sequence[Prediction]], None]

NAMED = 20  # photos that were set aside and are named at the end


def predict(model: Model, photos: str | Path | Iterable[str | Path], out: str | Path | None = None) -> list[Prediction]:
    """Predict photos: any files, folders, globs or archives. The command `ikebana predict` does so for a million, too.

    model    a model file, a run's folder, or what `load`, `export` or `fit` returned
    out      also write them as .csv, .jsonl or .parquet
    returns  one Prediction a path; photos that cannot be used say why in their status
    raises   PhotosError if there is no usable photo at all; ModelError or RunError if there is no such model
    """
    place = table.check(Path(out)) if out is not None else None
    kept: list[Prediction] = []
    there = model_there(model)
    found = loose.search(photos)
    answering, identity = classifier_of(there)
    counts = each(answering, found, kept.extend, out=place)
    if place is not None:
        with Table(place, answering.classes, identity, anew=True) as rows:
            rows.add(kept)
            rows.finish()
    progress.say(_summary(counts, found, answering))
    return kept


def command(
    model: Model,
    photos: Sequence[str],
    listed: Iterator[str] | None = None,
    out: Path | None = None,
    sort_into: Path | None = None,
    link: bool = False,
) -> None:
    """The same for any number of photos: a few of them are held at a time. A call that was killed goes on where it was.

    listed     more photos, a path a line
    out        the table; CSV on standard output if there is none
    sort_into  a folder: photos are copied, or linked, into a folder for each class
    raises     PhotosError if there is no usable photo at all
    """
    if out is not None:
        out = table.check(out)
    if sort_into is not None:
        sort_into = to_write(sort_into / NOT_SURE).parent  # the place must hold folders
    there = model_there(model)
    found = loose.search(photos, listed, apart=sort_into)
    if sort_into is not None and found.apart in [os.path.realpath(place) for place in found.places]:
        raise UsageError(
            "sorted photos would lie among those that they come from, and be found with them the next time",
            where=sort_into,
            advice=f"a folder in it: {sort_into / 'sorted'}",
        )
    answering, identity = classifier_of(there)
    sorter = Sorter(sort_into, answering.classes, link) if sort_into is not None else None
    if out is None:
        _print([table.columns(answering.classes)])
        counts = each(answering, found, partial(_print_rows, answering.classes), sorter)
    else:
        with Table(out, answering.classes, identity) as rows:
            try:
                counts = each(answering, found, rows.add, sorter, rows.was, out)
            except KeyboardInterrupt:
                progress.say("stopped; nothing is lost. The same command goes on from here")
                raise
            rows.finish()
    progress.say(_summary(counts, found, answering))


@dataclass
class Counts:
    """What became of the photos."""

    sure: int = 0
    unsure: int = 0
    there: int = 0  # predicted by an earlier call that was cut short
    unusable: int = 0
    reasons: list[str] = field(default_factory=list)  # of the first that could not be used

    def count(self, prediction: Prediction) -> None:
        """One more."""
        if prediction.usable:
            self.sure += prediction.label is not None
            self.unsure += prediction.label is None
            return
        self.unusable += 1
        if len(self.reasons) < NAMED:
            self.reasons.append(f"{prediction.path}: {prediction.status}")

    def told(self, ignored: int) -> str:
        """In words."""
        usable, more = self.sure + self.unsure, self.unusable - len(self.reasons)
        unsure = f", {self.unsure} of them not sure" if self.unsure else ""
        there = f", {self.there} were there already" if self.there else ""
        aside = f"{self.unusable} set aside, {ignored} hidden files ignored"
        lines = [f"{usable} photo{'s' * (usable != 1)} predicted{unsure}{there}, {aside}", *self.reasons]
        return "\n  ".join([*lines, f"and {more} more"] if more else lines)


def _summary(counts: Counts, found: Search, answering: Classifier) -> str:
    """What became of the photos, and whether the classifier can say that it is not sure."""
    told = counts.told(len(found.ignored))
    return told if answering.threshold is not None else f"{told}\n{NO_THRESHOLD}"


def each(
    answering: Classifier,
    photos: Search,
    receive: Receiver,
    sorter: Sorter | None = None,
    was: Callable[[str, Path], Prediction | None] | None = None,
    out: Path | None = None,
) -> Counts:
    """Hand on the answers, a few at a time, under a bar.

    was     the answer that is there of a path and its file, if one is: it is sorted and counted, and not handed on
    out     the table, which may lie among the photos and is none
    raises  PhotosError if no photo could be used
    """
    counts = Counts()
    with progress.stage("predict", photos.count()) as bar:

        def still_to_do() -> Iterator[LoosePhoto]:
            for photo in photos:
                if out is not None and table.is_own(photo.file, out):
                    bar.advance(1)
                elif was is None or (said := was(photo.path, photo.file)) is None:
                    yield photo
                else:
                    counts.there += 1
                    if sorter is not None:
                        sorter.put(said, photo.file)
                    bar.advance(1)

        first, second = tee(still_to_do())
        answers = classifier.answers(answering, ((photo.path, partial(_open, answering, photo)) for photo in first))
        pairs = zip(answers, second, strict=True)
        while chunk := list(islice(pairs, BATCH)):
            for said, photo in chunk:
                counts.count(said)
                if sorter is not None:
                    sorter.put(said, photo.file)
            receive([said for said, _ in chunk])
            bar.advance(len(chunk))
    if not counts.sure + counts.unsure + counts.there:
        why = f"none of {counts.unusable} paths can be used; the first: " if counts.unusable else "no photos found"
        raise PhotosError("".join([why, *counts.reasons[:1]]), advice="photos, or folders of photos")
    return counts


def _open(answering: Classifier, photo: LoosePhoto) -> np.ndarray:
    if not loose.can_open(photo):
        raise UnreadablePhoto(photo.status)
    return answering.opened(photo.file)


def model_there(model: Model) -> Classifier | Run:
    """The model, as far as it takes no time: a run's network is not built yet.

    raises  ModelError or RunError if there is none
    """
    if isinstance(model, Classifier | Run):
        return model
    place = Path(model)
    return classifier.load(place) if os.path.isfile(place) or place.suffix == ".onnx" else open_run(place)


def classifier_of(there: Classifier | Run) -> tuple[Classifier, str]:
    """The classifier, and what tells it from any other.

    raises  RunError if the run has no weights
    """
    if isinstance(there, Classifier):
        return there, str(there.about.get("sha256"))
    made = of_run(there)
    weights = hashlib.sha256(there.weights.read_bytes()).hexdigest()
    return made, f"{weights} {made.threshold} {there.calibration.temperature}"


def of_run(run: Run) -> Classifier:
    """A run's own network as a classifier; it needs torch.

    raises  RunError if the run has no weights
    """
    import torch

    from ikebana.learning import checkpoint, device, networks

    trusted = run.calibration
    setting = device.prepare()
    network = networks.build(run.recipe, len(run.classes))
    checkpoint.load_weights(run.weights, network)
    with within_memory():
        shipped = networks.Shipped(network, trusted.temperature).to(setting.device).eval()

    @within_memory()
    @torch.inference_mode()
    def look(photos: np.ndarray) -> Look:
        given = torch.from_numpy(photos).to(setting.device).permute(0, 3, 1, 2)
        return Look(*(found.cpu().numpy() for found in shipped(given)))

    return Classifier(run.classes, run.recipe.side, run.recipe.fit, trusted.threshold, {}, look)


def _print_rows(classes: Sequence[str], predictions: Sequence[Prediction]) -> None:
    _print([table.as_text(table.values(said, classes)) for said in predictions])


def _print(rows: Iterable[Sequence[str]]) -> None:
    csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    sys.stdout.flush()
