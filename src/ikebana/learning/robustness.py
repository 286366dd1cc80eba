"""Accuracy of a trained network on changed copies of test photos."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ikebana.evaluation.image_changes import CHANGES
from ikebana.evaluation.robustness import STRENGTHS, Robustness
from ikebana.learning import fast, scoring
from ikebana.learning.device import DeviceSettings
from ikebana.learning.estimate import FLOAT32_TIME_FACTOR
from ikebana.learning.examples import Examples, PhotoExamples
from ikebana.learning.training.loop import FORWARD_TIME_FRACTION
from ikebana.recipe import Recipe
from ikebana.system import progress
from ikebana.system.threads import map_in_threads

# Predictions of each photo: as it is, and with each change at each strength.
PASSES = 1 + len(CHANGES) * len(STRENGTHS)
# At most about as many predictions as `quick` extracts features of all photos.
MAX_ROBUSTNESS_PHOTOS = 200


@dataclass(frozen=True)
class ChangedPhotos:
    """Photos that are changed as they are read."""

    photos: PhotoExamples
    # A key of CHANGES.
    change: str
    # 1 to 5.
    strength: int

    @property
    def rows(self) -> np.ndarray:
        return self.photos.rows

    @property
    def labels(self) -> np.ndarray:
        return self.photos.labels

    @property
    def for_selection(self) -> np.ndarray:
        return self.photos.for_selection

    def __len__(self) -> int:
        return len(self.photos)

    def get_batch(self, indices: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
        """Return changed photos, uint8 [photos, 3, image_size, image_size], and labels."""

        def change(index: int) -> np.ndarray:
            return CHANGES[self.change](self.photos.pixels[self.photos.rows[index]], self.strength, index)

        changed = torch.from_numpy(np.stack(list(map_in_threads(change, indices.tolist()))))
        return changed.permute(0, 3, 1, 2).to(device), torch.from_numpy(self.labels[indices]).to(device)


def estimate_seconds(photos: int, recipe: Recipe, settings: DeviceSettings) -> float:
    """Estimate how long `measure_robustness` takes.

    Args:
        photos: number of photos in the collection, not only of the test split.
    """
    test_photos = min(MAX_ROBUSTNESS_PHOTOS, photos * recipe.split_fractions[2])
    # Measured in the precision of training, and where features are not cached, with a backward pass.
    factor = 1.0 if recipe.caches_features else FORWARD_TIME_FRACTION
    factor *= 1.0 if settings.precision == "float32" else FLOAT32_TIME_FACTOR
    return test_photos * PASSES * factor * (settings.seconds_per_photo or 0.0)


def measure_robustness(network: nn.Module, photos: PhotoExamples, settings: DeviceSettings) -> Robustness:
    """Measure the accuracy on changed copies of at most 200 evenly spaced photos.

    Args:
        network: from uint8 images to logits, on its device.
        photos: of the test split.
    """
    chosen = photos.select(
        np.unique(np.linspace(0, len(photos) - 1, min(len(photos), MAX_ROBUSTNESS_PHOTOS)).astype(int))
    )
    exact = replace(settings, precision="float32")
    fast_network = fast.optimise_for_inference(network, chosen)
    with progress.stage("robustness", len(chosen) * PASSES) as bar:

        def measure_accuracy(examples: Examples) -> float:
            logits = scoring.compute_logits(fast_network, examples, exact, bar)
            return float((logits.argmax(1) == examples.labels).mean())

        return Robustness(
            len(chosen),
            measure_accuracy(chosen),
            {
                name: tuple(measure_accuracy(ChangedPhotos(chosen, name, strength)) for strength in STRENGTHS)
                for name in CHANGES
            },
        )
