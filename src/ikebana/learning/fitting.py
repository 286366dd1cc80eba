"""What learns from what: the whole network from photos, or a head from features that are kept."""

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from ikebana import progress
from ikebana.learning import backbones, features, inference, lean, logistic, networks, training
from ikebana.learning.checkpoint import Epoch
from ikebana.learning.device import Setting
from ikebana.learning.features import Origin
from ikebana.learning.inference import Examples, Features, Photos
from ikebana.learning.layers import last_linear
from ikebana.learning.logistic import Linear
from ikebana.learning.rows import Rows
from ikebana.recipe import Recipe


@dataclass(frozen=True)
class Lesson:
    """A network, or the part of it that learns, and what it is shown."""

    recipe: Recipe  # of this network alone
    learner: nn.Module
    train: Examples
    validation: Examples
    held_out: Examples  # validation, then test
    seen: tuple[Features, Features] | None = None  # of training and validation photos, for a logistic head


@dataclass(frozen=True)
class Course:
    """All that a recipe lets learn: one lesson, or one after the other for the members of an ensemble."""

    network: nn.Module  # the whole, as it ships
    layers: str  # as a table
    pretrained: dict[str, dict[str, str | None]]  # where each backbone's first weights come from
    lessons: tuple[Lesson, ...]


def course(recipe: Recipe, classes: int, parts: dict[str, Photos], pixels: str, setting: Setting) -> Course:
    """The recipe's network with its first weights, and what it will be shown.

    pixels  the name of the kept pixels
    raises  RecipeError if pretrained weights are needed and cannot be had, or are of another network
    """
    network = networks.build(recipe, classes).to(setting.device)
    pretrained, lessons = {}, []
    for member, its in zip(networks.members(network), recipe.members, strict=True):
        weights = backbones.fill(member, its)
        if weights is not None:
            pretrained[its.network] = backbones.provenance(weights)
        lessons.append(lesson(member, its, parts, features.origin(pixels, its, weights), setting))
    layers = networks.layer_table(networks.layers(network, recipe.side), recipe.batch, recipe.side)
    return Course(network, layers, pretrained, tuple(lessons))


def check_weights(recipe: Recipe) -> None:
    """Have the pretrained weights on this machine, and see that they fit where they may not.

    raises  RecipeError or MachineError if they cannot be had or are of another network
    """
    for its in recipe.members:
        backbones.sought(its)
        if its.weights or (its.transfer is not None and backbones.is_of_one_side(its)):
            backbones.fill(networks.build(its, classes=2), its)


def lesson(network: nn.Module, recipe: Recipe, parts: dict[str, Photos], origin: Origin, setting: Setting) -> Lesson:
    """What the recipe shows to what; features are computed here, where it learns from kept ones.

    Held-out photos are scored in float32, since that is the network that ships.
    """
    transfer, held_out = recipe.transfer, inference.joined(parts["validation"], parts["test"])
    if transfer is None or not (transfer.kept or transfer.logistic):
        return Lesson(recipe, network, parts["train"], parts["validation"], held_out)
    see, head = network.get_submodule("seer"), network.get_submodule("head")
    if transfer.kept:
        train = features.of(see, origin, parts["train"], setting)
        shown = features.of(see, origin, held_out, replace(setting, number_format="float32"))
        validation, learner = shown.first(len(parts["validation"])), nn.Sequential(OrderedDict(head=head))
        return Lesson(recipe, learner, train, validation, shown, (train, validation))
    seen = [features.of(see, origin, parts[part], setting) for part in ("train", "validation")]
    return Lesson(recipe, network, parts["train"], parts["validation"], held_out, (seen[0], seen[1]))


def learn(given: Course, setting: Setting, kept: Path, title: str = "train") -> Iterator[Epoch]:
    """The epochs of all lessons, one after the other, numbered throughout; each is yielded once it is safe on disk.

    kept   the checkpoint's file; each further lesson has one of its own beside it
    title  of the bar
    """
    done, several = 0, len(given.lessons)
    for number, each in enumerate(given.lessons, 1):
        own = kept if number == 1 else kept.with_stem(f"{kept.stem}-{number}")
        for epoch in _learned(each, setting, own, title if several == 1 else f"{title} {number}/{several}"):
            done += 1
            yield replace(epoch, epoch=done)


def _learned(given: Lesson, setting: Setting, kept: Path, title: str) -> Iterator[Epoch]:
    """A lesson's epochs; a logistic regression alone counts as one."""
    begun, transfer = time.perf_counter(), given.recipe.transfer
    if given.seen is not None and transfer is not None and transfer.logistic and not kept.exists():
        found = _logistic(*given.seen, given.learner, given.recipe)
        if transfer.trained == "head":
            yield _as_epoch(found, given, setting, time.perf_counter() - begun)
            return
    if transfer is not None and transfer.kept:  # a head is small: nothing is won by halving its numbers
        setting = replace(setting, number_format="float32")
    yield from training.train(given.learner, given.recipe, given.train, given.validation, setting, kept, title)


def once_more(
    recipe: Recipe, classes: int, parts: dict[str, Photos], pixels: str, setting: Setting, kept: Path
) -> Course:
    """The same recipe on every photo, from the beginning and for as many epochs: a network that no photo is left to score.

    kept  the checkpoint's file
    """
    given = course(recipe, classes, inference.all_to_learn_from(parts), pixels, setting)
    for _ in learn(given, setting, kept, "train on all"):
        pass
    return given


def note(recipe: Recipe, parts: dict[str, Photos]) -> str:
    """What must be said beside the score; nothing where it is the score of the very network that ships."""
    if not recipe.all:
        return ""
    return (
        f"What ships was trained once more, alike, on all {sum(map(len, parts.values()))} photos.\n"
        "The score is that of the network before it, which had never seen a test photo."
    )


def probabilities(given: Course, setting: Setting) -> np.ndarray:
    """What the learned network says of validation and test photos, in that order: float32 [photos, classes]."""
    with progress.stage("score", sum(len(each.held_out) for each in given.lessons)) as bar:
        said = []
        for each in given.lessons:
            looking = lean.for_looking(each.learner, each.held_out)
            said.append(inference.probabilities_of(looking, each.held_out, setting, bar))
    return np.mean(said, axis=0)


def _logistic(train: Features, validation: Features, learner: nn.Module, recipe: Recipe) -> Linear:
    chosen = validation.for_choices
    held_out, labels = Rows([validation.array], [validation.rows[chosen]]), validation.labels[chosen]
    classes = last_linear(learner).out_features
    learned = Rows([train.array], [train.rows])
    found = logistic.fit(learned, train.labels, held_out, labels, classes, recipe.seed, train.groups)
    found.fill(learner)
    return found


def _as_epoch(found: Linear, given: Lesson, setting: Setting, seconds: float) -> Epoch:
    exact = replace(setting, number_format="float32")
    scores = [
        inference.score(inference.logits_of(given.learner, each, exact), each.labels)
        for each in (given.train, given.validation)
    ]
    (train_loss, train_accuracy), (val_loss, val_accuracy) = scores
    return Epoch(1, train_loss or 0.0, train_accuracy or 0.0, val_loss, val_accuracy, seconds)
