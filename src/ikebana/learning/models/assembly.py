"""A recipe's networks, built once: with pretrained weights, and the table of their layers."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ikebana.evaluation.familiarity import FamiliarityModel
from ikebana.learning.models import custom, layer_table, networks, weight_loading
from ikebana.learning.models.familiarity_layer import FamiliarityLayer
from ikebana.learning.models.layer_table import LayerSummary
from ikebana.learning.models.networks import CalibratedNetwork
from ikebana.learning.models.pretrained_weights import Weights
from ikebana.learning.training import checkpoint
from ikebana.recipe import GradientMethod, Recipe


@dataclass(frozen=True)
class Member:
    """One network of a recipe.

    Attributes:
        recipe: of this network alone.
        weights: the pretrained weights in its backbone; None if all weights are random.
        layers: as built: which weights train changes between phases.
    """

    recipe: Recipe
    network: nn.Module
    weights: Weights | None
    layers: Sequence[LayerSummary]

    @property
    def backbone(self) -> nn.Module:
        """The pretrained part, from images to features."""
        return self.network.get_submodule("backbone")


@dataclass(frozen=True)
class Assembly:
    """The networks of a recipe with their initial weights.

    Attributes:
        network: the whole network, as it is exported; of its members if there are several.
        model: the user's own module with its initial weights, if there is one.
    """

    recipe: Recipe
    classes: int
    network: nn.Module
    members: tuple[Member, ...]
    model: nn.Module | None = None

    @property
    def pretrained(self) -> dict[str, dict[str, str | None]]:
        """The source of the initial weights by network, for `pretrained.json`."""
        if self.model is not None:
            return {self.recipe.network: custom.describe_weights(self.model)}
        return {
            member.recipe.network: weight_loading.get_provenance(member.weights)
            for member in self.members
            if member.weights is not None
        }

    def format_layer_table(self) -> str:
        """Format the layers of all members as text."""
        layers = list(self.members[0].layers)
        if len(self.members) > 1:
            layers = [
                replace(layer, name=f"members.{index}.{layer.name}")
                for index, member in enumerate(self.members)
                for layer in member.layers
            ]
        method = self.recipe.method
        batch_size = method.batch_size if isinstance(method, GradientMethod) else None
        return layer_table.format_layer_table(layers, batch_size, self.recipe.image_size)


def assemble(recipe: Recipe, classes: int, model: nn.Module | None = None, *, loads_weights: bool = True) -> Assembly:
    """Build the recipe's networks and load their pretrained weights.

    Args:
        recipe: with its image size filled in.
        model: the user's own module, which is copied.
        loads_weights: False for random weights, where only speed and size matter.
    Raises:
        RecipeError, MachineError: no such network, it does not fit the images, or its weights cannot
            be obtained.
    """
    model = copy.deepcopy(model)
    network = networks.build_network(recipe, classes, copy.deepcopy(model))
    members = []
    for member, member_recipe in zip(networks.get_members(network), recipe.members, strict=True):
        weights = weight_loading.load_pretrained_weights(member, member_recipe) if loads_weights else None
        layers = layer_table.summarise_layers(member, recipe.image_size)
        members.append(Member(member_recipe, member, weights, layers))
    return Assembly(recipe, classes, network, tuple(members), model)


def load_trained_network(
    recipe: Recipe,
    classes: int,
    weights: Path,
    temperature: float,
    model: nn.Module | None = None,
    *,
    familiarity: FamiliarityModel | None = None,
) -> CalibratedNetwork:
    """Build the network of a finished run with its trained weights.

    Args:
        weights: the run's file.
        model: the user's own module, if the run trained one; its weights stay as they are.
        familiarity: of the run, if it has one.
    Raises:
        RecipeError: the run trained a module that was not given.
        RunError: the weights cannot be read, or are of another network.
    """
    network = networks.build_network(recipe, classes, copy.deepcopy(model))
    checkpoint.load_weights(weights, network)
    layer = FamiliarityLayer(familiarity) if familiarity is not None else None
    return CalibratedNetwork(network, temperature, layer).eval()
