"""What near-twins do to a score: a collection with 30 % of them added, split naively and split by ikebana, against the truth.

    python bench/leak.py --photos DIR [--seeds 0,1,2] [--recipe quick] [--share 0.3]

A fifth of the photos is laid aside first, with all twins of theirs: the truth, of which nothing is ever trained on. To the others
near-duplicates of a random 30 % are added (all kinds of near_duplicates.py in turn). Then `fit` with `--split shuffle`, as the
tutorial has it, and with the default split. Each test score should say how the network fares on photos it has never seen; the truth says how
it does fare. Everything lies in a temporary folder; the photos are only read.
"""

import argparse
import os
import random
import tempfile
from pathlib import Path

import numpy as np
from machine import format_header, format_spread
from near_duplicates import KINDS, searched
from PIL import Image

import ikebana
from ikebana.data import split
from ikebana.recipe import SplitStrategy
from ikebana.system import progress

TRUTH = 0.2  # of the photos


def laid_aside(photos: Path, seed: int) -> tuple[list[str], list[str]]:
    """Paths of the collection and of the truth; no two twins on both sides."""
    found, _, _ = searched(photos)
    parts = split.assign_stratified(
        found.used_photos["label"].to_list(), split.find_groups(found.used_photos), (1 - TRUTH, 0.0, TRUTH), seed
    )  # fmt: skip
    paths = found.used_photos["path"].to_list()
    return tuple([path for path, part in zip(paths, parts, strict=True) if part == name] for name in ("train", "test"))  # pyright: ignore[reportReturnType]


def collect(photos: Path, paths: list[str], place: Path, share: float, seed: int) -> None:
    """Links to the photos, and near-twins of a share of them beside."""
    for path in paths:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).symlink_to((photos / path).resolve())
    dice = random.Random(seed)
    for number, path in enumerate(dice.sample(paths, round(share * len(paths)))):
        change, (low, high) = KINDS[list(KINDS)[number % len(KINDS)]]
        with Image.open(photos / path) as photo:
            copy = change(photo.convert("RGB"), dice)
        copy.save(place / Path(path).parent / f"twin {number}.jpg", quality=dice.randint(low, high))


def truth_of(run: ikebana.Run, photos: Path, paths: list[str]) -> float:
    """The share of untouched photos that the run's network names rightly."""
    said = ikebana.predict(run, [photos / path for path in paths])
    named = [max(each.probabilities, key=lambda name, each=each: each.probabilities[name]) for each in said]
    return float(np.mean([name == path.split("/")[0] for name, path in zip(named, paths, strict=True)]))


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
    choices = {"epochs": options.epochs} if options.epochs else {}
    excess: dict[SplitStrategy, list[float]] = {"shuffle": [], "stratified": []}
    for seed in map(int, options.seeds.split(",")):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "collection"
            collection, truth = laid_aside(options.photos, seed)
            collect(options.photos, collection, folder, options.share, seed)
            for kind, values in excess.items():
                place = Path(scratch) / kind
                run = ikebana.fit(folder, options.recipe, run=place, split=kind, split_seed=seed, seed=seed, **choices)
                score, true = run.evaluation, truth_of(run, options.photos, truth)
                values.append(score.accuracy - true)
                print(f"seed {seed} {kind}: said {score.accuracy:.3f} on {score.n}, truth {true:.3f} on {len(truth)}")
                print("  " + repr(score.leakage).replace("\n", "\n  "), flush=True)
    for kind, values in excess.items():
        print(f"{kind}: said more than the truth by {format_spread(values, 4)}, mean {np.mean(values):+.4f}")
    print(f"load of the machine: {os.getloadavg()[1]:.1f}")


if __name__ == "__main__":
    main()
