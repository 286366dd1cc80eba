"""Time training alone and beside a busy process, with and without adapting to it.

    python bench/busy.py --photos DIR [--rounds 3] [--train 2590] [--validation 863] [--parts epoch,quick]
                         [--places alone,beside]

Measures an epoch of `good` on random pixels, and a whole cold `fit` of `quick`, each in a process
of its own. "not adapted" is libgomp's default: all threads, which spin. Conditions take turns
within a round. Before each measurement beside the busy process, it runs for a minute, because the
number of threads follows the load average.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from machine import format_header, format_spread

from ikebana.system.threads import count_threads

# So that the load average of one minute is well above the threshold.
WARM_UP_SECONDS = 60
CONDITIONS = {
    "adapted": {},
    # The value that libgomp would use anyway; setting it disables the adaptation.
    "not adapted": {"OMP_NUM_THREADS": str(count_threads()), "GOMP_SPINCOUNT": "300000"},
}


@contextlib.contextmanager
def run_busy_process(is_wanted: bool) -> Iterator[None]:
    """Keep one processor busy within the block."""
    if not is_wanted:
        yield
        return
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(WARM_UP_SECONDS)
        yield
    finally:
        busy.kill()
        busy.wait()


def time_epoch(options: argparse.Namespace, environment: dict[str, str]) -> float:
    """Return the seconds of one epoch of `good`."""
    script = Path(__file__).with_name("epochs.py")
    command = [sys.executable, str(script), "--recipes", "good", "--epochs", "1"]
    command += ["--train", str(options.train), "--validation", str(options.validation)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    match = re.search(r"epochs of ([\d.]+) s", output)
    assert match is not None, output
    return float(match[1])


def time_quick(options: argparse.Namespace, environment: dict[str, str]) -> float:
    """Return the seconds of `ikebana fit` with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ikebana", "fit", str(options.photos), "--run", f"{folder}/run"]
        started_at = time.perf_counter()
        subprocess.run(
            command, check=True, capture_output=True, env={**environment, "IKEBANA_CACHE": f"{folder}/cache"}
        )
        return time.perf_counter() - started_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", type=int, default=2590)
    parser.add_argument("--validation", type=int, default=863)
    parser.add_argument("--parts", default="epoch,quick")
    parser.add_argument("--places", default="alone,beside")
    options = parser.parse_args()
    measurements = {"epoch": time_epoch, "quick": time_quick}
    print(format_header("torch"), flush=True)
    seconds: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for number in range(options.rounds):
        for place in options.places.split(","):
            conditions = list(CONDITIONS.items())
            for name, variables in conditions if number % 2 else reversed(conditions):
                for part in options.parts.split(","):
                    with run_busy_process(place == "beside"):
                        value = measurements[part](options, {**os.environ, **variables})
                    seconds[part, place, name].append(value)
                    print(f"  {part}, {place}, {name}: {value:.1f} s", flush=True)
    for (part, place, name), values in seconds.items():
        print(f"{part}, {place}, {name}: {format_spread(values, 1)} s, n = {len(values)}", flush=True)


if __name__ == "__main__":
    main()
