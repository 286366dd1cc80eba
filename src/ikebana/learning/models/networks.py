"""Build a recipe's network, set what it trains, and describe its layers.

A network takes uint8 images, 0 to 255. Normalisation is a part of the network.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ikebana.errors import RecipeError
from ikebana.learning.fast.pooling import MaxPoolReLU
from ikebana.learning.models import backbones
from ikebana.learning.models.layers import (
    Ensemble,
    FlattenLikeKeras,
    Scale,
    keras_initialisation,
    last_linear,
    together,
)
from ikebana.learning.training.optimisers import Group
from ikebana.recipe import KERAS_INCEPTION, Recipe, Trained
from ikebana.system import resources

# Width of the first dense layer of the tutorial's network.
DENSE_UNITS = 512


def build(recipe: Recipe, classes: int) -> nn.Module:
    """Build the recipe's network, or its ensemble, with initial weights drawn from its seed.

    Pretrained weights are not loaded yet: `backbones.load_pretrained_weights` does that.

    Returns:
        A module from images to logits [images, classes].
    Raises:
        RecipeError, MachineError: no such network, or the images are too small or too large for it.
    """
    members = [_build_member(member, classes) for member in recipe.members]
    return members[0] if len(members) == 1 else Ensemble(members)


def members(network: nn.Module) -> list[nn.Module]:
    """Return the networks to train one after the other: the ensemble's members, or the network."""
    return list(network.members) if isinstance(network, Ensemble) else [network]


class Shipped(nn.Module):
    """A trained network as exported.

    It maps images [images, 3, image_size, image_size], 0 to 255, to calibrated probabilities and
    features.
    """

    def __init__(self, network: nn.Module, temperature: float):
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor]:
        outputs = [_compute_features_and_logits(member, photos) for member in members(self.network)]
        logits = outputs[0][1] if len(outputs) == 1 else together([logits for _, logits in outputs])
        return torch.softmax(logits / self.temperature, 1), torch.cat([features for features, _ in outputs], 1)


