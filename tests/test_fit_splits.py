"""`ikebana fit --split-seeds N`: one run per split, the spread of their scores, and resuming."""

import contextvars
import json
import shutil
import statistics

import polars as pl
import pytest
from support.images import two_classes, write_files
from support.runs import write_run

import ikebana
from ikebana import cli
from ikebana.commands.fit_splits import SCORES_FILE, fit_splits
from ikebana.errors import PhotosError, RecipeError, RunError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_cache")]

SMALL_OPTIONS = {"image_size": 48, "batch_size": 16, "epochs": 1, "precision": "float32"}
FLAGS = ["--recipe", "baseline", "--image-size", "48", "--batch-size", "16", "--epochs", "1", "--precision", "float32"]


@pytest.fixture(scope="module")
def photos(drawn):
    return drawn(10)


def test_each_split_has_a_run_of_its_own_and_the_spread_is_that_of_their_scores(photos, tmp_path, capsys):
    arguments = ["fit", str(photos), "--split-seeds", "3", "--run", str(tmp_path / "runs"), *FLAGS]
    with pytest.raises(SystemExit) as ended:
        contextvars.copy_context().run(cli.main, arguments)
    assert ended.value.code == 0
    output = capsys.readouterr()
    assert output.out == f"{tmp_path / 'runs'}\n"
    runs = [ikebana.open_run(tmp_path / "runs" / f"split-{seed}") for seed in range(3)]
    assert [run.recipe.split_seed for run in runs] == [0, 1, 2]
    tests = [set(run.dataset.filter(pl.col("split") == "test")["path"]) for run in runs]
    assert tests[0] != tests[1] != tests[2]
    scores = json.loads((tmp_path / "runs" / SCORES_FILE).read_text("utf-8"))
    accuracies = [run.evaluation.accuracy for run in runs]
    assert scores["accuracies"] == accuracies
    assert scores["mean"] == pytest.approx(statistics.mean(accuracies))
    assert scores["standard_deviation"] == pytest.approx(statistics.stdev(accuracies))
    assert (scores["lowest"], scores["highest"]) == (min(accuracies), max(accuracies))
    assert f"baseline on 3 splits: accuracy {statistics.mean(accuracies):.3f} on average" in output.err


def test_the_same_call_continues_and_leaves_finished_runs_as_they_are(photos, tmp_path):
    first = fit_splits(photos, "baseline", splits=2, run=tmp_path / "runs", **SMALL_OPTIONS)
    weights = tmp_path / "runs" / "split-0" / "weights.safetensors"
    written = weights.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "runs" / "split-1")
    again = fit_splits(photos, "baseline", splits=2, run=tmp_path / "runs", **SMALL_OPTIONS)
    assert again == first
    assert weights.stat().st_mtime_ns == written


def test_a_run_is_no_folder_for_the_runs_of_several_splits(photos, tmp_path):
    run = write_run(tmp_path / "run")
    with pytest.raises(RunError, match="this is a run, not a folder of runs"):
        fit_splits(photos, "baseline", splits=2, run=run.folder, **SMALL_OPTIONS)
    assert not (run.folder / "split-0").exists()


def test_a_folder_with_runs_of_another_recipe_or_of_other_photos_is_refused(photos, drawn, tmp_path):
    fit_splits(photos, "baseline", splits=2, run=tmp_path / "runs", **SMALL_OPTIONS)
    with pytest.raises(RunError, match="another recipe"):
        fit_splits(photos, "baseline", splits=2, run=tmp_path / "runs", **SMALL_OPTIONS, seed=1)
    with pytest.raises(RunError, match="other photos"):
        fit_splits(drawn(8), "baseline", splits=3, run=tmp_path / "runs", **SMALL_OPTIONS)


def test_photos_with_a_split_and_a_single_split_are_refused(photos, tmp_path):
    files = {f"{part}/{path}": data for part in ("train", "test") for path, data in two_classes().items()}
    with pytest.raises(PhotosError, match="come with a split"):
        fit_splits(write_files(tmp_path / "photos", files), "baseline", splits=2)
    with pytest.raises(RecipeError, match="no spread"):
        fit_splits(photos, "baseline", splits=1)
    with pytest.raises(RecipeError, match="exclude each other"):
        fit_splits(photos, "baseline", splits=2, split_seed=1)
