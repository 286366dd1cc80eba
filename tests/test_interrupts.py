"""A training may be stopped at any moment, and goes on as if it had not been."""

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

pytestmark = pytest.mark.slow

AUGMENTED = recipes.get_recipe("augmented", image_size=46, batch_size=16, epochs=2, learning_rate=1e-3)  # with dropout
LIT = with_options(TUNED, epochs=2, augmentation=Augmentation(rotation=10, crop_area=0.5, brightness=0.2))
TWO_PHASES = with_options(
    LIT,
    network="resnet10t",
    image_size=64,
    method=FineTune(
        dropout=0.2,
        hidden_units=8,
        train_from="layer4.0",
        head_epochs=1,
        head_learning_rate=1e-3,
        epochs=1,
        batch_size=LIT.gradient_method.batch_size,
        learning_rate=LIT.gradient_method.learning_rate,
        augmentation=LIT.augmentation,
        adamw=LIT.adamw,
    ),
)
ALL = pytest.mark.parametrize("recipe", [AUGMENTED, LIT, TWO_PHASES], ids=["augmented", "tuned", "two phases"])


def trained(recipe, file=None):
    network = networks.build_network(recipe, 2)
    photos = make_striped_photos(72, side=recipe.image_size)  # 4.5 batches
    held_out = make_striped_photos(24, seed=1, side=recipe.image_size)
    epochs = list(loop.train(network, recipe, photos, held_out, CPU_SETTINGS, file))
    return network, [(each.epoch, each.train_loss, each.train_accuracy, each.val_loss) for each in epochs]


def interrupted_in_step(monkeypatch, steps, number=signal.SIGINT):
    """The signal comes while these steps are being made, counted over all that is trained from here on."""
    real, made = Trainer.step, []

    def step(*arguments):
        made.append(1)
        if len(made) in steps:
            os.kill(os.getpid(), number)
        return real(*arguments)

    monkeypatch.setattr(Trainer, "step", step)


@ALL
def test_a_training_stopped_again_and_again_within_its_epochs_ends_as_one_that_never_was(recipe, tmp_path, monkeypatch):
    whole, all_epochs = trained(recipe)
    interrupted_in_step(monkeypatch, {2, 3, 5, 8})
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            trained(recipe, tmp_path / "checkpoint")
    torch.manual_seed(99)  # whatever the random state of the new process
    resumed, epochs = trained(recipe, tmp_path / "checkpoint")
    assert have_same_weights(whole, resumed)
    assert epochs == all_epochs


@ALL
def test_what_is_kept_from_time_to_time_is_a_place_to_go_on_from(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "MIN_CHECKPOINT_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(loop, "MAX_CHECKPOINT_TIME_FRACTION", float("inf"))
    real = loop.CheckpointWriter.save

    def copied(log, learner, within=None):
        real(log, learner, within)
        if within is not None and log.file == tmp_path / "whole":
            shutil.copy(log.file, tmp_path / f"{within.number}-{within.photos_seen}")

    monkeypatch.setattr(loop.CheckpointWriter, "save", copied)
    whole, all_epochs = trained(recipe, tmp_path / "whole")
    names = {each.name for each in tmp_path.iterdir()} - {"whole"}
    assert names == {f"{epoch}-{seen}" for epoch in (1, 2) for seen in (16, 32, 48, 64, 72)}
    for name in ("1-16", "1-72", "2-32"):
        resumed, epochs = trained(recipe, tmp_path / name)
        assert have_same_weights(whole, resumed), name
        assert epochs == all_epochs


def test_a_step_that_was_begun_is_made_whole_before_the_signal_ends_the_training(tmp_path, monkeypatch):
    interrupted_in_step(monkeypatch, {2})
    with pytest.raises(KeyboardInterrupt):
        trained(BASELINE, tmp_path / "checkpoint")
    saved = loop.checkpoint.load(tmp_path / "checkpoint")
    assert int(saved.tensors["epoch_progress.photos_seen"]) == 32


def test_ctrl_c_while_the_validation_photos_are_looked_at_loses_no_step(tmp_path, monkeypatch):
    whole, all_epochs = trained(AUGMENTED)

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "compute_logits", stopped)
        with pytest.raises(KeyboardInterrupt):
            trained(AUGMENTED, tmp_path / "checkpoint")
    interrupted_in_step(monkeypatch, {6})  # five are left, of the second epoch
    resumed, epochs = trained(AUGMENTED, tmp_path / "checkpoint")
    assert have_same_weights(whole, resumed)
    assert epochs == all_epochs


def test_a_second_ctrl_c_ends_at_once_and_what_was_kept_before_stays(tmp_path, monkeypatch):
    file, listening = tmp_path / "checkpoint", signal.getsignal(signal.SIGINT)
    interrupted_in_step(monkeypatch, {3})
    with pytest.raises(KeyboardInterrupt):
        trained(BASELINE, file)
    before = file.read_bytes()
    monkeypatch.undo()

    def impatient(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the step went on")

    monkeypatch.setattr(Trainer, "step", impatient)
    with pytest.raises(KeyboardInterrupt):
        trained(BASELINE, file)
    assert file.read_bytes() == before
    assert signal.getsignal(signal.SIGINT) is listening


def test_whoever_listened_before_listens_again_and_may_go_on(monkeypatch):
    heard = []
    monkeypatch.setattr(loop, "MIN_CHECKPOINT_INTERVAL_SECONDS", 1e9)
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))
    try:
        whole, _ = trained(BASELINE)
        interrupted_in_step(monkeypatch, {2, 4}, signal.SIGTERM)
        not_stopped, _ = trained(BASELINE)
    finally:
        listening = signal.signal(signal.SIGTERM, before)
    assert heard == ["SIGTERM", "SIGTERM"]
    assert have_same_weights(whole, not_stopped)
    assert listening is not before


def test_a_training_in_another_thread_is_kept_too(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "MIN_CHECKPOINT_INTERVAL_SECONDS", 0.0)
    ended = []
    thread = threading.Thread(target=lambda: ended.append(trained(BASELINE, tmp_path / "checkpoint")))
    thread.start()
    thread.join()
    assert have_same_weights(ended[0][0], trained(BASELINE)[0])


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.defer_signals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.pending_signal is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_a_library_made_another_error_of_still_ends_the_command_with_its_status(number, status):
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
