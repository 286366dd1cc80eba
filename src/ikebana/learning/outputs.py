"""Features and probabilities that a trained network computes for photos."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ikebana.learning import fast, scoring
from ikebana.learning.device import DeviceSettings
from ikebana.learning.estimate import MAX_COMPARED_PHOTOS
from ikebana.learning.examples import Examples, FeatureExamples
from ikebana.learning.models import networks
from ikebana.learning.plan import TrainingTask
from ikebana.system import progress

SEED = 0


@dataclass(frozen=True)
class Outputs:
    """What a network computes for some photos.

    Attributes:
        features: float32 [photos, features]: the input of the head; of all members of an ensemble.
        probabilities: float32 [photos, classes], not calibrated; the mean over the members.
        energy: float32 [photos], log sum exp of the logits; the mean over the members.
    """

    features: np.ndarray
    probabilities: np.ndarray
    energy: np.ndarray

    def __getitem__(self, photos: slice | np.ndarray) -> "Outputs":
        return Outputs(self.features[photos], self.probabilities[photos], self.energy[photos])

    def __len__(self) -> int:
        return len(self.features)


def compute_held_out(tasks: Sequence[TrainingTask], settings: DeviceSettings) -> Outputs:
    """Compute the outputs for the validation photos, then the test photos, in float32.

    Scores then do not depend on the precision of training.
    """
    exact = replace(settings, precision="float32")
    return _compute("score", [(task.network, task.held_out) for task in tasks], exact)


def compute_training(
    tasks: Sequence[TrainingTask], settings: DeviceSettings, max_photos: int = MAX_COMPARED_PHOTOS
) -> tuple[Outputs, np.ndarray]:
    """Compute the outputs for training photos, in the precision of training.

    Args:
        max_photos: of more photos, so many are drawn.
    Returns:
        The outputs, and the photos' class indices.
    """
    chosen = select_training(len(tasks[0].train), max_photos)
    parts = [(task.network, task.train.select(chosen)) for task in tasks]
    return _compute("compare photos", parts, settings), tasks[0].train.labels[chosen]


def select_training(count: int, max_photos: int = MAX_COMPARED_PHOTOS) -> np.ndarray:
    """Select the training photos that familiarity is fitted to: ascending indices."""
    return np.sort(np.random.default_rng(SEED).choice(count, min(count, max_photos), replace=False))


def compute_images(network: nn.Module, images: Examples, settings: DeviceSettings) -> Outputs:
    """Compute the outputs of a whole network, or ensemble, for images in float32."""
    exact = replace(settings, precision="float32")
    return _compute("predict drawn images", [(member, images) for member in networks.get_members(network)], exact)


def _compute(title: str, parts: Sequence[tuple[nn.Module, Examples]], settings: DeviceSettings) -> Outputs:
    features, probabilities, energies = [], [], []
    with progress.stage(title, sum(len(examples) for _, examples in parts)) as bar:
        for network, examples in parts:
            fused = fast.optimise_for_inference(network, examples)
            member_features, logits = _compute_member(fused, examples, settings, bar)
            features.append(member_features)
            probabilities.append(torch.softmax(torch.from_numpy(logits), 1).numpy())
            energies.append(networks.compute_energy(torch.from_numpy(logits)).numpy())
    return Outputs(np.concatenate(features, axis=1), np.mean(probabilities, axis=0), np.mean(energies, axis=0))


@torch.inference_mode()
def _compute_member(
    network: nn.Module, examples: Examples, settings: DeviceSettings, bar: progress.Bar
) -> tuple[np.ndarray, np.ndarray]:
    """Return features and logits of one network, or of a head on cached features."""
    network.eval()
    batches = []
    for inputs in scoring.iterate_batches(examples, settings, bar):
        with settings.autocast():
            if isinstance(examples, FeatureExamples):
                features, logits = inputs.flatten(1), network(inputs)
            else:
                features, logits = networks.compute_features_and_logits(network, inputs)
        batches.append((features.float().cpu().numpy(), logits.float().cpu().numpy()))
    if not batches:
        return np.zeros((0, 1), np.float32), np.zeros((0, networks.count_classes(network)), np.float32)
    features, logits = zip(*batches, strict=True)
    return np.concatenate(features), np.concatenate(logits)
