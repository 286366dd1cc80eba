"""Recipes and photos that a network learns in seconds."""

import numpy as np
import torch

from ikebana import recipes
from ikebana.learning import device, examples
from ikebana.recipe import AdamW, with_options

CPU_SETTINGS = device.DeviceSettings("cpu", "float32", 2, "system default")
BASELINE = recipes.get_recipe("baseline", image_size=46, batch_size=16, epochs=4)
TUNED = with_options(
    BASELINE,
    epochs=5,
    learning_rate=3e-3,
    adamw=AdamW(weight_decay=0.05, layer_decay=1.0, warmup_fraction=0.1, label_smoothing=0.1, ema_decay=0.5),
)


def make_striped_photos(photos: int, seed: int = 0, side: int = 46) -> examples.PhotoExamples:
    """Make two classes that differ only in the direction of their stripes, not in colour."""
    rng = np.random.default_rng(seed)
    labels = np.arange(photos) % 2
    waves = np.sin(np.arange(side)[None] / rng.uniform(1.2, 2.2, (photos, 1)) + rng.uniform(0, 6, (photos, 1)))
    stripes = np.repeat((127 + 90 * waves)[:, None, :], side, 1)
    stripes[labels == 1] = stripes[labels == 1].swapaxes(1, 2)
    noisy_stripes = stripes[..., None] + rng.normal(0, 25, (photos, side, side, 3))
    pixels, for_selection = noisy_stripes.clip(0, 255).astype(np.uint8), np.arange(photos) % 4 < 2
    return examples.PhotoExamples(pixels, np.arange(photos), labels.astype(np.int64), for_selection, np.arange(photos))


def have_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Return whether the weights of two networks are the same, bit by bit."""
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)
