"""Accuracy on changed photos: of the network that was scored, also after an interruption and for a run that is finished."""

import dataclasses
import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from support.interrupts import interrupt_after_steps
from support.training import CPU_SETTINGS, make_striped_photos
from torch import nn

import ikebana
from ikebana.commands import robustness as run_robustness
from ikebana.evaluation import robustness
from ikebana.evaluation.image_changes import CHANGES
from ikebana.evaluation.robustness import STRENGTHS, Robustness
from ikebana.learning.robustness import ChangedPhotos, estimate_seconds, measure_robustness
from ikebana.recipe import LinearProbe, Recipe
from ikebana.recipes import RECIPES
from ikebana.reports import run_figures

SMALL_OPTIONS = {"image_size": 48, "batch_size": 16, "epochs": 3, "precision": "float32"}
MEASURED = Robustness(
    200,
    0.925,
    {name: tuple(0.9 - 0.02 * row - 0.1 * strength for strength in STRENGTHS) for row, name in enumerate(CHANGES)},
)


def get_robustness(run) -> Robustness:
    measured = run.evaluation.robustness
    assert measured is not None
    return measured


class Brightness(nn.Module):
    """Predicts the second class for photos that are brighter than the middle grey."""

    def forward(self, photos):
        mean = photos.float().mean((1, 2, 3))
        return torch.stack([128 - mean, mean - 128], 1)


def test_each_changed_photo_keeps_its_label_and_place():
    photos = make_striped_photos(10)
    indices = np.array([7, 2, 2])
    changed, labels = ChangedPhotos(photos, "darker", 3).get_batch(indices, "cpu")
    expected = [CHANGES["darker"](photos.pixels[index], 3, index) for index in indices]
    assert np.array_equal(changed.permute(0, 2, 3, 1).numpy(), expected)
    assert labels.tolist() == photos.labels[indices].tolist()


def test_a_network_that_sees_only_brightness_fails_as_brightness_changes_and_stands_rotation():
    photos = make_striped_photos(40)
    dark = np.asarray(photos.pixels) // 4
    pixels = np.where((photos.labels == 1)[:, None, None, None], dark + 150, dark + 40)
    photos = type(photos)(pixels.astype(np.uint8), photos.rows, photos.labels, photos.for_selection, photos.groups)
    measured = measure_robustness(Brightness(), photos, CPU_SETTINGS)
    assert (measured.n, measured.accuracy) == (40, 1.0)
    assert measured.accuracies["rotation"] == (1.0,) * 5
    assert measured.accuracies["darker"][0] == 1.0
    assert measured.accuracies["darker"][-1] == measured.accuracies["brighter"][-1] == 0.5
    assert measured.mean_accuracy == pytest.approx(np.mean(list(measured.accuracies.values())))


def test_at_most_200_photos_are_used_evenly_spaced():
    measured = measure_robustness(Brightness(), make_striped_photos(333, side=8), CPU_SETTINGS)
    assert measured.n == 200


def test_the_estimated_time_is_that_of_31_predictions_of_each_test_photo_in_float32():
    quick, baseline = RECIPES["quick"], RECIPES["baseline"]
    exact = dataclasses.replace(CPU_SETTINGS, seconds_per_photo=0.01)
    fast = dataclasses.replace(exact, precision="bfloat16")
    assert estimate_seconds(500, quick, exact) == pytest.approx(100 * 31 * 0.01)
    assert estimate_seconds(5000, quick, exact) == pytest.approx(200 * 31 * 0.01)
    # Without a backward pass, training steps are faster; float32 is slower than bfloat16.
    assert estimate_seconds(500, baseline, exact) < estimate_seconds(500, quick, exact)
    assert estimate_seconds(500, quick, exact) < estimate_seconds(500, quick, fast)


def test_robustness_is_read_as_it_was_written_and_described_on_one_line():
    assert robustness.from_json(json.loads(json.dumps(asdict(MEASURED)))) == MEASURED
    assert "lowest for rotation" in MEASURED.describe()
    assert "\n" not in MEASURED.describe()


def test_the_table_has_a_row_per_change_and_a_column_per_strength():
    header, *rows = MEASURED.format_table().split("\n\n")[1].splitlines()
    assert header.split() == ["strength", "0", "1", "2", "3", "4", "5", "mean"]
    assert [row.split("  ")[0] for row in rows] == list(CHANGES)
    assert rows[0].split()[1:] == ["0.925", "0.800", "0.700", "0.600", "0.500", "0.400", "0.600"]


