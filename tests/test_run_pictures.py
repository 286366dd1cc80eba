"""A finished run is complete even if its pictures cannot be drawn."""

import json
import logging
import shutil
import subprocess
import sys

import pytest

import ikebana
from ikebana.commands import fit as fit_command
from ikebana.learning.training import checkpoint
from ikebana.reports import run_figures, run_pictures, thumbnails

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_cache")]

SMALL_OPTIONS = {"image_size": 48, "batch_size": 16, "epochs": 1, "precision": "float32"}
FLAGS = [word for name, value in SMALL_OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
# `ikebana` where matplotlib is not installed.
WITHOUT_MATPLOTLIB = "import sys; sys.modules['matplotlib'] = None; from ikebana.__main__ import main; main()"


@pytest.fixture(scope="module")
def photos(drawn):
    return drawn(8)


@pytest.fixture(scope="module")
def complete_run(photos, fit_in_cache):
    """A run with all of its pictures."""
    return fit_in_cache(photos, "baseline", **SMALL_OPTIONS)


def read_pictures(folder):
    return {
        file.relative_to(folder): file.read_bytes()
        for name in ("figures", "thumbnails")
        for file in (folder / name).iterdir()
    }


def assert_is_complete_but_for_pictures(folder, complete_run):
    run = ikebana.open_run(folder)
    assert run.evaluation.accuracy == complete_run.evaluation.accuracy
    assert run.weights.read_bytes() == complete_run.weights.read_bytes()
    assert not list(folder.glob("checkpoint*"))
    assert not [entry for entry in folder.iterdir() if "partial" in entry.name]
    assert ikebana.predict(run, [complete_run.source["photos"]])


def test_without_matplotlib_a_run_is_complete_and_reports_how_to_get_figures(photos, complete_run, tmp_path):
    command = [
        sys.executable,
        "-c",
        WITHOUT_MATPLOTLIB,
        "fit",
        str(photos),
        "--recipe",
        "baseline",
        "--run",
        str(tmp_path / "run"),
    ]
    done = subprocess.run([*command, *FLAGS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run'}\n"
    assert "figures: ModuleNotFoundError" in done.stderr
    assert f"ikebana fit --resume {tmp_path / 'run'}" in done.stderr
    assert "accuracy" in done.stderr
    assert "figures: /" not in done.stderr
    assert_is_complete_but_for_pictures(tmp_path / "run", complete_run)
    assert (tmp_path / "run" / "thumbnails").is_dir()
    ikebana.resume(tmp_path / "run")
    assert read_pictures(tmp_path / "run") == read_pictures(complete_run.folder)


def test_a_disk_that_is_full_when_pictures_are_drawn_leaves_a_finished_run(
    small_disk, photos, complete_run, monkeypatch, caplog
):
    place, remount = small_disk
    real = fit_command._draw_pictures

    def draw_on_full_disk(*arguments):
        assert remount(f"size={shutil.disk_usage(place).used}")
        real(*arguments)

    monkeypatch.setattr(fit_command, "_draw_pictures", draw_on_full_disk)
    with caplog.at_level(logging.WARNING, "ikebana"):
        ikebana.fit(photos, "baseline", run=place / "run", **SMALL_OPTIONS)
    assert "figures: the disk is full" in caplog.text
    assert "thumbnails: the disk is full" in caplog.text
    assert_is_complete_but_for_pictures(place / "run", complete_run)
    assert remount("size=1g")
    monkeypatch.undo()
    ikebana.resume(place / "run")
    assert read_pictures(place / "run") == read_pictures(complete_run.folder)


def test_a_file_in_place_of_a_folder_only_prevents_its_pictures(photos, complete_run, tmp_path, monkeypatch, caplog):
    real = checkpoint.save_weights

    def save_and_block(*arguments):
        real(*arguments)
        (tmp_path / "run" / "figures").write_text("mine")

    monkeypatch.setattr(checkpoint, "save_weights", save_and_block)
    with caplog.at_level(logging.WARNING, "ikebana"):
        ikebana.fit(photos, "baseline", run=tmp_path / "run", **SMALL_OPTIONS)
    assert "figures: this cannot be written" in caplog.text
    assert_is_complete_but_for_pictures(tmp_path / "run", complete_run)
    assert (tmp_path / "run" / "figures").read_text() == "mine"
    (tmp_path / "run" / "figures").unlink()
    ikebana.resume(tmp_path / "run")
    assert read_pictures(tmp_path / "run") == read_pictures(complete_run.folder)


@pytest.mark.parametrize(("module", "name"), [(run_figures, "draw_confusion"), (run_pictures, "write_thumbnails")])
def test_an_error_in_a_picture_is_a_warning_with_its_reason(
    module, name, photos, complete_run, tmp_path, monkeypatch, caplog
):
    def fail(*_):
        raise ValueError("no ink")

    monkeypatch.setattr(module, name, fail)
    with caplog.at_level(logging.WARNING, "ikebana"):
        ikebana.fit(photos, "baseline", run=tmp_path / "run", **SMALL_OPTIONS)
    assert "ValueError: no ink" in caplog.text
    assert_is_complete_but_for_pictures(tmp_path / "run", complete_run)


def test_a_run_interrupted_while_drawing_draws_when_it_is_resumed(photos, complete_run, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_figures, "draw_confusion", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ikebana.fit(photos, "baseline", run=tmp_path / "run", **SMALL_OPTIONS)
    assert_is_complete_but_for_pictures(tmp_path / "run", complete_run)
    monkeypatch.undo()
    ikebana.resume(tmp_path / "run")
    assert read_pictures(tmp_path / "run") == read_pictures(complete_run.folder)


def test_a_finished_run_without_photos_or_pictures_is_still_finished(complete_run, tmp_path, caplog):
    shutil.copytree(complete_run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("thumbnails"))
    source = json.loads((tmp_path / "run" / "source.json").read_text("utf-8"))
    (tmp_path / "run" / "source.json").write_text(json.dumps(source | {"photos": str(tmp_path / "gone")}), "utf-8")
    with caplog.at_level(logging.WARNING, "ikebana"):
        assert ikebana.resume(tmp_path / "run").is_finished
    assert "--photos" in caplog.text


def test_the_evaluation_includes_the_seconds_of_drawing(complete_run):
    assert "draw" in complete_run.evaluation.seconds
    assert "draw" in ikebana.open_run(complete_run.folder).evaluation.seconds


def test_a_cropped_photo_stays_square():
    import numpy as np

    square = np.zeros((8, 8, 3), np.uint8)
    assert thumbnails.restore_aspect_ratio(square, 40, 20, "crop").shape == (8, 8, 3)
    assert thumbnails.restore_aspect_ratio(square, 40, 20, "squash").shape == (4, 8, 3)
