"""The training plan of a recipe: what trains on photos and what on features."""

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from ikebana.learning import scoring
from ikebana.learning.device import DeviceSettings
from ikebana.learning.examples import Examples, FeatureExamples, PhotoExamples, concatenate, merge_for_refit
from ikebana.learning.fast import fused_inference
from ikebana.learning.features import feature_cache
from ikebana.learning.features.feature_cache import FeatureKey
from ikebana.learning.features.feature_rows import FeatureRows
from ikebana.learning.models import backbones, layer_table, networks, weight_loading
from ikebana.learning.models.layers import get_last_linear
from ikebana.learning.training import logistic_head, loop
from ikebana.learning.training.checkpoint import Epoch
from ikebana.recipe import Recipe
from ikebana.system import progress


@dataclass(frozen=True)
class TrainingTask:
    """A network or its head, and the examples that train and evaluate it."""

    # Of this network alone.
    recipe: Recipe
    network: nn.Module
    train: Examples
    validation: Examples
    # Validation photos, then test photos.
    held_out: Examples
    # Of training and validation photos, for a logistic head.
    head_features: tuple[FeatureExamples, FeatureExamples] | None = None


@dataclass(frozen=True)
class TrainingPlan:
    """All training tasks of a recipe: one, or one per member of an ensemble."""

    # The whole network, as it is exported.
    network: nn.Module
    layer_table: str
    # Source of the weights, per backbone.
    pretrained: dict[str, dict[str, str | None]]
    tasks: tuple[TrainingTask, ...]


def build_plan(
    recipe: Recipe, classes: int, splits: dict[str, PhotoExamples], pixel_cache: str, settings: DeviceSettings
) -> TrainingPlan:
    """Build the recipe's network with its initial weights, and its training tasks.

    Args:
        pixel_cache: name of the pixel cache.
    Raises:
        RecipeError: pretrained weights are missing or of another network.
    """
    network = networks.build_network(recipe, classes).to(settings.device)
    pretrained, tasks = {}, []
    for member, member_recipe in zip(networks.get_members(network), recipe.members, strict=True):
        weights = weight_loading.load_pretrained_weights(member, member_recipe)
        if weights is not None:
            pretrained[member_recipe.network] = weight_loading.get_provenance(weights)
        origin = feature_cache.make_feature_key(pixel_cache, member_recipe, weights)
        tasks.append(build_task(member, member_recipe, splits, origin, settings))
    layers = layer_table.format_layer_table(
        layer_table.summarise_layers(network, recipe.image_size), recipe.batch_size, recipe.image_size
    )
    return TrainingPlan(network, layers, pretrained, tuple(tasks))


def check_weights(recipe: Recipe) -> None:
    """Make sure that the pretrained weights are on this machine and fit the network.

    Raises:
        RecipeError, MachineError: they are missing or of another network.
    """
    for member_recipe in recipe.members:
        weight_loading.resolve_weights(member_recipe)
        is_transfer = member_recipe.transfer is not None
        if member_recipe.weights or (is_transfer and backbones.has_fixed_image_size(member_recipe)):
            weight_loading.load_pretrained_weights(networks.build_network(member_recipe, classes=2), member_recipe)


def build_task(
    network: nn.Module, recipe: Recipe, splits: dict[str, PhotoExamples], origin: FeatureKey, settings: DeviceSettings
) -> TrainingTask:
    """Build the training task of one network; features that it trains on are extracted here.

    Held-out photos are evaluated in float32, as in the exported network.
    """
    transfer, held_out = recipe.transfer, concatenate(splits["validation"], splits["test"])
    if transfer is None or not (transfer.cache_features or transfer.fit_logistic_head):
        return TrainingTask(recipe, network, splits["train"], splits["validation"], held_out)
    backbone, head = network.get_submodule("backbone"), network.get_submodule("head")
    if transfer.cache_features:
        train = feature_cache.extract_features(backbone, origin, splits["train"], settings)
        exact = replace(settings, precision="float32")
        held_out_features = feature_cache.extract_features(backbone, origin, held_out, exact)
        validation = held_out_features.take_first(len(splits["validation"]))
        head_only = nn.Sequential(OrderedDict(head=head))
        return TrainingTask(recipe, head_only, train, validation, held_out_features, (train, validation))
    train, validation = (
        feature_cache.extract_features(backbone, origin, splits[split], settings) for split in ("train", "validation")
    )
    return TrainingTask(recipe, network, splits["train"], splits["validation"], held_out, (train, validation))


def train_plan(
    plan: TrainingPlan, settings: DeviceSettings, checkpoint_file: Path, title: str = "train"
) -> Iterator[Epoch]:
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


def _train_task(task: TrainingTask, settings: DeviceSettings, checkpoint_file: Path, title: str) -> Iterator[Epoch]:
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
        settings = replace(settings, precision="float32")
    yield from loop.train(task.network, task.recipe, task.train, task.validation, settings, checkpoint_file, title)


def refit_on_all(
    recipe: Recipe,
    classes: int,
    splits: dict[str, PhotoExamples],
    pixel_cache: str,
    settings: DeviceSettings,
    checkpoint_file: Path,
) -> TrainingPlan:
    """Train the recipe from scratch on all photos, which leaves none for evaluation."""
    plan = build_plan(recipe, classes, merge_for_refit(splits), pixel_cache, settings)
    for _ in train_plan(plan, settings, checkpoint_file, "train on all"):
        pass
    return plan


def describe_refit(recipe: Recipe, splits: dict[str, PhotoExamples]) -> str:
    """Describe the refit beside the score; empty where the scored network is the exported one."""
    if not recipe.refit_on_all:
        return ""
    return (
        f"What ships was trained once more, alike, on all {sum(map(len, splits.values()))} photos.\n"
        "The score is that of the network before it, which had never seen a test photo."
    )


def predict_held_out(plan: TrainingPlan, settings: DeviceSettings) -> np.ndarray:
    """Predict the validation photos, then the test photos: float32 [photos, classes]."""
    with progress.stage("score", sum(len(task.held_out) for task in plan.tasks)) as bar:
        predictions = []
        for task in plan.tasks:
            network = fused_inference.optimise_for_inference(task.network, task.held_out)
            predictions.append(scoring.predict_probabilities(network, task.held_out, settings, bar))
    return np.mean(predictions, axis=0)


def _fit_logistic_head(train: FeatureExamples, validation: FeatureExamples, network: nn.Module, recipe: Recipe) -> None:
    selection = validation.for_selection
    selection_rows, labels = FeatureRows([validation.array], [validation.rows[selection]]), validation.labels[selection]
    classes = get_last_linear(network).out_features
    train_rows = FeatureRows([train.array], [train.rows])
    fitted = logistic_head.fit_head(
        train_rows, train.labels, selection_rows, labels, classes, recipe.seed, train.groups
    )
    fitted.copy_to(network)


def _score_logistic_head(task: TrainingTask, settings: DeviceSettings, seconds: float) -> Epoch:
    exact = replace(settings, precision="float32")
    scores = [
        scoring.score(scoring.compute_logits(task.network, examples, exact), examples.labels)
        for examples in (task.train, task.validation)
    ]
    (train_loss, train_accuracy), (val_loss, val_accuracy) = scores
    return Epoch(1, train_loss or 0.0, train_accuracy or 0.0, val_loss, val_accuracy, seconds)
