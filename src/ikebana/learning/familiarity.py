"""Familiarity of a trained network, and how well it detects unknown photos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from ikebana.evaluation import drawn_images, familiarity_fit, unknown_objects
from ikebana.evaluation.familiarity import FamiliarityModel
from ikebana.evaluation.statistics import wilson_interval
from ikebana.evaluation.unknown_objects import Detection, UnknownObjects
from ikebana.learning.device import DeviceSettings
from ikebana.learning.examples import PhotoExamples, find_calibration_photos, make_unlabelled, merge_for_refit
from ikebana.learning.features.scaling import compute_mean_and_scale
from ikebana.learning.outputs import Outputs, compute_images, compute_training, select_training
from ikebana.learning.plan import TrainingTask
from ikebana.learning.training import logistic_head
from ikebana.recipe import Recipe
from ikebana.system import progress

# Inverse L2 strength of the heads that are trained without a class: quick selects about this.
INVERSE_L2 = 0.02
# Classes that are left out in turn; of more, those with the most test photos.
MAX_LEFT_OUT_CLASSES = 10
# Test photos of a class from which its rate is given.
MIN_LEFT_OUT_PHOTOS = 10
# Features that were trained with a class recognise it far better than a new kind of object.
FINE_TUNED_NOTE = (
    "the rate of left-out classes is that of the network before fine-tuning, which was not trained with them"
)
SCRATCH_NOTE = "how often other things that resemble its classes are recognised was not measured"


@dataclass(frozen=True)
class LabelledOutputs:
    """Outputs of a network for photos, with their labels.

    Attributes:
        labels: int64 [photos], class indices.
        groups: int64 [photos], group numbers.
    """

    outputs: Outputs
    labels: np.ndarray
    groups: np.ndarray

    def select(self, photos: np.ndarray) -> "LabelledOutputs":
        """Select photos by index or mask."""
        return LabelledOutputs(self.outputs[photos], self.labels[photos], self.groups[photos])


@dataclass(frozen=True)
class KnownPhotos:
    """Photos of known classes: for fitting, for calibration, for scoring."""

    train: LabelledOutputs
    calibration: LabelledOutputs
    test: LabelledOutputs


def collect_known_photos(
    tasks: Sequence[TrainingTask], splits: Mapping[str, PhotoExamples], held_out: Outputs, settings: DeviceSettings
) -> KnownPhotos:
    """Collect the outputs for known photos; those for training photos are computed here.

    Args:
        held_out: outputs for the validation photos, then the test photos.
    """
    outputs, labels = compute_training(tasks, settings)
    validation, test, chosen = splits["validation"], splits["test"], find_calibration_photos(splits)
    return KnownPhotos(
        LabelledOutputs(outputs, labels, np.arange(len(labels))),
        LabelledOutputs(held_out[chosen], validation.labels[chosen], validation.groups[chosen]),
        LabelledOutputs(held_out[np.arange(len(validation), len(held_out))], test.labels, test.groups),
    )


def fit_familiarity(train: LabelledOutputs, calibration: LabelledOutputs) -> FamiliarityModel | None:
    """Fit familiarity; None if there are too few calibration photos."""
    features = train.outputs.features
    model = familiarity_fit.fit_references(features, train.labels, *compute_mean_and_scale(features))
    return familiarity_fit.calibrate(
        model, calibration.outputs.features, calibration.outputs.energy, calibration.groups
    )


def compute_familiarity(model: FamiliarityModel, outputs: Outputs) -> np.ndarray:
    """Compute the familiarity of photos: float [photos]."""
    return model.to_familiarity(model.compute_scores(outputs.features, outputs.energy))


def refit_familiarity(
    model: FamiliarityModel | None, tasks: Sequence[TrainingTask], settings: DeviceSettings
) -> FamiliarityModel | None:
    """Fit familiarity to a network that was trained again, on all photos.

    It has no held-out photos, so the scores of known photos are those of the network before.

    Args:
        model: of the network before; None if it has none.
        tasks: of the new network.
    """
    if model is None:
        return None
    outputs, labels = compute_training(tasks, settings)
    fresh = familiarity_fit.fit_references(outputs.features, labels, *compute_mean_and_scale(outputs.features))
    return replace(fresh, **{name: getattr(model, name) for name in familiarity_fit.CALIBRATED_FIELDS})


def find_reference_rows(splits: dict[str, PhotoExamples], recipe: Recipe) -> np.ndarray:
    """Find the dataset row of each photo in `FamiliarityModel.references` of the exported network."""
    train = (merge_for_refit(splits) if recipe.refit_on_all else splits)["train"]
    chosen = select_training(len(train))
    return train.rows[chosen[familiarity_fit.select_references(len(chosen))]]


def measure_unknown_objects(
    model: FamiliarityModel,
    known: KnownPhotos,
    network: nn.Module,
    *,
    recipe: Recipe,
    classes: Sequence[str],
    settings: DeviceSettings,
    frozen: KnownPhotos | None,
) -> UnknownObjects:
    """Measure how many drawn images and photos of left-out classes are called unknown.

    Args:
        network: the whole trained network.
        classes: class names.
        frozen: the outputs of a network whose features were not trained with any of the classes;
            None if there is none.
    """
    of_test = compute_familiarity(model, known.test.outputs)
    known_kept = float((of_test >= model.threshold).mean())
    left_out, notes = _leave_classes_out(frozen, classes) if frozen is not None else ({}, [SCRATCH_NOTE])
    if left_out and frozen is not known:
        notes.append(FINE_TUNED_NOTE)
    return UnknownObjects(
        threshold=model.threshold,
        known_photos=len(of_test),
        known_kept=known_kept,
        known_kept_interval=wilson_interval(known_kept * len(of_test), len(of_test)),
        left_out=left_out,
        drawn=_measure_drawn_images(model, of_test, network, recipe.image_size, settings),
        note=f"({'; '.join(notes)})" if notes else "",
    )


def _measure_drawn_images(
    model: FamiliarityModel, of_test: np.ndarray, network: nn.Module, image_size: int, settings: DeviceSettings
) -> dict[str, Detection]:
    drawn = drawn_images.draw_images(image_size)
    pixels = np.concatenate(list(drawn.values()))
    outputs = compute_images(network, make_unlabelled(pixels, np.arange(len(pixels))), settings)
    values = np.split(compute_familiarity(model, outputs), len(drawn))
    return {
        kind: unknown_objects.measure_detection(of_test, of_kind, model.threshold)
        for kind, of_kind in zip(drawn, values, strict=True)
    }


def _leave_classes_out(known: KnownPhotos, classes: Sequence[str]) -> tuple[dict[str, Detection], list[str]]:
    """Measure detection of each class that is left out.

    Returns:
        Detection by class, and notes on classes that were not left out.
    """
    counts = np.bincount(known.test.labels, minlength=len(classes))
    trained = np.unique(known.train.labels)
    candidates = [label for label in trained if counts[label] >= MIN_LEFT_OUT_PHOTOS]
    left_out = sorted(candidates, key=lambda label: -counts[label])[:MAX_LEFT_OUT_CLASSES]
    if len(trained) < 2 or not left_out:
        return {}, []
    mean, scale = compute_mean_and_scale(known.train.outputs.features)
    chunks = logistic_head.ScaledChunks(known.train.outputs.features, known.train.labels, mean, scale)
    results, skipped, notes = {}, [], []
    with progress.stage("leave a class out", len(left_out), "classes") as bar:
        for label in sorted(left_out):
            detection = _leave_out(known, int(label), chunks)
            if detection is not None:
                results[classes[label]] = detection
            else:
                skipped.append(classes[label])
            bar.advance(1)
    if len(left_out) < len(trained):
        notes.append(
            f"left out of training: {len(left_out)} of {len(trained)} classes, those with the most test photos"
        )
    if skipped:
        notes.append(f"not measured without {', '.join(skipped)}: too few calibration photos of the other classes")
    return results, notes


def _leave_out(known: KnownPhotos, label: int, chunks: logistic_head.ScaledChunks) -> Detection | None:
    """Train a head without a class; measure how many of its photos are detected."""
    rest = np.flatnonzero(known.train.labels != label)
    numbers = np.unique(known.train.labels[rest], return_inverse=True)[1]
    train_chunks = chunks.select(rest)
    train_chunks.labels = numbers
    coefficients = logistic_head.fit_coefficients(train_chunks, int(numbers.max()) + 1, INVERSE_L2)
    train = known.train.select(rest)
    calibration, test = (_replace_energy(part, chunks, coefficients) for part in (known.calibration, known.test))
    model = fit_familiarity(train, calibration.select(calibration.labels != label))
    if model is None:
        return None
    values = compute_familiarity(model, test.outputs)
    is_unknown = test.labels == label
    return unknown_objects.measure_detection(values[~is_unknown], values[is_unknown], model.threshold)


def _replace_energy(
    photos: LabelledOutputs, chunks: logistic_head.ScaledChunks, coefficients: np.ndarray
) -> LabelledOutputs:
    """Compute the energy with another head: coefficients float [classes, features + 1]."""
    features = photos.outputs.features
    scaled = logistic_head.ScaledChunks(features, photos.labels, chunks.mean, 1 / chunks.factor)
    logits = logistic_head.compute_logits(coefficients, scaled)
    highest = logits.max(1)
    energy = highest + np.log(np.exp(logits - highest[:, None]).sum(1))
    outputs = Outputs(features, photos.outputs.probabilities, energy.astype(np.float32))
    return LabelledOutputs(outputs, photos.labels, photos.groups)
