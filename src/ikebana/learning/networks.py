"""Recipe → network. A network takes photos as they are kept, uint8 and 0 to 255; normalisation lives inside it."""

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ikebana import machine
from ikebana.choices import Trained
from ikebana.errors import RecipeError
from ikebana.learning import backbones
from ikebana.learning.layers import Ensemble, FlattenLikeKeras, Scale, keras_initialisation, last_linear, together
from ikebana.learning.optimisers import Group
from ikebana.learning.pooling import MaxPoolReLU
from ikebana.recipe import KERAS_INCEPTION, Recipe

DENSE = 512  # features of the tutorial's first dense layer


def build(recipe: Recipe, classes: int) -> nn.Module:
    """The recipe's network, or several of them averaged, with the first weights that its seed draws.

    It gives logits [photos, classes].

    A pretrained backbone's own weights are not in it yet: `backbones.fill` puts them there.

    raises  RecipeError or MachineError if there is no such network, or the photos are too small or too large for it
    """
    members = [_built(each, classes) for each in recipe.members]
    return members[0] if len(members) == 1 else Ensemble(members)


def members(network: nn.Module) -> list[nn.Module]:
    """The networks that learn one after the other; nearly always the one network itself."""
    return list(network.members) if isinstance(network, Ensemble) else [network]


class Shipped(nn.Module):
    """A trained network as it ships: photos [photos, 3, side, side], 0 to 255 → calibrated probabilities, features."""

    def __init__(self, network: nn.Module, temperature: float):
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor]:
        seen = [_features_and_logits(member, photos) for member in members(self.network)]
        logits = seen[0][1] if len(seen) == 1 else together([each[1] for each in seen])
        return torch.softmax(logits / self.temperature, 1), torch.cat([each[0] for each in seen], 1)


def _features_and_logits(network: nn.Module, photos: Tensor) -> tuple[Tensor, Tensor]:
    """What the network's last part decides by, and what it decides."""
    if hasattr(network, "seer"):
        found = network.get_submodule("seer")(photos)
        return found, network.get_submodule("head")(found)
    assert isinstance(network, nn.Sequential)
    found = network[:-1](photos)
    return found, last_linear(network)(found)


def _built(recipe: Recipe, classes: int) -> nn.Module:
    torch.manual_seed(recipe.seed)
    if recipe.network == "tutorial":
        network = _tutorial(recipe.side, recipe.dropout, classes)
    else:
        network = backbones.assembled(recipe, classes)
    trained_groups(network, recipe, trained_in(recipe), recipe.learning_rate)  # so that the rest is known not to learn
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def trained_in(recipe: Recipe) -> Trained:
    """What learns in the recipe's own epochs."""
    return "all" if recipe.transfer is None else recipe.transfer.trained


