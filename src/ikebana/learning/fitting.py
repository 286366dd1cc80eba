"""What learns from what: the whole network from photos, or a head from features that are kept."""

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ikebana.learning import features, inference, logistic, training
from ikebana.learning.checkpoint import Epoch
from ikebana.learning.device import Setting
from ikebana.learning.features import Origin
from ikebana.learning.inference import Examples, Features, Photos
from ikebana.learning.logistic import Linear
from ikebana.recipe import Recipe


@dataclass(frozen=True)
class Lesson:
    """A network, or the part of it that learns, and what it is shown."""

    learner: nn.Module
    train: Examples
    validation: Examples
    held_out: Examples  # validation, then test
    seen: tuple[Features, Features] | None = None  # of training and validation photos, for a logistic head


def lesson(network: nn.Module, recipe: Recipe, parts: dict[str, Photos], origin: Origin, setting: Setting) -> Lesson:
    """What the recipe shows to what; features are computed here, where it learns from kept ones.

    Held-out photos are scored in float32, since that is the network that ships.
    """
    transfer, held_out = recipe.transfer, inference.joined(parts["validation"], parts["test"])
    if transfer is None or not (transfer.kept or transfer.logistic):
        return Lesson(network, parts["train"], parts["validation"], held_out)
    see = network.get_submodule("seer")
    train = features.of(see, origin, parts["train"], setting)
    if not transfer.kept:
        validation = features.of(see, origin, parts["validation"], setting)
        return Lesson(network, parts["train"], parts["validation"], held_out, (train, validation))
    shown = features.of(see, origin, held_out, replace(setting, number_format="float32"))
    validation = shown.first(len(parts["validation"]))
    learner = nn.Sequential(OrderedDict(head=network.get_submodule("head")))
    return Lesson(learner, train, validation, shown, (train, validation))


def learn(given: Lesson, recipe: Recipe, setting: Setting, kept: Path) -> Iterator[Epoch]:
    """The recipe's epochs, each yielded once it is safe on disk; a logistic regression alone counts as one."""
    begun, transfer = time.perf_counter(), recipe.transfer
    if given.seen is not None and transfer is not None and transfer.logistic and not kept.exists():
        found = _logistic(*given.seen, given.learner, recipe)
        if transfer.trained == "head":
            yield _as_epoch(found, given, setting, time.perf_counter() - begun)
            return
    if transfer is not None and transfer.kept:  # a head is small: nothing is won by halving its numbers
        setting = replace(setting, number_format="float32")
    yield from training.train(given.learner, recipe, given.train, given.validation, setting, kept)


def lean(given: Lesson) -> nn.Module:
    """The learner as it is fastest at saying what photos show, for the score: BatchNorm folded into convolutions."""
    if isinstance(given.held_out, Photos) and len(given.held_out):
        return features.folded(given.learner, given.held_out)
    return given.learner


def _logistic(train: Features, validation: Features, learner: nn.Module, recipe: Recipe) -> Linear:
    chosen = validation.for_choices
    classes = next(each for each in reversed(list(learner.modules())) if isinstance(each, nn.Linear)).out_features
    found = logistic.fit(
        train.values(), train.labels, validation.values()[chosen], validation.labels[chosen], classes, recipe.seed
    )
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
