"""A recipe as a stranger meets it: the whole command, imports and empty cache included; then the same command again.

    python bench/cold.py --photos DIR [--recipe quick] [--rounds 3] [--split shuffle|stratified] [--again]

Each round is a process of its own with a cache of its own; seeds are 0, 1, 2, … so the rounds also show the spread of
the accuracy. With --again each is followed by the same command on what the first has kept.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import header, spread

from ikebana.recipes import TUTORIAL_CLASS_ORDER


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--photos", type=Path, required=True)
    flags.add_argument("--recipe", default="quick")
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--split", default="shuffle")
    flags.add_argument("--again", action="store_true", help="each round once more, warm")
    chosen = flags.parse_args()
    names = {each.name for each in chosen.photos.iterdir() if each.is_dir()}
    order = ["--class-order", ",".join(TUTORIAL_CLASS_ORDER)] if names == set(TUTORIAL_CLASS_ORDER) else []
    print(header("torch", "timm", "numpy", "pillow"), flush=True)
    times: dict[str, list[float]] = {}
    accuracies: list[float] = []
    for seed in range(chosen.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            for name in ("cold", "warm") if chosen.again else ("cold",):
                run = Path(scratch) / name
                command = [sys.executable, "-m", "ikebana", "fit", str(chosen.photos), "--recipe", chosen.recipe]
                command += ["--run", str(run), "--seed", str(seed), "--split", chosen.split, *order]
                begun = time.perf_counter()
                environment = {**os.environ, "IKEBANA_CACHE": str(Path(scratch) / "cache")}
                subprocess.run(command, check=True, capture_output=True, env=environment)
                times.setdefault(name, []).append(time.perf_counter() - begun)
                scored = json.loads((run / "evaluation.json").read_text("utf-8"))
                stages = "  ".join(f"{stage} {value:.1f}" for stage, value in scored["seconds"].items())
                print(
                    f"  seed {seed} {name}: {times[name][-1]:.1f} s ({stages}); test accuracy {scored['accuracy']:.4f}, "
                    f"balanced {scored['balanced_accuracy']:.4f}, log loss {scored['log_loss']:.3f}",
                    flush=True,
                )
                if name == "cold":
                    accuracies.append(scored["accuracy"])
    mean = sum(accuracies) / len(accuracies)
    print(f"{chosen.recipe}, {chosen.split}: test accuracy mean {mean:.4f}, median {spread(accuracies, 4)}", flush=True)
    for name, seconds in times.items():
        print(f"  {name}: {spread(seconds, 1)} s, the whole process", flush=True)


if __name__ == "__main__":
    main()