def _tutorial(side: int, dropout: float, classes: int) -> nn.Module:
    """The tutorial's network: four convolutions, each with ReLU and max-pool 2, then two dense layers.

    raises  RecipeError or MachineError if photos are too small for it, or so large that memory does not hold its weights
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(scale=Scale())
    channels, left = 3, side
    for number, wider in enumerate((32, 64, 128, 128), 1):
        layers[f"conv_{number}"] = nn.Conv2d(channels, wider, 3)
        layers[f"pool_{number}"] = MaxPoolReLU()
        channels, left = wider, (left - 2) // 2
    if left < 1:
        raise RecipeError(f"photos of {side} pixels vanish in the tutorial's network", advice="a side of at least 46")
    wide = channels * left * left
    machine.need_memory(machine.held() + 4.0 * wide * DENSE, f"a smaller --side (it is {side}), or more memory")
    layers["flatten"] = FlattenLikeKeras()
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers["dense_1"] = nn.Linear(wide, DENSE)
    layers["relu"] = nn.ReLU()
    layers["dense_2"] = nn.Linear(DENSE, classes)
    network = nn.Sequential(layers)
    network.apply(keras_initialisation)
    return network


def settled(recipe: Recipe) -> Recipe:
    """The recipe with the side that its first network was made for, if it leaves that open, and its weights' file found from
    anywhere.

    raises  RecipeError if there is no such network, or BatchNorm would learn from batches of one photo
    """
    if recipe.batch == 1 and any(trains_norms(each, trained_in(each)) for each in recipe.members):
        raise RecipeError("BatchNorm learns the spread of a batch, and one photo has none", advice="--batch 2 or more")
    weights = str(Path(recipe.weights).expanduser().absolute()) if recipe.weights else ""
    return replace(recipe, side=recipe.side or backbones.own_side(recipe.members[0]), weights=weights)


def trained_groups(network: nn.Module, recipe: Recipe, trained: Trained, learning_rate: float) -> list[Group]:
    """The weights that learn, in groups of one learning rate each; the others are told not to."""
    if not hasattr(network, "seer"):  # the tutorial's network, or a head alone
        own = list(network.parameters())
        return backbones.groups_of(own, learning_rate) if recipe.tuning is not None else [Group(own, learning_rate)]
    return backbones.trained_groups(network, recipe, trained, learning_rate)


def trains_norms(recipe: Recipe, trained: Trained) -> bool:
    """Whether BatchNorm takes mean and spread of each batch, of which a single photo has none.

    A pretrained backbone stays as it is when photos pass it, its BatchNorm's means included; but the tutorial's fine-tuning
    trains BatchNorm, and a network that is trained from nothing must.
    """
    keras_tail = recipe.network == KERAS_INCEPTION and trained == "tail"
    return recipe.network != "tutorial" and (recipe.transfer is None or keras_tail)


def into_training(network: nn.Module, recipe: Recipe, trained: Trained) -> None:
    """Dropout on; and BatchNorm counts along only where it is trained too."""
    network.train()
    if hasattr(network, "seer"):
        network.get_submodule("seer.backbone").train(trains_norms(recipe, trained))


@dataclass(frozen=True)
class Layer:
    """A line of the layer table."""

    name: str
    kind: str
    shape: tuple[int, ...]  # of its output, without the batch
    parameters: int
    trainable: int


def layers(network: nn.Module, side: int) -> list[Layer]:
    """The layers in the order in which a photo passes them, with output shapes and parameter counts.

    Parameters are counted as Keras does: moving means and variances count, but are not trainable.
    """
    table: dict[str, Layer] = {}  # by name: a photo may pass a layer twice, once as its mirror image

    def note(name: str, layer: nn.Module, output: Any) -> None:
        # Recurrent and some attention layers give several things.
        several = output if isinstance(output, tuple | list) else (output,)
        shape = next((tuple(each.shape[1:]) for each in several if isinstance(each, Tensor)), ())
        own = [value for entry, value in layer.state_dict().items() if "." not in entry and value.is_floating_point()]
        counted = sum(each.numel() for each in own)
        trainable = sum(each.numel() for each in layer.parameters(recurse=False) if each.requires_grad)
        table[name] = Layer(name, type(layer).__name__, shape, counted, trainable)

    hooks = [
        layer.register_forward_hook(lambda layer, _, output, name=name: note(name, layer, output))
        for name, layer in network.named_modules()
        if not list(layer.children()) or list(layer.parameters(recurse=False))  # timm's norms hold their activation
    ]
    device = next(network.parameters()).device
    training = network.training
    with torch.inference_mode():
        network.eval()(torch.zeros((1, 3, side, side), dtype=torch.uint8, device=device))
    network.train(training)
    for hook in hooks:
        hook.remove()
    return list(table.values())


def layer_table(table: list[Layer], batch: int, side: int) -> str:
    """The layers as text, below them what one batch looks like."""
    width = max(len(layer.name) for layer in table) + 2
    lines = [f"{'layer':<{width}}{'kind':<18}{'output shape':<20}{'parameters':>12}"]
    for layer in table:
        shape = " x ".join(str(number) for number in layer.shape)
        lines.append(f"{layer.name:<{width}}{layer.kind:<18}{shape:<20}{layer.parameters:>12,}")
    counted = sum(layer.parameters for layer in table)
    trainable = sum(layer.trainable for layer in table)
    lines += [
        "",
        f"parameters       {counted:,}",
        f"trainable        {trainable:,}",
        f"not trainable    {counted - trainable:,}",
        f"photos, a batch  ({batch}, {side}, {side}, 3) uint8",
        f"labels, a batch  ({batch},) int64",
    ]
    return "\n".join(lines) + "\n"


def from_first_trained(table: list[Layer]) -> list[Layer]:
    """The layers whose outputs the backward pass needs: those from the first one that learns."""
    first = next((number for number, layer in enumerate(table) if layer.trainable), 0)
    return table[first:]


def activation_bytes(table: list[Layer], batch: int, bytes_each: int) -> int:
    """About how much memory one training step holds for the backward pass."""
    return batch * bytes_each * sum(math.prod(layer.shape) for layer in table)
