"""Run folders with made-up predictions, written in milliseconds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl

from ikebana.data.dataset import SCHEMA, Dataset
from ikebana.evaluation.calibration import Calibration
from ikebana.evaluation.metrics import evaluate
from ikebana.learning.training.checkpoint import Epoch
from ikebana.recipe import Recipe
from ikebana.recipes import RECIPES
from ikebana.runs.run import Run
from ikebana.runs.run_writer import create_run

CLASSES = ("daisy", "rose", "tulip")


def make_photos(test: int = 30, *, train: int = 12, prefix: str = "") -> pl.DataFrame:
    """Make the table of a dataset: training photos, then test photos, with the classes in turn."""
    count = train + test
    labels = [CLASSES[row % len(CLASSES)] for row in range(count)]
    return pl.DataFrame(
        {
            "path": [f"{label}/{prefix}{row:04}.jpg" for row, label in enumerate(labels)],
            "label": labels,
            "split": ["train"] * train + ["test"] * test,
            "group": [None] * count,
            "duplicate_of": [None] * count,
            "status": ["used"] * count,
            "sha256": [f"{prefix}{row:x}".rjust(64, "0") for row in range(count)],
            "bytes": [1] * count,
            "width": [48] * count,
            "height": [48] * count,
        },
        schema=SCHEMA,
    )


def write_run(
    folder: Path,
    wrong: Sequence[int] = (),
    *,
    photos: pl.DataFrame | None = None,
    classes: Sequence[str] = CLASSES,
    recipe: Recipe | None = None,
    options: Mapping[str, object] | None = None,
    is_finished: bool = True,
) -> Run:
    """Write a run.

    Args:
        wrong: positions among the test photos whose predicted class is wrong.
        options: changes to the recipe.
    """
    table = make_photos() if photos is None else photos
    dataset = Dataset("photos", folder, table, tuple(classes))
    recipe = replace(recipe or RECIPES["quick"], **(options or {}))
    writer = create_run(folder, recipe, dataset, {"ikebana": "test"})
    rows = np.flatnonzero((table["split"] == "test").to_numpy() & (table["status"] == "used").to_numpy())
    labels = np.array([classes.index(label) for label in table["label"][rows]], np.int64)
    predicted = labels.copy()
    predicted[list(wrong)] = (labels[list(wrong)] + 1) % len(classes)
    probabilities = np.full((len(rows), len(classes)), 0.1 / (len(classes) - 1), np.float32)
    probabilities[np.arange(len(rows)), predicted] = 0.9
    writer.write_predictions(dataset, rows, probabilities, None)
    epochs = 1 if recipe.caches_features else 3
    writer.write_epochs(Epoch(row, 1 / row, 0.5, 1.2 / row, 0.5 + 0.1 * row, 1.0) for row in range(1, epochs + 1))
    if is_finished:
        writer.write_json("calibration.json", asdict(Calibration()))
        writer.finish(evaluate(probabilities, labels, classes), {})
    return Run(folder)
