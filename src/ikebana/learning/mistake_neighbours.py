"""The training photos that the worst mistakes resemble most, for the report of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ikebana.evaluation.familiarity import FamiliarityModel
from ikebana.learning.examples import PhotoExamples
from ikebana.learning.familiarity import find_reference_rows
from ikebana.recipe import Recipe

# Mistakes, the most confident first.
MAX_MISTAKES = 40
NEIGHBOURS_PER_MISTAKE = 4


@dataclass(frozen=True)
class MistakeNeighbours:
    """The nearest training photos of some misclassified test photos.

    Attributes:
        photos: int64 [mistakes], rows of the dataset.
        neighbours: int64 [mistakes, neighbours], rows of the dataset, the most similar first.
        similarity: float32 [mistakes, neighbours], cosine similarity.
    """

    photos: np.ndarray
    neighbours: np.ndarray
    similarity: np.ndarray


def find_mistake_neighbours(
    model: FamiliarityModel,
    features: np.ndarray,
    probabilities: np.ndarray,
    splits: Mapping[str, PhotoExamples],
    recipe: Recipe,
) -> MistakeNeighbours:
    """Find the nearest training photos of the most confident mistakes.

    Args:
        model: of the network that was scored.
        features: float32 [photos, features], of the validation photos, then the test photos.
        probabilities: float [photos, classes], of the same photos.
    """
    start, test = len(splits["validation"]), splits["test"]
    of_test = probabilities[start:]
    confidence = of_test.max(1)
    wrong = np.flatnonzero(of_test.argmax(1) != test.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MAX_MISTAKES]
    similarity = model.projection.project(features[start + worst]) @ model.references.astype(np.float32).T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS_PER_MISTAKE]
    # The scored network was trained on the training photos only, whatever is retrained later.
    references = find_reference_rows(dict(splits), replace(recipe, refit_on_all=False))
    return MistakeNeighbours(test.rows[worst], references[nearest], np.take_along_axis(similarity, nearest, 1))
