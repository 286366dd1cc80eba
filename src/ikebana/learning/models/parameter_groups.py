"""Parameter groups: which weights train, at which learning rate, in which mode."""

from collections.abc import Iterator

from torch import nn

from ikebana.learning.models import inception
from ikebana.learning.training.optimisers import ParameterGroup
from ikebana.recipe import KERAS_INCEPTION, FineTune, Recipe, Trainable


def make_parameter_groups(
    network: nn.Module, recipe: Recipe, trainable: Trainable, learning_rate: float
) -> list[ParameterGroup]:
    """Return the trained weights in groups of one learning rate each, and freeze the others."""
    # The tutorial's network, a head alone, or a module of the user, who may have frozen some weights.
    if not hasattr(network, "backbone"):
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        return (
            group_by_weight_decay(weights, learning_rate)
            if recipe.adamw is not None
            else [ParameterGroup(weights, learning_rate)]
        )
    backbone_network = network.get_submodule("backbone.network")
    head = list(network.get_submodule("head").parameters())
    network.requires_grad_(False)
    if trainable == "head":
        groups = group_by_weight_decay(head, learning_rate)
    elif trainable == "last_stages" and recipe.network == KERAS_INCEPTION:
        groups = [ParameterGroup([*_get_last_keras_weights(backbone_network, recipe), *head], learning_rate)]
    else:
        train_from = recipe.method.train_from if isinstance(recipe.method, FineTune) else ""
        groups = _group_by_stage(list_stages(backbone_network), head, train_from, recipe, learning_rate)
    for group in groups:
        for weight in group.weights:
            weight.requires_grad_(True)
    return groups


def uses_batch_statistics(recipe: Recipe, trainable: Trainable) -> bool:
    """Return whether BatchNorm uses and updates batch statistics, which one image does not have.

    A pretrained backbone keeps its statistics while it trains. Two cases need batch statistics:
    the tutorial's fine-tuning, which trains BatchNorm, and a network trained from scratch.
    """
    is_tutorial_fine_tuning = recipe.network == KERAS_INCEPTION and trainable == "last_stages"
    return recipe.network != "tutorial" and (not recipe.is_pretrained or is_tutorial_fine_tuning)


def set_training_mode(network: nn.Module, recipe: Recipe, trainable: Trainable) -> None:
    """Set training mode, but leave BatchNorm in evaluation mode where its statistics are frozen."""
    network.train()
    if hasattr(network, "backbone"):
        network.get_submodule("backbone.network").train(uses_batch_statistics(recipe, trainable))


# How many of Keras' layers the tutorial fine-tunes.
FINE_TUNED_KERAS_LAYERS = 50


def list_stages(network: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """List the weights of a backbone's network stage by stage, in forward order.

    A stage begins with a layer that has a weight matrix; norms join the stage before them. Weights
    of the network itself come first, under an empty name.
    """
    stages: list[tuple[str, list[nn.Parameter]]] = [("", list(network.parameters(recurse=False)))]
    for name, module in iterate_layers(network):
        weights = list(module.parameters())
        if any(weight.ndim > 1 for weight in weights):
            stages.append((name, weights))
        else:
            stages[-1][1].extend(weights)
    return [stage for stage in stages if stage[1]]


def iterate_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the network's layers by name, in forward order; a list of layers is expanded."""
    for name, module in network.named_children():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            yield from ((f"{name}.{number}", layer) for number, layer in module.named_children())
        else:
            yield name, module


def _group_by_stage(
    stages: list[tuple[str, list[nn.Parameter]]],
    head: list[nn.Parameter],
    train_from: str,
    recipe: Recipe,
    learning_rate: float,
) -> list[ParameterGroup]:
    """Group weights by stage, with lower learning rates in earlier stages.

    The head has the full learning rate, each stage a share of the rate of the stage after it.

    Args:
        train_from: the first stage to train; empty for all.
    """
    names = [name for name, _ in stages]
    first = names.index(_choose_stage(names, train_from)) if train_from else 0
    groups, rate = group_by_weight_decay(head, learning_rate), learning_rate
    for _, stage_weights in reversed(stages[first:]):
        rate *= recipe.adamw.layer_decay if recipe.adamw is not None else 1.0
        groups += group_by_weight_decay(stage_weights, rate)
    return groups


def resolve_first_trained_stage(network: nn.Module, train_from: str) -> str:
    """Return the first stage to train.

    It is `train_from`, or the middle stage if there is no stage of that name.

    A recipe names a stage of its default network, which another network may not have.
    """
    return _choose_stage([name for name, _ in list_stages(network)], train_from)


def _choose_stage(names: list[str], train_from: str) -> str:
    return train_from if train_from in names else names[len(names) // 2]


def group_by_weight_decay(weights: list[nn.Parameter], learning_rate: float) -> list[ParameterGroup]:
    """Group weights of one learning rate: matrices with weight decay, biases and norms without."""
    matrices = [weight for weight in weights if weight.ndim > 1]
    others = [weight for weight in weights if weight.ndim <= 1]
    return [
        group
        for group in (ParameterGroup(matrices, learning_rate, True), ParameterGroup(others, learning_rate))
        if group.weights
    ]


def _get_last_keras_weights(network: nn.Module, recipe: Recipe) -> list[nn.Parameter]:
    """Return the weights of the last 50 of Keras' layers, and of every BatchNorm."""
    layers = inception.list_keras_layers(recipe.truncate_at or "mixed10")
    last = {layer.module_name for layer in layers[-FINE_TUNED_KERAS_LAYERS:] if layer.module_name is not None}
    norms = {layer.module_name for layer in layers if layer.class_name == "BatchNormalization"}
    names = [
        layer.module_name for layer in layers if layer.module_name in last | norms and layer.module_name is not None
    ]
    modules = network.get_submodule("layers")
    return [weight for name in names for weight in modules.get_submodule(name).parameters()]
