"""Small layers that several networks share."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """0 to 255 becomes 0 to 1."""

    def forward(self, photos: Tensor) -> Tensor:
        """photos  [photos, 3, side, side], uint8 or float from 0 to 255, in any memory format, which is kept"""
        return (photos if photos.is_floating_point() else photos.float()) / 255


class FlattenLikeKeras(nn.Module):
    """Rows, columns, channels: the order in which Keras flattens, and free of copies in the channels-last format."""

    def forward(self, features: Tensor) -> Tensor:
        return features.permute(0, 2, 3, 1).flatten(1)


class Normalise(nn.Module):
    """0 to 255 becomes what a pretrained network was trained on: (x / 255 - mean) / std, each channel apart."""

    shift: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        # Constants of the architecture, not weights: neither saved nor counted.
        self.register_buffer("shift", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(std).view(3, 1, 1) * 255), persistent=False)

    def forward(self, photos: Tensor) -> Tensor:
        """photos  [photos, 3, side, side], uint8 or float from 0 to 255, in any memory format, which is kept"""
        return ((photos if photos.is_floating_point() else photos.float()) - self.shift) * self.scale


def last_linear(network: nn.Module) -> nn.Linear:
    """The layer that gives the logits."""
    return next(each for each in reversed(list(network.modules())) if isinstance(each, nn.Linear))


class Ensemble(nn.Module):
    """Several networks asked about the same photo; what they say together is the mean of their probabilities."""

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, photos: Tensor) -> Tensor:
        """Logarithms of probabilities [photos, classes]: a softmax makes probabilities of them, as of any logits."""
        return together([member(photos) for member in self.members])


def together(logits: Sequence[Tensor]) -> Tensor:
    """What several networks say together: the logarithms of the means of their probabilities, [photos, classes]."""
    said = [torch.log_softmax(each.float(), 1) for each in logits]
    return torch.logsumexp(torch.stack(said), 0) - math.log(len(said))


@torch.no_grad()
def keras_initialisation(layer: nn.Module) -> None:
    """Glorot uniform weights and zero biases, as Keras draws them for convolutions and dense layers."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
