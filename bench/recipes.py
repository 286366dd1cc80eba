"""Test accuracy and time of named recipes over seeds, on the tutorial's split.

    python bench/recipes.py --photos DIR [--recipes baseline,augmented] [--seeds 0,1,2] [--epochs N] [--out FOLDER]
                            [--split shuffle|stratified] [--truncate-at BLOCK --weights FILE]

Each run is a whole `ikebana.fit`; its folder stays in --out (a temporary one if none is given).
"""

import argparse
import tempfile
import time
from pathlib import Path

from machine import header, spread

import ikebana
from ikebana.recipes import TUTORIAL_CLASS_ORDER
from ikebana.system import progress


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--photos", type=Path, required=True)
    flags.add_argument("--recipes", default="baseline,augmented")
    flags.add_argument("--seeds", default="0,1,2")
    flags.add_argument("--epochs", type=int)
    flags.add_argument("--split", default="shuffle")
    flags.add_argument("--truncate-at")
    flags.add_argument("--weights")
    flags.add_argument("--out", type=Path)
    chosen = flags.parse_args()
    out = chosen.out or Path(tempfile.mkdtemp())
    progress.set_reporter(progress.SilentReporter())
    names = {each.name for each in chosen.photos.iterdir() if each.is_dir()}
    order = TUTORIAL_CLASS_ORDER if names == set(TUTORIAL_CLASS_ORDER) else ()
    print(header("torch", "numpy", "pillow"), flush=True)
    for recipe in chosen.recipes.split(","):
        accuracies, seconds = [], []
        for seed in map(int, chosen.seeds.split(",")):
            begun = time.perf_counter()
            choices = {
                name: getattr(chosen, name) for name in ("epochs", "truncate_at", "weights") if getattr(chosen, name)
            }
            run = ikebana.fit(
                chosen.photos,
                recipe,
                run=out / f"{recipe}-{seed}",
                seed=seed,
                split=chosen.split,
                class_order=order,
                **choices,
            )
            seconds.append(time.perf_counter() - begun)
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
            f"{recipe}: test accuracy mean {mean:.3f}, median {spread(accuracies, 3)}; seconds {spread(seconds, 0)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
