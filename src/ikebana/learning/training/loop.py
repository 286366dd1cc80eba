"""The training loop: a generator that yields each `Epoch` once it is saved."""

import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ikebana.errors import PeerError, RecipeError
from ikebana.learning import fast, processes
from ikebana.learning.augmentation import augment
from ikebana.learning.device import DeviceSettings
from ikebana.learning.examples import Examples, SelectableExamples
from ikebana.learning.models import parameter_groups
from ikebana.learning.models.networks import count_classes
from ikebana.learning.precision import record_faster_speed
from ikebana.learning.processes import ProcessGroup
from ikebana.learning.scoring import compute_logits, compute_shared_logits, score
from ikebana.learning.training import checkpoint
from ikebana.learning.training.checkpoint import Epoch, TrainingState
from ikebana.learning.training.epoch_progress import EpochProgress
from ikebana.learning.training.interrupts import DeferredSignals, defer_signals
from ikebana.learning.training.trainer import Trainer, plan_phases
from ikebana.recipe import Recipe
from ikebana.system import progress

# Seconds between two checkpoints within an epoch, at least. A checkpoint of `good` is 80 MB and
# takes 0.2 s to write, 0.3 % of a minute; a kill costs one minute of training at most.
MIN_CHECKPOINT_INTERVAL_SECONDS = 60.0
# On a slow disk or with a large network the interval grows, to keep writing below this fraction.
MAX_CHECKPOINT_TIME_FRACTION = 0.02
# With fewer model-selection photos the best epoch is a matter of chance: the last one is taken.
MIN_SELECTION_PHOTOS = 30
# Seconds between two reads of loss and accuracy, at least: each makes the CPU wait for a GPU.
MIN_DISPLAY_INTERVAL_SECONDS = 0.2
# The forward pass's fraction of a training step's time.
FORWARD_TIME_FRACTION = 0.35
# Timed steps of a trial, after one warm-up step.
TIMED_TRIAL_STEPS = 2


def train(
    network: nn.Module,
    recipe: Recipe,
    examples: Examples,
    validation: SelectableExamples,
    settings: DeviceSettings,
    checkpoint_file: Path | None = None,
    title: str = "train",
) -> Iterator[Epoch]:
    """Train to the recipe's last epoch and yield each epoch once it is saved.

    Within a long epoch, too, a checkpoint is written from time to time, and before Ctrl-C or
    SIGTERM ends the training. At the end the network has the weights of the last epoch. In a recipe
    with `adamw` it has the EMA weights of the epoch with the lowest model-selection loss.

    If this process has joined others, they share each step and the validation. All start from the
    leader's weights or checkpoint. Only the leader's network has the best weights at the end.

    Args:
        checkpoint_file: where it exists, training resumes from it. Its epochs are yielded again
            first, so the stream equals that of an uninterrupted training. On a CPU the weights are
            bit-equal too. Workers of a group have none.
        title: of the progress bar.
    Raises:
        RecipeError: the loss became NaN or infinite.
    """
    network.to(settings.device)
    group = processes.get_group()
    state = _load_state(network, checkpoint_file, group)
    yield from state.epochs
    writer, plan, epoch_state = (
        CheckpointWriter(checkpoint_file, state),
        plan_phases(recipe),
        state.get_tensors("epoch_progress."),
    )
    # Photos that an interrupted process has seen would count into this one's rate and time left.
    with checkpoint.checkpoint_errors(checkpoint_file):
        photos_seen = int(epoch_state.get("photos_seen", 0))
    with progress.stage(title, (plan[-1].last_epoch - len(writer.epochs)) * len(examples) - photos_seen) as bar:
        for phase in plan:
            if len(writer.epochs) >= phase.last_epoch:
                continue
            trainer = Trainer(network, recipe, phase, examples.labels)
            if epoch_state or len(writer.epochs) >= phase.first_epoch:
                with checkpoint.checkpoint_errors(checkpoint_file):
                    trainer.restore(state)
            state = TrainingState()  # frees the memory of its tensors, which the trainer has copied
            while len(writer.epochs) < phase.last_epoch:
                has_batch_norm = parameter_groups.uses_batch_statistics(recipe, phase.trainable)
                epoch_progress = EpochProgress(
                    recipe, len(writer.epochs) + 1, examples, settings.device, has_batch_norm, group
                )
                if epoch_state:
                    with checkpoint.checkpoint_errors(checkpoint_file):
                        epoch_progress.restore(epoch_state)
                    epoch_state = {}
                name = f"{epoch_progress.number}/{plan[-1].last_epoch}"
                yield _run_epoch(epoch_progress, name, trainer, validation, settings, writer, bar)
                if phase is plan[-1] and group is None:
                    steps = len(examples) + FORWARD_TIME_FRACTION * len(validation)
                    record_faster_speed(settings, writer.epochs[-1].seconds / steps)
    if writer.best.weights:
        network.load_state_dict(writer.best.weights)