def _compute_features_and_logits(network: nn.Module, photos: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input of the network's last layer, and its output."""
    if hasattr(network, "seer"):
        features = network.get_submodule("seer")(photos)
        return features, network.get_submodule("head")(features)
    assert isinstance(network, nn.Sequential)
    features = network[:-1](photos)
    return features, last_linear(network)(features)


def _build_member(recipe: Recipe, classes: int) -> nn.Module:
    torch.manual_seed(recipe.seed)
    if recipe.network == "tutorial":
        network = _build_tutorial_network(recipe.side, recipe.dropout, classes)
    else:
        network = backbones.assembled(recipe, classes)
    # Called for its effect: it sets requires_grad of every weight.
    trained_groups(network, recipe, trained_in(recipe), recipe.learning_rate)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def trained_in(recipe: Recipe) -> Trained:
    """Return which weights the recipe trains in its own epochs."""
    return "all" if recipe.transfer is None else recipe.transfer.trained


def _build_tutorial_network(image_size: int, dropout: float, classes: int) -> nn.Module:
    """Build four convolutions, each with ReLU and 2 x 2 max pooling, then two dense layers.

    Raises:
        RecipeError: the images are too small.
        MachineError: memory cannot hold the weights for images this large.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(scale=Scale())
    channels, map_size = 3, image_size
    for number, filters in enumerate((32, 64, 128, 128), 1):
        layers[f"conv_{number}"] = nn.Conv2d(channels, filters, 3)
        layers[f"pool_{number}"] = MaxPoolReLU()
        channels, map_size = filters, (map_size - 2) // 2
    if map_size < 1:
        raise RecipeError(
            f"photos of {image_size} pixels vanish in the tutorial's network", advice="a side of at least 46"
        )
    features = channels * map_size * map_size
    needed_bytes = resources.held() + 4.0 * features * DENSE_UNITS
    resources.need_memory(needed_bytes, f"a smaller --side (it is {image_size}), or more memory")
    layers["flatten"] = FlattenLikeKeras()
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers["dense_1"] = nn.Linear(features, DENSE_UNITS)
    layers["relu"] = nn.ReLU()
    layers["dense_2"] = nn.Linear(DENSE_UNITS, classes)
    network = nn.Sequential(layers)
    network.apply(keras_initialisation)
    return network


def settled(recipe: Recipe) -> Recipe:
    """Fill in the network's native image size, and make the path of the weights file absolute.

    Raises:
        RecipeError: there is no such network, or BatchNorm would train on batches of one image.
    """
    if recipe.batch == 1 and any(trains_norms(member, trained_in(member)) for member in recipe.members):
        raise RecipeError("BatchNorm learns the spread of a batch, and one photo has none", advice="--batch 2 or more")
    weights = str(Path(recipe.weights).expanduser().absolute()) if recipe.weights else ""
    return replace(recipe, side=recipe.side or backbones.own_side(recipe.members[0]), weights=weights)


def trained_groups(network: nn.Module, recipe: Recipe, trainable: Trained, learning_rate: float) -> list[Group]:
    """Return the trained weights in groups of one learning rate each, and freeze the others."""
    # The tutorial's network, or a head alone.
    if not hasattr(network, "seer"):
        weights = list(network.parameters())
        return (
            backbones.groups_of(weights, learning_rate)
            if recipe.tuning is not None
            else [Group(weights, learning_rate)]
        )
    return backbones.trained_groups(network, recipe, trainable, learning_rate)


def trains_norms(recipe: Recipe, trainable: Trained) -> bool:
    """Return whether BatchNorm uses and updates batch statistics, which one image does not have.

    A pretrained backbone keeps its statistics while it trains. Two cases need batch statistics:
    the tutorial's fine-tuning, which trains BatchNorm, and a network trained from scratch.
    """
    is_tutorial_fine_tuning = recipe.network == KERAS_INCEPTION and trainable == "tail"
    return recipe.network != "tutorial" and (recipe.transfer is None or is_tutorial_fine_tuning)


def into_training(network: nn.Module, recipe: Recipe, trainable: Trained) -> None:
    """Set training mode, but leave BatchNorm in evaluation mode where its statistics are frozen."""
    network.train()
    if hasattr(network, "seer"):
        network.get_submodule("seer.backbone").train(trains_norms(recipe, trainable))


@dataclass(frozen=True)
class Layer:
    """A row of the layer table; `output_shape` has no batch dimension."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    trainable: int


def layers(network: nn.Module, image_size: int) -> list[Layer]:
    """List the layers in forward order, with output shapes and parameter counts.

    Parameters are counted as Keras does: moving means and variances count, but are not trainable.
    """
    # By name: with flip_tta an image passes a layer twice.
    table: dict[str, Layer] = {}

    def record(name: str, layer: nn.Module, output: Any) -> None:
        # Recurrent and some attention layers return several values.
        outputs = output if isinstance(output, tuple | list) else (output,)
        shape = next((tuple(value.shape[1:]) for value in outputs if isinstance(value, Tensor)), ())
        state = [value for key, value in layer.state_dict().items() if "." not in key and value.is_floating_point()]
        parameters = sum(value.numel() for value in state)
        trainable = sum(weight.numel() for weight in layer.parameters(recurse=False) if weight.requires_grad)
        table[name] = Layer(name, type(layer).__name__, shape, parameters, trainable)

    hooks = [
        layer.register_forward_hook(lambda layer, _, output, name=name: record(name, layer, output))
        for name, layer in network.named_modules()
        # timm's norm layers have weights and an activation as child.
        if not list(layer.children()) or list(layer.parameters(recurse=False))
    ]
    device = next(network.parameters()).device
    training = network.training
    with torch.inference_mode():
        network.eval()(torch.zeros((1, 3, image_size, image_size), dtype=torch.uint8, device=device))
    network.train(training)
    for hook in hooks:
        hook.remove()
    return list(table.values())


def layer_table(table: list[Layer], batch_size: int, image_size: int) -> str:
    """Format the layers as text, followed by totals and the shapes of one batch."""
    width = max(len(layer.name) for layer in table) + 2
    lines = [f"{'layer':<{width}}{'kind':<18}{'output shape':<20}{'parameters':>12}"]
    for layer in table:
        shape = " x ".join(str(size) for size in layer.shape)
        lines.append(f"{layer.name:<{width}}{layer.kind:<18}{shape:<20}{layer.parameters:>12,}")
    parameters = sum(layer.parameters for layer in table)
    trainable = sum(layer.trainable for layer in table)
    lines += [
        "",
        f"parameters       {parameters:,}",
        f"trainable        {trainable:,}",
        f"not trainable    {parameters - trainable:,}",
        f"photos, a batch  ({batch_size}, {image_size}, {image_size}, 3) uint8",
        f"labels, a batch  ({batch_size},) int64",
    ]
    return "\n".join(lines) + "\n"


def from_first_trained(table: list[Layer]) -> list[Layer]:
    """Return the layers from the first trainable one on: the backward pass needs their outputs."""
    first = next((index for index, layer in enumerate(table) if layer.trainable), 0)
    return table[first:]


def activation_bytes(table: list[Layer], batch_size: int, bytes_per_value: int) -> int:
    """Estimate how many bytes one training step holds for the backward pass."""
    return batch_size * bytes_per_value * sum(math.prod(layer.shape) for layer in table)
