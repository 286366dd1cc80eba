"""Time and size of the report of a finished run, with and without heat maps.

    python bench/report.py RUN [--repeat 5]

Each report is a process of its own. CPU seconds are of the process, and hardly depend on other work.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(run: str, file: Path, flags: list[str]) -> tuple[float, float]:
    """Write a report; return the seconds on the clock, and those of the processors."""
    before, start = os.times(), time.perf_counter()
    command = [sys.executable, "-m", "ikebana", "report", run, "--out", str(file), "--quiet", *flags]
    subprocess.run(command, check=True, capture_output=True)
    seconds, after = time.perf_counter() - start, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        for flags in ([], ["--heat-maps"]):
            results = [measure(arguments.run, file, flags) for _ in range(arguments.repeat)]
            for name, values in zip(("clock", "CPU"), zip(*results, strict=True), strict=True):
                low, high = min(values), max(values)
                print(f"{' '.join(flags) or 'plain'}: {name} median {statistics.median(values):.1f} s", end="")
                print(f" ({low:.1f} to {high:.1f}), n {len(values)}, {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
