"""Measure recall and precision of each class when most of its photos are removed.

    python bench/imbalance.py --photos DIR [--recipe quick] [--left 60] [--classes A,B]

The photos are split as `fit` splits them. Then the class keeps --left of its training and
validation photos, while the test set stays complete. Each score is printed twice: with equal class
priors as ikebana predicts, and with the priors of the training photos, as ordinary training would
learn them.
"""

import argparse
import random
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from machine import format_header, format_spread

import ikebana
from ikebana import recipes
from ikebana.data import pixel_cache, sources, split
from ikebana.learning.training.class_priors import compute_log_priors
from ikebana.runs.run import Run
from ikebana.system import progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--left", type=int, default=60)
    parser.add_argument("--classes", default="")
    options = parser.parse_args()
    progress.set_reporter(progress.SilentReporter())
    print(format_header("torch", "timm", "scikit-learn"), flush=True)
    all_photos = split_photos(options.photos)
    balanced: dict[str, list[float]] = {"equal priors": [], "training priors": []}
    for name in options.classes.split(",") if options.classes else sorted(set(all_photos["label"])):
        with tempfile.TemporaryDirectory() as scratch:
            table = Path(scratch) / "photos.csv"
            remove_photos(all_photos, name, options.left).write_csv(table)
            run = ikebana.fit(table, options.recipe, run=Path(scratch) / "run")
            for prior, scores in compute_scores(run, name).items():
                balanced[prior].append(scores[1])
                text = "accuracy {:.3f}, balanced {:.3f}; its recall {:.2f}, precision {:.2f}".format(*scores)
                print(f"  few photos of {name}, {prior}: {text}", flush=True)
    for prior, values in balanced.items():
        print(
            f"{options.recipe}, {options.left} photos of one class, {prior}: balanced accuracy {format_spread(values, 3)}"
        )


def split_photos(photos: Path) -> pl.DataFrame:
    """Return path, label and split of every usable photo."""
    # The size is small because it only matters which photos can be decoded.
    dataset, _ = pixel_cache.open_pixel_cache(sources.read(photos), 32, "squash")
    used = split.split_photos(dataset, recipes.get_recipe("quick")).used_photos
    absolute = [str(photos.resolve() / path) for path in used["path"]]
    return used.select("label", "split").with_columns(path=pl.Series(absolute))


def remove_photos(all_photos: pl.DataFrame, name: str, left: int) -> pl.DataFrame:
    rows = (
        all_photos.with_row_index("row")
        .filter((pl.col("label") == name) & (pl.col("split") != "test"))["row"]
        .to_list()
    )
    random.Random(0).shuffle(rows)
    return all_photos.with_row_index("row").filter(~pl.col("row").is_in(rows[left:])).drop("row")


def compute_scores(run: Run, name: str) -> dict[str, tuple[float, float, float, float]]:
    """Compute accuracy, balanced accuracy, and recall and precision of a class, for both priors."""
    test = run.predictions.filter(pl.col("split") == "test")
    labels = np.array([run.classes.index(label) for label in test["label"]])
    calibrated = test.select(f"p:{name}" for name in run.classes).to_numpy()
    logits = np.log(np.maximum(calibrated, 1e-30)) * run.calibration.temperature
    train = run.dataset.filter(pl.col("split") == "train")["label"].to_list()
    log_priors = compute_log_priors(np.array([run.classes.index(label) for label in train]), len(run.classes))
    rare = run.classes.index(name)
    scores = {}
    for prior, predicted in (("equal priors", logits.argmax(1)), ("training priors", (logits + log_priors).argmax(1))):
        recalls = [(predicted == index)[labels == index].mean() for index in range(len(run.classes))]
        precision = (labels == rare)[predicted == rare].mean() if (predicted == rare).any() else 0.0
        scores[prior] = (
            float((predicted == labels).mean()),
            float(np.mean(recalls)),
            float(recalls[rare]),
            float(precision),
        )
    return scores


if __name__ == "__main__":
    main()
