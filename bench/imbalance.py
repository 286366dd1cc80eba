"""What becomes of a class of which there are few photos: each class in turn is cut down, and a recipe learns from the rest.

    python bench/imbalance.py --photos DIR [--recipe quick] [--left 60] [--classes A,B]

The photos are split as `fit` splits them; then the chosen class keeps --left of its training and validation photos, so that
the test part stays large enough to count on. Beside each score stands what the same network would have named had the classes'
shares counted, as they do in a network that is trained without heed of them.
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
    whole = _split(options.photos)
    balanced: dict[str, list[float]] = {"alike": [], "by share": []}
    for name in options.classes.split(",") if options.classes else sorted(set(whole["label"])):
        with tempfile.TemporaryDirectory() as scratch:
            table = Path(scratch) / "photos.csv"
            _cut(whole, name, options.left).write_csv(table)
            run = ikebana.fit(table, options.recipe, run=Path(scratch) / "run")
            for how, scores in _scores(run, name).items():
                balanced[how].append(scores[1])
                words = "accuracy {:.3f}, balanced {:.3f}; of it recall {:.2f}, precision {:.2f}".format(*scores)
                print(f"  few of {name}, classes {how}: {words}", flush=True)
    for how, values in balanced.items():
        print(
            f"{options.recipe}, {options.left} photos of one class, classes {how}: balanced accuracy {format_spread(values, 3)}"
        )


def _split(photos: Path) -> pl.DataFrame:
    """path, label and split of every usable photo."""
    found, _ = pixel_cache.open_pixel_cache(
        sources.read(photos), 32, "squash"
    )  # small: only whether they open matters here
    used = split.split_photos(found, recipes.get_recipe("quick")).used_photos
    absolute = [str(photos.resolve() / path) for path in used["path"]]
    return used.select("label", "split").with_columns(path=pl.Series(absolute))


def _cut(whole: pl.DataFrame, name: str, left: int) -> pl.DataFrame:
    rows = whole.with_row_index("row").filter((pl.col("label") == name) & (pl.col("split") != "test"))["row"].to_list()
    random.Random(0).shuffle(rows)
    return whole.with_row_index("row").filter(~pl.col("row").is_in(rows[left:])).drop("row")


def _scores(run: Run, name: str) -> dict[str, tuple[float, float, float, float]]:
    """Accuracy, balanced accuracy, and recall and precision of a class: as it is, and with the shares back in."""
    test = run.predictions.filter(pl.col("split") == "test")
    labels = np.array([run.classes.index(each) for each in test["label"]])
    calibrated = test.select(f"p:{each}" for each in run.classes).to_numpy()
    said = np.log(np.maximum(calibrated, 1e-30)) * run.calibration.temperature
    train = run.dataset.filter(pl.col("split") == "train")["label"].to_list()
    shares = compute_log_priors(np.array([run.classes.index(each) for each in train]), len(run.classes))
    rare = run.classes.index(name)
    found = {}
    for how, named in (("alike", said.argmax(1)), ("by share", (said + shares).argmax(1))):
        recalls = [(named == each)[labels == each].mean() for each in range(len(run.classes))]
        precision = (labels == rare)[named == rare].mean() if (named == rare).any() else 0.0
        found[how] = float((named == labels).mean()), float(np.mean(recalls)), float(recalls[rare]), float(precision)
    return found


if __name__ == "__main__":
    main()
