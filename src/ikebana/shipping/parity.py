"""The file that ships, tried on the test photos from their bytes: it must say what the run's network says.

What is compared are calibrated probabilities, of torch in float32 and of the very Classifier that users get. Both add up the
same numbers in another order; on the flowers that changed no probability by more than 0.00001. A wrong preprocessing, a layer
that was exported wrongly, or weights that are not the run's change some photo's by 0.01 and more. The tolerance lies between.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from ikebana import progress
from ikebana.errors import ModelError, PhotosError
from ikebana.photos import pixels
from ikebana.shipping import again
from ikebana.shipping.again import Known
from ikebana.shipping.classifier import AHEAD, BATCH, Classifier, opened_ahead

TOLERANCE = 1e-3  # of a probability
SAMPLE = 32  # photos that are also given to the graph whole

Reference = Callable[[np.ndarray], np.ndarray]  # photos uint8 [photos, side, side, 3] → probabilities [photos, classes]


@dataclass(frozen=True)
class Seen:
    """Some photos, and what was said of them."""

    photos: Sequence[Known]
    squares: np.ndarray  # uint8 [photos, side, side, 3]
    said: np.ndarray  # float32 [photos, classes], by the file


def shown(classifier: Classifier, photos: Sequence[Known], title: str) -> Iterator[Seen]:
    """The photos from their bytes through the classifier, some at a time, under a bar.

    raises  PhotosError if a photo is gone or no longer the one that the run saw
    """
    openers = ((each.path, partial(_opened, classifier, each)) for each in photos)
    ready, known = opened_ahead(openers, AHEAD * BATCH), iter(photos)
    with progress.stage(title, len(photos)) as bar:
        while chunk := list(islice(known, BATCH)):
            squares = np.stack([_square(each) for each in islice(ready, len(chunk))])
            yield Seen(chunk, squares, classifier.look(squares).probabilities)
            bar.advance(len(chunk))


def _opened(classifier: Classifier, photo: Known) -> np.ndarray:
    return classifier.opened(again.read(photo))


def _square(opened: tuple[str, np.ndarray | str]) -> np.ndarray:
    path, square = opened
    if isinstance(square, str):
        raise PhotosError(
            f"a photo that the run could use cannot be used any more: {square}",
            where=path,
            advice="a copy of it that is whole",
        )
    return square


def checked(
    classifier: Classifier, reference: Reference, photos: Sequence[Known], scored: Mapping[str, int] | None
) -> dict[str, Any]:
    """Every test photo, from its bytes, through the file and through torch; the figures, if they agree.

    scored  the class that each path was scored as, if the network that ships is the one that was scored; of another one,
            which has learned these photos too, no accuracy is told
    raises  ModelError that names the first photo of which they say different things
    """
    differences, ties, right = [], 0, 0
    for seen in shown(classifier, photos, "check the file"):
        expected = reference(seen.squares)
        off = np.abs(seen.said - expected).max(1)
        for photo, said, meant, distance in zip(seen.photos, seen.said, expected, off, strict=True):
            best = int(said.argmax())
            if distance > TOLERANCE or not _as_probable(meant, best):
                says = f"says {_in_words(meant, classifier)}: a probability differs by {distance:.4f}"
                raise _disagreement(photo, _in_words(said, classifier), says)
            if scored is not None and not _as_probable(said, scored[photo.path]):
                was = classifier.classes[scored[photo.path]]
                says = f"said {was} when it was scored, and says the same as the file today"
                raise _disagreement(photo, _in_words(said, classifier), says)
            ties += int(best != meant.argmax())
            right += int(best == photo.label)
        differences.append(off)
    found = np.concatenate(differences) if differences else np.zeros(1)
    accuracy = {"accuracy": right / max(len(photos), 1)} if scored is not None else {}
    return {
        "photos": len(photos),
        "top1_agreement": 1 - ties / max(len(photos), 1),  # the rest are ties
        **accuracy,
        "largest_difference": float(found.max()),
        "mean_difference": float(found.mean()),
        "tolerance": TOLERANCE,
    }


def _as_probable(probabilities: np.ndarray, chosen: int) -> bool:
    """Whether a class is the most probable one, or as good as that."""
    return bool(probabilities.max() - probabilities[chosen] <= TOLERANCE)


def _in_words(probabilities: np.ndarray, classifier: Classifier) -> str:
    return f"{classifier.classes[int(probabilities.argmax())]} {probabilities.max():.3f}"


def _disagreement(photo: Known, file: str, says: str) -> ModelError:
    return ModelError(
        f"the file would say {file} where the run's network {says}",
        where=photo.path,
        advice="nothing was written; please report this, with the network and the versions that ikebana doctor names",
    )


def plain(classifier: Classifier, photos: Sequence[Known]) -> dict[str, Any]:
    """How far it is from this when a program without ikebana gives whole photos to the graph, which then resizes them itself.

    It is the same for photos that are decoded whole here too; of large JPEGs, ikebana's own decoder leaves detail out.
    """
    chosen = again.spread(photos, SAMPLE)
    differences, same = [], 0
    for photo in chosen:
        data = again.read(photo)
        by_graph = classifier.look(pixels.whole(data)[None]).probabilities[0]
        by_both = classifier.look(classifier.opened(data)[None]).probabilities[0]
        differences.append(float(np.abs(by_graph - by_both).max()))
        same += int(by_graph.argmax() == by_both.argmax())
    return {
        "photos": len(chosen),
        "top1_agreement": same / max(len(chosen), 1),
        "largest_difference": max(differences, default=0.0),
        "mean_difference": float(np.mean(differences or [0.0])),
    }
