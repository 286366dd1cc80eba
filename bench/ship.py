"""Measure parity with torch, throughput and start-up time of exported models.

    python bench/ship.py --run RUN --photos FOLDER [--where DIR] [--rounds 3] [--int8]

RUN is a finished run. If its photos have moved, --where has their folder. FOLDER holds photos to
predict, in sub-folders. All times are those of complete processes, imports included. The commands
alternate within a round, so that other load affects all of them. `peer_predict.py` measures other
programs.
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

import ikebana

FIRST = "import sys, ikebana; print(ikebana.load(sys.argv[1]).predict(sys.argv[2]))"
FIRST_BY_RUN = "import sys, ikebana; print(ikebana.predict(sys.argv[1], sys.argv[2]))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--where", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--int8", action="store_true", help="the same once more for the file in int8")
    options = parser.parse_args()
    print(format_header("torch", "onnxruntime", "onnx", "pillow", "numpy"), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        models = {"float32": Path(scratch) / "float32.onnx"}
        if options.int8:
            models["int8"] = Path(scratch) / "int8.onnx"
        for name, file in models.items():
            command = [sys.executable, "-m", "ikebana", "export", str(options.run), str(file)]
            command += ["--int8"] if name == "int8" else []
            command += ["--photos", str(options.where)] if options.where else []
            report_export(name, file, *time_command(command))
        measure_folder(models, options.photos, options.rounds, Path(scratch))
        measure_first_answer(models, options.run, next(options.photos.rglob("*.jpg")), options.rounds)


def report_export(name: str, file: Path, seconds: float, memory: float) -> None:
    """Print the size of the export and its agreement with torch."""
    classifier = ikebana.load(file)
    parity, size = classifier.metadata["parity"], file.stat().st_size / 1e6
    print(f"{name}: {size:.1f} MB; export {seconds:.1f} s, the whole process, at most {memory:,.0f} MB", flush=True)
    print(
        f"  torch against onnxruntime, {parity['photos']} test photos from their bytes: top-1 the same in "
        f"{parity['top1_agreement']:.4f}, probabilities off by {parity['largest_difference']:.1e} at most, "
        f"{parity['mean_difference']:.1e} on average; accuracy {parity['accuracy']:.4f}"
    )
    print(f"  whole photos to the graph alone: {parity['whole_photos']}")
    if "int8" in classifier.metadata:
        print(f"  {classifier.metadata['int8']}", flush=True)


def measure_folder(models: dict[str, Path], photos: Path, rounds: int, scratch: Path) -> None:
    """Measure photos per second, from the start of the process to its end."""
    count = sum(1 for file in photos.rglob("*") if file.is_file())
    start, end = [sys.executable, "-m", "ikebana", "predict"], [str(photos), "--out", str(scratch / "x.csv")]
    commands = {f"ikebana predict, {name}": [*start, str(file), *end] for name, file in models.items()}
    times: dict[str, list[float]] = {name: [] for name in commands}
    peaks: dict[str, float] = {}
    for _ in range(rounds):
        for name, command in commands.items():
            seconds, peaks[name] = time_command(command)
            times[name].append(count / seconds)
    print(f"photos per second on {count} files, complete process:")
    for name, speeds in times.items():
        print(f"  {name}: {format_spread(speeds, 0)}, at most {peaks[name]:,.0f} MB", flush=True)


def measure_first_answer(models: dict[str, Path], run: Path, photo: Path, rounds: int) -> None:
    """Measure the seconds from the start of the process to the first prediction."""
    commands = {
        f"ikebana.load(…).predict(…), {name}": [sys.executable, "-c", FIRST, str(file), str(photo)]
        for name, file in models.items()
    }
    commands["ikebana predict FILE PHOTO"] = [
        sys.executable,
        "-m",
        "ikebana",
        "predict",
        str(models["float32"]),
        str(photo),
    ]
    commands["ikebana.predict(RUN, PHOTO), which needs torch"] = [
        sys.executable,
        "-c",
        FIRST_BY_RUN,
        str(run),
        str(photo),
    ]
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(time_command(command)[0])
    print("seconds from the start of the process to the first prediction:")
    for name, seconds in times.items():
        print(f"  {name}: {format_spread(seconds)}", flush=True)


def time_command(command: list[str]) -> tuple[float, float]:
    """Measure seconds and peak memory in MB of a process, without its child processes."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{json.dumps(command[:4])} ended with {os.waitstatus_to_exitcode(status)}")
    return seconds, used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main()
