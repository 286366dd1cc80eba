"""Run folders with thumbnails and guessed predictions, without training."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from ikebana.data.dataset import SCHEMA, STATUS_USED, Dataset
from ikebana.evaluation.calibration import Calibration
from ikebana.evaluation.metrics import evaluate, score_confidence
from ikebana.recipe import Recipe, recipe_to_json
from ikebana.runs.run import Run
from ikebana.runs.run_writer import RunWriter

SPLITS = ("train", "validation", "test")


def make_run(
    folder: Path,
    classes: tuple[str, ...],
    *,
    photos_per_class: int = 12,
    accuracy: float = 0.7,
    side: int = 24,
    name: str = "photos",
    recipe: Recipe | None = None,
) -> Run:
    """Make a finished run whose network guesses; about `accuracy` of its predictions are correct.

    Paths are CLASS/NUMBER.jpg, and a third of the photos of each class is in each split.
    """
    recipe = recipe or Recipe(name="baseline", image_size=side)
    rng = np.random.default_rng(0)
    rows = [
        {
            "path": f"{label}/{number}.jpg", "label": label, "split": SPLITS[number % 3], "status": STATUS_USED,
            "sha256": f"{place:03}{number:05}", "bytes": 1000, "width": side, "height": side,
        }
        for place, label in enumerate(classes)
        for number in range(photos_per_class)
    ]  # fmt: skip
    dataset = Dataset(name, folder, pl.DataFrame(rows, schema=SCHEMA), classes)
    writer = RunWriter(Run(folder))
    folder.mkdir(parents=True)
    source = {"photos": f"/data/{name}", "fingerprint": "f", "classes": list(classes), "recipe": recipe_to_json(recipe)}
    writer.write_json("recipe.json", source["recipe"])
    writer.write_json("source.json", source)
    writer.write_table("dataset.parquet", dataset.photos)
    held_out = np.flatnonzero(dataset.photos["split"].to_numpy() != "train")
    labels = np.array([classes.index(label) for label in dataset.photos["label"].to_list()])[held_out]
    probabilities = rng.dirichlet(np.ones(len(classes)), len(held_out)).astype(np.float32)
    for row in np.flatnonzero(rng.random(len(held_out)) < accuracy):
        best, right = probabilities[row].argmax(), labels[row]
        probabilities[row, [best, right]] = probabilities[row, [right, best]]
    writer.write_predictions(dataset, held_out, probabilities, None)
    calibration = Calibration(1.0, 0.6, len(held_out))
    writer.write_json("calibration.json", asdict(calibration))
    is_test = dataset.photos["split"].to_numpy()[held_out] == "test"
    scores = evaluate(probabilities[is_test], labels[is_test], classes)
    scores = score_confidence(
        scores, probabilities[is_test], labels[is_test], calibration=calibration, coverage=recipe.coverage
    )
    writer.write_json(
        "environment.json", {"ikebana": "0", "python": "3", "system": "Linux", "libraries": {"numpy": "2"}}
    )
    writer.write_json("audit.json", {"findings": []})
    writer.write_text("epochs.jsonl", '{"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5, "seconds": 1.0}\n')
    writer.write_text("layers.txt", "layer  kind\nhead  Linear\n\nparameters  12\ntrainable  12\n")
    (folder / "thumbnails").mkdir()
    for row in held_out:
        photo = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        photo.save(folder / "thumbnails" / f"{dataset.photos[int(row), 'sha256']}.jpg", quality=85)
    writer.finish(replace(scores), {"train": 1.0})
    return Run(folder)
