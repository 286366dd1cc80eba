"""`ikebana predict`: predictions for any number of photos, from a model file or a run."""

import csv
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, islice, tee
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ikebana.commands.run_classifier import build_run_classifier
from ikebana.commands.run_paths import resolve_run_paths
from ikebana.data import table, unlabelled
from ikebana.data.corruption import REASON_WEB_PAGE
from ikebana.data.frame import Frame, is_frame
from ikebana.data.read_ahead import read_ahead
from ikebana.data.stores import ADVICE_WEB_FOLDER
from ikebana.data.unlabelled import UnlabelledPhoto, UnlabelledPhotos
from ikebana.errors import ModelError, PhotosError, RunError, UsageError
from ikebana.evaluation.calibration import NO_THRESHOLD_SUMMARY
from ikebana.evaluation.candidate_sets import NO_CANDIDATES_MESSAGE
from ikebana.evaluation.drift import FamiliarityCounts
from ikebana.inference import classifier, photo_input, prediction_table, table_formats
from ikebana.inference.classifier import BATCH_PHOTOS, Classifier, ModelFile
from ikebana.inference.photo_input import NamedPhoto, Photo
from ikebana.inference.prediction import NOT_SURE, UNKNOWN, Prediction
from ikebana.inference.prediction_table import Table
from ikebana.inference.sorting import Sorter
from ikebana.runs.run import Run, open_run
from ikebana.system import progress
from ikebana.system.files import compute_file_sha256, resolve_output_path
from ikebana.system.local_paths import refuse_address

Model: TypeAlias = Classifier | Run | ModelFile
Receiver: TypeAlias = Callable[[Sequence[Prediction]], None]

ADVICE_MODEL = "an .onnx file that `ikebana export` wrote, or a run folder that `ikebana fit` wrote"
# Model files of other tools, which a user may try.
FOREIGN_MODEL_SUFFIXES = frozenset(
    (".pt", ".pth", ".ckpt", ".safetensors", ".h5", ".hdf5", ".keras", ".pb", ".tflite", ".pkl", ".joblib", ".bin")
)
# Unusable photos that the summary lists.
MAX_NAMED_PHOTOS = 20


@dataclass
class Counts:
    """Numbers of photos per outcome."""

    sure: int = 0
    unsure: int = 0
    unknown: int = 0
    # Predicted by an earlier call that was interrupted.
    resumed: int = 0
    unusable: int = 0
    # Of the first unusable photos.
    reasons: list[str] = field(default_factory=list)
    familiarity: FamiliarityCounts = field(default_factory=FamiliarityCounts)

    def add(self, prediction: Prediction) -> None:
        """Count one prediction."""
        self.familiarity.add(prediction.familiarity)
        if prediction.is_usable:
            self.sure += prediction.label is not None
            self.unsure += prediction.status == NOT_SURE
            self.unknown += prediction.status == UNKNOWN
            return
        self.unusable += 1
        if len(self.reasons) < MAX_NAMED_PHOTOS:
            self.reasons.append(f"{prediction.path or 'a photo without a path'}: {prediction.status}")

    @property
    def predicted(self) -> int:
        """Number of photos that this call predicted."""
        return self.sure + self.unsure + self.unknown

    def summarise(self, ignored: int, model_classifier: Classifier) -> str:
        """Describe the counts in one sentence."""
        usable, more = self.predicted, self.unusable - len(self.reasons)
        parts = [f"{self.sure} with a label"]
        if model_classifier.threshold is not None:
            parts.append(f'{self.unsure} "not sure"')
        if model_classifier.familiarity_threshold is not None:
            parts.append(f'{self.unknown} "unknown" (unlike the training photos)')
        answers = f": {', '.join(parts)}" if len(parts) > 1 and usable else ""
        resumed = f", {self.resumed} predicted earlier" if self.resumed else ""
        unusable = f"{self.unusable} unusable, {ignored} hidden files ignored"
        lines = [f"{usable} photo{'s' * (usable != 1)} predicted{answers}{resumed}; {unusable}", *self.reasons]
        return "\n  ".join([*lines, f"and {more} more"] if more else lines)


