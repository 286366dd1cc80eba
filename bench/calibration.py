"""Compare the confidence of `quick` with its accuracy on subsamples of a collection.

    python bench/calibration.py --photos DIR [--subsamples 20] [--first-seed 0] [--recipe quick] [--sufficient-errors inf,3]

Each subsample has two classes or more, and a number of photos per class drawn from 40 to 800. It is
split as by `fit`, and a head is fitted to cached features. The calibration half of its validation
photos determines the temperature: with Platt's targets for all photos (`inf`), and with targets that
depend on the number of errors. Confidence is compared with accuracy on the test photos together
with all photos of these classes that the subsample does not have. Positive differences mean an
over-confident network.
"""

import argparse
import math
from pathlib import Path

import numpy as np
from feature_collection import FeatureCollection
from machine import format_header
from scipy.special import softmax

from ikebana.data import split
from ikebana.evaluation import calibration
from ikebana.evaluation.calibration import Calibration
from ikebana.evaluation.metrics import log_loss
from ikebana.learning.training import logistic_head

MIN_PER_CLASS, MAX_PER_CLASS = 40, 800


def draw_subsample(collection: FeatureCollection, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
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


def predict(collection: FeatureCollection, chosen: np.ndarray, others: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Fit a head like `fit` does, and predict its calibration photos and the scored photos."""
    table, groups = collection.table[chosen], collection.groups[chosen]
    class_numbers, labels = np.unique(collection.labels[chosen], return_inverse=True)
    parts = np.array(split.assign_stratified([str(label) for label in labels], groups.tolist(), (0.6, 0.2, 0.2), seed))
    train, validation, test = (np.flatnonzero(parts == name) for name in ("train", "validation", "test"))
    is_selection = split.get_selection_mask(table[validation])
    selection, calibrating = validation[is_selection], validation[~is_selection]
    features = collection.features[chosen]
    head = logistic_head.fit_head(
        features[train],
        labels[train],
        features[selection],
        labels[selection],
        len(class_numbers),
        seed,
        groups[train],
    )
    scored = np.concatenate((features[test], collection.features[others]))
    truth = np.concatenate((labels[test], np.searchsorted(class_numbers, collection.labels[others])))
    return {
        "calibrating": softmax(features[calibrating] @ head.weight.T + head.bias, axis=1),
        "calibration labels": labels[calibrating],
        "calibration groups": groups[calibrating],
        "scored": softmax(scored @ head.weight.T + head.bias, axis=1),
        "truth": truth,
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
    print(format_header("torch", "scipy"))
    collection = FeatureCollection(options.photos, options.recipe)
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
