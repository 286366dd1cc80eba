"""`ikebana explain`: the training photos that a photo resembles most."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ikebana.commands.predict import Model, open_classifier, open_model
from ikebana.data import unlabelled
from ikebana.data.unlabelled import UnlabelledPhoto
from ikebana.errors import PhotosError, UnreadablePhoto
from ikebana.inference import prediction
from ikebana.inference.classifier import Classifier
from ikebana.inference.neighbours import DEFAULT_COUNT, Neighbour, NeighbourIndex
from ikebana.inference.prediction import Prediction
from ikebana.system import progress


@dataclass(frozen=True)
class Explanation:
    """The prediction for a photo, and the training photos that it resembles most.

    Attributes:
        neighbours: the nearest first; empty if the photo cannot be used.
    """

    prediction: Prediction
    neighbours: tuple[Neighbour, ...]

    def __repr__(self) -> str:
        width = max((len(neighbour.label) for neighbour in self.neighbours), default=0)
        rows = [
            f"  {neighbour.similarity:5.2f}  {neighbour.label:<{width}}  {neighbour.path}"
            for neighbour in self.neighbours
        ]
        return "\n".join([f"{self.prediction.path}: {_describe(self.prediction)}", *rows])


def explain(
    model: Model, photos: str | Path | Sequence[str | Path], *, count: int = DEFAULT_COUNT
) -> list[Explanation]:
    """Find the training photos that each photo resembles most.

    Args:
        model: a run's folder, a model file that was exported with its training photos, or what
            `load`, `export` or `fit` returned.
        photos: files, folders, globs or archives.
        count: number of training photos per photo.
    Raises:
        ModelError: the model file contains no training photos.
        RunError: the run does not know its nearest training photos.
        PhotosError: no photo was found.
    """
    search = unlabelled.find_photos([photos] if isinstance(photos, str | Path) else list(photos))
    with open_classifier(open_model(model)) as (model_classifier, _):
        index = model_classifier.get_neighbour_index()
        explanations = []
        with progress.stage("explain", search.count()) as bar:
            for photo in search:
                explanations.append(_explain_photo(model_classifier, index, photo, count))
                bar.advance(1)
    if not explanations:
        raise PhotosError("no photos found", advice="paths of photos, or of folders with photos")
    for explanation in explanations:
        answer = explanation.prediction
        progress.event(
            "explanation",
            path=answer.path,
            label=answer.label,
            confidence=answer.confidence,
            status=answer.status,
            neighbours=[
                {"path": neighbour.path, "label": neighbour.label, "similarity": neighbour.similarity}
                for neighbour in explanation.neighbours
            ],
        )
    return explanations


def _explain_photo(
    model_classifier: Classifier, index: NeighbourIndex, photo: UnlabelledPhoto, count: int
) -> Explanation:
    try:
        if not unlabelled.is_openable(photo):
            raise UnreadablePhoto(photo.status)
        image = model_classifier.preprocess(photo.file)
    except UnreadablePhoto as error:
        return Explanation(prediction.unusable_prediction(photo.path, error.what), ())
    outputs = model_classifier.forward(np.stack([image]))
    ((probabilities, familiarity),) = outputs.iterate_photos()
    answer = model_classifier.to_prediction(probabilities, photo.path, familiarity=familiarity)
    return Explanation(answer, tuple(index.find(outputs.features[0], count)))


def _describe(answer: Prediction) -> str:
    """Describe a prediction in some words."""
    if answer.label is not None:
        return f"{answer.label} {answer.confidence:.2f}"
    if not answer.is_usable:
        return answer.status
    return f"{answer.status}, most probably {answer.closest_class} {answer.confidence:.2f}"
