"""Time the start of a warm `fit`, from the command to its first training step.

    python bench/warm_start.py --folder DIR [--photos 20000] [--image-size 128] [--rounds 3] [--drop-caches]

Draws small JPEGs of five classes below the folder (kept for the next call), fills the cache once,
and then times `fit --recipe baseline` in a process of its own, which ends at the first step. The
main stages are timed separately. `configure_device` measures the speed, and keeps the result only
if no other work competes for the processor. With --drop-caches, the cached pixels leave the page
cache of the system before each round, as if they had been written days ago.
"""

import argparse
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import format_header, format_spread
from PIL import Image

from ikebana.system import progress

CLASSES = ("daisy", "dandelion", "rose", "sunflower", "tulip")
RUN_NAME = "warm start run"
# (module, function) of each stage.
STAGES = (
    ("ikebana.data.sources", "read"),
    ("ikebana.learning.estimate", "configure_device"),
    ("ikebana.learning.estimate", "estimate_cost"),
    ("ikebana.data.pixel_cache", "get_cache_path"),
    ("ikebana.data.pixel_cache", "open_pixel_cache"),
    ("ikebana.data.duplicates.near_duplicates", "find_near_duplicates"),
    ("ikebana.data.split", "split_photos"),
    ("ikebana.runs.run_writer", "create_run"),
    ("ikebana.auditing.dataset_checks", "check_dataset"),
    ("ikebana.commands.fit", "build_split_examples"),
    ("ikebana.commands.fit", "prepare_tasks"),
)


def draw_photos(folder: Path, count: int) -> None:
    """Draw random JPEGs of 64 pixels in class folders, where they are missing."""
    for number in range(count):
        file = folder / CLASSES[number % len(CLASSES)] / f"{number:08d}.jpg"
        if file.exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        levels = np.random.default_rng(number).integers(0, 256, (6, 6, 3)).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(levels).resize((64, 64), Image.Resampling.BICUBIC).save(stream, "JPEG")
        file.write_bytes(stream.getvalue())


def fill_cache(folder: Path, image_size: int) -> float:
    """Decode the photos and search for near-duplicates; return the seconds."""
    from ikebana.learning.plan import Plan, open_photos

    start = time.perf_counter()
    plan = Plan.from_photos(folder, "baseline", image_size=image_size, epochs=1)
    open_photos(plan.dataset, plan.recipe)
    return time.perf_counter() - start


def evict_cache(folder: Path) -> None:
    """Drop the files of a folder from the system's page cache."""
    for file in folder.rglob("*.npy"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run_worker(folder: Path, image_size: int, started_at: float) -> None:
    """Run `fit` to its first step, and print seconds per stage as JSON."""
    seconds: dict[str, float] = {"imports": time.time() - started_at}
    import ikebana
    from ikebana.learning.training import loop

    seconds["imports"] = time.time() - started_at

    def measure(module: str, name: str) -> None:
        owner = importlib.import_module(module)
        work: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return work(*arguments, **options)
            finally:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

        setattr(owner, name, timed)

    for module, name in STAGES:
        measure(module, name)
    run_steps = loop._run_steps

    def stop_after_first_batch(epoch_progress: Any, *arguments: Any) -> None:
        next(iter(epoch_progress.iterate_batches()))
        seconds["total"] = time.time() - started_at
        seconds["total without configure_device"] = seconds["total"] - seconds["configure_device"]
        print(json.dumps(seconds), flush=True)
        os._exit(0)

    assert run_steps is not None
    loop._run_steps = stop_after_first_batch
    progress.set_reporter(progress.SilentReporter())
    ikebana.fit(
        folder, "baseline", image_size=image_size, epochs=1, precision="float32", run=folder.with_name(RUN_NAME)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--drop-caches", action="store_true")
    parser.add_argument("--started-at", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    photos = options.folder / f"{options.photos} photos"
    if options.started_at:
        run_worker(photos, options.image_size, options.started_at)
        return
    progress.set_reporter(progress.SilentReporter())
    print(format_header("torch", "polars", "numpy"), flush=True)
    draw_photos(photos, options.photos)
    cache = options.folder / "cache"
    os.environ["IKEBANA_CACHE"] = str(cache)
    print(
        f"{options.photos:,} photos; filling the cache took {fill_cache(photos, options.image_size):.1f} s", flush=True
    )
    rounds: list[dict[str, float]] = []
    for _ in range(options.rounds):
        if options.drop_caches:
            evict_cache(cache)
        shutil.rmtree(photos.with_name(RUN_NAME), ignore_errors=True)
        command = [sys.executable, __file__, "--folder", str(options.folder), "--photos", str(options.photos)]
        command += ["--image-size", str(options.image_size), "--started-at", str(time.time())]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rounds.append(json.loads(output.splitlines()[-1]))
    for name in rounds[0]:
        print(f"  {name:<30} {format_spread([seconds[name] for seconds in rounds])} s", flush=True)


if __name__ == "__main__":
    main()
