"""Networks on a backbone that others trained: any of timm's, or InceptionV3 as Keras builds it.

A network of this kind has two parts: `seer` (photo → features, a vector each: normalisation and backbone) and `head`
(features → logits).
"""

import functools
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ikebana import machine
from ikebana.choices import Trained, Transfer
from ikebana.errors import RecipeError
from ikebana.learning import depthwise, inception, weights
from ikebana.learning.layers import FlattenLikeKeras, Normalise, Scale, keras_initialisation
from ikebana.learning.optimisers import Group
from ikebana.learning.weights import Weights
from ikebana.recipe import KERAS_INCEPTION, Recipe

GOOGLES_INCEPTION = (
    "inception_v3.tf_in1k"  # in timm's hub: the weights that Keras has; plain inception_v3 is torchvision's
)
STEP = 32  # pixels that become one in the last layers of most networks
LAST_LAYERS = 50  # of Keras' layers, that the tutorial fine-tunes


def assembled(recipe: Recipe, classes: int) -> nn.Sequential:
    """Normalisation, backbone and head, the backbone's weights not filled in yet.

    raises  RecipeError if there is no such network, or the photos are too small for it; MachineError if memory does not
            hold its weights
    """
    if recipe.network == KERAS_INCEPTION:
        normalise: nn.Module = Scale()
        layers = inception.inception(recipe.until or "mixed10")
        backbone: nn.Module = nn.Sequential(OrderedDict(layers=layers, flatten=FlattenLikeKeras()))
    else:
        backbone, about = _timm(recipe)
        normalise = Normalise(about["mean"], about["std"])
    head = _head(recipe.transfer or Transfer(), _width(backbone, recipe), classes)
    mirrored = recipe.transfer is not None and recipe.transfer.mirrored
    return nn.Sequential(OrderedDict(seer=Seer(normalise, backbone, mirrored), head=head))


class Seer(nn.Module):
    """Photo to features; outside of training, if asked, the mean of a photo's and of its mirror image's."""

    def __init__(self, normalise: nn.Module, backbone: nn.Module, mirrored: bool):
        super().__init__()
        self.normalise, self.backbone, self.mirrored = normalise, backbone, mirrored

    def forward(self, photos: Tensor) -> Tensor:
        """photos  uint8 or float [photos, 3, side, side], 0 to 255; returns [photos, features]"""
        ready = self.normalise(photos)
        features = self.backbone(ready)
        if self.mirrored and not self.training:
            features = (features + self.backbone(ready.flip(3))) / 2
        return features


def own_side(recipe: Recipe) -> int:
    """The side in pixels that a network was made for.

    timm's figures for a network are of the middle of a photo, say 0.875 of it, in say 224 pixels. Here all of a photo's middle
    square is shown; a frozen network therefore gets 224 / 0.875 pixels, and sees things as large as it did there, but for what
    makes it a multiple of 32: some networks want that.

    raises  RecipeError if there is no such network
    """
    if recipe.network in ("tutorial", KERAS_INCEPTION):
        return 150
    about = _about(recipe.network)
    side, frozen = int(about["input_size"][1]), recipe.transfer is not None and recipe.transfer.kept
    if not frozen or about["fixed_input_size"]:
        return side
    return max(side, STEP * round(side / about["crop_pct"] / STEP))


def _timm(recipe: Recipe) -> tuple[nn.Module, dict[str, Any]]:
    import timm

    about = _about(recipe.network)
    fixed: dict[str, Any] = {"img_size": recipe.side} if about["fixed_input_size"] else {}
    if recipe.network not in weights.PACKAGED:  # those are small
        needed = _size(recipe.network, **fixed)
        machine.need_memory(machine.held() + needed, "a smaller --network, or a machine with more memory")
    backbone = depthwise.replaced(timm.create_model(recipe.network, pretrained=False, num_classes=0, **fixed))
    for module in backbone.modules():
        if hasattr(module, "attention_bias_cache"):
            module.__class__ = _without_memory(type(module))
    return backbone, about


@functools.cache
def _size(network: str, **fixed: Any) -> int:
    """Bytes of the network's weights, found out without making them: the kernel ends a process that holds too much."""
    import timm

    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # what is drawn here must not move the run's own dice
        made = timm.create_model(network, pretrained=False, num_classes=0, **fixed)
    return sum(each.numel() * each.element_size() for each in made.state_dict().values())


