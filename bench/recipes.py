"""Measure test accuracy and time of recipes over several seeds, on the tutorial's split.

    python bench/recipes.py --photos DIR [--recipes baseline,augmented] [--seeds 0,1,2] [--epochs N] [--out FOLDER]
                            [--split shuffle|stratified] [--truncate-at BLOCK --weights FILE]

Each run is a complete `ikebana.fit`. Its folder stays in --out, by default a temporary folder.
"""

import argparse
import tempfile
import time
from pathlib import Path

from machine import format_header, format_spread

import ikebana
from ikebana.recipes import TUTORIAL_CLASS_ORDER
from ikebana.system import progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--recipes", default="baseline,augmented")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--split", default="shuffle")
    parser.add_argument("--truncate-at")
    parser.add_argument("--weights")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp())
    progress.set_reporter(progress.SilentReporter())
    names = {entry.name for entry in options.photos.iterdir() if entry.is_dir()}
    order = TUTORIAL_CLASS_ORDER if names == set(TUTORIAL_CLASS_ORDER) else ()
    print(format_header("torch", "numpy", "pillow"), flush=True)
    for recipe in options.recipes.split(","):
        accuracies, seconds = [], []
        for seed in map(int, options.seeds.split(",")):
            start = time.perf_counter()
            choices = {
                name: getattr(options, name) for name in ("epochs", "truncate_at", "weights") if getattr(options, name)
            }
            run = ikebana.fit(
                options.photos,
                recipe,
                run=out / f"{recipe}-{seed}",
                seed=seed,
                split=options.split,
                class_order=order,
                **choices,
            )
            seconds.append(time.perf_counter() - start)
            accuracies.append(run.evaluation.accuracy)
            stages = "  ".join(f"{name} {value:.1f}" for name, value in run.evaluation.seconds.items())
            best = run.history["val_accuracy"].max()
            print(
                f"  {recipe} seed {seed}: test {run.evaluation!r}".split("\n", 1)[0]
                + f"; best validation {best:.3f}; {seconds[-1]:.0f} s: {stages}",
                flush=True,
            )
        mean = sum(accuracies) / len(accuracies)
        print(
            f"{recipe}: test accuracy mean {mean:.3f}, median {format_spread(accuracies, 3)}; "
            f"seconds {format_spread(seconds, 0)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
