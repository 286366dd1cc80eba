"""Measure memory and time of a command per stage, for growing numbers of photos.

    python bench/memory.py [--numbers 10000,200000] [--verb fit|audit|read] [--recipe quick] [--image-size 32] [--epochs N]
                           [--network NAME] [--batch-size N] [--table] [--photos DIR] [--threads N] [--folder DIR]
                           [--keep]

Draws distinct small photos of five classes, and runs the command in a separate process with its own
cache. Every 50 ms it reads the anonymous memory of the process (RssAnon). Pages of mapped files do
not count, because the system reclaims them when it needs memory. It prints one line per stage:
seconds, ms per photo, peak memory.

`read` only lists the photos. With --table they come from a CSV of `path,label` instead of a folder.
Its paths are links to a thousand drawings, so that a million of them are made quickly (use `read`:
`fit` would report duplicates). --photos uses an existing folder instead. The drawings stay in
--folder for the next call. The output of the command is removed, unless --keep is set.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from machine import format_header
from PIL import Image

CLASSES = 5
# Distinct drawings that the rows of a table link to.
TABLE_ORIGINALS = 1000
# Width and height of a drawing in pixels.
DRAWING_SIZE = 64
SAMPLE_INTERVAL_SECONDS = 0.05
FIRST_STAGE = "start-up"
MEMORY_FIELDS = ("RssAnon", "RssFile", "VmHWM")


def draw_photos(folder: Path, number: int) -> Path:
    """Draw `number` photos into class folders, unless the folder exists.

    They are smooth colour fields of random brightness and contrast.
    """
    target = folder / f"{number}-drawings"
    if target.exists():
        return target
    partial, rng = folder / f".{number}-half", np.random.default_rng(number)
    shutil.rmtree(partial, ignore_errors=True)
    for name in range(CLASSES):
        (partial / f"class-{name}").mkdir(parents=True)
    for index in range(number):
        name = index % CLASSES
        cells, low = rng.integers(2, 7), rng.integers(0, 160, 3)
        field = rng.integers(low, low + rng.integers(20, 96, 3), (cells, cells, 3), np.uint8)
        # A tint per class, so that training has something to learn.
        field[..., name % 3] //= 2
        picture = Image.fromarray(field).resize((DRAWING_SIZE, DRAWING_SIZE), Image.Resampling.BICUBIC)
        picture.save(partial / f"class-{name}" / f"{index:07}.jpg", quality=80)
    partial.rename(target)
    return target


def write_table(folder: Path, number: int) -> Path:
    """Write a CSV with `number` rows, each the path of a link to a drawing."""
    file = folder / f"{number}-links" / "photos.csv"
    if file.exists():
        return file
    originals = sorted(draw_photos(folder, TABLE_ORIGINALS).rglob("*.jpg"))
    shutil.rmtree(file.parent, ignore_errors=True)
    lines = ["path,label"]
    for index in range(number):
        if index % 10_000 == 0:
            (file.parent / f"{index // 10_000:04}").mkdir(parents=True)
        original = originals[index % len(originals)]
        path = f"{index // 10_000:04}/{index:07}.jpg"
        os.link(original, file.parent / path)
        lines.append(f"{path},{original.parent.name}")
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file


READ_SCRIPT = """
import sys
from ikebana.data import sources
from ikebana.system import progress
progress.set_reporter(progress.JsonReporter())
with progress.stage("intake", 0):
    data = sources.read(sys.argv[1])
