"""Forecast what hidden photos would bring to a learning curve, and add them back.

    python bench/learning_curves.py --photos DIR [--draws 2] [--sizes 40,100,300]

In each trial every class has a number of photos. As many photos of one class are hidden, or of all
classes. The recall of that class, or the accuracy, is forecast for twice the photos. Then the hidden
photos are added to the training photos, and the same photos are scored again. The output has one
line per trial, then the share of trials inside the stated interval, and its mean width.
"""

import argparse
from pathlib import Path

import numpy as np
from feature_collection import FeatureCollection
from machine import format_header

from ikebana.evaluation.learning_curves import LearningCurve, make_learning_curve
from ikebana.learning.features.learning_curves import SubsampledProbe
from ikebana.learning.folds import make_folds
from ikebana.system import progress


def draw(collection: FeatureCollection, size: int, label: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw present and hidden rows, with at most one photo per group."""
    rng = np.random.default_rng(seed)
    _, first_rows = np.unique(collection.groups, return_index=True)
    present, hidden = [], []
    for name in range(len(collection.classes)):
        rows = rng.permutation(first_rows[collection.labels[first_rows] == name])
        count = min(size, len(rows) // 2)
        present.append(rows[:count])
        if label is None or name == label:
            hidden.append(rows[count : 2 * count])
    return np.concatenate(present), np.concatenate(hidden)


def run_trial(collection: FeatureCollection, size: int, label: int | None, seed: int) -> tuple[LearningCurve, float]:
    """Return the forecast without the hidden photos, and the value with them."""
    present, hidden = draw(collection, size, label, seed)
    rows = np.concatenate((present, hidden))
    features, labels, groups = collection.features[rows], collection.labels[rows], collection.groups[rows]
    folds = make_folds(labels[: len(present)], groups[: len(present)], seed)
    classes = len(collection.classes)
    probe = SubsampledProbe(features, labels, groups, classes, folds)
    bar = progress.SilentReporter().open("", 0, "")
    scored = np.arange(len(present))
    if label is None:
        shares = probe.measure_all(bar)[:, scored]
    else:
        scored = np.flatnonzero(labels[: len(present)] == label)
        shares = probe.measure_class(label, bar)[:, : len(scored)]
    name = "" if label is None else collection.classes[label]
    added = len(hidden)
    curve = make_learning_curve(name, [added // 4, added // 2, added], shares, groups[scored], added)
    # As many of the hidden photos train as of the present ones.
    rng = np.random.default_rng(seed)
    hidden_rows = np.arange(len(present), len(rows))
    complete = [
        (
            np.concatenate((train, rng.choice(hidden_rows, round(len(hidden) * len(train) / len(present)), False))),
            test,
        )
        for train, test in folds
    ]
    with_hidden = SubsampledProbe(features, labels, groups, classes, complete)
    return curve, float(with_hidden.is_right[scored].mean())


def main() -> None:
    """Run all trials and print the coverage of the stated interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--sizes", default="40,100,300")
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args()
    print(format_header("torch", "scipy"))
    collection = FeatureCollection(options.photos)
    results: dict[str, list[tuple[float, float, float, float]]] = {"one class": [], "all classes": []}
    for size in map(int, options.sizes.split(",")):
        for seed in range(options.first_seed, options.first_seed + options.draws):
            for label in (*range(len(collection.classes)), None):
                curve, actual = run_trial(collection, size, label, seed)
                low, high = curve.forecast.low, curve.forecast.high
                kind = "all classes" if label is None else "one class"
                results[kind].append((curve.values[-1], low, high, actual))
                verdict = "inside" if low <= actual <= high else "below" if actual < low else "above"
                points = " ".join(f"{value:.3f}" for value in curve.values)
                print(
                    f"{curve.name or 'all':>10} {curve.photos[-1]:5} + {curve.forecast.added:5}: {points}"
                    f" -> {low:.3f} to {high:.3f}, with them {actual:.3f}: {verdict}",
                    flush=True,
                )
    for kind, rows in results.items():
        present, low, high, actual = np.array(rows).T
        inside = (low <= actual) & (actual <= high)
        print(
            f"{kind}: {inside.sum()} of {len(rows)} inside ({inside.mean():.0%}), {(actual < low).sum()} below, "
            f"{(actual > high).sum()} above; mean width {(high - low).mean():.3f}, mean gain {(actual - present).mean():.3f}, "
            f"mean of the middle of the forecast {((low + high) / 2 - present).mean():.3f}"
        )


if __name__ == "__main__":
    main()
