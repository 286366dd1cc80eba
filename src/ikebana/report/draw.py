"""The pictures that a run leaves behind: figures and thumbnails."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from ikebana import progress
from ikebana.photos.dataset import Dataset
from ikebana.photos.kept import chunks, in_threads
from ikebana.places import filled, made
from ikebana.recipe import Fit
from ikebana.report import figures
from ikebana.run import Run
from ikebana.trust.evaluation import Evaluation

SAMPLES = 24  # photos in the sample grid, at most
SAMPLES_A_CLASS = 4
NO_PHOTO = np.full((1, 16, 3), 255, np.uint8)  # white, as the sheet is; and low: a row is as high as its highest photo
DRAWN_CLASSES = 300  # a confusion matrix of more would be a picture of hundreds of megapixels


def everything(
    run: Run, dataset: Dataset, pixels: np.ndarray, examples: Sequence[np.ndarray], evaluation: Evaluation
) -> None:
    """All figures, and the thumbnails of the photos that the scores speak of."""
    folder = made(run.folder / "figures")
    with progress.stage("draw", 4, "kinds of pictures") as bar:
        of_dataset(folder, dataset, pixels, run.recipe.fit)
        bar.advance(1)
        of_training(folder, run.epochs, len(run.recipe.networks), examples)
        bar.advance(1)
        if len(evaluation.classes) <= DRAWN_CLASSES:
            figures.confusion_matrix(np.array(evaluation.confusion), evaluation.classes, folder / "confusion.png")
        else:
            progress.say(f"more than {DRAWN_CLASSES} classes: the confusion matrix is in evaluation.json, not drawn")
        bar.advance(1)
        thumbnails(run.folder / "thumbnails", dataset, pixels, run.recipe.fit)
        bar.advance(1)


def of_dataset(folder: Path, dataset: Dataset, pixels: np.ndarray, fit: Fit) -> None:
    """The classes as bars and as a pie, and a grid of sample photos."""
    counts = dataset.counts()
    figures.class_counts_bar(counts, folder / "classes_bar.png")
    figures.class_counts_pie(counts, folder / "classes_pie.png")
    columns = photos_a_class(dataset)
    photos, captions = samples(dataset, pixels, fit, columns)
    figures.photo_grid(
        photos, captions, folder / "samples.png", title="Photos of each class", columns=columns if columns > 1 else 6
    )


def photos_a_class(dataset: Dataset) -> int:
    """How many sample photos each class gets: few where there are many classes."""
    return max(1, min(SAMPLES_A_CLASS, SAMPLES // len(dataset.classes)))


def samples(dataset: Dataset, pixels: np.ndarray, fit: Fit, each: int) -> tuple[list[np.ndarray], list[str]]:
    """A few training photos of each class, spread over the class, the same ones each time, and their captions.

    A class that has fewer than the others leaves places empty, so that each class keeps a row of its own.
    """
    photos: list[np.ndarray] = []
    captions: list[str] = []
    indexed = dataset.photos.with_row_index("row").filter(pl.col("split") == "train")
    for name in dataset.classes[:SAMPLES]:
        found = indexed.filter(pl.col("label") == name)
        if found.is_empty():
            continue
        places = np.unique(np.linspace(0, len(found) - 1, each).astype(int))
        shown = list(found[places].select("row", "width", "height").iter_rows())
        empty = each - len(shown)
        photos += [*(as_it_was(pixels[row], width, height, fit) for row, width, height in shown), *[NO_PHOTO] * empty]
        captions += [name] * len(shown) + [""] * empty
    return photos, captions


def of_training(folder: Path, epochs: Sequence[dict[str, Any]], networks: int, examples: Sequence[np.ndarray]) -> None:
    """Curves of loss and accuracy, a picture for each network; one photo and four changed copies of it, if the recipe
    changes photos."""
    each = len(epochs) // networks
    for number in range(networks if each > 1 else 0):
        name = "curves.png" if number == 0 else f"curves_{number + 1}.png"
        figures.curves(epochs[number * each : (number + 1) * each], folder / name)
    if examples:
        names = ["as it is", *("as trained on" for _ in examples[1:])]
        figures.photo_grid(
            examples, names, folder / "augmented.png", title="What augmentation does", columns=len(names)
        )


def thumbnails(folder: Path, dataset: Dataset, pixels: np.ndarray, fit: Fit) -> None:
    """Validation and test photos in small, in their own shape, named by the sha256 of their file."""
    if folder.exists():  # it appeared whole, before the run was interrupted
        return
    chosen = dataset.photos.with_row_index("row").filter(pl.col("split").is_in(("validation", "test")))
    shown = list(chosen.select("row", "sha256", "width", "height").iter_rows())

    def save(pieces: range, beside: Path) -> None:
        for row, sha256, width, height in shown[pieces.start : pieces.stop]:
            small = Image.fromarray(as_it_was(pixels[row], width, height, fit))
            small.save(beside / f"{sha256}.jpg", "JPEG", quality=85)

    with filled(folder, make=False) as beside:
        for _ in in_threads(lambda pieces: save(pieces, beside), chunks(len(shown))):
            pass


def as_it_was(square: np.ndarray, width: int, height: int, fit: Fit) -> np.ndarray:
    """A squashed photo in its own shape again; its longer side stays. What was cut out of a photo is square."""
    if fit == "crop":
        return square
    longer = max(width, height)
    side = square.shape[0]
    size = max(1, round(side * width / longer)), max(1, round(side * height / longer))
    return np.asarray(Image.fromarray(square).resize(size, Image.Resampling.BILINEAR))
