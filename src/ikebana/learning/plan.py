"""The training plan of a recipe: what trains on photos and what on features."""

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from ikebana.learning import examples as examples_module
from ikebana.learning import scoring
from ikebana.learning.device import Setting
from ikebana.learning.examples import Examples, Features, Photos
from ikebana.learning.fast import fused_inference
from ikebana.learning.features import feature_cache
from ikebana.learning.features.feature_cache import Origin
from ikebana.learning.features.feature_rows import Rows
from ikebana.learning.models import backbones, layer_table, networks, weight_loading
from ikebana.learning.models.layers import last_linear
from ikebana.learning.training import logistic_head, loop
from ikebana.learning.training.checkpoint import Epoch
from ikebana.recipe import Recipe
from ikebana.system import progress


@dataclass(frozen=True)
class Lesson:
    """A network or its head, and the examples that train and evaluate it."""

    recipe: Recipe  # of this network alone
    network: nn.Module
    train: Examples
    validation: Examples
    held_out: Examples  # validation, then test
    head_features: tuple[Features, Features] | None = None  # train, validation: for a logistic head


@dataclass(frozen=True)
class Course:
    """All training tasks of a recipe: one, or one per member of an ensemble."""

    network: nn.Module  # the whole network, as it is exported
    layers: str
    pretrained: dict[str, dict[str, str | None]]  # source of the weights, per backbone
    tasks: tuple[Lesson, ...]


def course(recipe: Recipe, classes: int, splits: dict[str, Photos], pixel_cache: str, settings: Setting) -> Course:
    """Build the recipe's network with its initial weights, and its training tasks.

    Args:
        pixel_cache: name of the pixel cache.
    Raises:
        RecipeError: pretrained weights are missing or of another network.
    """
    network = networks.build(recipe, classes).to(settings.device)
    pretrained, tasks = {}, []
    for member, member_recipe in zip(networks.members(network), recipe.members, strict=True):
        weights = weight_loading.fill(member, member_recipe)
        if weights is not None:
            pretrained[member_recipe.network] = weight_loading.provenance(weights)
        origin = feature_cache.origin(pixel_cache, member_recipe, weights)
        tasks.append(lesson(member, member_recipe, splits, origin, settings))
    layers = layer_table.layer_table(
        layer_table.layers(network, recipe.image_size), recipe.batch_size, recipe.image_size
    )
    return Course(network, layers, pretrained, tuple(tasks))


def check_weights(recipe: Recipe) -> None:
    """Make sure that the pretrained weights are on this machine and fit the network.

    Raises:
        RecipeError, MachineError: they are missing or of another network.
    """
    for member_recipe in recipe.members:
        weight_loading.sought(member_recipe)
        is_transfer = member_recipe.transfer is not None
        if member_recipe.weights or (is_transfer and backbones.is_of_one_side(member_recipe)):
            weight_loading.fill(networks.build(member_recipe, classes=2), member_recipe)


def lesson(network: nn.Module, recipe: Recipe, splits: dict[str, Photos], origin: Origin, settings: Setting) -> Lesson:
    """Build the training task of one network; features that it trains on are extracted here.

    Held-out photos are evaluated in float32, as in the exported network.
    """
    transfer, held_out = recipe.transfer, examples_module.joined(splits["validation"], splits["test"])
    if transfer is None or not (transfer.cache_features or transfer.fit_logistic_head):
        return Lesson(recipe, network, splits["train"], splits["validation"], held_out)
    backbone, head = network.get_submodule("seer"), network.get_submodule("head")
    if transfer.cache_features:
        train = feature_cache.of(backbone, origin, splits["train"], settings)
        exact = replace(settings, number_format="float32")
        held_out_features = feature_cache.of(backbone, origin, held_out, exact)
        validation = held_out_features.first(len(splits["validation"]))
        head_only = nn.Sequential(OrderedDict(head=head))
        return Lesson(recipe, head_only, train, validation, held_out_features, (train, validation))
    train, validation = (
        feature_cache.of(backbone, origin, splits[split], settings) for split in ("train", "validation")
    )
    return Lesson(recipe, network, splits["train"], splits["validation"], held_out, (train, validation))