def _load_state(network: nn.Module, checkpoint_file: Path | None, group: ProcessGroup | None) -> TrainingState:
    """Load the checkpoint, if there is one, and its weights into the network."""
    state = TrainingState()
    if checkpoint_file is not None and checkpoint_file.exists():
        state = checkpoint.load(checkpoint_file)
    if group is not None:
        state = _share_state(group, network, state)
    if state.tensors:
        with checkpoint.checkpoint_errors(checkpoint_file):
            network.load_state_dict(state.get_tensors("network."))
    return state


def _share_state(group: ProcessGroup, network: nn.Module, state: TrainingState) -> TrainingState:
    """Return the leader's state in every process.

    Before the first step it is that of the leader's network.
    """
    name = "training state"
    if not group.is_leader:
        return checkpoint.from_bytes(group.receive(name))
    tensors = state.tensors or {f"network.{name}": value for name, value in network.state_dict().items()}
    shared = TrainingState(state.epochs, tensors, state.best_loss)
    group.send(name, checkpoint.to_bytes(shared))
    return shared


class BestWeights:
    """The weights of the epoch with the lowest model-selection loss, in a recipe with `adamw`."""

    def __init__(self, state: TrainingState):
        self.loss, self.weights = state.best_loss, state.get_tensors("best_weights.")

    def update(self, loss: float | None, network: nn.Module) -> None:
        """Copy the weights if the loss is the lowest so far.

        They are also copied if the loss is None, because there are too few photos to compare.
        """
        if loss is None or loss <= self.loss:
            self.loss = self.loss if loss is None else loss
            self.weights = copy.deepcopy(network.state_dict())

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the weights under their names in the checkpoint."""
        return {f"best_weights.{name}": value for name, value in self.weights.items()}


class CheckpointWriter:
    """The epochs and best weights of a training, and the checkpoint file that holds them."""

    def __init__(self, file: Path | None, state: TrainingState):
        self.file, self.epochs, self.best = file, list(state.epochs), BestWeights(state)
        self.saved_at, self.save_seconds = time.monotonic(), 0.0

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint within the epoch should be written now."""
        return time.monotonic() - self.saved_at > max(
            MIN_CHECKPOINT_INTERVAL_SECONDS, self.save_seconds / MAX_CHECKPOINT_TIME_FRACTION
        )

    def save(self, trainer: Trainer, unfinished_epoch: EpochProgress | None = None) -> None:
        """Write the checkpoint.

        Raises:
            MachineError: the disk is full; the previous checkpoint stays.
        """
        if self.file is None:
            return
        started_at = time.monotonic()
        epoch_tensors = unfinished_epoch.to_tensors() if unfinished_epoch is not None else {}
        tensors = trainer.to_tensors() | self.best.to_tensors() | epoch_tensors
        checkpoint.save(self.file, TrainingState(self.epochs, tensors, self.best.loss))
        self.saved_at = time.monotonic()
        self.save_seconds = self.saved_at - started_at


def _run_epoch(
    epoch_progress: EpochProgress,
    name: str,
    trainer: Trainer,
    validation: SelectableExamples,
    settings: DeviceSettings,
    writer: CheckpointWriter,
    bar: progress.Bar,
) -> Epoch:
    """Make the remaining steps of an epoch, validate, and write the checkpoint."""
    _run_steps(epoch_progress, name, trainer, settings, writer, bar)
    group = epoch_progress.group
    # All steps are made, and validation changes no state.
    try:
        logits = _compute_validation_logits(trainer, validation, settings, group)
    except (KeyboardInterrupt, PeerError):
        # A launcher ends the others with SIGTERM once one process has ended.
        with defer_signals():
            writer.save(trainer, epoch_progress)
        raise
    # The last step may have diverged, which the loss before it does not show.
    if not np.isfinite(logits).all():
        raise _non_finite_error(epoch_progress, trainer)
    if group is not None and not group.is_leader:
        writer.epochs.append(Epoch(**json.loads(group.receive("epoch"))))
        return writer.epochs[-1]
    val_loss, val_accuracy = score(logits, validation.labels)
    val_scores = {} if val_accuracy is None else {"val_accuracy": val_accuracy}
    bar.advance(0, epoch=name, loss=epoch_progress.loss, accuracy=epoch_progress.accuracy, **val_scores)
    with defer_signals():
        selection_loss = None
        if trainer.recipe.adamw is not None:
            selection = np.flatnonzero(validation.for_selection)
            if len(selection) >= MIN_SELECTION_PHOTOS:
                selection_loss, _ = score(logits[selection], validation.labels[selection])
            writer.best.update(selection_loss, trainer.evaluated_network)
        writer.epochs.append(
            Epoch(
                epoch_progress.number,
                epoch_progress.loss,
                epoch_progress.accuracy,
                val_loss,
                val_accuracy,
                epoch_progress.seconds,
                selection_loss,
            )
        )
        writer.save(trainer)
    if group is not None:
        group.send("epoch", json.dumps(asdict(writer.epochs[-1])).encode())
    return writer.epochs[-1]


