"""`ikebana explain`: why a photo gets its class.

Heat maps show the parts that speak for the class. The nearest training photos show what it resembles.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ikebana.commands.predict import Model, open_model
from ikebana.commands.run_classifier import build_run_classifier
from ikebana.commands.run_paths import resolve_run_paths
from ikebana.data import unlabelled
from ikebana.data.unlabelled import UnlabelledPhoto
from ikebana.errors import ModelError, PhotosError, UnreadablePhoto, UsageError
from ikebana.evaluation.candidate_sets import MIN_CALIBRATION_GROUPS
from ikebana.explanation import heat_maps
from ikebana.explanation.explanation import Explanation
from ikebana.explanation.heat_maps import Explainer
from ikebana.exporting import neighbours, run_photos
from ikebana.exporting.run_photos import RunPhoto
from ikebana.inference import prediction
from ikebana.inference.classifier import Classifier
from ikebana.inference.neighbours import DEFAULT_COUNT, Neighbour
from ikebana.runs.run import Run
from ikebana.system import progress
from ikebana.system.files import resolve_output_path

if TYPE_CHECKING:
    from torch import nn

# Training photos per photo that a reader may want to see.
MAX_COUNT = 100
# Photos per backward pass.
BATCH_PHOTOS = 8


def explain(
    model: Model,
    photos: str | Path | Sequence[str | Path],
    *,
    count: int = DEFAULT_COUNT,
    out: str | Path | None = None,
    draws_heat_maps: bool = True,
    network: "nn.Module | None" = None,
) -> list[Explanation]:
    """Explain predictions: a heat map per photo, and the training photos that it resembles most.

    Args:
        model: a run's folder, a model file, or what `load`, `export` or `fit` returned. A file has
            training photos only if it was exported with them.
        photos: files, folders, globs or archives; also paths of the run's photos, as its report has
            them.
        count: number of training photos per photo, 1 to 100.
        out: a folder for a page and the heat maps as PNG files: new, empty, or of earlier explanations.
        draws_heat_maps: False for the training photos alone, which is much faster.
        network: your own module, if the run trained one.
    Raises:
        UsageError: `count` is out of range.
        ModelError: there is nothing to explain with, or `out` has other files.
        PhotosError: no photo was found, or none can be used.
    """
    _check_count(count)
    folder = _check_folder(out)
    opened = open_model(model)
    given = [photos] if isinstance(photos, str | Path) else list(photos)
    search = unlabelled.find_photos(resolve_run_paths(opened, given))
    with _open_explainer(opened, network) as (classifier, explainer):
        _check_neighbours(classifier, draws_heat_maps, is_run=isinstance(opened, Run))
        explanations: list[Explanation] = []
        with progress.stage("explain", search.count()) as bar:
            for batch in _batch(search):
                explanations += _explain_batch(classifier, explainer if draws_heat_maps else None, batch, count)
                bar.advance(len(batch))
    _require_usable(explanations)
    if isinstance(opened, Run) and draws_heat_maps:
        explanations = _add_thumbnails(opened, explanations)
    if folder is not None:
        from ikebana.reports import explanation_page

        explanation_page.write_explanations(folder, explanations, str(getattr(opened, "folder", model)))
    for explanation in explanations:
        _report(explanation)
    return explanations


def _check_count(count: int) -> None:
    if not 1 <= count <= MAX_COUNT:
        raise UsageError(f"--count is {count}", advice=f"--count between 1 and {MAX_COUNT}")


def _check_folder(out: str | Path | None) -> Path | None:
    """Refuse an output folder that cannot be written, before any photo is read."""
    if out is None:
        return None
    folder = resolve_output_path(out, is_new_folder=True)
    from ikebana.reports.explanation_page import is_explanation_folder

    is_taken = folder.is_dir() and any(folder.iterdir()) and not is_explanation_folder(folder)
    if is_taken or (folder.exists() and not folder.is_dir()):
        what = "this folder exists and is not empty" if is_taken else "this is an existing file, not a folder"
        raise ModelError(what, where=out, advice="choose an empty or a new folder")
    return folder


@contextmanager
def _open_explainer(opened: Classifier | Run, network: "nn.Module | None") -> Iterator[tuple[Classifier, Explainer]]:
    """Provide the classifier and what draws its heat maps."""
    if isinstance(opened, Classifier):
        yield opened, partial(heat_maps.explain_by_occlusion, lambda batch: opened.forward(batch).probabilities)
        return
    from ikebana.learning.process_state import preserve_process_state

    with preserve_process_state():
        classifier, trained = build_run_classifier(opened, network)
        yield classifier, heat_maps.make_explainer(trained)


def _check_neighbours(classifier: Classifier, draws_heat_maps: bool, *, is_run: bool) -> None:
    """Say that there are no training photos; ModelError if there are no heat maps either."""
    try:
        classifier.get_neighbour_index()
    except ModelError as error:
        advice = (
            f"a run with at least {MIN_CALIBRATION_GROUPS} independent calibration photos" if is_run else error.advice
        )
        if not draws_heat_maps:
            raise ModelError(error.what, advice=advice) from None
        progress.message(f"{error.what}\n  try  {advice}")


def _batch(photos: Iterable[UnlabelledPhoto]) -> Iterator[list[UnlabelledPhoto]]:
    remaining = iter(photos)
    while batch := list(islice(remaining, BATCH_PHOTOS)):
        yield batch


def _explain_batch(
    classifier: Classifier, explainer: Explainer | None, photos: Sequence[UnlabelledPhoto], count: int
) -> list[Explanation]:
    """Explain some photos, in order; the status of an unusable one is the reason."""
    images = [_try_preprocess(classifier, photo) for photo in photos]
    usable = [(photo, image) for photo, image in zip(photos, images, strict=True) if not isinstance(image, str)]
    explained = iter(_explain_images(classifier, explainer, usable, count) if usable else [])
    return [
        Explanation(prediction.unusable_prediction(photo.path, image), ())
        if isinstance(image, str)
        else next(explained)
        for photo, image in zip(photos, images, strict=True)
    ]


def _try_preprocess(classifier: Classifier, photo: UnlabelledPhoto) -> np.ndarray | str:
    """Decode a photo for the network, or return why it cannot be used."""
    try:
        return classifier.preprocess(unlabelled.read_photo(photo))
    except UnreadablePhoto as error:
        return error.what


def _explain_images(
    classifier: Classifier,
    explainer: Explainer | None,
    photos: Sequence[tuple[UnlabelledPhoto, np.ndarray]],
    count: int,
) -> list[Explanation]:
    images = np.stack([image for _, image in photos])
    outputs = classifier.forward(images)
    maps = explainer(images, outputs.probabilities.argmax(1)) if explainer is not None else [None] * len(images)
    index = classifier.neighbour_index
    explanations = []
    for row, ((photo, image), (probabilities, familiarity)) in enumerate(
        zip(photos, outputs.iterate_photos(), strict=True)
    ):
        answer = classifier.to_prediction(probabilities, photo.path, familiarity=familiarity)
        nearest = () if index is None else tuple(index.find(outputs.features[row], count))
        explanations.append(Explanation(answer, nearest, image, maps[row]))
    return explanations


def _require_usable(explanations: Sequence[Explanation]) -> None:
    """Raise PhotosError if no photo could be used, as `predict` does."""
    if any(explanation.prediction.is_usable for explanation in explanations):
        return
    first = [f"{explanation.prediction.path}: {explanation.prediction.status}" for explanation in explanations[:1]]
    reason = f"none of {len(explanations)} paths is usable; the first: " if explanations else "no photos found"
    raise PhotosError("".join([reason, *first]), advice="paths of photos, or of folders with photos")


def _add_thumbnails(run: Run, explanations: Sequence[Explanation]) -> list[Explanation]:
    """Add pictures of the nearest training photos, if they are still there."""
    paths = {neighbour.path for explanation in explanations for neighbour in explanation.neighbours}
    if not paths:
        return list(explanations)
    try:
        splits = run_photos.find_photos(run)
    except PhotosError as error:
        progress.message(f"the nearest training photos are named, not shown: {error.what}")
        return list(explanations)
    photos = [photo for split in splits.values() for photo in split if photo.path in paths]
    thumbnails = {photo.path: _try_draw(photo) for photo in photos}
    return [
        replace(
            explanation, neighbours=tuple(_add_thumbnail(neighbour, thumbnails) for neighbour in explanation.neighbours)
        )
        for explanation in explanations
    ]


def _add_thumbnail(neighbour: Neighbour, thumbnails: Mapping[str, bytes | None]) -> Neighbour:
    return replace(neighbour, thumbnail=thumbnails.get(neighbour.path))


def _try_draw(photo: RunPhoto) -> bytes | None:
    """Draw a training photo; None if it is missing or has changed."""
    try:
        return neighbours.draw_thumbnail(photo)
    except PhotosError:
        return None


def _report(explanation: Explanation) -> None:
    """Report an explanation to programs."""
    answer, heat_map = explanation.prediction, explanation.heat_map
    progress.event(
        "explanation",
        path=answer.path,
        label=answer.label,
        confidence=answer.confidence,
        status=answer.status,
        familiarity=answer.familiarity,
        heat_map=None
        if heat_map is None
        else {
            "class": answer.closest_class,
            "method": heat_map.method,
            "is_trusted": heat_map.is_trusted,
            "gain": heat_map.check.gain,
            "values": heat_map.values.round(3).tolist() if heat_map.is_trusted else None,
        },
        neighbours=[
            {"path": neighbour.path, "label": neighbour.label, "similarity": neighbour.similarity}
            for neighbour in explanation.neighbours
        ],
    )