def test_the_figure_is_drawn_also_where_all_lines_end_at_the_same_height(tmp_path):
    flat = Robustness(3, 1.0, dict.fromkeys(CHANGES, (1.0,) * 5))
    poor = Robustness(3, 0.0, dict.fromkeys(CHANGES, (0.0,) * 5))
    for number, measured in enumerate((MEASURED, flat, poor)):
        run_figures.draw_robustness(measured, tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as figure:
            assert min(figure.size) > 500


# --- runs ---


@pytest.fixture(scope="module")
def photos(drawn):
    return drawn(10)


@pytest.fixture(scope="module")
def measured_run(photos, fit_in_cache):
    return fit_in_cache(photos, "baseline", robustness=True, **SMALL_OPTIONS)


@pytest.fixture(scope="module")
def plain_run(photos, fit_in_cache):
    return fit_in_cache(photos, "baseline", **SMALL_OPTIONS)


runs = pytest.mark.usefixtures("shared_cache")


@runs
@pytest.mark.slow
def test_robustness_is_of_the_scored_network_and_its_test_photos(measured_run, plain_run):
    evaluation = measured_run.evaluation
    assert evaluation.robustness.accuracy == evaluation.accuracy
    assert evaluation.robustness.n == evaluation.n
    assert (measured_run.folder / "figures" / "robustness.png").exists()
    assert "robustness" in evaluation.seconds
    assert evaluation.robustness.describe() in repr(evaluation)
    assert measured_run.weights.read_bytes() == plain_run.weights.read_bytes()
    assert plain_run.evaluation.robustness is None


@runs
@pytest.mark.slow
def test_a_run_that_is_finished_gets_the_same_robustness_later(measured_run, plain_run, tmp_path):
    folder = shutil.copytree(plain_run.folder, tmp_path / "run")
    later = ikebana.resume(folder, robustness=True)
    assert later.evaluation.robustness == measured_run.evaluation.robustness
    assert later.evaluation.report == plain_run.evaluation.report
    figure = "figures/robustness.png"
    assert (folder / figure).read_bytes() == (measured_run.folder / figure).read_bytes()
    written = (folder / "evaluation.json").read_bytes()
    ikebana.resume(folder)
    assert (folder / "evaluation.json").read_bytes() == written


@runs
@pytest.mark.slow
def test_ctrl_c_during_the_measurement_loses_nothing_and_a_resume_measures_again(
    measured_run, photos, tmp_path, monkeypatch
):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_robustness, "measure_robustness", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ikebana.fit(photos, "baseline", run=tmp_path / "run", robustness=True, **SMALL_OPTIONS)
    run = ikebana.open_run(tmp_path / "run")
    assert run.is_finished
    assert run.evaluation.robustness is None
    assert (run.folder / "figures").is_dir()
    monkeypatch.undo()
    assert ikebana.resume(tmp_path / "run").evaluation.robustness == measured_run.evaluation.robustness


@runs
@pytest.mark.slow
def test_a_run_that_was_interrupted_in_training_remembers_that_robustness_is_wanted(measured_run, photos, tmp_path):
    with interrupt_after_steps(1):
        ikebana.fit(photos, "baseline", run=tmp_path / "run", robustness=True, **SMALL_OPTIONS)
    resumed = ikebana.resume(tmp_path / "run")
    assert resumed.evaluation.robustness == measured_run.evaluation.robustness
    assert resumed.weights.read_bytes() == measured_run.weights.read_bytes()


@runs
@pytest.mark.slow
def test_after_a_refit_only_the_scored_network_is_measured(photos, measured_run, tmp_path):
    run = ikebana.fit(photos, "baseline", run=tmp_path / "run", refit_on_all=True, robustness=True, **SMALL_OPTIONS)
    assert run.evaluation.robustness == measured_run.evaluation.robustness
    later = ikebana.fit(photos, "baseline", run=tmp_path / "later", refit_on_all=True, **SMALL_OPTIONS)
    with pytest.raises(ikebana.RunError, match="retrained on the test photos"):
        ikebana.resume(later.folder, robustness=True)


@runs
@pytest.mark.slow
def test_a_head_on_cached_features_is_measured_with_its_backbone(photos, tmp_path):
    recipe = Recipe("probe", network="tf_efficientnet_lite0", image_size=64, resize="crop", method=LinearProbe())
    run = ikebana.fit(photos, recipe, run=tmp_path / "run", robustness=True)
    assert get_robustness(run).accuracy == run.evaluation.accuracy
    folder = shutil.copytree(run.folder, tmp_path / "again")
    scores = json.loads((folder / "evaluation.json").read_text("utf-8"))
    (folder / "evaluation.json").write_text(json.dumps(scores | {"robustness": None}), "utf-8")
    assert ikebana.resume(folder).evaluation.robustness == run.evaluation.robustness


@runs
@pytest.mark.slow
def test_the_command_prints_the_table_and_an_event(plain_run, tmp_path):
    folder = shutil.copytree(plain_run.folder, tmp_path / "run")
    command = [sys.executable, "-m", "ikebana", "fit", "--resume", str(folder), "--robustness"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder}\n"
    assert "nothing to do" not in done.stderr
    assert get_robustness(ikebana.open_run(folder)).format_table() in done.stderr
    again = shutil.copytree(plain_run.folder, tmp_path / "again")
    done = subprocess.run(
        [*command[:5], str(again), "--robustness", "--json"], capture_output=True, text=True, check=True
    )
    (event,) = (event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == "robustness")
    assert event.keys() == {"event", "n", "accuracy", "accuracies"}


# --- slices of a run ---


@runs
@pytest.mark.slow
def test_a_run_compares_the_sites_of_its_table_also_when_it_is_resumed(photos, tmp_path):
    paths = sorted(path for path in photos.glob("*/*.jpg"))
    sites = ["Lund" if number % 2 else "Oslo" for number in range(len(paths))]
    frame = pl.DataFrame(
        {"path": [str(path) for path in paths], "label": [path.parent.name for path in paths], "site": sites}
    )
    options = {**SMALL_OPTIONS, "split_fractions": (0.3, 0.1, 0.6)}
    run = ikebana.fit(frame, "baseline", run=tmp_path / "run", **options)
    assert run.evaluation.slices is not None
    assert {tested.value for tested in run.evaluation.slices.tested if tested.name == "site"} == {"Lund", "Oslo"}
    assert set(run.dataset["column:site"]) == {"Lund", "Oslo"}
    with interrupt_after_steps(0):
        ikebana.fit(frame, "baseline", run=tmp_path / "stopped", **options)
    assert ikebana.resume(tmp_path / "stopped").evaluation.slices == run.evaluation.slices
