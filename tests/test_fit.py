"""End to end on a few drawn photos: run folder, predictions, resuming, refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from support.interrupts import interrupt_after_steps

import ikebana
from ikebana import recipes
from ikebana.demo_data import paper_flowers
from ikebana.errors import PhotosError
from ikebana.inference import table_formats
from ikebana.learning.training import loop
from ikebana.recipe import recipe_from_json

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_cache")]

SMALL_OPTIONS = {"image_size": 48, "batch_size": 16, "epochs": 3, "precision": "float32"}
FLAGS = ["--recipe", "baseline", "--image-size", "48", "--batch-size", "16", "--precision", "float32"]


@pytest.fixture(scope="module")
def photos(drawn):
    return drawn(10)


@pytest.fixture(scope="module")
def run(photos, fit_in_cache):
    return fit_in_cache(photos, "baseline", **SMALL_OPTIONS)


def run_command(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "ikebana", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=300,
    )


def test_a_run_folder_has_the_documented_contents(run, photos):
    names = {path.name for path in run.folder.iterdir()}
    assert names == {
        "recipe.json", "source.json", "dataset.parquet", "audit.json", "environment.json", "epochs.jsonl", "layers.txt",
        "weights.safetensors", "predictions.parquet", "calibration.json", "classification_report.txt", "evaluation.json",
        "figures", "thumbnails", "report.html", "suggestion.json",
    }  # fmt: skip
    saved = json.loads((run.folder / "recipe.json").read_text("utf-8"))
    assert recipe_from_json(saved) == recipes.get_recipe("baseline", **SMALL_OPTIONS)
    assert Path(run.source["photos"]) == photos
    assert run.history["epoch"].to_list() == [1, 2, 3]
    columns = {"epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds", "selection_loss"}
    assert set(run.history.columns) == columns
    reasons = json.loads((run.folder / "environment.json").read_text("utf-8"))["reasons"]
    assert set(reasons) == {"device", "threads", "allocator", "precision"}
    assert all(reasons.values())


def test_every_path_is_used_or_set_aside_and_the_counts_add_up(run, photos):
    table, audit = run.dataset, json.loads((run.folder / "audit.json").read_text("utf-8"))
    assert table.height == sum(1 for path in photos.rglob("*") if path.is_file())
    assert audit["used"] + audit["set_aside"] == audit["paths"] == table.height
    used = table.filter(pl.col("status") == "used")
    assert used.height == audit["used"]
    assert used["split"].is_in(["train", "validation", "test"]).all()
    assert table.filter(pl.col("status") != "used")["split"].is_null().all()


def test_the_score_is_that_of_the_stored_probabilities_of_the_test_photos(run):
    test = run.predictions.filter(pl.col("split") == "test")
    probabilities = test.select(f"p:{name}" for name in run.classes).to_numpy()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    predicted = np.array(run.classes)[probabilities.argmax(1)]
    assert run.evaluation.n == test.height
    assert run.evaluation.accuracy == pytest.approx((predicted == test["label"].to_numpy()).mean())
    assert set(test["path"]).isdisjoint(run.dataset.filter(pl.col("split") == "train")["path"])


def test_validation_figures_of_the_last_epoch_are_those_of_the_stored_probabilities(run):
    held_out = run.predictions.filter(pl.col("split") == "validation")
    probabilities = held_out.select(f"p:{name}" for name in run.classes).to_numpy()
    truth = np.array([run.classes.index(name) for name in held_out["label"]])
    given = probabilities[np.arange(len(truth)), truth]
    assert run.history[-1, "val_loss"] == pytest.approx(-np.log(given).mean(), rel=1e-4)


def test_the_same_command_gives_bit_identical_weights_and_another_seed_does_not(run, photos, tmp_path):
    again = ikebana.fit(photos, "baseline", run=tmp_path / "again", **SMALL_OPTIONS)
    assert again.weights.read_bytes() == run.weights.read_bytes()
    other = ikebana.fit(photos, "baseline", run=tmp_path / "other", **SMALL_OPTIONS, seed=1)
    assert other.weights.read_bytes() != run.weights.read_bytes()
    assert other.dataset.equals(run.dataset)  # the seed affects training only


@pytest.mark.parametrize("name", ["baseline", "augmented"])
def test_an_interrupted_run_resumes_to_bit_identical_weights(name, photos, tmp_path):
    uninterrupted = ikebana.fit(photos, name, run=tmp_path / "whole", **SMALL_OPTIONS)
    with interrupt_after_steps(2):  # in the second epoch
        ikebana.fit(photos, name, run=tmp_path / "stopped", **SMALL_OPTIONS)
    stopped = ikebana.open_run(tmp_path / "stopped")
    assert not stopped.is_finished
    assert len(stopped.history) == 1
    resumed = ikebana.resume(tmp_path / "stopped")
    assert resumed.weights.read_bytes() == uninterrupted.weights.read_bytes()
    assert resumed.history.drop("seconds").equals(uninterrupted.history.drop("seconds"))
    assert resumed.predictions.equals(uninterrupted.predictions)
    assert not (resumed.folder / "checkpoint.safetensors").exists()


def test_resuming_a_finished_run_changes_nothing(run):
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    done = run_command("fit", "--resume", run.folder)
    assert done.returncode == 0
    assert "is already finished" in done.stderr
    assert done.stdout.splitlines()[-1] == str(run.folder)
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before


def test_a_run_cannot_be_resumed_with_other_photos(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    paper_flowers.draw_collection(folder, photos_per_kind=6)
    monkeypatch.setattr(loop, "train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ikebana.fit(folder, "baseline", run=tmp_path / "run", **SMALL_OPTIONS)
    monkeypatch.undo()
    victim = next(path for path in sorted(folder.rglob("*.jpg")) if "000" in path.name)
    victim.rename(victim.with_name("zzz.jpg"))  # the same bytes under another name would be split differently
    with pytest.raises(ikebana.RunError, match="changed"):
        ikebana.resume(tmp_path / "run")
    victim.with_name("zzz.jpg").unlink()
    with pytest.raises(ikebana.RunError, match="changed"):
        ikebana.resume(tmp_path / "run")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_exit_with_their_status_and_leave_a_resumable_run(number, status, photos, tmp_path, run):
    place = tmp_path / "run"
    arguments = [sys.executable, "-m", "ikebana", "fit", photos, "--run", place, *FLAGS, "--epochs", "400"]
    process = subprocess.Popen([str(argument) for argument in arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    try:
        while not (place / "epochs.jsonl").exists():
            assert process.poll() is None, "fit ended before its first epoch"
            assert time.monotonic() < deadline, "no epoch within 120 s"
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status, errors
    assert "ikebana fit --resume" in errors
    assert "Traceback" not in errors
    stopped = ikebana.open_run(place)
    assert (stopped.folder / "checkpoint.safetensors").exists()
    assert not any(path.name.endswith(".partial") for path in place.rglob("*"))


def test_predicting_gives_one_row_per_path_with_the_probabilities_of_the_run(run, photos, tmp_path):
    out = tmp_path / "said.csv"
    done = run_command("predict", run.folder, photos, "--out", out)
    assert done.returncode == 0, done.stderr
    table = pl.read_csv(out, infer_schema_length=None)
    assert table.columns == [*table_formats.FIXED_COLUMNS, *(f"p:{name}" for name in run.classes)]
    assert table.height == run.dataset.height
    relative = table.with_columns(path=pl.col("path").str.strip_prefix(f"{photos}/"))
    both = run.predictions.join(relative, on="path", suffix="_said")
    assert both.height == run.predictions.height
    for name in run.classes:
        np.testing.assert_allclose(both[f"p:{name}"].to_numpy(), both[f"p:{name}_said"].to_numpy(), atol=2e-5)
    aside = table.filter(pl.col("status") != "ok")
    assert aside.height == run.dataset.filter(pl.col("status") != "used").height
    assert aside["label"].is_null().all()


def test_without_a_file_predictions_go_to_standard_output_only(run, photos):
    photo = next(photos.rglob("*_000.jpg"))
    done = run_command("predict", run.folder, photo)
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == ["path", str(photo)]


def test_fit_prints_one_json_event_per_line(photos, tmp_path):
    done = run_command("fit", photos, "--run", tmp_path / "run", *FLAGS, "--epochs", "2", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stderr == ""
    assert events[-1] == {"event": "done", "run": str(tmp_path / "run")}
    epochs = [
        {key: value for key, value in event.items() if key != "event"} for event in events if event["event"] == "epoch"
    ]
    assert epochs == ikebana.open_run(tmp_path / "run").history.to_dicts()


def test_an_existing_folder_is_refused_before_any_work(run, photos):
    done = run_command("fit", photos, "--run", run.folder)
    assert done.returncode == 1
    assert "RunError: this folder already exists and is not empty" in done.stderr
    assert "of memory" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["fit", "no-such-folder"], 1, "no such folder"),
        (["fit"], 2, "no photos were given"),
        (["fit", ".", "--recipe", "good", "--epochs", "0"], 1, "epochs is 0"),
        (["fit", ".", "--split-fractions", "0.5,0.5"], 1, "split_fractions"),
        (["fit", ".", "--split-fractions", "a,b,c"], 2, "not a list of numbers"),
        (["fit", ".", "--epochs", "many"], 2, "many"),
        (["fit", ".", "--no-such-flag", "1"], 2, "no-such-flag"),
        (["predict", "no-such-run", "x.jpg"], 1, "no such model file or run folder"),
        (["predict", "x.pt", "x.jpg"], 1, "no such model file or run folder"),
        (["predict", ".", "x.jpg"], 1, "not a run"),
        (["fit", "--resume", "no-such-run"], 1, "no such run folder"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_wrong_commands_get_a_message_and_a_status_and_never_a_traceback(arguments, status, words, tmp_path):
    done = run_command(*arguments, cwd=tmp_path)
    assert done.returncode == status
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_runs_and_evaluations_have_a_readable_representation(run):
    assert f"accuracy {run.evaluation.accuracy:.3f}" in repr(run)
    assert "<table" in run._repr_html_()
    assert "macro avg" in repr(run.evaluation)


def test_users_who_can_read_the_run_folder_can_read_its_weights(run):
    assert run.weights.stat().st_mode & 0o666 == run.folder.stat().st_mode & 0o666


def test_figures_are_images_and_thumbnails_are_those_of_the_held_out_photos(run):
    from PIL import Image

    figures = {path.name for path in (run.folder / "figures").iterdir()}
    assert figures == {"classes_bar.png", "classes_pie.png", "samples.png", "curves.png", "confusion.png"}
    held_out = run.dataset.filter(pl.col("split").is_in(["validation", "test"]))
    assert {path.stem for path in (run.folder / "thumbnails").iterdir()} == set(held_out["sha256"])
    row = held_out.row(0, named=True)
    with Image.open(run.folder / "thumbnails" / f"{row['sha256']}.jpg") as small:
        assert small.width / small.height == pytest.approx(row["width"] / row["height"], rel=0.05)


def test_a_run_without_validation_photos_still_scores_its_test_photos(photos, tmp_path):
    trained = ikebana.fit(photos, "baseline", run=tmp_path / "run", **SMALL_OPTIONS, split_fractions=(0.7, 0.0, 0.3))
    assert trained.history[0, "val_loss"] is None
    assert trained.evaluation.n > 0


def test_a_relative_source_is_found_from_another_working_directory(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos.parent)
    trained = ikebana.fit(photos.name, "baseline", run=tmp_path / "run", **SMALL_OPTIONS)
    assert os.path.isabs(trained.source["photos"])


def test_fit_stops_before_training_if_most_test_photos_are_of_untrained_classes(photos, tmp_path, stages):
    classes = sorted(path for path in photos.iterdir() if path.is_dir())[:2]
    for path in classes:
        shutil.copytree(path, tmp_path / "photos" / "train" / path.name)
        shutil.copytree(path, tmp_path / "photos" / "test" / f"new {path.name}")
    with pytest.raises(PhotosError, match="test photos are of classes without training photos"):
        ikebana.fit(tmp_path / "photos", "baseline", run=tmp_path / "run", **SMALL_OPTIONS)
    assert not (tmp_path / "run").exists()
    assert not [stage for stage in stages if "train" in stage]
