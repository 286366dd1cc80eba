"""Check the interval of the cross-validated accuracy on subsamples of a collection.

    python bench/cross_validation.py --photos DIR [--draws 40] [--first-seed 0] [--sizes 300,1000]

Each subsample is cross-validated as by `fit`. Its heads are then fitted to other 60% of the subsample
and scored on all photos outside it, which is nearly the true accuracy. The output has the share of
subsamples whose interval contains the true accuracy, the mean difference, and the seconds of a
cross-validation.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from feature_collection import FeatureCollection
from machine import format_header, format_spread

from ikebana.data.split import assign_stratified
from ikebana.evaluation.cross_validation import CrossValidation, score_cross_validation
from ikebana.learning.cross_validation import predict_folds
from ikebana.learning.folds import make_folds
from ikebana.learning.training import logistic_head
from ikebana.system import progress

# Other splits of each subsample, whose accuracies are averaged.
TRUE_SPLITS = 3


def cross_validate(collection: FeatureCollection, rows: np.ndarray, seed: int) -> CrossValidation:
    """Cross-validate a subsample."""
    labels, groups = collection.labels[rows], collection.groups[rows]
    folds = [test for _, test in make_folds(labels, groups, seed)]
    bar = progress.SilentReporter().open("", 0, "")
    probabilities = predict_folds(collection.features[rows], labels, folds, len(collection.classes), bar)
    numbers = np.zeros(len(rows), np.int64)
    for number, test in enumerate(folds):
        numbers[test] = number
    return score_cross_validation(probabilities.argmax(1), labels, groups, numbers, collection.classes)


def measure_true_accuracy(collection: FeatureCollection, rows: np.ndarray, seed: int) -> float:
    """Score heads of 60% of a subsample on all photos outside it."""
    outside = np.flatnonzero(~np.isin(collection.groups, collection.groups[rows]))
    names, groups = [str(label) for label in collection.labels[rows]], collection.groups[rows].tolist()
    accuracies = []
    for number in range(TRUE_SPLITS):
        parts = np.array(assign_stratified(names, groups, (0.6, 0.2, 0.2), TRUE_SPLITS * seed + number))
        train, selection = rows[parts == "train"], rows[parts == "validation"]
        head = logistic_head.fit_head(
            collection.features[train],
            collection.labels[train],
            collection.features[selection],
            collection.labels[selection],
            len(collection.classes),
            seed,
            collection.groups[train],
        )
        predicted = (collection.features[outside] @ head.weight.T + head.bias).argmax(1)
        accuracies.append((predicted == collection.labels[outside]).mean())
    return float(np.mean(accuracies))


def main() -> None:
    """Run the draws and print the coverage for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--sizes", default="300,1000")
    options = parser.parse_args()
    print(format_header("torch", "scipy"))
    collection = FeatureCollection(options.photos)
    start = time.perf_counter()
    scores = cross_validate(collection, np.arange(len(collection.labels)), 0)
    print(f"{scores.describe()}; {time.perf_counter() - start:.1f} s", flush=True)
    for size in map(int, options.sizes.split(",")):
        rows_of_results, seconds = [], []
        for seed in range(options.first_seed, options.first_seed + options.draws):
            rows = np.sort(np.random.default_rng(seed).choice(len(collection.labels), size, replace=False))
            start = time.perf_counter()
            scores = cross_validate(collection, rows, seed)
            seconds.append(time.perf_counter() - start)
            rows_of_results.append(
                (scores.accuracy, *scores.accuracy_interval, measure_true_accuracy(collection, rows, seed))
            )
        accuracy, low, high, true = np.array(rows_of_results).T
        inside = (low <= true) & (true <= high)
        print(
            f"{size} photos: {inside.sum()} of {len(true)} intervals contain the true accuracy; difference "
            f"{100 * (accuracy - true).mean():+.2f} points (standard deviation {100 * (accuracy - true).std(ddof=1):.2f}), "
            f"mean half-width {100 * ((high - low) / 2).mean():.2f}; {format_spread(seconds)} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
