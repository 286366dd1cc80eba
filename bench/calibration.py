"""Compare the confidence of a recipe with its accuracy on subsamples of a collection.

    python bench/calibration.py --photos DIR [--subsamples 20] [--first-seed 0] [--recipe quick] [--sufficient-errors inf,3]

Each subsample has two classes or more, and a number of photos per class drawn from 40 to 800. It is
split as by `fit`. With a linear probe, a head is fitted to cached features; other recipes are
trained, which takes as long as so many runs. The calibration half of the validation photos
determines the temperature: with Platt's targets for all photos (`inf`), and with targets that depend
on the number of errors. Confidence is compared with accuracy on the test photos together with all
photos of these classes that the subsample does not have. Positive differences mean an over-confident
network.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from feature_collection import FeatureCollection
from machine import format_header
from scipy.special import softmax
from unknown_objects import train_on_classes

from ikebana.data import split
from ikebana.evaluation import calibration
from ikebana.evaluation.calibration import Calibration
from ikebana.evaluation.metrics import log_loss
from ikebana.learning import outputs, plan
from ikebana.learning.examples import PhotoExamples
from ikebana.learning.models import networks
from ikebana.learning.plan import Plan
from ikebana.learning.training import logistic_head
from ikebana.recipe import with_options
from ikebana.recipes import RECIPES
from ikebana.system import progress

MIN_PER_CLASS, MAX_PER_CLASS = 40, 800


class PhotoCollection:
    """The photos of a collection, to train a recipe on some of them.

    Attributes:
        source: the plan for all photos.
        table: their rows of the dataset's table.
        labels, groups: as in `FeatureCollection`.
    """

    def __init__(self, photos: Path, recipe_name: str):
        self.source = Plan.from_photos(photos, recipe_name)
        self.source.apply_settings()
        self.dataset, self.cache = plan.open_photos(self.source.dataset, self.source.recipe)
        self.classes = self.dataset.classes
        self.table = self.dataset.used_photos_with_row
        self.labels = np.array([self.classes.index(name) for name in self.table["label"]])
        self.groups = np.array(split.find_groups(self.table.drop("row")))

    def select(self, rows: np.ndarray, labels: np.ndarray) -> PhotoExamples:
        """Select photos, with other class indices."""
        table = self.table[rows]
        pixel_rows = table["row"].to_numpy().astype(np.int64)
        for_selection = split.get_selection_mask(table)
        return PhotoExamples(self.cache.pixels, pixel_rows, labels, for_selection, self.groups[rows])


def draw_subsample(
    collection: FeatureCollection | PhotoCollection, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows of a subsample, and the other rows of its classes."""
    class_count = int(rng.integers(2, len(collection.classes) + 1))
    classes = rng.choice(len(collection.classes), class_count, replace=False)
    per_class = round(math.exp(rng.uniform(math.log(MIN_PER_CLASS), math.log(MAX_PER_CLASS))))
    rows = []
    for name in classes:
        of_class = np.flatnonzero(collection.labels == name)
        rows.append(rng.choice(of_class, min(per_class, len(of_class)), replace=False))
    chosen = np.sort(np.concatenate(rows))
    same_classes = np.flatnonzero(np.isin(collection.labels, classes))
    # No duplicate of a chosen photo is scored.
    others = same_classes[~np.isin(collection.groups[same_classes], collection.groups[chosen])]
    return chosen, others


@dataclass(frozen=True)
class Subsample:
    """Photos of a subsample by rows of the collection, with class indices among its classes."""

    classes: tuple[str, ...]
    train: np.ndarray
    selection: np.ndarray
    calibration: np.ndarray
    scored: np.ndarray
    labels: np.ndarray


def split_subsample(
    collection: FeatureCollection | PhotoCollection, chosen: np.ndarray, others: np.ndarray, seed: int
) -> Subsample:
    """Split a subsample as `fit` does; its test photos are scored together with the others."""
    class_numbers = np.unique(collection.labels[chosen])
    labels = np.searchsorted(class_numbers, collection.labels)
    names, groups = [str(label) for label in labels[chosen]], collection.groups[chosen].tolist()
    parts = np.array(split.assign_stratified(names, groups, (0.6, 0.2, 0.2), seed))
    train, validation, test = (chosen[parts == name] for name in ("train", "validation", "test"))
    is_selection = split.get_selection_mask(collection.table[validation])
    return Subsample(
        classes=tuple(collection.classes[number] for number in class_numbers),
        train=train,
        selection=validation[is_selection],
        calibration=validation[~is_selection],
        scored=np.concatenate((test, others)),
        labels=labels,
    )


