"""Network + examples → a stream of Epochs. Training is a generator: the bar, the JSON stream and the checkpoint read the same."""

import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ikebana import progress
from ikebana.errors import RecipeError
from ikebana.learning import checkpoint, lean, networks
from ikebana.learning.augmentation import augmented
from ikebana.learning.checkpoint import Epoch, Saved
from ikebana.learning.device import Setting
from ikebana.learning.inference import Examples, logits_of, score
from ikebana.learning.learner import Learner, phases
from ikebana.learning.passing import Pass
from ikebana.learning.stopping import held
from ikebana.recipe import Recipe

# A checkpoint of `good` is 80 MB and takes 0.2 s to write: each minute that is 0.3 % of the time, and a kill costs a minute
# at most. On a slow disk or with a large network the pauses grow, so that writing never takes more than its share.
EVERY = 60.0  # seconds between two checkpoints within an epoch, at least
SHARE = 0.02  # of the time may go into writing them
FEW = 30  # validation photos for choices: with fewer it is chance which epoch they like best, and the last one counts
GLANCES = 0.2  # seconds between two looks at the scores, at least: for each of them the processor waits for a GPU
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
    """Train to the recipe's last epoch; each epoch is yielded once it is safe on disk. Within a long one, too, the training
    is kept from time to time, and before Ctrl-C or SIGTERM ends it.

    At the end the network is the one that counts: that of the last epoch; in a recipe with `tuning` the running mean of
    the weights in the epoch that had the least loss on the validation photos that are set apart for choices.

    kept    the checkpoint's file. Where it exists the training goes on from there: its epochs are yielded again first, so
            the stream is the same whether or not it was interrupted, and on a CPU so are the weights, bit for bit
    title   of the bar
    raises  RecipeError if the loss is no number any more
    """
    network.to(setting.device)
    saved = checkpoint.load(kept) if kept is not None and kept.exists() else Saved()
    if saved.tensors:
        with checkpoint.usable(kept):
            network.load_state_dict(saved.entries("network."))
    yield from saved.epochs
    log, plan, within = Log(kept, saved), phases(recipe), saved.entries("pass.")
    with progress.stage(title, (plan[-1].last - len(log.epochs)) * len(examples)) as bar:
        for phase in plan:
            if len(log.epochs) >= phase.last:
                continue
            learner = Learner(network, recipe, phase, examples.labels)
            if within or len(log.epochs) >= phase.first:
                with checkpoint.usable(kept):
                    learner.restore(saved)
            saved = Saved()  # what it held is the learner's now, and takes as much memory again
            while len(log.epochs) < phase.last:
                together = networks.trains_norms(recipe, phase.trained)
                one = Pass(recipe, len(log.epochs) + 1, examples, setting.device, together)
                if within:
                    with checkpoint.usable(kept):
                        one.restore(within)
                    within = {}
                    bar.advance(one.seen)
                yield _epoch(one, f"{one.number}/{plan[-1].last}", learner, validation, setting, log, bar)
    if log.best.weights:
        network.load_state_dict(log.best.weights)


class Best:
    """The weights of the epoch with the least loss on the photos for choices, if a recipe goes by that."""

    def __init__(self, saved: Saved):
        self.loss, self.weights = saved.best_loss, saved.entries("best.")

    def consider(self, loss: float | None, network: nn.Module) -> None:
        """Take these weights if they are better; without enough validation photos the last ones are the best."""
        if loss is None or loss <= self.loss:
            self.loss = self.loss if loss is None else loss
            self.weights = copy.deepcopy(network.state_dict())

    def tensors(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        return {f"best.{name}": value for name, value in self.weights.items()}


class Log:
    """What a training has come to, and the file that keeps it."""

    def __init__(self, file: Path | None, saved: Saved):
        self.file, self.epochs, self.best = file, list(saved.epochs), Best(saved)
        self.written, self.cost = time.monotonic(), 0.0  # when, and the seconds that it took

    @property
    def due(self) -> bool:
        """Whether the training has gone on for long enough to be kept, though its epoch has not ended."""
        return time.monotonic() - self.written > max(EVERY, self.cost / SHARE)

    def save(self, learner: Learner, within: Pass | None = None) -> None:
        """Write it all down.

        within  the epoch that has not ended yet, if any
        raises  MachineError if the disk is full; what was written before stays
        """
        if self.file is None:
            return
        begun, of_pass = time.monotonic(), within.tensors() if within is not None else {}
        tensors = learner.tensors() | self.best.tensors() | of_pass
        checkpoint.save(self.file, Saved(self.epochs, tensors, self.best.loss))
        self.written = time.monotonic()
        self.cost = self.written - begun


def _epoch(
    one: Pass, name: str, learner: Learner, validation: Examples, setting: Setting, log: Log, bar: progress.Bar
) -> Epoch:
    recipe = learner.recipe
    _steps(one, name, learner, setting, log, bar)
    try:
        logits = logits_of(lean.for_looking(learner.scored, validation), validation, setting)
    except KeyboardInterrupt:  # all steps are made, and looking changes nothing
        log.save(learner, one)
        raise
    if not np.isfinite(logits).all():  # the last step may have blown up what the loss before it did not show
        raise _blown_up(one, learner)
    val_loss, val_accuracy = score(logits, validation.labels)
    of_held_out = {} if val_accuracy is None else {"val_accuracy": val_accuracy}
    bar.advance(0, epoch=name, loss=one.loss, accuracy=one.accuracy, **of_held_out)
    with held():
        if recipe.tuning is not None:
            chosen_by = np.flatnonzero(validation.for_choices)
            loss, _ = score(logits[chosen_by], validation.labels[chosen_by]) if len(chosen_by) >= FEW else (None, None)
            log.best.consider(loss, learner.scored)
        log.epochs.append(Epoch(one.number, one.loss, one.accuracy, val_loss, val_accuracy, one.seconds))
        log.save(learner)
    return log.epochs[-1]


def _steps(one: Pass, name: str, learner: Learner, setting: Setting, log: Log, bar: progress.Bar) -> None:
    """The steps that are left of a pass; between two of them it may be kept, and stopped.

    raises  RecipeError if the loss is no number any more
    """
    networks.into_training(learner.network, learner.recipe, learner.phase.trained)
    glanced = 0.0
    with held() as signals:
        for inputs, labels in one.batches():
            loss, logits = learner.step(inputs, labels, setting)
            one.add(loss, (logits.argmax(1) == labels).sum(), len(labels))
            scores: dict[str, float | str] = {}
            if time.monotonic() - glanced > GLANCES:
                scores = {"epoch": name, "loss": one.loss, "accuracy": one.accuracy}
                glanced = time.monotonic()
            bar.advance(len(labels), **scores)
            if signals.came or log.due:
                log.save(learner, one)
            signals.let_through()
    if not math.isfinite(one.loss):
        raise _blown_up(one, learner)


def _blown_up(one: Pass, learner: Learner) -> RecipeError:
    return RecipeError(
        f"the loss is no number any more in epoch {one.number}",
        advice=f"a smaller --learning-rate (it is {learner.phase.learning_rate:g})",
    )


def seconds_per_photo(network: nn.Module, recipe: Recipe, classes: int, setting: Setting) -> float:
    """Time a few training steps on random pixels, on a copy of the network: what a photo costs in the last phase."""
    trial = copy.deepcopy(network).to(setting.device)
    learner = Learner(trial, recipe, phases(recipe)[-1], np.arange(max(recipe.batch, classes)) % classes)
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
