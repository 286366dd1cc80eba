"""Networks on a pretrained backbone: any of timm's, or InceptionV3 as in Keras.

Such a network has two parts: `backbone` (images → feature vectors: normalisation and a network
without its top) and `head` (features → logits).
"""

import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ikebana.errors import RecipeError, get_first_line
from ikebana.learning import fast
from ikebana.learning.models import inception, pretrained_weights
from ikebana.learning.models.layers import FlattenLikeKeras, Normalise, Scale, initialise_like_keras
from ikebana.recipe import KERAS_INCEPTION, MODULE_PREFIX, TUTORIAL_NETWORK, HeadMethod, PretrainedMethod, Recipe
from ikebana.system import resources

# The last feature map of most networks is this many times smaller than the image.
IMAGE_SIZE_MULTIPLE = 32


def assemble_network(recipe: Recipe, classes: int) -> nn.Sequential:
    """Build normalisation, backbone and head; pretrained weights are not loaded yet.

    Raises:
        RecipeError: there is no such network, or the images are too small for it.
        MachineError: memory cannot hold the weights.
    """
    if recipe.network == KERAS_INCEPTION:
        normalise: nn.Module = Scale()
        layers = inception.build_inception(recipe.truncate_at or "mixed10")
        network: nn.Module = nn.Sequential(OrderedDict(layers=layers, flatten=FlattenLikeKeras()))
    else:
        network, config = _build_timm_network(recipe)
        normalise = Normalise(config["mean"], config["std"])
    head = _build_head(recipe, _measure_width(network, recipe), classes)
    flip_tta = isinstance(recipe.method, PretrainedMethod) and recipe.method.flip_tta
    return nn.Sequential(OrderedDict(backbone=Backbone(normalise, network, flip_tta), head=head))


class Backbone(nn.Module):
    """Normalisation and a network without its top: images to features.

    With `flip_tta`, evaluation mode averages the features of the image and its horizontal flip.
    """

    def __init__(self, normalise: nn.Module, network: nn.Module, flip_tta: bool):
        super().__init__()
        self.normalise, self.network, self.flip_tta = normalise, network, flip_tta

    def forward(self, photos: Tensor) -> Tensor:
        """Compute features.

        Args:
            photos: uint8 or float [images, 3, image_size, image_size], 0 to 255.
        Returns:
            float [images, features].
        """
        normalised = self.normalise(photos)
        features = self.network(normalised)
        if self.flip_tta and not self.training:
            features = (features + self.network(normalised.flip(3))) / 2
        return features


def get_native_image_size(recipe: Recipe) -> int:
    """Return the image size in pixels that suits the recipe's network.

    timm evaluates a network on a centre crop: say the middle 0.875 of a photo at 224 pixels.
    ikebana shows the whole middle square. A frozen network therefore gets about 224 / 0.875 pixels,
    so that objects keep their size, rounded to a multiple of 32, which some networks require.

    Raises:
        RecipeError: there is no such network.
    """
    if not _is_timm_network(recipe.network):
        return 150
    config = _get_timm_config(recipe.network)
    image_size = int(config["input_size"][1])
    if not recipe.caches_features or config["fixed_input_size"]:
        return image_size
    return max(image_size, IMAGE_SIZE_MULTIPLE * round(image_size / config["crop_pct"] / IMAGE_SIZE_MULTIPLE))


def _build_timm_network(recipe: Recipe) -> tuple[nn.Module, dict[str, Any]]:
    import timm

    config, options = _get_timm_config(recipe.network), _get_timm_options(recipe)
    # The packaged networks are small.
    if recipe.network not in pretrained_weights.WEIGHTS_PACKAGES:
        weight_bytes = sum(value.numel() * value.element_size() for value in describe_weights(recipe).values())
        resources.require_memory(
            resources.memory_in_use() + weight_bytes, "a smaller --network, or a machine with more memory"
        )
    network = fast.replace_depthwise(timm.create_model(recipe.network, pretrained=False, num_classes=0, **options))
    for module in network.modules():
        if hasattr(module, "attention_bias_cache"):
            module.__class__ = _make_uncached_attention(type(module))
    return network, config


