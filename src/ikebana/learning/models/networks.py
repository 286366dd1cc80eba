"""The network of a recipe, with initial weights and trainable layers set.

A network takes uint8 images, 0 to 255. Normalisation is a part of the network.
"""

import os
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from ikebana.errors import RecipeError
from ikebana.learning.models import backbones, custom
from ikebana.learning.models.familiarity_layer import FamiliarityLayer
from ikebana.learning.models.layers import (
    Ensemble,
    FlattenLikeKeras,
    MaxPoolReLU,
    Scale,
    average_probabilities,
    get_last_linear,
    initialise_like_keras,
)
from ikebana.learning.models.parameter_groups import make_parameter_groups, uses_batch_statistics
from ikebana.recipe import MODULE_PREFIX, GradientMethod, Recipe, Scratch, with_options
from ikebana.system import resources

# Width of the first dense layer of the tutorial's network.
DENSE_UNITS = 512


def build_network(recipe: Recipe, classes: int, model: nn.Module | None = None) -> nn.Module:
    """Build the recipe's network, or its ensemble, with initial weights drawn from its seed.

    Pretrained weights are not loaded yet: `weight_loading.load_pretrained_weights` does that.

    Args:
        model: the user's own module, if the recipe names one. It is not copied.
    Returns:
        A module from images to logits [images, classes].
    Raises:
        RecipeError, MachineError: no such network, or the images are too small or too large for it.
    """
    if recipe.network.startswith(MODULE_PREFIX) or model is not None:
        return custom.wrap_module(model, recipe, classes)
    members = [_build_member(member, classes) for member in recipe.members]
    return members[0] if len(members) == 1 else Ensemble(members)


def get_members(network: nn.Module) -> list[nn.Module]:
    """Return the networks to train one after the other: the ensemble's members, or the network."""
    return list(network.members) if isinstance(network, Ensemble) else [network]


def count_classes(network: nn.Module) -> int:
    """Count the logits that a network, or its head alone, returns per image."""
    return network.classes if isinstance(network, custom.CustomNetwork) else get_last_linear(network).out_features


class CalibratedNetwork(nn.Module):
    """A trained network as exported.

    It maps images [images, 3, image_size, image_size], 0 to 255, to calibrated probabilities,
    features and, if there is a layer for it, familiarity.
    """

    def __init__(self, network: nn.Module, temperature: float, familiarity: FamiliarityLayer | None = None):
        super().__init__()
        self.network, self.temperature, self.familiarity = network, temperature, familiarity

    def forward(self, photos: Tensor) -> tuple[Tensor, ...]:
        outputs = [compute_features_and_logits(member, photos) for member in get_members(self.network)]
        logits = outputs[0][1] if len(outputs) == 1 else average_probabilities([logits for _, logits in outputs])
        probabilities = torch.softmax(logits / self.temperature, 1)
        features = torch.cat([features for features, _ in outputs], 1)
        if self.familiarity is None:
            return probabilities, features
        energy = torch.stack([compute_energy(logits) for _, logits in outputs]).mean(0)
        return probabilities, features, self.familiarity(features, energy)


def compute_energy(logits: Tensor) -> Tensor:
    """Compute the log sum exp of logits [images, classes]: float [images].

    It is high where one class has strong evidence, unlike the softmax, which only compares classes.

    Source: Liu et al. 2020, arXiv:2010.03759.
    """
    return torch.logsumexp(logits, 1)


def compute_features_and_logits(network: nn.Module, photos: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input of the network's last layer, and its output."""
    if isinstance(network, custom.CustomNetwork):  # its last layer is unknown
        logits = network(photos)
        return logits, logits
    if hasattr(network, "backbone"):
        features = network.get_submodule("backbone")(photos)
        return features, network.get_submodule("head")(features)
    assert isinstance(network, nn.Sequential)
    features = network[:-1](photos)
    return features, get_last_linear(network)(features)


def _build_member(recipe: Recipe, classes: int) -> nn.Module:
    # Initialisation draws from torch's global generator.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        if recipe.network == "tutorial":
            dropout = recipe.method.dropout if isinstance(recipe.method, Scratch) else 0.0
            network = _build_tutorial_network(recipe.image_size, dropout, classes)
        else:
            network = backbones.assemble_network(recipe, classes)
    # Called for its effect: it sets requires_grad of every weight.
    make_parameter_groups(network, recipe, recipe.trainable, learning_rate=0.0)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _build_tutorial_network(image_size: int, dropout: float, classes: int) -> nn.Module:
    """Build the tutorial's network: four convolutions, then two dense layers.

    Each convolution has ReLU and 2 x 2 max pooling.

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
            f"images of {image_size} pixels are too small for the tutorial's network", advice="--image-size 46 or more"
        )
    features = channels * map_size * map_size
    needed_bytes = resources.memory_in_use() + 4.0 * features * DENSE_UNITS
    resources.require_memory(needed_bytes, f"a smaller --image-size (now {image_size}), or more memory")
    layers["flatten"] = FlattenLikeKeras()
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers["dense_1"] = nn.Linear(features, DENSE_UNITS)
    layers["relu"] = nn.ReLU()
    layers["dense_2"] = nn.Linear(DENSE_UNITS, classes)
    network = nn.Sequential(layers)
    network.apply(initialise_like_keras)
    return network


def fill_defaults(recipe: Recipe) -> Recipe:
    """Fill in the network's native image size.

    The path of the weights file becomes absolute.

    Raises:
        RecipeError: there is no such network, or BatchNorm would train on batches of one image.
    """
    is_single = isinstance(recipe.method, GradientMethod) and recipe.method.batch_size == 1
    if is_single and any(uses_batch_statistics(member, member.trainable) for member in recipe.members):
        raise RecipeError("BatchNorm cannot be trained on batches of one photo", advice="--batch-size 2 or more")
    weights = {"weights": str(Path(os.path.expanduser(recipe.weights)).absolute())} if recipe.weights else {}
    image_size = recipe.image_size or backbones.get_native_image_size(recipe.members[0])
    return with_options(recipe, image_size=image_size, **weights)