def _compute_validation_logits(
    trainer: Trainer, validation: SelectableExamples, settings: DeviceSettings, group: ProcessGroup | None
) -> np.ndarray:
    network = fast.optimise_for_inference(trainer.evaluated_network, validation)
    if group is None or not len(validation):
        return compute_logits(network, validation, settings)
    return compute_shared_logits(network, validation, count_classes(trainer.network), settings, group)


def _run_steps(
    epoch_progress: EpochProgress,
    name: str,
    trainer: Trainer,
    settings: DeviceSettings,
    writer: CheckpointWriter,
    bar: progress.Bar,
) -> None:
    """Make an epoch's remaining steps; between two it may be saved and stopped.

    Raises:
        RecipeError: the loss became NaN or infinite.
    """
    parameter_groups.set_training_mode(trainer.network, trainer.recipe, trainer.phase.trainable)
    displayed_at = 0.0
    with defer_signals() as signals:
        for inputs, labels, share in epoch_progress.iterate_shares():
            photos = len(labels) if share is None else share.photos
            loss, correct = trainer.step(inputs, labels, settings, share)
            epoch_progress.add_step(loss, correct, photos)
            scores: dict[str, float | str] = {}
            if time.monotonic() - displayed_at > MIN_DISPLAY_INTERVAL_SECONDS:
                scores = {"epoch": name, "loss": epoch_progress.loss, "accuracy": epoch_progress.accuracy}
                displayed_at = time.monotonic()
            bar.advance(photos, **scores)
            if epoch_progress.group is not None:
                _share_signal(epoch_progress.group, signals)
            if signals.pending_signal or writer.is_due:
                writer.save(trainer, epoch_progress)
            signals.deliver()
    if not math.isfinite(epoch_progress.loss):
        raise _non_finite_error(epoch_progress, trainer)


def _share_signal(group: ProcessGroup, signals: DeferredSignals) -> None:
    """End all processes after the same step if a signal has reached one."""
    number = int(group.max_(torch.tensor([signals.pending_signal or 0])))
    signals.pending_signal = number or None


def _non_finite_error(epoch_progress: EpochProgress, trainer: Trainer) -> RecipeError:
    return RecipeError(
        f"loss became NaN or infinite in epoch {epoch_progress.number}",
        advice=f"a lower --learning-rate (now {trainer.phase.learning_rate:g})",
    )


def measure_seconds_per_photo(network: nn.Module, recipe: Recipe, classes: int, settings: DeviceSettings) -> float:
    """Time training steps of the last phase, on random pixels and a copied network."""
    trial = copy.deepcopy(network).to(settings.device)
    batch_size = recipe.gradient_method.batch_size
    trainer = Trainer(trial, recipe, plan_phases(recipe)[-1], np.arange(max(batch_size, classes)) % classes)
    parameter_groups.set_training_mode(trial, recipe, trainer.phase.trainable)
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, recipe.image_size, recipe.image_size, 3)
    pixels = (
        torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2).to(settings.device)
    )
    labels = torch.randint(0, classes, (batch_size,), generator=generator).to(settings.device)
    seconds = []
    for _ in range(1 + TIMED_TRIAL_STEPS):
        started_at = time.perf_counter()
        batch = pixels if recipe.augmentation is None else augment(pixels, recipe.augmentation, generator)
        loss, _ = trainer.step(batch, labels, settings)
        float(loss)  # waits for the device
        seconds.append(time.perf_counter() - started_at)
    return min(seconds[1:]) / batch_size
