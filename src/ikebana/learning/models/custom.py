"""A module of the user's own in place of a network of ikebana."""

import hashlib

import torch
from torch import Tensor, nn

from ikebana.errors import RecipeError
from ikebana.recipe import MODULE_PREFIX, Recipe

EXAMPLE = "ikebana.fit(photos, model=model), ikebana.resume(run, model=model), ikebana.export(run, file, model=model)"


class CustomNetwork(nn.Module):
    """The user's module, which gets float images from 0 to 255 and returns logits."""

    def __init__(self, module: nn.Module, classes: int):
        super().__init__()
        self.module, self.classes = module, classes

    def forward(self, photos: Tensor) -> Tensor:
        """Map uint8 or float [images, 3, image_size, image_size] to logits [images, classes]."""
        return self.module(photos if photos.is_floating_point() else photos.float())


def name_network(module: nn.Module) -> str:
    """Return what `recipe.json` calls the network; RecipeError if it is a class."""
    if isinstance(module, type):
        raise RecipeError(
            f"the model is a class, {module.__name__}", advice=f"an instance of it, such as {module.__name__}()"
        )
    return f"{MODULE_PREFIX}{type(module).__qualname__}"


def wrap_module(module: nn.Module | None, recipe: Recipe, classes: int) -> CustomNetwork:
    """Wrap the module that a recipe names, after a trial with two empty images.

    Raises:
        RecipeError: there is no module, it is of another class, or does not return logits.
    """
    if module is None:
        raise RecipeError(
            f"this run uses your own network: {recipe.network.removeprefix(MODULE_PREFIX)}",
            advice=f"pass it from Python: {EXAMPLE}",
        )
    if name_network(module) != recipe.network:
        raise RecipeError(
            f"the model is a {type(module).__qualname__}, but the recipe names {recipe.network}",
            advice="the module that the run was started with",
        )
    network = CustomNetwork(module, classes)
    photos = torch.zeros(2, 3, recipe.image_size, recipe.image_size)
    try:
        with torch.inference_mode():
            logits = network.eval()(photos)
    # The user's code may raise anything.
    except Exception as error:
        raise RecipeError(
            f"the model failed on a batch of shape {tuple(photos.shape)}: {type(error).__name__}: {error}",
            advice="a module that maps float images [N, 3, image_size, image_size], 0 to 255, to logits [N, classes]",
        ) from error
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, classes) or not logits.is_floating_point():
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise RecipeError(
            f"the model returned {shape} for a batch of 2 images of {classes} classes",
            advice=f"a module that returns logits of shape (2, {classes})",
        )
    return network


def describe_weights(module: nn.Module) -> dict[str, str | None]:
    """Describe the module's initial weights for `pretrained.json`."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {"source": "the model argument", "sha256": digest.hexdigest(), "license": None}