def _get_timm_options(recipe: Recipe) -> dict[str, Any]:
    return {"img_size": recipe.image_size} if has_fixed_image_size(recipe) else {}


def describe_weights(recipe: Recipe) -> dict[str, Tensor]:
    """Describe the weights of a network of timm by name, without allocating them.

    Allocating too much would make the kernel kill the process.

    Returns:
        Tensors on the meta device: shape and type without values.
    """
    return _describe_weights(recipe.network, **_get_timm_options(recipe))


@functools.cache
def _describe_weights(network: str, **options: Any) -> dict[str, Tensor]:
    import timm

    # The run's own random generator must not advance here.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return timm.create_model(network, pretrained=False, num_classes=0, **options).state_dict()


@functools.cache
def _make_uncached_attention(layer_class: type[nn.Module]) -> type[nn.Module]:
    """Derive an attention layer that computes its position biases at every forward pass.

    timm's layers cache them in evaluation mode. ikebana trains a backbone in evaluation mode, which
    freezes BatchNorm, so a cached bias would belong to older weights and a freed graph.
    """

    def get_biases(self: Any, _: torch.device) -> Tensor:
        return self.attention_biases[:, self.attention_bias_idxs]

    return type(layer_class.__name__, (layer_class,), {"get_attention_biases": get_biases})


def _get_timm_config(network: str) -> dict[str, Any]:
    """Return timm's configuration of a network: mean, std, input_size and so on.

    Raises:
        RecipeError: timm has no network of that name; the advice lists similar names.
    """
    import timm

    architecture = network.split(".", maxsplit=1)[0]
    if not timm.is_model(network):
        similar = timm.list_models(f"*{architecture}*")[:8]
        advice = ", ".join(similar) if similar else f"tutorial, {KERAS_INCEPTION}, or any of timm.list_models()"
        raise RecipeError(f"unknown network {network!r}", advice=advice)
    try:
        config = timm.get_pretrained_cfg(network)
    # The part of the name behind the dot is the tag of the weights.
    except RuntimeError:
        advice = ", ".join(timm.list_pretrained(f"{architecture}.*")[:8]) or architecture
        raise RecipeError(f"unknown pretrained weights {network!r}", advice=advice) from None
    return config.to_dict() if config is not None else timm.models.PretrainedCfg().to_dict()


@torch.inference_mode()
def _measure_width(network: nn.Module, recipe: Recipe) -> int:
    """Count the network's features with a forward pass; no attribute has it for every network."""
    try:
        features = network.eval()(torch.zeros(1, 3, recipe.image_size, recipe.image_size))
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(
            f"images of {recipe.image_size} pixels do not fit {recipe.network}: {get_first_line(error)}",
            advice=f"--image-size {get_native_image_size(recipe)}",
        ) from None
    return features.shape[1]


def _build_head(recipe: Recipe, width: int, classes: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    hidden_units = recipe.method.hidden_units if isinstance(recipe.method, HeadMethod) else 0
    if isinstance(recipe.method, HeadMethod) and recipe.method.dropout:
        layers["dropout"] = nn.Dropout(recipe.method.dropout)
    if isinstance(recipe.method, HeadMethod) and hidden_units:
        layers["dense_1"] = nn.Linear(width, hidden_units)
        layers["relu"] = nn.ReLU()
        if recipe.method.hidden_dropout:
            layers["hidden_dropout"] = nn.Dropout(recipe.method.hidden_dropout)
    layers["dense_2" if hidden_units else "dense"] = nn.Linear(hidden_units or width, classes)
    return nn.Sequential(layers).apply(initialise_like_keras)


def has_fixed_image_size(recipe: Recipe) -> bool:
    """Return whether the network has weights per image position, as position embeddings are."""
    return _is_timm_network(recipe.network) and bool(_get_timm_config(recipe.network)["fixed_input_size"])


def _is_timm_network(name: str) -> bool:
    return name not in (TUTORIAL_NETWORK, KERAS_INCEPTION) and not name.startswith(MODULE_PREFIX)
