"""Nearest training photos: the right ones, from the run and from the file alike, and only if the user asked for it."""

import io
import json

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageOps

import ikebana
from ikebana.errors import ModelError, PhotosError, RunError
from ikebana.evaluation.familiarity import Projection
from ikebana.inference import neighbours
from ikebana.inference.neighbours import NeighbourIndex

CLASSES = ("rose", "tulip")


def make_index(photos=30, features=12, axes=5) -> NeighbourIndex:
    rng = np.random.default_rng(0)
    mean, scale = rng.normal(size=features), rng.uniform(1, 2, features)
    projection = Projection(
        mean.astype(np.float32),
        scale.astype(np.float32),
        rng.normal(size=(features, axes)).astype(np.float16),
        rng.normal(size=axes).astype(np.float32),
    )
    references = projection.project(rng.normal(size=(photos, features)).astype(np.float32)).astype(np.float16)
    paths = tuple(f"{number}.jpg" for number in range(photos))
    labels = tuple(CLASSES[number % 2] for number in range(photos))
    return NeighbourIndex(paths, labels, projection, references, tuple(f"jpeg {path}".encode() for path in paths))


def test_the_nearest_photos_are_those_of_the_largest_cosine():
    index = make_index()
    features = np.random.default_rng(1).normal(size=12).astype(np.float32)
    projection = index.projection
    standardised = (features - projection.mean) / projection.scale
    standardised /= np.linalg.norm(standardised)
    projected = standardised @ projection.axes.astype(np.float64) - projection.centre
    cosines = index.references.astype(np.float64) @ projected / np.linalg.norm(projected)
    nearest = index.find(features, 4)
    assert [neighbour.path for neighbour in nearest] == [index.paths[row] for row in np.argsort(-cosines)[:4]]
    assert [neighbour.similarity for neighbour in nearest] == pytest.approx(sorted(cosines)[::-1][:4], abs=1e-3)
    assert all(neighbour.thumbnail == f"jpeg {neighbour.path}".encode() for neighbour in nearest)
    assert len(index.find(features, 99)) == 30


def test_an_index_survives_the_metadata_of_a_file():
    index = make_index()
    features = np.random.default_rng(2).normal(size=12).astype(np.float32)
    values = json.loads(json.dumps(neighbours.to_metadata(index, CLASSES)))
    restored = neighbours.from_metadata(values, CLASSES)
    assert restored is not None
    assert restored.find(features) == index.find(features)
    assert neighbours.from_metadata(None, CLASSES) is None


@pytest.mark.parametrize(
    "change",
    [
        {"paths": ["a.jpg"]},
        {"labels": [7] * 30},
        {"labels": [-1] * 30},
        {"thumbnails": ["no base64!"] * 30},
        {"shape": [30, 12, 6]},
        {"shape": [-1, 12, 5]},
        {"shape": None},
        {"matrices": {}},
        {"matrices": {"references": "AAAA"}},
    ],
)
def test_damaged_metadata_are_refused(change):
    values = neighbours.to_metadata(make_index(), CLASSES)
    matrices = (
        {**values["matrices"], **change.get("matrices", {})} if change.get("matrices") else change.get("matrices")
    )
    damaged = values | change | ({"matrices": matrices} if "matrices" in change else {})
    with pytest.raises(ValueError, match="training photos"):
        neighbours.from_metadata(damaged, CLASSES)


@pytest.fixture(scope="module")
def run(drawn, fit_in_cache):
    """A run on so many paper flowers that familiarity can be calibrated."""
    return fit_in_cache(drawn(60), "quick", image_size=96)


@pytest.fixture(scope="module")
def file(run):
    ikebana.export(run, run.folder.parent / "paper.onnx", with_neighbours=True)
    return run.folder.parent / "paper.onnx"


@pytest.fixture(scope="module")
def train_photos(run, drawn):
    table = run.dataset.filter((pl.col("split") == "train") & (pl.col("status") == "used"))
    return {path: drawn(60) / path for path in table["path"]}


@pytest.mark.slow
def test_a_training_photo_is_its_own_nearest_one(run, train_photos):
    paths = list(train_photos)[::40]
    for path, explanation in zip(paths, ikebana.explain(run, [train_photos[path] for path in paths]), strict=True):
        nearest = explanation.neighbours[0]
        assert nearest.path == path
        assert nearest.label == path.split("/")[0]
        # Features for training are computed in another precision.
        assert nearest.similarity > 0.99


@pytest.mark.slow
def test_the_run_and_its_file_find_the_same_photos(run, file, train_photos):
    photos = [
        run.source["photos"] + "/" + path for path in run.predictions.filter(split="test")["path"].gather_every(20)
    ]
    classifier = ikebana.load(file)
    for of_run, of_file in zip(ikebana.explain(run, photos), ikebana.explain(file, photos), strict=True):
        assert {neighbour.path for neighbour in of_run.neighbours} == {
            neighbour.path for neighbour in of_file.neighbours
        }
        similarities = [
            [neighbour.similarity for neighbour in explanation.neighbours] for explanation in (of_run, of_file)
        ]
        assert similarities[0] == pytest.approx(similarities[1], abs=1e-3)
    nearest = classifier.find_neighbours(photos[0], count=2)
    assert len(nearest) == 2
    assert nearest[0].thumbnail is not None
    thumbnail = Image.open(io.BytesIO(nearest[0].thumbnail))
    upright = ImageOps.exif_transpose(Image.open(train_photos[nearest[0].path])).convert("RGB")
    original = ImageOps.fit(upright, thumbnail.size)
    assert np.abs(np.asarray(thumbnail, float) - np.asarray(original, float)).mean() < 6


@pytest.mark.slow
def test_a_file_contains_photos_only_if_the_user_asked_for_it(run, file, tmp_path, train_photos):
    plain = ikebana.export(run, tmp_path / "plain.onnx")
    assert b"thumbnails" not in (tmp_path / "plain.onnx").read_bytes()
    photo = next(iter(train_photos.values()))
    with pytest.raises(ModelError, match="no training photos"):
        plain.find_neighbours(photo)
    with pytest.raises(ModelError, match="with-neighbours"):
        ikebana.explain(tmp_path / "plain.onnx", photo, draws_heat_maps=False)
    assert plain.predict(photo) == ikebana.load(file).predict(photo)
    assert "neighbours" not in ikebana.load(file).metadata


@pytest.mark.slow
def test_a_file_that_is_no_photo_is_explained_by_its_reason(run, tmp_path, train_photos):
    (tmp_path / "notes.txt").write_text("no photo")
    explanation, _ = ikebana.explain(run, [tmp_path / "notes.txt", next(iter(train_photos.values()))])
    assert explanation.neighbours == ()
    assert "not a photo" in repr(explanation)
    with pytest.raises(PhotosError):
        ikebana.explain(run, tmp_path / "missing")


@pytest.mark.slow
def test_a_run_without_familiarity_knows_no_neighbours(paper_run, good_photos, tmp_path):
    with pytest.raises(ModelError, match="training photos"):
        ikebana.explain(paper_run, good_photos[0], draws_heat_maps=False)
    assert ikebana.explain(paper_run, good_photos[0])[0].neighbours == ()
    with pytest.raises(RunError, match="nearest training photos"):
        ikebana.export(paper_run, tmp_path / "paper.onnx", with_neighbours=True)
