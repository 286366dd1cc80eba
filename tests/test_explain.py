"""`ikebana explain`: pictures, page and events, for a run and for its file."""

import base64
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import ikebana
from ikebana.errors import ModelError, PhotosError, RecipeError, UsageError
from ikebana.explanation.explanation import Explanation
from ikebana.explanation.faithfulness import Check
from ikebana.explanation.heat_map import HeatMap
from ikebana.inference.neighbours import Neighbour
from ikebana.inference.prediction import Prediction, unusable_prediction
from ikebana.reports import explanation_page

HOSTILE = '"><img src=x onerror=alert(1)>.jpg'
SCRIPT = "<script>alert(1)</script>"


def make_jpeg():
    file = io.BytesIO()
    Image.new("RGB", (96, 96), "red").save(file, "JPEG")
    return file.getvalue()


def make_explanation(path="a.jpg", name="rose", *, gain=1.0, status="ok", familiarity: float | None = 0.4):
    """An explanation whose heat map passes the check with a gain above 0.5."""
    values = np.zeros((8, 8), np.float32)
    values[1, 6] = 1
    answer = Prediction(
        path, name if status == "ok" else None, 0.8, {name: 0.8, "tulip": 0.2}, status, (name, "tulip"), familiarity
    )
    neighbours = (Neighbour(path, name, 0.9, make_jpeg()), Neighbour("t.jpg", "tulip", 0.4))
    photo = np.full((64, 64, 3), 120, np.uint8)
    return Explanation(answer, neighbours, photo, HeatMap(values, 0, "grad_cam", Check(gain, 0, (0.5,), (0.5,))))


def test_names_of_files_and_classes_are_escaped():
    explanation = make_explanation(HOSTILE, SCRIPT)
    unusable = Explanation(unusable_prediction(HOSTILE, SCRIPT), ())
    for text in (explanation_page.render_page([explanation, unusable], SCRIPT), explanation._repr_html_()):
        assert "<script" not in text
        assert "<img src=x" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_the_page_loads_nothing():
    text = explanation_page.render_page([make_explanation()], "runs/quick")
    assert not re.findall(r"(?:src|href)=[\"'](?!data:image|#)", text)
    assert not re.findall(r"https?://|url\(", text)
    assert text.count("<img ") == 3


def test_a_heat_map_that_failed_the_check_is_not_shown():
    explanation = make_explanation(gain=0.1)
    assert explanation.overlay is None
    text = explanation_page.render_page([explanation], "run")
    assert "No heat map: hiding its warm parts lowers the probability of rose no more than hiding others." in text
    assert "0 of 1" in text
    assert "no heat map" in repr(explanation)
    assert "no heat map" not in repr(make_explanation())


def test_a_photo_that_resembles_the_training_photos_least_is_described_by_the_others():
    text = make_explanation(familiarity=0.004).describe_familiarity()
    assert text == "More than 99% of other photos of these classes resemble the training photos more."


@pytest.mark.parametrize(
    ("status", "heading", "note"),
    [
        ("ok", "rose (80%)", "It might also be tulip (20%)."),
        ("not sure", "Not sure", "It might be rose (80%) or tulip (20%)."),
        ("unknown", "Unlike the training photos", "The closest class is rose."),
    ],
)
def test_the_page_says_the_answer_in_words(status, heading, note):
    text = explanation_page.render_page([make_explanation(status=status)], "run")
    assert heading in text
    assert note in text
    assert "It resembles the training photos more than 40% of other photos of these classes do." in text
    assert "Labels of the 2 nearest training photos: 1 rose, 1 tulip." in text
    assert "Heat map for rose, highest at the top right" in text


def test_heat_maps_are_written_under_safe_names(tmp_path):
    explanations = [make_explanation("a/../../" + HOSTILE), make_explanation("ü.jpg"), make_explanation(gain=0.1)]
    explanation_page.write_explanations(tmp_path / "out", explanations, "run")
    names = sorted(file.name for file in (tmp_path / "out/heat-maps").iterdir())
    assert names == ["001-img-src-x-onerror-alert-1.png", "002.png"]
    with Image.open(tmp_path / "out/heat-maps/002.png") as picture:
        assert picture.size == (64, 64)


def test_a_view_shows_photo_heat_map_and_neighbours():
    text = make_explanation()._repr_html_()
    assert text.count("data:image/jpeg;base64,") == 3
    assert "rose (80.0%)" in text


@pytest.fixture(scope="module")
def run(drawn, fit_in_cache):
    """A run with nearest training photos."""
    return fit_in_cache(drawn(60), "quick", image_size=96)


@pytest.fixture(scope="module")
def photos(run):
    root = run.source["photos"]
    return [f"{root}/{path}" for path in run.predictions.filter(split="test")["path"].gather_every(30)[:4]]


