"""Figures of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ikebana.data.dataset import Dataset
from ikebana.evaluation.metrics import Evaluation
from ikebana.recipe import Resize
from ikebana.reports import figures
from ikebana.reports.thumbnails import restore_aspect_ratio
from ikebana.runs.run import Run
from ikebana.system import progress

# Photos in the sample grid.
MAX_SAMPLES = 24
MAX_SAMPLES_PER_CLASS = 4
# White like the sheet, and low, because a row is as high as its highest photo.
BLANK_PHOTO = np.full((1, 16, 3), 255, np.uint8)
# A confusion matrix of more classes would be an image of hundreds of megapixels.
MAX_CONFUSION_CLASSES = 300


def draw_all(folder: Path, run: Run, dataset: Dataset, pixels: np.ndarray, examples: Sequence[np.ndarray]) -> None:
    """Draw the figures of the photos and of the training."""
    draw_dataset(folder, dataset, pixels, run.recipe.resize)
    draw_training(folder, run.history.to_dicts(), len(run.recipe.networks), examples)


def draw_confusion(folder: Path, evaluation: Evaluation) -> None:
    """Draw the confusion matrix, unless it has too many classes."""
    if len(evaluation.classes) > MAX_CONFUSION_CLASSES:
        limit = MAX_CONFUSION_CLASSES
        progress.message(f"no figure of the confusion matrix, which has more than {limit} classes; see evaluation.json")
        return
    figures.draw_confusion_matrix(np.array(evaluation.confusion), evaluation.classes, folder / "confusion.png")


def draw_dataset(folder: Path, dataset: Dataset, pixels: np.ndarray, resize: Resize) -> None:
    """Draw the class counts, as bars and a pie, and a grid of sample photos."""
    counts = dataset.count_photos()
    figures.draw_class_bars(counts, folder / "classes_bar.png")
    figures.draw_class_pie(counts, folder / "classes_pie.png")
    columns = count_samples_per_class(dataset)
    photos, captions = pick_samples(dataset, pixels, resize, columns)
    figures.draw_photo_grid(
        photos,
        captions,
        folder / "samples.png",
        title="Sample photos of each class",
        columns=columns if columns > 1 else 6,
    )


def count_samples_per_class(dataset: Dataset) -> int:
    """Return the number of sample photos per class, lower if there are many classes."""
    return max(1, min(MAX_SAMPLES_PER_CLASS, MAX_SAMPLES // len(dataset.classes)))


def pick_samples(
    dataset: Dataset, pixels: np.ndarray, resize: Resize, per_class: int
) -> tuple[list[np.ndarray], list[str]]:
    """Pick evenly spaced training photos per class, always the same ones.

    Blank photos fill up small classes, so that each class has a row of its own.

    Returns:
        The photos and their captions.
    """
    photos: list[np.ndarray] = []
    captions: list[str] = []
    training = dataset.photos.with_row_index("row").filter(pl.col("split") == "train")
    for name in dataset.classes[:MAX_SAMPLES]:
        of_class = training.filter(pl.col("label") == name)
        if of_class.is_empty():
            continue
        places = np.unique(np.linspace(0, len(of_class) - 1, per_class).astype(int))
        rows = list(of_class[places].select("row", "width", "height").iter_rows())
        empty = per_class - len(rows)
        shown = [restore_aspect_ratio(pixels[row], width, height, resize) for row, width, height in rows]
        photos += [*shown, *[BLANK_PHOTO] * empty]
        captions += [name] * len(shown) + [""] * empty
    return photos, captions


def draw_training(
    folder: Path, epochs: Sequence[dict[str, Any]], network_count: int, examples: Sequence[np.ndarray]
) -> None:
    """Draw loss and accuracy curves per network, and augmented examples if there are any."""
    per_network = len(epochs) // network_count
    for number in range(network_count if per_network > 1 else 0):
        name = "curves.png" if number == 0 else f"curves_{number + 1}.png"
        figures.draw_curves(epochs[number * per_network : (number + 1) * per_network], folder / name)
    if examples:
        names = ["original", *("augmented" for _ in examples[1:])]
        figures.draw_photo_grid(
            examples, names, folder / "augmented.png", title="Effect of augmentation", columns=len(names)
        )
