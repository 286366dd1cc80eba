"""Time epochs of a recipe in one process and in several, with the same processors.

    OMP_NUM_THREADS=1 .venv/bin/python bench/processes.py flowers/ --recipe good --processes 1 2

Each round trains every variant once, with as many threads per process as OMP_NUM_THREADS says.
Validation is part of the time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import format_header, format_spread


def measure_epoch_seconds(options: argparse.Namespace, processes: int, run: Path) -> float:
    """Train in so many processes; return the seconds of the last epoch."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    launcher = [*launcher, "-m", "--", "ikebana"] if processes > 1 else ["-m", "ikebana"]
    recipe = ["--recipe", options.recipe, "--epochs", str(options.epochs), "--precision", options.precision]
    command = [sys.executable, *launcher, "fit", options.photos, *recipe, "--run", str(run), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((run / "epochs.jsonl").read_text("utf-8").splitlines()[-1])["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--recipe", default="good")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(format_header())
    seconds: dict[int, list[float]] = {processes: [] for processes in options.processes}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for processes, times in seconds.items():
                times.append(measure_epoch_seconds(options, processes, Path(folder) / f"{number}-{processes}"))
    for processes, times in seconds.items():
        print(f"processes: {processes}; seconds per epoch: {format_spread(times, 1)}; n = {len(times)}")


if __name__ == "__main__":
    main()