def predict(
    model: Model, photos: Photo | Frame | Iterable[Photo | NamedPhoto], out: str | Path | None = None
) -> list[Prediction]:
    """Predict photos from files, folders, globs and archives, from a frame or from memory.

    All predictions are held in memory; the command `ikebana predict` streams them.

    Args:
        model: a model file, a run's folder, or what `load`, `export` or `fit` returned.
        photos: one or several paths, a frame with a column `path`, or photos as in
            `Classifier.predict`. Beside photos in memory, a path is that of a file.
        out: also write them as .csv, .jsonl or .parquet.
    Returns:
        One Prediction per path; the status of an unusable photo is the reason.
    Raises:
        PhotosError: there is no usable photo.
        ModelError, RunError: there is no such model.
    """
    table_path = prediction_table.resolve_table_path(Path(out)) if out is not None else None
    predictions: list[Prediction] = []
    opened_model = open_model(model)
    paths, items = separate_paths(photos)
    search = None
    if items is None:
        paths = resolve_run_paths(opened_model, paths) if isinstance(photos, str | os.PathLike) else paths
        search = unlabelled.find_photos(paths, reports_errors=not isinstance(photos, str | os.PathLike))
    with open_classifier(opened_model) as (model_classifier, identity):
        if search is not None:
            counts = _predict_all(model_classifier, search, predictions.extend, out=table_path)
        else:
            counts = _predict_in_memory(model_classifier, items or (), predictions)
    if table_path is not None:
        with Table(table_path, model_classifier.classes, identity, overwrite=True) as rows:
            rows.add(predictions)
            rows.finish()
    ignored = len(search.ignored_paths) if search is not None else 0
    report(counts, ignored, model_classifier)
    return predictions


def separate_paths(
    photos: Photo | Frame | Iterable[Photo | NamedPhoto],
) -> tuple[list[str | Path], Iterable[Photo | NamedPhoto] | None]:
    """Separate photos that are all paths from photos in memory.

    Returns:
        The paths and None; or no paths, and all photos, which are read only as they are predicted.
    """
    if is_frame(photos):
        return [], table.list_paths(photos)
    if isinstance(photos, str | os.PathLike):
        return [_to_path(photos)], None
    remaining = iter(photo_input.iterate(photos))
    first = list(islice(remaining, 1))
    if first and not isinstance(first[0], str | os.PathLike):
        return [], chain(first, remaining)
    listed = [*first, *remaining]
    paths = [_to_path(photo) for photo in listed if isinstance(photo, str | os.PathLike)]
    return (paths, None) if len(paths) == len(listed) else ([], listed)


def _to_path(path: str | os.PathLike[str]) -> str | Path:
    return path if isinstance(path, str) else Path(path)


def _predict_in_memory(
    model_classifier: Classifier, photos: Iterable[Photo | NamedPhoto], predictions: list[Prediction]
) -> Counts:
    """Append a prediction for each photo, in order; PhotosError if no photo could be used."""
    counts = Counts()
    with progress.stage("predict", len(photos) if isinstance(photos, Sized) else 0) as bar:
        for prediction in model_classifier.stream(photos):
            counts.add(prediction)
            predictions.append(prediction)
            bar.advance(1)
    require_usable(counts)
    return counts


def predict_to_table(
    model: Model,
    photos: Sequence[str],
    path_lines: Iterator[str] | None = None,
    out: Path | None = None,
    sort_into: Path | None = None,
    link: bool = False,
) -> None:
    """Predict any number of photos to a table, in constant memory; resumes after a kill.

    Args:
        path_lines: more photos, one path per line.
        out: the table; None for CSV on standard output.
        sort_into: a folder that gets a sub-folder per class with copies, or links, of the photos.
    Raises:
        PhotosError: there is no usable photo.
    """
    if out is not None:
        out = prediction_table.resolve_table_path(out, advises_folder=True)
    if sort_into is not None:
        # Check that the path can hold folders.
        sort_into = resolve_output_path(sort_into / NOT_SURE).parent
    opened_model = open_model(model)
    search = unlabelled.find_photos(resolve_run_paths(opened_model, photos), path_lines, excluded_folder=sort_into)
    if sort_into is not None and search.excluded_folder in [os.path.realpath(place) for place in search.paths]:
        raise UsageError(
            "sorted copies would be mixed with the input photos and predicted again the next time",
            where=sort_into,
            advice=f"a sub-folder: --copy-to {sort_into / 'sorted'}",
        )
    if sort_into is not None and search.has_containers:
        raise UsageError(
            "only files on this computer can be copied or linked",
            where=sort_into,
            advice="a table: --out predictions.csv",
        )
    with open_classifier(opened_model) as (model_classifier, identity):
        sorter = Sorter(sort_into, model_classifier.classes, link) if sort_into is not None else None
        if out is None:
            _print([table_formats.get_column_names(model_classifier.classes)])
            counts = _predict_all(model_classifier, search, partial(_print_rows, model_classifier.classes), sorter)
        else:
            counts = _predict_to_file(model_classifier, identity, search, out, sorter)
    report(counts, len(search.ignored_paths), model_classifier)


def _predict_to_file(
    model_classifier: Classifier, identity: str, search: UnlabelledPhotos, out: Path, sorter: Sorter | None
) -> Counts:
    """Write the predictions to a table; an interrupted one is continued."""
    with Table(out, model_classifier.classes, identity) as rows:
        try:
            counts = _predict_all(model_classifier, search, rows.add, sorter, rows.find_existing, out)
        except KeyboardInterrupt:
            progress.message("interrupted; nothing was lost. Run the same command again to resume.")
            raise
        rows.finish()
    return counts