def learn(plan: Course, settings: Setting, checkpoint_file: Path, title: str = "train") -> Iterator[Epoch]:
    """Train all tasks in turn; yield each epoch, numbered throughout, once it is saved.

    Args:
        checkpoint_file: of the first task; each further task has its own beside it.
        title: of the progress bar.
    """
    epochs, tasks = 0, len(plan.tasks)
    for number, task in enumerate(plan.tasks, 1):
        task_file = checkpoint_file if number == 1 else checkpoint_file.with_stem(f"{checkpoint_file.stem}-{number}")
        for epoch in _train_task(task, settings, task_file, title if tasks == 1 else f"{title} {number}/{tasks}"):
            epochs += 1
            yield replace(epoch, epoch=epochs)


def _train_task(task: Lesson, settings: Setting, checkpoint_file: Path, title: str) -> Iterator[Epoch]:
    """Yield the epochs of one task; fitting a logistic head alone counts as one epoch."""
    started_at, transfer = time.perf_counter(), task.recipe.transfer
    if (
        task.head_features is not None
        and transfer is not None
        and transfer.fit_logistic_head
        and not checkpoint_file.exists()
    ):
        _fit_logistic_head(*task.head_features, task.network, task.recipe)
        if transfer.trainable == "head":
            yield _score_logistic_head(task, settings, time.perf_counter() - started_at)
            return
    # A head on cached features is small: half precision would not make it faster.
    if transfer is not None and transfer.cache_features:
        settings = replace(settings, number_format="float32")
    yield from loop.train(task.network, task.recipe, task.train, task.validation, settings, checkpoint_file, title)


def once_more(
    recipe: Recipe, classes: int, splits: dict[str, Photos], pixel_cache: str, settings: Setting, checkpoint_file: Path
) -> Course:
    """Train the recipe from scratch on all photos, which leaves none for evaluation."""
    plan = course(recipe, classes, examples_module.all_to_learn_from(splits), pixel_cache, settings)
    for _ in learn(plan, settings, checkpoint_file, "train on all"):
        pass
    return plan


def note(recipe: Recipe, splits: dict[str, Photos]) -> str:
    """Describe the refit beside the score; empty where the scored network is the exported one."""
    if not recipe.refit_on_all:
        return ""
    return (
        f"What ships was trained once more, alike, on all {sum(map(len, splits.values()))} photos.\n"
        "The score is that of the network before it, which had never seen a test photo."
    )


def probabilities(plan: Course, settings: Setting) -> np.ndarray:
    """Predict the validation photos, then the test photos: float32 [photos, classes]."""
    with progress.stage("score", sum(len(task.held_out) for task in plan.tasks)) as bar:
        predictions = []
        for task in plan.tasks:
            network = fused_inference.for_looking(task.network, task.held_out)
            predictions.append(scoring.probabilities_of(network, task.held_out, settings, bar))
    return np.mean(predictions, axis=0)


def _fit_logistic_head(train: Features, validation: Features, network: nn.Module, recipe: Recipe) -> None:
    selection = validation.for_choices
    selection_rows, labels = Rows([validation.array], [validation.rows[selection]]), validation.labels[selection]
    classes = last_linear(network).out_features
    train_rows = Rows([train.array], [train.rows])
    fitted = logistic_head.fit(train_rows, train.labels, selection_rows, labels, classes, recipe.seed, train.groups)
    fitted.fill(network)


def _score_logistic_head(task: Lesson, settings: Setting, seconds: float) -> Epoch:
    exact = replace(settings, number_format="float32")
    scores = [
        scoring.score(scoring.logits_of(task.network, examples, exact), examples.labels)
        for examples in (task.train, task.validation)
    ]
    (train_loss, train_accuracy), (val_loss, val_accuracy) = scores
    return Epoch(1, train_loss or 0.0, train_accuracy or 0.0, val_loss, val_accuracy, seconds)
