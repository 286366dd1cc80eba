"""Time the complete `ikebana fit` command with an empty cache, and optionally a warm one.

    python bench/cold.py --photos DIR [--recipe quick] [--rounds 3] [--split shuffle|stratified] [--again]

Each round is a separate process with its own cache. The seeds are 0, 1, 2, …, so the rounds also
show the spread of the accuracy. With --again, the same command follows with the filled cache.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import format_header, format_spread

from ikebana.recipes import TUTORIAL_CLASS_ORDER


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--split", default="shuffle")
    parser.add_argument("--again", action="store_true", help="repeat each round with the warm cache")
    options = parser.parse_args()
    names = {entry.name for entry in options.photos.iterdir() if entry.is_dir()}
    order = ["--class-order", ",".join(TUTORIAL_CLASS_ORDER)] if names == set(TUTORIAL_CLASS_ORDER) else []
    print(format_header("torch", "timm", "numpy", "pillow"), flush=True)
    times: dict[str, list[float]] = {}
    accuracies: list[float] = []
    for seed in range(options.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            for name in ("cold", "warm") if options.again else ("cold",):
                run = Path(scratch) / name
                command = [sys.executable, "-m", "ikebana", "fit", str(options.photos), "--recipe", options.recipe]
                command += ["--run", str(run), "--seed", str(seed), "--split", options.split, *order]
                start = time.perf_counter()
                environment = {**os.environ, "IKEBANA_CACHE": str(Path(scratch) / "cache")}
                subprocess.run(command, check=True, capture_output=True, env=environment)
                times.setdefault(name, []).append(time.perf_counter() - start)
                evaluation = json.loads((run / "evaluation.json").read_text("utf-8"))
                stages = "  ".join(f"{stage} {value:.1f}" for stage, value in evaluation["seconds"].items())
                print(
                    f"  seed {seed} {name}: {times[name][-1]:.1f} s ({stages}); test accuracy {evaluation['accuracy']:.4f}, "
                    f"balanced {evaluation['balanced_accuracy']:.4f}, log loss {evaluation['log_loss']:.3f}",
                    flush=True,
                )
                if name == "cold":
                    accuracies.append(evaluation["accuracy"])
    mean = sum(accuracies) / len(accuracies)
    print(
        f"{options.recipe}, {options.split}: test accuracy mean {mean:.4f}, median {format_spread(accuracies, 4)}",
        flush=True,
    )
    for name, seconds in times.items():
        print(f"  {name}: {format_spread(seconds, 1)} s for the complete process", flush=True)


if __name__ == "__main__":
    main()
