"""Layers that several networks share."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ikebana.learning import fast


class Scale(nn.Module):
    """Scale values of 0 to 255 to 0 to 1."""

    def forward(self, photos: Tensor) -> Tensor:
        """Rescale uint8 or float [images, 3, image_size, image_size]; the memory format is kept."""
        return (photos if photos.is_floating_point() else photos.float()) / 255


class FlattenLikeKeras(nn.Module):
    """Flatten rows, columns, channels, as Keras does; channels-last needs no copy."""

    def forward(self, features: Tensor) -> Tensor:
        return features.permute(0, 2, 3, 1).flatten(1)


class MaxPoolReLU(nn.Module):
    """The maximum of every 2 x 2 pixels, at least 0.

    A last odd row or column is left out. Max-pooling before the ReLU equals max-pooling after it,
    because both are monotone, and needs a quarter of the ReLUs.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Pool [photos, channels, height, width] to [photos, channels, height // 2, width // 2]."""
        if fast.can_pool(features):
            return fast.max_pool_relu(features)
        return functional.relu(functional.max_pool2d(features, 2))


class Normalise(nn.Module):
    """Normalise values of 0 to 255 per channel, as a pretrained network requires.

    The result is (x / 255 - mean) / std.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        # Constants of the architecture, not weights: neither saved nor counted as parameters.
        self.register_buffer("shift", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(std).view(3, 1, 1) * 255), persistent=False)

    def forward(self, photos: Tensor) -> Tensor:
        """Rescale uint8 or float [images, 3, image_size, image_size]; the memory format is kept."""
        return ((photos if photos.is_floating_point() else photos.float()) - self.shift) * self.scale


def get_last_linear(network: nn.Module) -> nn.Linear:
    """Return the layer that computes the logits of a network of ikebana."""
    return next(layer for layer in reversed(list(network.modules())) if isinstance(layer, nn.Linear))


class Ensemble(nn.Module):
    """Several networks whose probabilities are averaged."""

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, photos: Tensor) -> Tensor:
        """Compute log probabilities [images, classes]; their softmax is the probabilities."""
        return average_probabilities([member(photos) for member in self.members])


def average_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Average the probabilities of several networks; return their logs, [images, classes]."""
    log_probabilities = [torch.log_softmax(member_logits.float(), 1) for member_logits in logits]
    return torch.logsumexp(torch.stack(log_probabilities), 0) - math.log(len(log_probabilities))


@torch.no_grad()
def initialise_like_keras(layer: nn.Module) -> None:
    """Draw Glorot uniform weights and set biases to zero, as Keras does."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
