"""Loading of a recipe's pretrained weights into its backbone."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ikebana.errors import RecipeError
from ikebana.learning.models import inception, pretrained_weights
from ikebana.learning.models.backbones import describe_weights, get_native_image_size, has_fixed_image_size
from ikebana.learning.models.pretrained_weights import Weights
from ikebana.recipe import KERAS_INCEPTION, Recipe

# timm's name for Google's weights, which Keras has too; plain inception_v3 has torchvision's.
KERAS_INCEPTION_WEIGHTS = "inception_v3.tf_in1k"


def resolve_weights(recipe: Recipe) -> Weights | None:
    """Find or download the pretrained weights of a one-network recipe; None if it needs none.

    Raises:
        RecipeError, MachineError: the weights cannot be obtained.
    """
    if not recipe.is_pretrained:
        return None
    name = KERAS_INCEPTION_WEIGHTS if recipe.network == KERAS_INCEPTION else recipe.network
    return pretrained_weights.find_weights(name, Path(recipe.weights) if recipe.weights else None)


def check_weights(recipe: Recipe) -> None:
    """Make sure that the pretrained weights are there and fit, before the network is built.

    Raises:
        RecipeError, MachineError: they cannot be obtained, or belong to another network.
    """
    pretrained = resolve_weights(recipe)
    # The weights that are found automatically fit, but for position embeddings of another image size.
    if pretrained is None or not (recipe.weights or has_fixed_image_size(recipe)):
        return
    tensors = pretrained_weights.load_tensors(pretrained)
    if recipe.network != KERAS_INCEPTION:
        _require_same_shapes(describe_weights(recipe), tensors, recipe, pretrained)


def load_pretrained_weights(network: nn.Module, recipe: Recipe) -> Weights | None:
    """Load the pretrained weights into the backbone, if the recipe needs any.

    Returns:
        Where the weights come from.
    Raises:
        RecipeError: there are none, or they belong to another network.
    """
    pretrained = resolve_weights(recipe)
    if pretrained is None:
        return None
    tensors = pretrained_weights.load_tensors(pretrained)
    backbone_network = network.get_submodule("backbone.network")
    if recipe.network == KERAS_INCEPTION:
        layers = backbone_network.get_submodule("layers")
        assert isinstance(layers, nn.Sequential)
        inception.load_timm_weights(layers, tensors)
        return pretrained
    state = backbone_network.state_dict()
    _require_same_shapes(state, tensors, recipe, pretrained)
    backbone_network.load_state_dict({name: tensors[name].to(value.dtype) for name, value in state.items()})
    return pretrained


def _require_same_shapes(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], recipe: Recipe, pretrained: Weights
) -> None:
    for name, value in expected.items():
        if name not in tensors or tensors[name].shape != value.shape:
            raise RecipeError(
                f"these weights do not fit {recipe.network} at {recipe.image_size} pixels: "
                f"{name} is missing or has another shape",
                where=pretrained.file,
                advice=f"the weights of {recipe.network}, and --image-size {get_native_image_size(recipe)}",
            )


def get_provenance(weights: Weights) -> dict[str, str | None]:
    """Return the entry of `pretrained.json` with the source of a backbone's weights."""
    return {"source": weights.source, "sha256": weights.sha256, "license": weights.license}
