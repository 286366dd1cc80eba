"""Verification of a model file on the test photos, against the run's network.

Calibrated probabilities are compared: those of torch in float32 and those of the Classifier that
users get. Both add up the same numbers in another order, which changed no probability by more than
0.00001 on the flowers data. Wrong preprocessing, a wrongly exported layer or weights of another run
change the probabilities of some photos by 0.01 and more. The tolerance lies between.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from ikebana.data import decoding
from ikebana.errors import ModelError, PhotosError
from ikebana.exporting import run_photos
from ikebana.exporting.run_photos import RunPhoto
from ikebana.inference.classifier import BATCH_PHOTOS, PREFETCH_BATCHES, Classifier, preprocess_ahead
from ikebana.system import progress

MAX_PROBABILITY_DIFFERENCE = 1e-3
MAX_FAMILIARITY_DIFFERENCE = 0.02
# Photos for which the resize inside the graph is compared as well.
GRAPH_RESIZE_PHOTOS = 32

# Images uint8 [photos, image_size, image_size, 3] → probabilities [photos, classes] and familiarity [photos], if any.
Reference = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class PredictedBatch:
    """Some photos and the predictions of the model file.

    Attributes:
        images: uint8 [photos, image_size, image_size, 3].
        probabilities: float32 [photos, classes].
        familiarity: float32 [photos]; None if the file has none.
    """

    photos: Sequence[RunPhoto]
    images: np.ndarray
    probabilities: np.ndarray
    familiarity: np.ndarray | None


def predict_batches(classifier: Classifier, photos: Sequence[RunPhoto], title: str) -> Iterator[PredictedBatch]:
    """Predict photos from their bytes in batches, with a progress bar.

    Raises:
        PhotosError: a photo is missing or has changed since the run.
    """
    openers = ((photo.path, partial(_preprocess, classifier, photo)) for photo in photos)
    preprocessed, remaining = preprocess_ahead(openers, PREFETCH_BATCHES * BATCH_PHOTOS), iter(photos)
    with progress.stage(title, len(photos)) as bar:
        while chunk := list(islice(remaining, BATCH_PHOTOS)):
            images = np.stack([_require_image(result) for result in islice(preprocessed, len(chunk))])
            result = classifier.forward(images)
            yield PredictedBatch(chunk, images, result.probabilities, result.familiarity)
            bar.advance(len(chunk))


def _preprocess(classifier: Classifier, photo: RunPhoto) -> np.ndarray:
    return classifier.preprocess(run_photos.read_photo(photo))


def _require_image(result: tuple[str, np.ndarray | str]) -> np.ndarray:
    path, image = result
    if isinstance(image, str):
        raise PhotosError(
            f"a photo of this run is no longer usable: {image}",
            where=path,
            advice="an undamaged copy of the photo",
        )
    return image


def check_agreement(
    classifier: Classifier, reference: Reference, photos: Sequence[RunPhoto], scored: Mapping[str, int] | None
) -> dict[str, Any]:
    """Compare the model file with torch on every test photo, from its bytes.

    Args:
        scored: the scored class per path, if the exported network is the scored one. Otherwise it
            has been trained on these photos too, so no accuracy is reported.
    Returns:
        The figures for the file's metadata.
    Raises:
        ModelError: they disagree; it names the first such photo.
    """
    differences, familiarity_differences, ties, correct, same_candidates = [], [], 0, 0, 0
    for batch in predict_batches(classifier, photos, "verify the file"):
        expected, expected_familiarity = reference(batch.images)
        familiarity_differences.append(_compare_familiarity(batch, expected_familiarity))
        distances = np.abs(batch.probabilities - expected).max(1)
        for photo, actual, wanted, distance in zip(batch.photos, batch.probabilities, expected, distances, strict=True):
            best = int(actual.argmax())
            if distance > MAX_PROBABILITY_DIFFERENCE or not _is_top_class(wanted, best):
                claim = f"predicts {_describe(wanted, classifier)}: a probability differs by {distance:.4f}"
                raise _disagreement(photo, _describe(actual, classifier), claim)
            if scored is not None and not _is_top_class(actual, scored[photo.path]):
                scored_class = classifier.classes[scored[photo.path]]
                claim = f"predicted {scored_class} when it was scored and agrees with the file now"
                raise _disagreement(photo, _describe(actual, classifier), claim)
            ties += int(best != wanted.argmax())
            correct += int(best == photo.label)
            file_candidates, run_candidates = (
                classifier.to_prediction(probabilities).candidates for probabilities in (actual, wanted)
            )
            same_candidates += int(file_candidates == run_candidates)
        differences.append(distances)
    all_differences = np.concatenate(differences) if differences else np.zeros(1)
    accuracy = {"accuracy": correct / max(len(photos), 1)} if scored is not None else {}
    return {
        "photos": len(photos),
        # Photos with another top class are ties within the tolerance.
        "top1_agreement": 1 - ties / max(len(photos), 1),
        # Other sets are ties within the tolerance, too: a class is at the limit.
        "candidate_agreement": same_candidates / max(len(photos), 1),
        **accuracy,
        "largest_difference": float(all_differences.max()),
        "mean_difference": float(all_differences.mean()),
        "tolerance": MAX_PROBABILITY_DIFFERENCE,
        "largest_familiarity_difference": max(familiarity_differences, default=0.0),
    }


def _compare_familiarity(batch: PredictedBatch, expected: np.ndarray | None) -> float:
    """Return the largest difference of familiarity; ModelError if it exceeds the tolerance."""
    if batch.familiarity is None or expected is None:
        return 0.0
    differences = np.abs(batch.familiarity - expected)
    worst = int(differences.argmax())
    if differences[worst] > MAX_FAMILIARITY_DIFFERENCE:
        claim = f"computes {expected[worst]:.3f}"
        raise _disagreement(batch.photos[worst], f"a familiarity of {batch.familiarity[worst]:.3f}", claim)
    return float(differences[worst])


def _is_top_class(probabilities: np.ndarray, chosen: int) -> bool:
    """Return whether a class is the most probable one, within the tolerance."""
    return bool(probabilities.max() - probabilities[chosen] <= MAX_PROBABILITY_DIFFERENCE)


def _describe(probabilities: np.ndarray, classifier: Classifier) -> str:
    return f"{classifier.classes[int(probabilities.argmax())]} {probabilities.max():.3f}"


def _disagreement(photo: RunPhoto, file: str, claim: str) -> ModelError:
    return ModelError(
        f"the file predicts {file}, but the run's network {claim}",
        where=photo.path,
        advice="no file was written; please report this with the network and the output of `ikebana doctor`",
    )


def compare_graph_resize(classifier: Classifier, photos: Sequence[RunPhoto]) -> dict[str, Any]:
    """Measure the effect of resizing inside the graph, as programs without ikebana do.

    Results are equal for photos that ikebana decodes at full size. For large JPEGs ikebana's own
    decoder skips detail, so they differ.
    """
    chosen = run_photos.sample_evenly(photos, GRAPH_RESIZE_PHOTOS)
    differences, equal = [], 0
    for photo in chosen:
        data = run_photos.read_photo(photo)
        by_graph = classifier.forward(decoding.decode_full_size(data)[None]).probabilities[0]
        by_ikebana = classifier.forward(classifier.preprocess(data)[None]).probabilities[0]
        differences.append(float(np.abs(by_graph - by_ikebana).max()))
        equal += int(by_graph.argmax() == by_ikebana.argmax())
    return {
        "photos": len(chosen),
        "top1_agreement": equal / max(len(chosen), 1),
        "largest_difference": max(differences, default=0.0),
        "mean_difference": float(np.mean(differences or [0.0])),
    }