@functools.cache
def _without_memory(kind: type[nn.Module]) -> type[nn.Module]:
    """timm's attention layers keep what they make of their weights as long as they are not in training. Here a backbone learns
    without being told so, that BatchNorm may stay as it is: what was kept would be of older weights, of a graph that is gone."""

    def biases(self: Any, _: torch.device) -> Tensor:
        return self.attention_biases[:, self.attention_bias_idxs]

    return type(kind.__name__, (kind,), {"get_attention_biases": biases})


def _about(network: str) -> dict[str, Any]:
    """timm's facts about a network: mean, std, input_size, ...

    raises  RecipeError that names similar networks if timm has none of that name
    """
    import timm

    architecture = network.split(".", maxsplit=1)[0]
    if not timm.is_model(network):
        close = timm.list_models(f"*{architecture}*")[:8]
        advice = ", ".join(close) if close else f"tutorial, {KERAS_INCEPTION}, or any of timm.list_models()"
        raise RecipeError(f"there is no network {network!r}", advice=advice)
    try:
        found = timm.get_pretrained_cfg(network)
    except RuntimeError:  # what stands behind the dot names weights
        advice = ", ".join(timm.list_pretrained(f"{architecture}.*")[:8]) or architecture
        raise RecipeError(f"there are no weights {network!r}", advice=advice) from None
    return found.to_dict() if found is not None else timm.models.PretrainedCfg().to_dict()


@torch.inference_mode()
def _width(backbone: nn.Module, recipe: Recipe) -> int:
    """How many features the backbone gives; found out by trying, since no attribute says so for every network."""
    try:
        features = backbone.eval()(torch.zeros(1, 3, recipe.side, recipe.side))
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(
            f"photos of {recipe.side} pixels do not fit {recipe.network}: {(str(error) or type(error).__name__).splitlines()[0]}",
            advice=f"--side {own_side(recipe)}",
        ) from None
    return features.shape[1]


