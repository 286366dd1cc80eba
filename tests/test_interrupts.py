"""Training can be interrupted at any time and resumed without any difference."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch
from support.training import BASELINE, CPU_SETTINGS, TUNED, have_same_weights, make_striped_photos

from ikebana import recipes
from ikebana.learning.models import networks
from ikebana.learning.training import interrupts, loop
from ikebana.learning.training.trainer import Trainer
from ikebana.recipe import Augmentation, FineTune, with_options
from ikebana.system import progress

pytestmark = pytest.mark.slow

AUGMENTED = recipes.get_recipe("augmented", image_size=46, batch_size=16, epochs=2, learning_rate=1e-3)  # with dropout
AUGMENTED_TUNING = with_options(TUNED, epochs=2, augmentation=Augmentation(rotation=10, crop_area=0.5, brightness=0.2))
TWO_PHASES = with_options(
    AUGMENTED_TUNING,
    network="resnet10t",
    image_size=64,
    method=FineTune(
        dropout=0.2,
        hidden_units=8,
        train_from="layer4.0",
        head_epochs=1,
        head_learning_rate=1e-3,
        epochs=1,
        batch_size=AUGMENTED_TUNING.gradient_method.batch_size,
        learning_rate=AUGMENTED_TUNING.gradient_method.learning_rate,
        augmentation=AUGMENTED_TUNING.augmentation,
        adamw=AUGMENTED_TUNING.adamw,
    ),
)
ALL = pytest.mark.parametrize(
    "recipe", [AUGMENTED, AUGMENTED_TUNING, TWO_PHASES], ids=["augmented", "tuned", "two phases"]
)


def train(recipe, file=None):
    network = networks.build_network(recipe, 2)
    photos = make_striped_photos(72, side=recipe.image_size)  # 4.5 batches
    held_out = make_striped_photos(24, seed=1, side=recipe.image_size)
    epochs = list(loop.train(network, recipe, photos, held_out, CPU_SETTINGS, file))
    return network, [(epoch.epoch, epoch.train_loss, epoch.train_accuracy, epoch.val_loss) for epoch in epochs]


def interrupt_steps(monkeypatch, steps, number=signal.SIGINT):
    """Send the signal during these steps, counted over all following training."""
    real, steps_made = Trainer.step, []

    def step(*arguments):
        steps_made.append(1)
        if len(steps_made) in steps:
            os.kill(os.getpid(), number)
        return real(*arguments)

    monkeypatch.setattr(Trainer, "step", step)


@ALL
def test_repeated_interrupts_within_epochs_do_not_change_the_weights(recipe, tmp_path, monkeypatch):
    uninterrupted, all_epochs = train(recipe)
    interrupt_steps(monkeypatch, {2, 3, 5, 8})
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "checkpoint")
    torch.manual_seed(99)  # the random state of the new process must not matter
    resumed, epochs = train(recipe, tmp_path / "checkpoint")
    assert have_same_weights(uninterrupted, resumed)
    assert epochs == all_epochs


@ALL
def test_periodic_checkpoints_can_be_resumed(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "MIN_CHECKPOINT_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(loop, "MAX_CHECKPOINT_TIME_FRACTION", float("inf"))
    real = loop.CheckpointWriter.save

    def copied(log, learner, within=None):
        real(log, learner, within)
        if within is not None and log.file == tmp_path / "whole":
            shutil.copy(log.file, tmp_path / f"{within.number}-{within.photos_seen}")

    monkeypatch.setattr(loop.CheckpointWriter, "save", copied)
    uninterrupted, all_epochs = train(recipe, tmp_path / "whole")
    names = {path.name for path in tmp_path.iterdir()} - {"whole"}
    assert names == {f"{epoch}-{photos_done}" for epoch in (1, 2) for photos_done in (16, 32, 48, 64, 72)}
    for name in ("1-16", "1-72", "2-32"):
        resumed, epochs = train(recipe, tmp_path / name)
        assert have_same_weights(uninterrupted, resumed), name
        assert epochs == all_epochs


def test_a_signal_ends_the_training_after_the_current_step(tmp_path, monkeypatch):
    interrupt_steps(monkeypatch, {2})
    with pytest.raises(KeyboardInterrupt):
        train(BASELINE, tmp_path / "checkpoint")
    saved = loop.checkpoint.load(tmp_path / "checkpoint")
    assert int(saved.tensors["epoch_progress.photos_seen"]) == 32


def test_a_second_signal_during_the_save_after_an_interrupted_validation_costs_no_step(tmp_path, monkeypatch):
    real, is_saving = loop.checkpoint.save, []

    def save(*arguments):
        is_saving.append(True)
        signal.raise_signal(signal.SIGINT)
        real(*arguments)

    monkeypatch.setattr(loop.checkpoint, "save", save)
    monkeypatch.setattr(loop, "compute_logits", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(BASELINE, tmp_path / "checkpoint")
    assert is_saving
    saved = loop.checkpoint.load(tmp_path / "checkpoint")
    assert int(saved.tensors["epoch_progress.photos_seen"]) == 72


def test_the_progress_of_a_resumed_training_counts_only_its_own_photos(tmp_path, monkeypatch, capsys):
    interrupt_steps(monkeypatch, {7})  # two batches of the second epoch are done
    with pytest.raises(KeyboardInterrupt):
        train(AUGMENTED, tmp_path / "checkpoint")
    with progress.use_reporter(progress.JsonReporter()):
        train(AUGMENTED, tmp_path / "checkpoint")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["total"] for event in events if event["event"] == "stage"] == [72 - 32]
    assert [event["done"] for event in events if event["event"] == "stage_end"] == [72 - 32]


def test_ctrl_c_during_validation_loses_no_step(tmp_path, monkeypatch):
    uninterrupted, all_epochs = train(AUGMENTED)

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "compute_logits", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(AUGMENTED, tmp_path / "checkpoint")
    interrupt_steps(monkeypatch, {6})  # five steps remain in the second epoch
    resumed, epochs = train(AUGMENTED, tmp_path / "checkpoint")
    assert have_same_weights(uninterrupted, resumed)
    assert epochs == all_epochs


def test_a_second_ctrl_c_ends_at_once_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    file, listening = tmp_path / "checkpoint", signal.getsignal(signal.SIGINT)
    interrupt_steps(monkeypatch, {3})
    with pytest.raises(KeyboardInterrupt):
        train(BASELINE, file)
    before = file.read_bytes()
    monkeypatch.undo()

    def impatient(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the step went on")

    monkeypatch.setattr(Trainer, "step", impatient)
    with pytest.raises(KeyboardInterrupt):
        train(BASELINE, file)
    assert file.read_bytes() == before
    assert signal.getsignal(signal.SIGINT) is listening


def test_earlier_signal_handlers_are_restored_and_called(monkeypatch):
    heard = []
    monkeypatch.setattr(loop, "MIN_CHECKPOINT_INTERVAL_SECONDS", 1e9)
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))
    try:
        uninterrupted, _ = train(BASELINE)
        interrupt_steps(monkeypatch, {2, 4}, signal.SIGTERM)
        not_stopped, _ = train(BASELINE)
    finally:
        listening = signal.signal(signal.SIGTERM, before)
    assert heard == ["SIGTERM", "SIGTERM"]
    assert have_same_weights(uninterrupted, not_stopped)
    assert listening is not before


def test_training_in_another_thread_saves_checkpoints_too(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "MIN_CHECKPOINT_INTERVAL_SECONDS", 0.0)
    ended = []
    thread = threading.Thread(target=lambda: ended.append(train(BASELINE, tmp_path / "checkpoint")))
    thread.start()
    thread.join()
    assert have_same_weights(ended[0][0], train(BASELINE)[0])


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.defer_signals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.pending_signal is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_a_library_turns_into_another_error_keeps_its_exit_status(number, status):
    code = f"""
import os
from ikebana import cli
from ikebana.commands import cache
from ikebana.errors import RecipeError

def damaged(*_):
    try:
        os.kill(os.getpid(), {int(number)})
        while True:
            pass
    except KeyboardInterrupt:
        raise RecipeError("the weights cannot be read") from None

cache.cache = damaged
cli.main(["cache"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
