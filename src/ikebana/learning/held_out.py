"""Everything that is computed from the held-out photos once training has ended."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ikebana.evaluation.calibration import Calibration, calibrate
from ikebana.evaluation.familiarity import FamiliarityModel
from ikebana.evaluation.unknown_objects import UnknownObjects
from ikebana.learning import familiarity
from ikebana.learning.examples import PhotoExamples, find_calibration_photos, select_for_calibration
from ikebana.learning.familiarity import KnownPhotos
from ikebana.learning.mistake_neighbours import MistakeNeighbours, find_mistake_neighbours
from ikebana.learning.outputs import compute_held_out
from ikebana.learning.plan import Plan, TrainingTask, prepare_probe
from ikebana.recipe import FrozenBackbone, LinearProbe


@dataclass(frozen=True)
class HeldOutResults:
    """Predictions of the held-out photos, and what was calibrated on some of them.

    Attributes:
        probabilities: float32 [photos, classes], calibrated: of validation photos, then test photos.
        familiarity: float [photos], of the same photos; None without a familiarity model.
        familiarity_model: None if there are too few calibration photos.
        unknown_objects: detection rates of that model.
        mistake_neighbours: the training photos that the worst mistakes resemble; None without that model.
    """

    probabilities: np.ndarray
    calibration: Calibration
    familiarity: np.ndarray | None
    familiarity_model: FamiliarityModel | None
    unknown_objects: UnknownObjects | None
    mistake_neighbours: MistakeNeighbours | None = None

    @property
    def is_known(self) -> np.ndarray | None:
        """Whether each photo is familiar enough for a label: bool [photos]; None if all are."""
        if self.familiarity is None or self.familiarity_model is None:
            return None
        return self.familiarity >= self.familiarity_model.threshold


def score_held_out(
    plan: Plan,
    tasks: Sequence[TrainingTask],
    splits: dict[str, PhotoExamples],
    classes: Sequence[str],
    pixel_cache_name: str,
) -> HeldOutResults:
    """Predict the held-out photos, calibrate, and fit familiarity.

    Args:
        tasks: trained.
        classes: class names.
    """
    outputs = compute_held_out(tasks, plan.settings)
    known = familiarity.collect_known_photos(tasks, splits, outputs, plan.settings)
    model = familiarity.fit_familiarity(known.train, known.calibration)
    values = unknown_objects = is_known = None
    if model is not None:
        values = familiarity.compute_familiarity(model, outputs)
        is_known = values[find_calibration_photos(splits)] >= model.threshold
        is_frozen = isinstance(plan.recipe.method, LinearProbe | FrozenBackbone)
        unknown_objects = familiarity.measure_unknown_objects(
            model,
            known,
            plan.network,
            recipe=plan.recipe,
            classes=classes,
            settings=plan.settings,
            frozen=known if is_frozen else _collect_frozen(plan, splits, pixel_cache_name),
        )
    calibration = calibrate(
        *select_for_calibration(splits, outputs.probabilities),
        coverage=plan.recipe.coverage,
        at_most_wrong=plan.recipe.at_most_wrong,
        is_known=is_known,
    )
    probabilities = calibration.apply(outputs.probabilities)
    neighbours = None
    if model is not None:
        neighbours = find_mistake_neighbours(model, outputs.features, probabilities, splits, plan.recipe)
    return HeldOutResults(probabilities, calibration, values, model, unknown_objects, neighbours)


def _collect_frozen(plan: Plan, splits: dict[str, PhotoExamples], pixel_cache_name: str) -> KnownPhotos | None:
    """Collect the known photos of the pretrained network; None if it starts from random weights."""
    tasks = prepare_probe(plan, splits, pixel_cache_name)
    if tasks is None:
        return None
    return familiarity.collect_known_photos(tasks, splits, compute_held_out(tasks, plan.settings), plan.settings)