progress.event("read", rows=data.photos.height, bytes=data.photos.estimated_size())
"""
SMALL_IMAGE_SCRIPT = """
from dataclasses import replace
from ikebana import cli, recipes
recipes.RECIPES[recipes.DEFAULT_RECIPE] = replace(recipes.RECIPES[recipes.DEFAULT_RECIPE], image_size={side})
cli.main()
"""


def build_command(options: argparse.Namespace, photos: Path, run: Path) -> list[str]:
    """Build the command to measure."""
    if options.verb == "read":
        return [sys.executable, "-c", READ_SCRIPT, str(photos)]
    verb = [sys.executable, "-m", "ikebana", options.verb, str(photos), "--json"]
    if options.verb == "audit":
        # `audit` has no such flag: it uses the image size of the recipe whose features it extracts.
        if options.image_size:
            verb[1:3] = ["-c", SMALL_IMAGE_SCRIPT.format(side=options.image_size)]
        return [*verb, "--out", str(run)]
    verb += ["--recipe", options.recipe, "--run", str(run)]
    for name in ("network", "image_size", "epochs", "batch_size"):
        if getattr(options, name):
            verb += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return verb


class MonitoredProcess:
    """A process, the stage that it reports, and its peak memory in each stage."""

    def __init__(self, arguments: list[str], environment: dict[str, str]):
        self.stage, self.note = FIRST_STAGE, ""
        self.peaks: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(MEMORY_FIELDS, 0))
        self.seconds: dict[str, float] = defaultdict(float)
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == "stage":
                self.stage = event["stage"]
            elif event["event"] == "stage_end":
                self.stage = f"after: {event['stage']}"
            elif event["event"] == "message" and event["text"].startswith("expected"):
                self.note = event["text"]
            elif event["event"] == "error":
                self.note = json.dumps(event)
            elif event["event"] == "read":
                self.note = f"{event['rows']:,} rows, {event['bytes'] / event['rows']:.0f} bytes per row in the table"

    def watch(self) -> int:
        """Sample the memory until the process ends, and return its exit status."""
        last = time.monotonic()
        while self.process.poll() is None:
            time.sleep(SAMPLE_INTERVAL_SECONDS)
            now, stage = time.monotonic(), self.stage
            self.seconds[stage] += now - last
            last = now
            for name, bytes_held in read_memory(self.process.pid).items():
                self.peaks[stage][name] = max(self.peaks[stage][name], bytes_held)
        self.listener.join()
        return self.process.returncode


def read_memory(pid: int) -> dict[str, int]:
    """Read the memory of a process in bytes; empty once the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    except OSError:
        return {}
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(values[name].split()[0]) * 1024 for name in MEMORY_FIELDS if name in values}


def measure_size(folder: Path) -> int:
    """Measure the disk usage of a folder in bytes."""
    return sum(os.lstat(file).st_blocks * 512 for file in folder.rglob("*"))


def run_and_report(options: argparse.Namespace, number: int) -> None:
    """Run the command on `number` photos, and print its time and memory."""
    photos = options.photos or (write_table if options.table else draw_photos)(options.folder, number)
    number = number or sum(1 for file in photos.rglob("*") if file.is_file())
    scratch = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        cache, run = scratch / "cache", scratch / "run"
        environment = {**os.environ, "IKEBANA_CACHE": str(cache)}
        if options.threads:
            environment["OMP_NUM_THREADS"] = str(options.threads)
        process = MonitoredProcess(build_command(options, photos, run), environment)
        status = process.watch()
        disk_usage = (
            ""
            if options.verb == "read"
            else f", cache {measure_size(cache) / 1e9:.2f} GB, run {measure_size(run) / 1e9:.2f} GB"
        )
    finally:
        if not options.keep:
            shutil.rmtree(scratch, ignore_errors=True)
    total, peak = sum(process.seconds.values()), dict.fromkeys(MEMORY_FIELDS, 0)
    print(f"{number:,} photos: {process.note}{f'  (exit status {status})' if status else ''}", flush=True)
    for stage, seconds in process.seconds.items():
        peak = {name: max(peak[name], process.peaks[stage][name]) for name in MEMORY_FIELDS}
        anon = process.peaks[stage]["RssAnon"] / 1e6
        print(f"  {stage:<24}{seconds:>8.1f} s{1000 * seconds / number:>9.3f} ms per photo{anon:>8.0f} MB")
    print(
        f"  {'all':<24}{total:>8.1f} s{1000 * total / number:>9.3f} ms per photo{peak['RssAnon'] / 1e6:>8.0f} MB "
        f"peak anonymous memory; mapped files up to {peak['RssFile'] / 1e6:.0f} MB{disk_usage}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", default="10000,200000")
    parser.add_argument("--verb", choices=("fit", "audit", "read"), default="fit")
    parser.add_argument("--recipe", default="quick")
    for name in ("image_size", "epochs", "batch_size", "threads"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--network")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    print(format_header("torch", "numpy", "polars", "scikit-learn"), flush=True)
    print(" ".join(sys.argv[1:]), flush=True)
    has_folder = options.folder is not None
    options.folder = options.folder if has_folder else Path(tempfile.mkdtemp())
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        for number in [0] if options.photos else map(int, options.numbers.split(",")):
            run_and_report(options, number)
    finally:
        if not has_folder:
            shutil.rmtree(options.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
