"""Trainings that several processes share, in float64, for tests that compare them with one process.

As a script, under torchrun, it writes the results of process 0 into a folder.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ikebana import recipes
from ikebana.learning import processes, scoring
from ikebana.learning.models import networks, parameter_groups
from ikebana.learning.training import loop
from ikebana.learning.training.epoch_progress import EpochProgress
from ikebana.learning.training.trainer import Trainer, plan_phases
from ikebana.recipe import FineTune, Recipe, with_options
from ikebana.system import process
from support.training import CPU_SETTINGS, make_striped_photos

SETTINGS = replace(CPU_SETTINGS, threads=1)
# Three batches, so that the shares of two processes differ.
VALIDATION_PHOTOS = 2 * SETTINGS.inference_batch_size + 1
FINETUNED = recipes.get_recipe("finetuned", image_size=75, truncate_at="mixed0", batch_size=7)
assert isinstance(FINETUNED.method, FineTune)
# Batches that two processes cannot halve. The last batch of `baseline` has one photo: one share is empty.
CASES: Mapping[str, tuple[Recipe, int]] = {
    "baseline": (recipes.get_recipe("baseline", image_size=46, batch_size=15, epochs=4), 61),
    "augmented": (recipes.get_recipe("augmented", image_size=46, batch_size=15, epochs=4, learning_rate=1e-3), 70),
    "good": (recipes.get_recipe("good", image_size=32, batch_size=7, epochs=4), 33),
    # No head-only epochs: BatchNorm trains from the first step.
    "finetuned": (replace(FINETUNED, method=replace(FINETUNED.method, head_epochs=0, epochs=4)), 33),
}
# Two photos for three processes, where BatchNorm trains: Keras', and torch's in a network of timm.
EMPTY_SHARES = {
    "finetuned": (with_options(CASES["finetuned"][0], batch_size=3, epochs=2), 8),
    "scratch": (
        recipes.get_recipe("baseline", network="resnet10t", image_size=64, batch_size=3, epochs=2, learning_rate=1e-5),
        8,
    ),
}
# Trainings are killed after 13 of 20 steps, in the third epoch, and interrupted at the end of the second.
KILLED_STEP = 13
INTERRUPTED_CASE = "augmented"


def build_network(recipe: Recipe, dtype: torch.dtype) -> nn.Module:
    """Build a network that computes in this precision."""
    network = networks.build_network(recipe, 2).to(dtype)
    network.register_forward_pre_hook(lambda _, photos: (photos[0].to(dtype),))
    return network


def train(recipe: Recipe, photos: int, checkpoint: Path | None = None) -> tuple[dict[str, Tensor], list[loop.Epoch]]:
    """Train in float64; return the weights and the epochs."""
    network = build_network(recipe, torch.float64)
    side = recipe.image_size
    examples = make_striped_photos(photos, side=side), make_striped_photos(VALIDATION_PHOTOS, seed=1, side=side)
    epochs = list(loop.train(network, recipe, *examples, SETTINGS, checkpoint))
    return dict(network.state_dict()), epochs


def get_scores(epochs: Sequence[loop.Epoch]) -> dict[str, Tensor]:
    """Return the scores of all epochs by name: float64 [epochs]."""
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    return {name: torch.tensor([getattr(epoch, name) for epoch in epochs], dtype=torch.float64) for name in names}


def compute_first_gradient(recipe: Recipe, photos: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Make one step, and return the gradients of the whole batch."""
    network, phase = build_network(recipe, dtype), plan_phases(recipe)[-1]
    examples = make_striped_photos(photos, side=recipe.image_size)
    trainer = Trainer(network, recipe, phase, examples.labels)
    parameter_groups.set_training_mode(network, recipe, phase.trainable)
    progress = EpochProgress(recipe, 1, examples, "cpu", group=processes.get_group())
    inputs, labels, share = next(progress.iterate_shares())
    trainer.step(inputs, labels, SETTINGS, share)
    return {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}


def main(task: str, folder: Path) -> None:
    """Do one of the tasks: all, empty, interrupted, or the name of a case that is killed."""
    torch.set_num_threads(1)
    # As the command does: torchrun ends the other processes with SIGTERM.
    process.set_up()
    with processes.join():
        checkpoint = folder / "checkpoint" if processes.is_leader() else None
        if task in CASES:
            loop.MIN_CHECKPOINT_INTERVAL_SECONDS, loop.MAX_CHECKPOINT_TIME_FRACTION = 0.0, float("inf")
            kill_after_steps(KILLED_STEP)
            train(*CASES[task], checkpoint)
        if task == "interrupted":
            if not processes.is_leader():
                interrupt_second_validation()
            train(*CASES[INTERRUPTED_CASE], checkpoint)
        for name, case in (CASES if task == "all" else EMPTY_SHARES).items():
            weights, epochs = train(*case)
            results = {"weights": weights, "scores": get_scores(epochs), "gradient": compute_first_gradient(*case)}
            if processes.is_leader():
                for kind, tensors in results.items():
                    contiguous = {key: value.contiguous() for key, value in tensors.items()}
                    save_file(contiguous, folder / f"{name} {kind}.safetensors")


def kill_after_steps(steps: int) -> None:
    """Kill this process after so many training steps, and the checkpoint of the last one."""
    real, steps_made = Trainer.step, []

    def step(*arguments):
        steps_made.append(1)
        if len(steps_made) > steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    pytest.MonkeyPatch().setattr(Trainer, "step", step)


def interrupt_second_validation() -> None:
    """Interrupt this process while it validates the second epoch."""
    real, calls = scoring.compute_logits, []

    def compute_logits(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    pytest.MonkeyPatch().setattr(scoring, "compute_logits", compute_logits)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