def _head(transfer: Transfer, width: int, classes: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if transfer.dropout:
        layers["dropout"] = nn.Dropout(transfer.dropout)
    if transfer.hidden:
        layers["dense_1"] = nn.Linear(width, transfer.hidden)
        layers["relu"] = nn.ReLU()
        if transfer.hidden_dropout:
            layers["hidden_dropout"] = nn.Dropout(transfer.hidden_dropout)
        width = transfer.hidden
    layers["dense_2" if transfer.hidden else "dense"] = nn.Linear(width, classes)
    return nn.Sequential(layers).apply(keras_initialisation)


def sought(recipe: Recipe) -> Weights | None:
    """The pretrained weights that a recipe of one network builds on, on this machine from now on; None if it builds on none.

    raises  RecipeError or MachineError if they cannot be had
    """
    if recipe.transfer is None or recipe.network == "tutorial":
        return None
    name = GOOGLES_INCEPTION if recipe.network == KERAS_INCEPTION else recipe.network
    return weights.find(name, Path(recipe.weights) if recipe.weights else None)


def fill(network: nn.Module, recipe: Recipe) -> Weights | None:
    """Put the pretrained weights into the backbone, if the recipe builds on any.

    returns  where they come from
    raises   RecipeError if there are none, or they are of another network
    """
    found = sought(recipe)
    if found is None:
        return None
    tensors, backbone = weights.tensors(found), network.get_submodule("seer.backbone")
    if recipe.network == KERAS_INCEPTION:
        layers = backbone.get_submodule("layers")
        assert isinstance(layers, nn.Sequential)
        inception.load_timm(layers, tensors)
        return found
    own = backbone.state_dict()
    wrong = [each for each, value in own.items() if each not in tensors or tensors[each].shape != value.shape]
    if wrong:
        raise RecipeError(
            f"these weights are not of {recipe.network} at {recipe.side} pixels: {wrong[0]} is missing or of another shape",
            where=found.file,
            advice=f"the weights of {recipe.network}, and --side {own_side(recipe)}",
        )
    backbone.load_state_dict({each: tensors[each].to(value.dtype) for each, value in own.items()})
    return found


def is_of_one_side(recipe: Recipe) -> bool:
    """Whether some of its weights belong to places in the photo, so that those of another side do not fit."""
    return recipe.network not in ("tutorial", KERAS_INCEPTION) and bool(_about(recipe.network)["fixed_input_size"])


def provenance(weights: Weights) -> dict[str, str | None]:
    """Where a backbone's weights come from: its entry in `pretrained.json`."""
    return {"source": weights.source, "sha256": weights.sha256, "license": weights.license}


def stages(backbone: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """The backbone's weights in the order in which a photo meets them, stage by stage; what belongs to none comes first.

    A stage begins with a layer that has a weight matrix; norms join the one before them.
    """
    found: list[tuple[str, list[nn.Parameter]]] = [("", list(backbone.parameters(recurse=False)))]
    for name, module in children(backbone):
        own = list(module.parameters())
        if any(each.ndim > 1 for each in own):
            found.append((name, own))
        else:
            found[-1][1].extend(own)
    return [each for each in found if each[1]]


def children(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The backbone's layers by name, in the order in which a photo meets them; those of a list of layers one by one."""
    for name, module in backbone.named_children():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            yield from ((f"{name}.{number}", each) for number, each in module.named_children())
        else:
            yield name, module


def trained_groups(network: nn.Module, recipe: Recipe, trained: Trained, learning_rate: float) -> list[Group]:
    """The weights that learn, in groups of one learning rate each; the others are told not to."""
    backbone, head = network.get_submodule("seer.backbone"), list(network.get_submodule("head").parameters())
    network.requires_grad_(False)
    if trained == "head":
        groups = groups_of(head, learning_rate)
    elif trained == "tail" and recipe.network == KERAS_INCEPTION:
        groups = [Group([*_keras_tail(backbone, recipe), *head], learning_rate)]
    else:
        first = recipe.transfer.tail_from if recipe.transfer is not None and trained == "tail" else None
        groups = _staged(stages(backbone), head, first, recipe, learning_rate)
    for group in groups:
        for weight in group.weights:
            weight.requires_grad_(True)
    return groups


def _staged(
    found: list[tuple[str, list[nn.Parameter]]],
    head: list[nn.Parameter],
    tail_from: str | None,
    recipe: Recipe,
    learning_rate: float,
) -> list[Group]:
    """The head at the full rate, each stage below it at a share of the rate above.

    tail_from  the first stage that learns; None for all
    """
    names = [name for name, _ in found]
    first = 0 if tail_from is None else names.index(_tail(names, tail_from))
    groups, rate = groups_of(head, learning_rate), learning_rate
    for _, own in reversed(found[first:]):
        rate *= recipe.tuning.layer_decay if recipe.tuning is not None else 1.0
        groups += groups_of(own, rate)
    return groups


def tail(backbone: nn.Module, tail_from: str) -> str:
    """The first stage of its tail: the one that is named, or the middle one if none is or the network has none of that name,
    since recipes name a stage of the network that they were made for."""
    return _tail([name for name, _ in stages(backbone)], tail_from)


def _tail(names: list[str], tail_from: str) -> str:
    return tail_from if tail_from and tail_from in names else names[len(names) // 2]


def groups_of(own: list[nn.Parameter], learning_rate: float) -> list[Group]:
    """Weights of one learning rate, those that decay apart from biases and norms, which do not."""
    matrices, others = [each for each in own if each.ndim > 1], [each for each in own if each.ndim <= 1]
    return [each for each in (Group(matrices, learning_rate, True), Group(others, learning_rate)) if each.weights]


def _keras_tail(backbone: nn.Module, recipe: Recipe) -> list[nn.Parameter]:
    """The weights of the last 50 of Keras' layers, and of every BatchNorm."""
    layers = inception.keras_layers(recipe.until or "mixed10")
    last = {each.module for each in layers[-LAST_LAYERS:] if each.module is not None}
    norms = {each.module for each in layers if each.kind == "BatchNormalization"}
    chosen = [each.module for each in layers if each.module in last | norms and each.module is not None]
    body = backbone.get_submodule("layers")
    return [weight for name in chosen for weight in body.get_submodule(name).parameters()]