def fit_head(collection: FeatureCollection, subsample: Subsample, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit a head to features: probabilities of calibration and of scored photos."""
    head = logistic_head.fit_head(
        collection.features[subsample.train],
        subsample.labels[subsample.train],
        collection.features[subsample.selection],
        subsample.labels[subsample.selection],
        len(subsample.classes),
        seed,
        collection.groups[subsample.train],
    )
    calibrating, scored = (
        softmax(collection.features[rows] @ head.weight.T + head.bias, axis=1)
        for rows in (subsample.calibration, subsample.scored)
    )
    return calibrating, scored


def train(collection: PhotoCollection, subsample: Subsample, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Train the recipe: probabilities of calibration and of scored photos."""
    rows = {
        "train": subsample.train,
        "validation": np.concatenate((subsample.selection, subsample.calibration)),
        "test": subsample.scored,
    }
    splits = {name: collection.select(chosen, subsample.labels[chosen]) for name, chosen in rows.items()}
    recipe = with_options(collection.source.recipe, seed=seed)
    tasks = train_on_classes(collection.source, splits, collection.cache.folder.name, subsample.classes, recipe=recipe)
    probabilities = outputs.compute_held_out(tasks, collection.source.settings).probabilities
    calibrating, scored = np.split(probabilities[len(subsample.selection) :], [len(subsample.calibration)])
    return calibrating, scored


def predict(
    collection: FeatureCollection | PhotoCollection, chosen: np.ndarray, others: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Train on a subsample, and predict its calibration photos and the scored photos."""
    subsample = split_subsample(collection, chosen, others, seed)
    if isinstance(collection, FeatureCollection):
        calibrating, scored = fit_head(collection, subsample, seed)
    else:
        calibrating, scored = train(collection, subsample, seed)
    return {
        "calibrating": calibrating,
        "calibration labels": subsample.labels[subsample.calibration],
        "calibration groups": collection.groups[subsample.calibration],
        "scored": scored,
        "truth": subsample.labels[subsample.scored],
    }


def measure(predictions: dict[str, np.ndarray], sufficient_errors: float) -> tuple[float, float, float]:
    """Return the temperature, confidence minus accuracy in points, and log loss."""
    calibration.SUFFICIENT_ERRORS = sufficient_errors
    groups = predictions["calibration groups"]
    fitted = calibration.calibrate(predictions["calibrating"], predictions["calibration labels"], groups)
    scored = Calibration(fitted.temperature).apply(predictions["scored"])
    accuracy = (scored.argmax(1) == predictions["truth"]).mean()
    return fitted.temperature, 100 * float(scored.max(1).mean() - accuracy), log_loss(scored, predictions["truth"])


def main() -> None:
    """Run the measurement and print one line per subsample, then the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--subsamples", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--sufficient-errors", default="inf,3")
    options = parser.parse_args()
    limits = [float(text) for text in options.sufficient_errors.split(",")]
    progress.set_reporter(progress.SilentReporter())
    print(format_header("torch", "scipy"))
    is_probe = networks.fill_defaults(RECIPES[options.recipe]).caches_features
    collection = (FeatureCollection if is_probe else PhotoCollection)(options.photos, options.recipe)
    results = []
    for seed in range(options.first_seed, options.first_seed + options.subsamples):
        chosen, others = draw_subsample(collection, np.random.default_rng(seed))
        predictions = predict(collection, chosen, others, seed)
        wrong = int((predictions["calibrating"].argmax(1) != predictions["calibration labels"]).sum())
        count = len(predictions["calibration labels"])
        accuracy = (predictions["scored"].argmax(1) == predictions["truth"]).mean()
        results.append([measure(predictions, limit) for limit in limits])
        cells = "  ".join(f"T {row[0]:.2f} {row[1]:+5.1f} {row[2]:.3f}" for row in results[-1])
        classes = len(np.unique(collection.labels[chosen]))
        print(
            f"{seed:2} {classes} classes {len(chosen):5} photos, {wrong:3} of {count:3} wrong,"
            f" accuracy {accuracy:.3f} on {len(predictions['truth']):4}: {cells}",
            flush=True,
        )
    values = np.array(results)
    for number, limit in enumerate(limits):
        gaps = values[:, number, 1]
        print(
            f"sufficient errors {limit:g}: confidence minus accuracy {gaps.mean():+.2f} points"
            f" ({gaps.min():+.1f} to {gaps.max():+.1f}), mean absolute {np.abs(gaps).mean():.2f},"
            f" below -1: {(gaps < -1).sum()}, above 1: {(gaps > 1).sum()}; log loss {values[:, number, 2].mean():.4f}"
        )


if __name__ == "__main__":
    main()