@pytest.mark.slow
def test_a_run_is_explained_with_page_heat_maps_and_thumbnails(run, photos, tmp_path):
    explanations = ikebana.explain(run, photos, out=tmp_path / "out", count=3)
    page = (tmp_path / "out/index.html").read_text("utf-8")
    drawn = [explanation for explanation in explanations if explanation.overlay is not None]
    assert len(list((tmp_path / "out/heat-maps").iterdir())) == len(drawn)
    for explanation in explanations:
        assert explanation.heat_map is not None
        assert explanation.heat_map.method == "grad_cam"
        assert explanation.photo is not None
        assert explanation.photo.shape == (96, 96, 3)
        assert all(neighbour.thumbnail is not None for neighbour in explanation.neighbours)
    # Per photo: itself, perhaps a heat map, and three training photos.
    assert page.count("data:image/jpeg;base64,") == 4 * len(explanations) + len(drawn)
    thumbnail = explanations[0].neighbours[0].thumbnail
    assert thumbnail is not None
    assert base64.b64encode(thumbnail).decode() in page
    # Earlier explanations are replaced, and nothing else is.
    ikebana.explain(run, photos[:1], out=tmp_path / "out", count=2)
    assert (tmp_path / "out/index.html").read_text("utf-8").count('<section class="photo') == 1
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(ModelError, match="not empty"):
        ikebana.explain(run, photos, out=tmp_path / "out")
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_a_file_is_explained_by_occlusion_also_without_training_photos(run, photos, tmp_path):
    file = tmp_path / "paper.onnx"
    ikebana.export(run, file)
    explanations = ikebana.explain(file, photos[:2])
    for explanation in explanations:
        assert explanation.neighbours == ()
        assert explanation.heat_map is not None
        assert explanation.heat_map.method == "occlusion"
    assert "copies of the nearest training photos" not in explanation_page.render_page(explanations, "file")
    with pytest.raises(ModelError, match="with-neighbours"):
        ikebana.explain(file, photos[0], draws_heat_maps=False)


@pytest.mark.parametrize("count", [-1, 0, 101])
def test_a_number_of_training_photos_out_of_range_is_refused(count, tmp_path):
    with pytest.raises(UsageError, match=f"--count is {count}"):
        ikebana.explain(tmp_path / "run", "photo.jpg", count=count)


@pytest.mark.slow
def test_a_training_photo_is_recognised_as_one(run):
    paths = {split: run.predictions.filter(split=split)["path"][0] for split in ("test", "validation")}
    trained = run.dataset.filter(split="train", status="used")["path"][0]
    explanations = ikebana.explain(run, [trained, *paths.values()], draws_heat_maps=False)
    texts = [explanation.describe_neighbours() for explanation in explanations]
    assert ["It is a training photo or a copy of one" in text for text in texts] == [True, False, False]


@pytest.mark.slow
def test_photos_that_moved_are_named_but_not_shown(run, photos, tmp_path, monkeypatch):
    from ikebana.exporting import run_photos

    def find_photos(_):
        raise PhotosError("no such folder")

    monkeypatch.setattr(run_photos, "find_photos", find_photos)
    (explanation,) = ikebana.explain(run, photos[0])
    assert explanation.neighbours
    assert explanation.neighbours[0].thumbnail is None
    assert "no picture" in explanation_page.render_page([explanation], "run")


@pytest.mark.slow
def test_events_describe_each_photo(run, photos, tmp_path):
    (tmp_path / "notes.jpg").write_text("no photo")
    command = [sys.executable, "-m", "ikebana", "explain", run.folder, photos[0], tmp_path / "notes.jpg"]
    done = subprocess.run([*command, "--json", "--out", tmp_path / "out"], capture_output=True, text=True, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    usable, unusable = [event for event in events if event["event"] == "explanation"]
    assert usable["heat_map"]["class"] in run.classes
    assert usable["heat_map"]["method"] == "grad_cam"
    assert len(usable["neighbours"]) == 5
    assert unusable["heat_map"] is None
    assert "not a photo" in unusable["status"]
    assert events[-1]["out"] == str(tmp_path / "out")


@pytest.mark.slow
def test_no_usable_photo_is_an_error_as_in_predict(run, tmp_path):
    (tmp_path / "notes.jpg").write_text("no photo")
    command = [sys.executable, "-m", "ikebana", "explain", run.folder, tmp_path / "notes.jpg"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "none of 1 paths is usable" in done.stderr


@pytest.mark.slow
def test_a_run_with_a_module_of_the_user_is_explained_with_it(drawn, fit_in_cache):
    from torch import nn

    module = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip
    run = fit_in_cache(drawn(60), model=module, image_size=64, epochs=1, batch_size=32, precision="float32")
    photo = f"{run.source['photos']}/{run.predictions['path'][0]}"
    with pytest.raises(RecipeError, match="your own network"):
        ikebana.explain(run, photo)
    (explanation,) = ikebana.explain(run, photo, network=module)
    assert explanation.heat_map is not None
    assert explanation.heat_map.method == "grad_cam"
    assert explanation.heat_map.values.shape == (13, 13)
