"""A network cut in two before one of its stages: what lies below the cut looks at a photo once, what lies above learns from that.

Neither half is built anew: both are the network itself, its weights shared, with something else in the place of the other half.
That holds for networks whose stages follow one another and have nothing between them, as most convolutional ones; whether it
does is tried, not guessed.
"""

import copy
from itertools import chain

import torch
from torch import Tensor, nn

from ikebana.errors import RecipeError
from ikebana.learning import backbones
from ikebana.learning.backbones import Seer
from ikebana.recipe import Recipe

STUMBLES = (RuntimeError, TypeError, AttributeError, ValueError, IndexError)  # of a network that nobody foresaw
OTHERWISE = "--recipe good, which keeps nothing, or a convolutional network"
ALIKE = 1e-3  # of the features' size: how far the two halves may be from the whole


class Below(nn.Module):
    """Photos, uint8 or float [photos, 3, side, side], 0 to 255 → what the first stage above the cut is given."""

    def __init__(self, seer: Seer, stage: str):
        super().__init__()
        self.stage, self.normalise, self.backbone = stage, seer.normalise, _shared(seer.backbone)
        _put(self.backbone, stage, _End())

    def forward(self, photos: Tensor) -> Tensor:
        try:
            return self.backbone(self.normalise(photos))
        except _Reached as reached:
            return reached.given


class Above(nn.Module):
    """What the first stage above the cut is given → features [photos, features]."""

    def __init__(self, seer: Seer, stage: str):
        super().__init__()
        self.backbone = _shared(seer.backbone)
        for name, _ in backbones.children(self.backbone):
            if name == stage:
                break
            _put(self.backbone, name, nn.Identity())

    def forward(self, given: Tensor) -> Tensor:
        if given.ndim == 4:
            given = given.contiguous(memory_format=torch.channels_last)
        return self.backbone(given)


class _Reached(Exception):
    """The end of the way below the cut."""

    def __init__(self, given: Tensor):
        super().__init__()
        self.given = given


class _End(nn.Module):
    def forward(self, given: Tensor) -> Tensor:
        raise _Reached(given)


@torch.no_grad()
def halves(seer: nn.Module, recipe: Recipe) -> tuple[Below, Above]:
    """The two halves of a network before the first stage that the recipe lets learn.

    raises  RecipeError if one after the other they are not the network
    """
    assert isinstance(seer, Seer)
    assert recipe.transfer is not None
    stage = backbones.tail(seer.backbone, recipe.transfer.tail_from)
    names = [name for name, _ in backbones.stages(seer.backbone)]
    if not any(names[: names.index(stage)]):
        raise RecipeError(
            f"{recipe.network} cannot be cut before {stage or 'its first layer'}: nothing lies below it",
            advice=OTHERWISE,
        )
    photo = torch.randint(0, 256, (1, 3, recipe.side, recipe.side), generator=torch.Generator().manual_seed(0))
    photo = photo.float().to(next(seer.parameters()).device)
    below, above, whole = Below(seer, stage).eval(), Above(seer, stage).eval(), seer.eval()(photo)
    try:
        found = above(below(photo))
        alike = found.shape == whole.shape and bool((found - whole).abs().max() <= ALIKE * whole.abs().max())
    except STUMBLES:
        alike = False
    if not alike:
        raise RecipeError(
            f"{recipe.network} cannot be cut before {stage or 'its first layer'}: it is more than its stages in a row",
            advice=OTHERWISE,
        )
    return below, above


def _shared(backbone: nn.Module) -> nn.Module:
    """The same network with the same weights, whose layers can be put in other places."""
    return copy.deepcopy(backbone, {id(each): each for each in chain(backbone.parameters(), backbone.buffers())})


def _put(backbone: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(backbone.get_submodule(parent), own, module)
