"""Figures of a run, written into its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ikebana.data.dataset import Dataset
from ikebana.data.verified_array import Pixels
from ikebana.evaluation.metrics import Evaluation
from ikebana.evaluation.robustness import Robustness
from ikebana.recipe import Recipe, Resize
from ikebana.reports import curves, figures, run_charts
from ikebana.reports.sheet import write_sheet
from ikebana.reports.thumbnails import restore_aspect_ratio
from ikebana.runs.run import Run
from ikebana.system import progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Rows of the sample photos, and photos in a row.
MAX_SAMPLED_CLASSES, SAMPLES_PER_CLASS = 24, 7
# A confusion matrix of more classes would be an image of hundreds of megapixels.
MAX_CONFUSION_CLASSES = 300
# From so many classes on, confusions are hard to find in the matrix.
MIN_CLASSES_FOR_PAIRS = 13
ROBUSTNESS_FIGURE = "robustness.png"


def draw_all(
    folder: Path,
    run: Run,
    evaluation: Evaluation,
    *,
    dataset: Dataset,
    pixels: Pixels,
    examples: Sequence[np.ndarray],
) -> None:
    """Draw every figure of a run.

    Args:
        examples: a photo and augmented copies of it, if there is augmentation.
    """
    draw_dataset(folder, dataset, pixels, run.recipe.resize)
    validation_count = dataset.used_photos.filter(split="validation").height
    draw_training(folder, run.history.to_dicts(), run.recipe, validation_count)
    if examples:
        rows = {"original": examples[:1], "augmented": examples[1:]}
        write_sheet(figures.make_photo_rows(rows, title="Effect of augmentation"), folder / "augmented.png")
    draw_confusion(folder, evaluation)
    if evaluation.robustness is not None:
        draw_robustness(evaluation.robustness, folder / ROBUSTNESS_FIGURE)


def draw_robustness(robustness: Robustness, file: Path) -> None:
    """Draw the accuracy on changed test photos."""
    write_sheet(run_charts.make_robustness(robustness), file)


def draw_confusion(folder: Path, evaluation: Evaluation) -> None:
    """Draw the confusion matrix, and of many classes the worst pairs."""
    confusion = np.array(evaluation.confusion)
    if len(evaluation.classes) >= MIN_CLASSES_FOR_PAIRS:
        write_sheet(figures.make_worst_pairs(confusion, evaluation.classes), folder / "confused_pairs.png")
    if len(evaluation.classes) > MAX_CONFUSION_CLASSES:
        limit = MAX_CONFUSION_CLASSES
        progress.message(f"no figure of the confusion matrix, which has more than {limit} classes; see evaluation.json")
        return
    write_sheet(figures.make_confusion_matrix(confusion, evaluation.classes), folder / "confusion.png")


def draw_dataset(folder: Path, dataset: Dataset, pixels: Pixels, resize: Resize) -> None:
    """Draw class counts, as bars and a pie, and sample photos."""
    counts = dataset.count_photos()
    write_sheet(figures.make_class_bars(counts), folder / "classes_bar.png")
    if len(counts) <= figures.MAX_PIE_CLASSES:
        write_sheet(figures.make_class_pie(counts), folder / "classes_pie.png")
    sheet = figures.make_photo_rows(pick_samples(dataset, pixels, resize), title="Training photos of each class")
    write_sheet(sheet, folder / "samples.png")


def pick_samples(dataset: Dataset, pixels: Pixels, resize: Resize) -> Mapping[str, list[np.ndarray]]:
    """Pick evenly spaced training photos per class, always the same ones."""
    training = dataset.photos.with_row_index("row").filter(pl.col("split") == "train")
    samples = {}
    for name in dataset.classes[:MAX_SAMPLED_CLASSES]:
        of_class = training.filter(pl.col("label") == name)
        if of_class.is_empty():
            continue
        places = np.unique(np.linspace(0, len(of_class) - 1, SAMPLES_PER_CLASS).astype(int))
        rows = of_class[places].select("row", "width", "height").iter_rows()
        samples[name] = [restore_aspect_ratio(pixels[row], width, height, resize) for row, width, height in rows]
    return samples


def draw_training(folder: Path, epochs: Sequence[dict[str, Any]], recipe: Recipe, validation_count: int) -> None:
    """Draw loss and accuracy curves per network, if it was trained in several epochs."""
    sheets = make_network_curves(epochs, recipe, validation_count) if len(epochs) > len(recipe.networks) else []
    for number, sheet in enumerate(sheets):
        write_sheet(sheet, folder / ("curves.png" if number == 0 else f"curves_{number + 1}.png"))


def make_network_curves(epochs: Sequence[dict[str, Any]], recipe: Recipe, validation_count: int) -> "list[Axes]":
    """Make the curves of each network of a run, with notes for the reader.

    Args:
        epochs: of all networks, one after the other.
        validation_count: number of validation photos.
    """
    per_network, sheets = len(epochs) // len(recipe.networks), []
    mark = {"mark": curves.SCORED_MARK} if recipe.refit_on_all else {}
    for number in range(len(recipe.networks)):
        of_network = epochs[number * per_network : (number + 1) * per_network]
        interval = curves.compute_interval(of_network, validation_count)
        sheets.append(curves.make_curves(of_network, interval, note=describe_losses(recipe), **mark))
    return sheets


def describe_losses(recipe: Recipe) -> str:
    """Return what the reader of the curves has to know; empty if nothing."""
    notes = {
        curves.SMOOTHING_NOTE: recipe.adamw is not None and recipe.adamw.label_smoothing > 0,
        curves.REFIT_NOTE: recipe.refit_on_all,
    }
    return "\n".join(note for note, holds in notes.items() if holds)
