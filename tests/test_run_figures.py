"""Which figures a run has, and which photos are in samples.png."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ikebana.data.dataset import STATUS_USED, Dataset
from ikebana.evaluation.metrics import evaluate
from ikebana.recipes import RECIPES
from ikebana.reports import curves, run_figures


def make_classes(**train: int) -> tuple[Dataset, np.ndarray]:
    """Make training photos of one grey level per class, and one test photo."""
    names = [name for name, count in train.items() for _ in range(count + 1)]
    parts = [part for count in train.values() for part in [*["train"] * count, "test"]]
    photos = pl.DataFrame({"label": names, "split": parts}).with_columns(
        status=pl.lit(STATUS_USED), width=pl.lit(30), height=pl.lit(20)
    )
    greys = np.array([list(train).index(name) * 40 + (part == "test") for name, part in zip(names, parts, strict=True)])
    pixels = np.broadcast_to(greys.astype(np.uint8)[:, None, None, None], (len(names), 32, 32, 3))
    return Dataset("drawn", Path(), photos, tuple(train)), pixels


@pytest.mark.parametrize("train", [{"a": 6, "b": 1, "c": 4}, {"a": 2, "b": 3}, {"a": 0, "b": 1, "c": 9}])
def test_each_class_has_its_own_row_of_training_photos(train):
    dataset, pixels = make_classes(**train)
    samples = run_figures.pick_samples(dataset, pixels, "squash")
    shown = {name: min(count, run_figures.SAMPLES_PER_CLASS) for name, count in train.items() if count}
    assert {name: len(photos) for name, photos in samples.items()} == shown
    for name, photos in samples.items():
        assert {int(photo.max()) for photo in photos} == {dataset.classes.index(name) * 40}


def test_with_many_classes_the_samples_have_a_bounded_number_of_rows():
    dataset, pixels = make_classes(**{f"class {number}": 1 + number % 2 for number in range(30)})
    assert list(run_figures.pick_samples(dataset, pixels, "squash")) == [f"class {number}" for number in range(24)]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "names"), [(8, {"classes_pie.png"}), (9, set())])
def test_a_pie_is_drawn_for_few_classes_only(count, names, tmp_path):
    dataset, pixels = make_classes(**{f"class {number}": 2 for number in range(count)})
    run_figures.draw_dataset(tmp_path, dataset, pixels, "squash")
    assert {file.name for file in tmp_path.iterdir()} == {"classes_bar.png", "samples.png"} | names


@pytest.mark.slow
def test_many_classes_get_a_second_figure_of_the_worst_pairs(tmp_path):
    for count in (12, 13):
        classes = [f"class {number}" for number in range(count)]
        labels = np.arange(count).repeat(3)
        probabilities = np.eye(count)[np.roll(labels, 1)]
        (tmp_path / f"{count}").mkdir()
        run_figures.draw_confusion(tmp_path / f"{count}", evaluate(probabilities, labels, classes))
    assert {file.name for file in (tmp_path / "12").iterdir()} == {"confusion.png"}
    assert {file.name for file in (tmp_path / "13").iterdir()} == {"confusion.png", "confused_pairs.png"}


def test_only_curves_of_recipes_with_label_smoothing_explain_it():
    notes = {name: run_figures.describe_losses(recipe) for name, recipe in RECIPES.items()}
    smoothed = {name for name, recipe in RECIPES.items() if recipe.adamw is not None and recipe.adamw.label_smoothing}
    assert {name for name, note in notes.items() if "label smoothing" in note} == smoothed >= {"good"}
    assert not notes["baseline"]
    assert run_figures.describe_losses(replace(RECIPES["baseline"], refit_on_all=True)) == curves.REFIT_NOTE
