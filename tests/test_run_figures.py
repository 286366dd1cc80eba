"""The photos of samples.png, and their positions."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from ikebana.data.dataset import STATUS_USED, Dataset
from ikebana.reports import figures, run_figures


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
def test_each_class_has_its_own_row_of_samples(train):
    dataset, pixels = make_classes(**train)
    photos, captions = run_figures.pick_samples(dataset, pixels, "squash", 4)
    assert len(photos) == len(captions) == 4 * sum(count > 0 for count in train.values())
    rows = [(captions[start : start + 4], photos[start : start + 4]) for start in range(0, len(photos), 4)]
    for (names, shown), (name, count) in zip(rows, ((n, c) for n, c in train.items() if c), strict=True):
        shown_photos = min(count, 4)
        assert names == [name] * shown_photos + [""] * (4 - shown_photos)
        grey = dataset.classes.index(name) * 40
        assert [int(photo.max()) for photo in shown] == [grey] * shown_photos + [255] * (4 - shown_photos)


def test_with_many_classes_the_samples_show_one_photo_of_each():
    dataset, pixels = make_classes(**{f"class {number}": 1 + number % 2 for number in range(30)})
    assert run_figures.count_samples_per_class(dataset) == 1
    assert run_figures.pick_samples(dataset, pixels, "squash", 1)[1] == [f"class {number}" for number in range(24)]


def test_an_empty_cell_has_the_colour_of_the_background(tmp_path):
    picture = np.full((20, 30, 3), 90, np.uint8)
    figures.draw_photo_grid(
        [picture, run_figures.BLANK_PHOTO, picture, picture], ["a", "", "b", "b"], tmp_path / "it.png", columns=2
    )
    with Image.open(tmp_path / "it.png") as drawn:
        grey = (np.asarray(drawn.convert("L")) == 90).sum(0)  # of each column of pixels
    left, right = grey[: len(grey) // 2].max(), grey[len(grey) // 2 :].max()
    assert left == 2 * right > 0
