"""Network + examples → a stream of Epochs. Training is a generator: the bar, the JSON stream and the checkpoint read the same."""

import copy
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ikebana import progress
from ikebana.errors import RecipeError
from ikebana.learning import checkpoint, networks
from ikebana.learning.augmentation import augmented
from ikebana.learning.checkpoint import Epoch, Saved
from ikebana.learning.device import Setting
from ikebana.learning.inference import Examples, logits_of, score
from ikebana.learning.learner import Learner, phases
from ikebana.recipe import Recipe

TRIAL_STEPS = 2  # timed steps of a trial, after one that warms up


def train(
    network: nn.Module,
    recipe: Recipe,
    examples: Examples,
    validation: Examples,
    setting: Setting,
    kept: Path | None = None,
    title: str = "train",
) -> Iterator[Epoch]:
    """Train to the recipe's last epoch; each epoch is yielded once it is safe on disk.

    At the end the network is the one that counts: that of the last epoch; in a recipe with `tuning` the running mean of
    the weights in the epoch that had the least loss on the validation photos that are set apart for choices.

    kept    the checkpoint's file. Where it exists the training goes on from there: its epochs are yielded again first, so
            the stream is the same whether or not it was interrupted, and on a CPU so are the weights, bit for bit
    title   of the bar
    raises  RecipeError if the loss is no number any more
    """
    network.to(setting.device)
    saved = checkpoint.load(kept) if kept is not None and kept.exists() else Saved()
    if saved.epochs:
        with checkpoint.usable(kept):
            network.load_state_dict(saved.entries("network."))
    yield from saved.epochs
    epochs, best = list(saved.epochs), Best(saved)
    plan = phases(recipe)
    with progress.stage(title, (plan[-1].last - len(epochs)) * len(examples)) as bar:
        for phase in plan:
            if len(epochs) >= phase.last:
                continue
            learner = Learner(network, recipe, phase, examples.labels)
            if len(epochs) >= phase.first:
                with checkpoint.usable(kept):
                    learner.restore(saved)
            while len(epochs) < phase.last:
                name = f"{len(epochs) + 1}/{plan[-1].last}"
                epochs.append(_epoch(len(epochs) + 1, name, learner, examples, validation, setting, best, bar))
                if kept is not None:
                    checkpoint.save(kept, Saved(epochs, learner.tensors() | best.tensors(), best.loss))
                yield epochs[-1]
    if best.weights:
        network.load_state_dict(best.weights)


class Best:
    """The weights of the epoch with the least loss on the photos for choices, if a recipe goes by that."""

    def __init__(self, saved: Saved):
        self.loss, self.weights = saved.best_loss, saved.entries("best.")

    def consider(self, loss: float | None, network: nn.Module) -> None:
        """Take these weights if they are better; without validation photos the last ones are the best."""
        if loss is None or loss <= self.loss:
            self.loss = self.loss if loss is None else loss
            self.weights = copy.deepcopy(network.state_dict())

    def tensors(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        return {f"best.{name}": value for name, value in self.weights.items()}


def _epoch(
    number: int,
    name: str,
    learner: Learner,
    examples: Examples,
    validation: Examples,
    setting: Setting,
    best: Best,
    bar: progress.Bar,
) -> Epoch:
    begun, recipe = time.perf_counter(), learner.recipe
    train_loss, train_accuracy = _steps(number, name, learner, examples, setting, bar)
    logits = logits_of(learner.scored, validation, setting)
    val_loss, val_accuracy = score(logits, validation.labels)
    if val_accuracy is not None:
        bar.advance(0, epoch=name, loss=train_loss, accuracy=train_accuracy, val_accuracy=val_accuracy)
    if recipe.tuning is not None:
        chosen_by = validation.for_choices
        best.consider(score(logits[chosen_by], validation.labels[chosen_by])[0], learner.scored)
    return Epoch(number, train_loss, train_accuracy, val_loss, val_accuracy, time.perf_counter() - begun)


def _steps(
    number: int, name: str, learner: Learner, examples: Examples, setting: Setting, bar: progress.Bar
) -> tuple[float, float]:
    """One pass over the examples: mean loss and accuracy, as they were while it went on.

    raises  RecipeError if the loss is no number any more
    """
    recipe = learner.recipe
    generator = torch.Generator().manual_seed(_seed(recipe.seed, number))
    torch.manual_seed(_seed(recipe.seed, number))  # dropout draws from torch's own generator
    order = torch.randperm(len(examples), generator=generator).numpy()
    loss_sum = right = torch.zeros((), device=setting.device)
    networks.into_training(learner.network, recipe, learner.phase.trained)
    for start in range(0, len(order), recipe.batch):
        chosen = order[start : start + recipe.batch]
        inputs, labels = examples.batch(chosen, setting.device)
        if recipe.augmentation is not None and inputs.dtype == torch.uint8:  # kept features were changed as photos
            inputs = augmented(inputs, recipe.augmentation, generator)
        loss, logits = learner.step(inputs, labels, setting)
        loss_sum = loss_sum + loss * len(chosen)
        right = right + (logits.argmax(1) == labels).sum()
        seen = start + len(chosen)
        bar.advance(len(chosen), epoch=name, loss=float(loss_sum) / seen, accuracy=float(right) / seen)
    if not torch.isfinite(loss_sum):
        raise RecipeError(
            f"the loss is no number any more in epoch {number}",
            advice=f"a smaller --learning-rate (it is {learner.phase.learning_rate:g})",
        )
    return float(loss_sum) / len(order), float(right) / len(order)


def _seed(seed: int, epoch: int) -> int:
    """Each epoch draws from a stream of its own, so that a resumed one needs no saved random state."""
    return seed * 1_000_003 + epoch


def seconds_per_photo(network: nn.Module, recipe: Recipe, classes: int, setting: Setting) -> float:
    """Time a few training steps on random pixels, on a copy of the network: what a photo costs in the last phase."""
    trial = copy.deepcopy(network).to(setting.device)
    learner = Learner(trial, recipe, phases(recipe)[-1], np.arange(recipe.batch) % classes)
    networks.into_training(trial, recipe, learner.phase.trained)
    generator = torch.Generator().manual_seed(0)
    shape = (recipe.batch, recipe.side, recipe.side, 3)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2).to(setting.device)
    labels = torch.randint(0, classes, (recipe.batch,), generator=generator).to(setting.device)
    seconds = []
    for _ in range(1 + TRIAL_STEPS):
        begun = time.perf_counter()
        batch = pixels if recipe.augmentation is None else augmented(pixels, recipe.augmentation, generator)
        loss, _ = learner.step(batch, labels, setting)
        float(loss)  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:]) / recipe.batch