def _summarise(counts: Counts, ignored: int, model_classifier: Classifier) -> str:
    """Describe the counts, and the lack of a threshold or of candidates."""
    summary = counts.summarise(ignored, model_classifier)
    if model_classifier.threshold is None:
        return f"{summary}\n{NO_THRESHOLD_SUMMARY}"
    return summary if model_classifier.candidate_rule is not None else f"{summary}\n{NO_CANDIDATES_MESSAGE}"


def report(counts: Counts, ignored: int, model_classifier: Classifier) -> None:
    """Report the counts, and whether the photos differ from the training photos."""
    progress.message(_summarise(counts, ignored, model_classifier))
    drift = counts.familiarity.compare(model_classifier.familiarity_photos)
    if drift is None:
        return
    progress.event("drift", **asdict(drift))
    if drift.is_significant:
        progress.message(drift.describe())


def _predict_all(
    model_classifier: Classifier,
    photos: UnlabelledPhotos,
    receive: Receiver,
    sorter: Sorter | None = None,
    find_existing: Callable[[str, Path, str | None], Prediction | None] | None = None,
    out: Path | None = None,
) -> Counts:
    """Pass predictions to `receive` in batches, with a progress bar.

    Args:
        find_existing: returns the prediction that the table already has for a path, its file or
            its stamp. It is sorted and counted, but not passed on.
        out: the table, which is skipped if it is among the photos.
    Raises:
        PhotosError: no photo could be used.
    """
    counts = Counts()
    with progress.stage("predict", photos.count()) as bar:

        def remaining() -> Iterator[UnlabelledPhoto]:
            for photo in photos:
                if out is not None and prediction_table.is_own(photo.file, out):
                    bar.advance(1)
                elif find_existing is None or (existing := find_existing(photo.path, photo.file, photo.stamp)) is None:
                    yield photo
                else:
                    counts.resumed += 1
                    counts.familiarity.add(existing.familiarity)
                    if sorter is not None:
                        sorter.put(existing, photo.file)
                    bar.advance(1)

        first, second = tee(remaining())
        contents = read_ahead(first, unlabelled.read_photo, unlabelled.is_in_store)
        openers = ((photo.path, partial(_preprocess, model_classifier, read)) for photo, read in contents)
        predictions = classifier.predict_photos(model_classifier, openers)
        pairs = zip(predictions, second, strict=True)
        while chunk := list(islice(pairs, BATCH_PHOTOS)):
            for prediction, photo in chunk:
                counts.add(prediction)
                if sorter is not None:
                    sorter.put(prediction, photo.file)
            receive([prediction for prediction, _ in chunk])
            bar.advance(len(chunk))
    require_usable(counts)
    return counts


def require_usable(counts: Counts) -> None:
    if not counts.predicted + counts.resumed:
        reason = f"none of {counts.unusable} paths is usable; the first: " if counts.unusable else "no photos found"
        is_web_page = any(first.endswith(REASON_WEB_PAGE) for first in counts.reasons[:1])
        advice = ADVICE_WEB_FOLDER if is_web_page else "paths of photos, or of folders with photos"
        raise PhotosError("".join([reason, *counts.reasons[:1]]), advice=advice)


def _preprocess(model_classifier: Classifier, read: Callable[[], bytes]) -> np.ndarray:
    return model_classifier.preprocess(read())


def open_model(model: Model) -> Classifier | Run:
    """Load a model file or open a run, whose network is not built yet.

    Raises:
        ModelError, RunError: there is none, or the file is of another kind.
    """
    if isinstance(model, Classifier | Run):
        return model
    if not isinstance(model, str | os.PathLike):
        return classifier.load(model)
    model = _to_path(model)
    refuse_address(model)
    path = Path(os.path.expanduser(model))
    if path.suffix.lower() in FOREIGN_MODEL_SUFFIXES and os.path.isfile(path):
        raise ModelError(f"{path.name} is not a model file that ikebana can load", where=model, advice=ADVICE_MODEL)
    if os.path.isfile(path) or path.suffix == ".onnx":
        return classifier.load(model)
    if not os.path.lexists(path):
        raise RunError("no such model file or run folder", where=model, advice=ADVICE_MODEL)
    return open_run(model)


@contextmanager
def open_classifier(opened_model: Classifier | Run) -> Iterator[tuple[Classifier, str]]:
    """Provide the classifier, and a text that identifies it; RunError without weights."""
    if isinstance(opened_model, Classifier):
        yield opened_model, str(opened_model.metadata.get("sha256"))
        return
    from ikebana.learning.process_state import preserve_process_state

    with preserve_process_state():
        run_classifier, _ = build_run_classifier(opened_model)
        weights = compute_file_sha256(opened_model.weights)
        yield run_classifier, f"{weights} {opened_model.calibration}"


def _print_rows(classes: Sequence[str], predictions: Sequence[Prediction]) -> None:
    _print([table_formats.format_row(table_formats.to_row(prediction, classes)) for prediction in predictions])


def _print(rows: Iterable[Sequence[str]]) -> None:
    csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    sys.stdout.flush()
