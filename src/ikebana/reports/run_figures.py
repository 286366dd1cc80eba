"""Figures and thumbnails of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from ikebana.data.dataset import Dataset
from ikebana.data.pixel_cache import make_chunks
from ikebana.evaluation.metrics import Evaluation
from ikebana.recipe import Resize
from ikebana.reports import figures
from ikebana.runs.run import Run
from ikebana.system import progress
from ikebana.system.files import atomic_directory, ensure_directory
from ikebana.system.threads import map_in_threads

# Photos in the sample grid.
MAX_SAMPLES = 24
MAX_SAMPLES_PER_CLASS = 4
# White like the sheet, and low, because a row is as high as its highest photo.
BLANK_PHOTO = np.full((1, 16, 3), 255, np.uint8)
# A confusion matrix of more classes would be an image of hundreds of megapixels.
MAX_CONFUSION_CLASSES = 300


def draw_all(
    run: Run, dataset: Dataset, pixels: np.ndarray, examples: Sequence[np.ndarray], evaluation: Evaluation
) -> None:
    """Draw all figures, and the thumbnails of validation and test photos."""
    folder = ensure_directory(run.folder / "figures")
    with progress.stage("draw figures", 4, "steps") as bar:
        draw_dataset(folder, dataset, pixels, run.recipe.resize)
        bar.advance(1)
        draw_training(folder, run.history.to_dicts(), len(run.recipe.networks), examples)
        bar.advance(1)
        if len(evaluation.classes) <= MAX_CONFUSION_CLASSES:
            figures.draw_confusion_matrix(np.array(evaluation.confusion), evaluation.classes, folder / "confusion.png")
        else:
            limit = MAX_CONFUSION_CLASSES
            progress.message(
                f"no figure of the confusion matrix, which has more than {limit} classes; see evaluation.json"
            )
        bar.advance(1)
        write_thumbnails(run.folder / "thumbnails", dataset, pixels, run.recipe.resize)
        bar.advance(1)


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


def write_thumbnails(folder: Path, dataset: Dataset, pixels: np.ndarray, resize: Resize) -> None:
    """Write small validation and test photos in their own shape, named by the file's sha256."""
    # The folder appears atomically, so an earlier attempt was complete.
    if folder.exists():
        return
    held_out = dataset.photos.with_row_index("row").filter(pl.col("split").is_in(("validation", "test")))
    rows = list(held_out.select("row", "sha256", "width", "height").iter_rows())

    def save(chunk: range, partial_folder: Path) -> None:
        for row, sha256, width, height in rows[chunk.start : chunk.stop]:
            thumbnail = Image.fromarray(restore_aspect_ratio(pixels[row], width, height, resize))
            thumbnail.save(partial_folder / f"{sha256}.jpg", "JPEG", quality=85)

    with atomic_directory(folder, create_parent=False) as partial_folder:
        for _ in map_in_threads(lambda chunk: save(chunk, partial_folder), make_chunks(len(rows))):
            pass


def restore_aspect_ratio(square: np.ndarray, width: int, height: int, resize: Resize) -> np.ndarray:
    """Restore the aspect ratio of a squashed photo, keeping its longer side.

    A crop stays square.
    """
    if resize == "crop":
        return square
    longer = max(width, height)
    side = square.shape[0]
    size = max(1, round(side * width / longer)), max(1, round(side * height / longer))
    return np.asarray(Image.fromarray(square).resize(size, Image.Resampling.BILINEAR))
