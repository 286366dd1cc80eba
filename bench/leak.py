"""Measure how near-duplicates inflate test accuracy with a naive split and with ikebana's.

    python bench/leak.py --photos DIR [--seeds 0,1,2] [--recipe quick] [--share 0.3]

A fifth of the photos, with all their near-duplicates, is a holdout set that no run trains on. To
the other photos, near-duplicates of a random 30 % are added (the kinds of near_duplicates.py in
turn). Then `fit` runs with `--split shuffle`, as in the tutorial, and with the default split. The
test accuracy of each run is compared with its accuracy on the holdout set. All files are written to
a temporary folder.
"""

import argparse
import os
import random
import tempfile
from pathlib import Path

import numpy as np
from machine import format_header, format_spread
from near_duplicates import COPY_KINDS, find_near_duplicates
from PIL import Image

import ikebana
from ikebana.data import split
from ikebana.recipe import SplitStrategy
from ikebana.system import progress

HOLDOUT_FRACTION = 0.2


def split_off_holdout(photos: Path, seed: int) -> tuple[list[str], list[str]]:
    """Split the paths into a collection and a holdout set without common near-duplicates."""
    dataset, _, _ = find_near_duplicates(photos)
    photos_used, fractions = dataset.used_photos, (1 - HOLDOUT_FRACTION, 0.0, HOLDOUT_FRACTION)
    parts = split.assign_stratified(photos_used["label"].to_list(), split.find_groups(photos_used), fractions, seed)
    paths = photos_used["path"].to_list()
    return tuple([path for path, part in zip(paths, parts, strict=True) if part == name] for name in ("train", "test"))  # pyright: ignore[reportReturnType]


def build_collection(photos: Path, paths: list[str], folder: Path, share: float, seed: int) -> None:
    """Link the photos, and add near-duplicates of a share of them."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to((photos / path).resolve())
    rng = random.Random(seed)
    for number, path in enumerate(rng.sample(paths, round(share * len(paths)))):
        change, (low, high) = COPY_KINDS[list(COPY_KINDS)[number % len(COPY_KINDS)]]
        with Image.open(photos / path) as photo:
            copy = change(photo.convert("RGB"), rng)
        copy.save(folder / Path(path).parent / f"near-duplicate {number}.jpg", quality=rng.randint(low, high))


def compute_holdout_accuracy(run: ikebana.Run, photos: Path, paths: list[str]) -> float:
    """Compute the accuracy of a run on the holdout photos."""
    predictions = ikebana.predict(run, [photos / path for path in paths])
    predicted = [max(prediction.probabilities.items(), key=lambda item: item[1])[0] for prediction in predictions]
    return float(np.mean([name == path.split("/")[0] for name, path in zip(predicted, paths, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--epochs", type=int)
    options = parser.parse_args()
    progress.set_reporter(progress.SilentReporter())
    print(format_header("torch", "numpy", "pillow"), flush=True)
    fit_options = {"epochs": options.epochs} if options.epochs else {}
    excess: dict[SplitStrategy, list[float]] = {"shuffle": [], "stratified": []}
    for seed in map(int, options.seeds.split(",")):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "collection"
            collection, holdout = split_off_holdout(options.photos, seed)
            build_collection(options.photos, collection, folder, options.share, seed)
            for strategy, values in excess.items():
                run_folder = Path(scratch) / strategy
                run = ikebana.fit(
                    folder, options.recipe, run=run_folder, split=strategy, split_seed=seed, seed=seed, **fit_options
                )
                evaluation, holdout_accuracy = run.evaluation, compute_holdout_accuracy(run, options.photos, holdout)
                values.append(evaluation.accuracy - holdout_accuracy)
                print(
                    f"seed {seed} {strategy}: test accuracy {evaluation.accuracy:.3f} on {evaluation.n} photos, "
                    f"holdout {holdout_accuracy:.3f} on {len(holdout)}"
                )
                print("  " + repr(evaluation.leakage).replace("\n", "\n  "), flush=True)
    for strategy, values in excess.items():
        print(
            f"{strategy}: test accuracy minus holdout accuracy {format_spread(values, 4)}, mean {np.mean(values):+.4f}"
        )
    print(f"load average: {os.getloadavg()[1]:.1f}")


if __name__ == "__main__":
    main()
