"""Runs on the command line, and paths of their photos as the report has them."""

import json

import pytest
from PIL import Image
from support.runs import write_run
from support.runs_with_photos import make_run

import ikebana
from ikebana.commands.run_paths import resolve_run_paths
from ikebana.errors import PhotosError, RunError
from ikebana.runs.run import Run


@pytest.fixture
def run(tmp_path):
    recorded = make_run(tmp_path / "run", ("daisy", "rose"))
    for path in recorded.dataset["path"]:
        file = tmp_path / "photos" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 24), "red").save(file)
    source = recorded.folder / "source.json"
    values = json.loads(source.read_text("utf-8")) | {"photos": str(tmp_path / "photos")}
    source.write_text(json.dumps(values), "utf-8")
    return Run(recorded.folder)


def test_a_path_of_the_run_is_found_in_its_photos(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_run_paths(run, ["rose/3.jpg"]) == [str(tmp_path / "photos" / "rose" / "3.jpg")]


def test_a_path_that_exists_and_a_pattern_stay_as_they_are(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rose").mkdir()
    (tmp_path / "rose" / "3.jpg").write_bytes(b"another photo")
    assert resolve_run_paths(run, ["rose/3.jpg", "new/*.jpg"]) == ["rose/3.jpg", "new/*.jpg"]


def test_another_path_is_an_error_that_names_a_photo_of_the_run(run):
    with pytest.raises(PhotosError, match="the run has no such photo") as error:
        resolve_run_paths(run, ["photos/tulip/5.jpg"])
    assert "such as daisy/5.jpg" in str(error.value)


def test_photos_that_have_moved_are_an_error_with_advice(run, tmp_path):
    (tmp_path / "photos").rename(tmp_path / "moved")
    with pytest.raises(PhotosError, match="not found") as error:
        resolve_run_paths(run, ["rose/3.jpg"])
    assert "where it is now" in str(error.value)


@pytest.mark.parametrize("command", ["predict", "export", "explain"])
def test_a_run_that_was_interrupted_is_refused_with_how_to_resume_it(command, tmp_path):
    unfinished = write_run(tmp_path / "run", is_finished=False)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (24, 24), "red").save(photo)
    calls = {
        "predict": lambda: ikebana.predict(unfinished, photo),
        "export": lambda: ikebana.export(unfinished, tmp_path / "flowers.onnx"),
        "explain": lambda: ikebana.explain(unfinished, photo, out=tmp_path / "page.html"),
    }
    with pytest.raises(RunError, match="this run has not finished") as refusal:
        calls[command]()
    assert refusal.value.advice == f"ikebana fit --resume {unfinished.folder}"
