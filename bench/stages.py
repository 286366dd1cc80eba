"""Measure the time of each stage of `fit` and `export`, and compare with hardware limits.

    python bench/stages.py --photos DIR [--recipes quick,good,baseline,augmented] [--epochs 1] [--rounds 1] [--no-export]

Each recipe is fitted in a process with an empty cache, then exported. Three lower bounds of the
time are measured on the same machine: the arithmetic of a stage at the speed of large matrix
products; writing and reading the layer outputs once in memory, which the processor's cache may
avoid; and for reading, decoding the same files with libjpeg-turbo alone. --epochs shortens the
recipes that train for many epochs. Their training step and validation are also timed separately.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from machine import format_header, format_spread, synchronize
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ikebana import recipes
from ikebana.learning import estimate, scoring
from ikebana.learning.device import DTYPES, DeviceSettings
from ikebana.learning.examples import PhotoExamples, make_unlabelled
from ikebana.learning.fast import fused_inference
from ikebana.learning.models import layer_table, networks
from ikebana.learning.models.assembly import assemble
from ikebana.learning.training import loop
from ikebana.recipe import GradientMethod, Recipe, recipe_from_json
from ikebana.system import progress
from ikebana.system.threads import count_threads

CPU_MATRIX_ROWS, GPU_MATRIX_ROWS = 2048, 8192
CPU_COPY_BYTES, GPU_COPY_BYTES = 2**28, 2**31
TIMED_BATCHES = 8
JPEG_FILES = 1000


@dataclass(frozen=True)
class Limits:
    """The measured limits of this machine.

    `flops` has operations per second for each number format, `memory` bytes read or written per
    second, `jpegs` photos decoded per second.
    """

    flops: dict[str, float]
    memory: float
    jpegs: float

    def __str__(self) -> str:
        formats = ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in self.flops.items())
        return f"limits: {formats}, memory {self.memory / 1e9:.1f} GB/s, libjpeg-turbo {self.jpegs:.0f} photos/s"


@dataclass(frozen=True)
class Work:
    """Arithmetic and memory traffic per photo.

    `bytes` is that of the layer outputs, written and read once, 4 bytes each.
    """

    operations: float
    bytes: float

    def limit(self, limits: Limits, number_format: str) -> np.ndarray:
        """Seconds a photo, of arithmetic and of memory."""
        size = torch.finfo(DTYPES[number_format]).bits / 32
        return np.array([self.operations / limits.flops[number_format], self.bytes * size / limits.memory])


def measure_limits(settings: DeviceSettings, photos: Path) -> Limits:
    """Measure the limits with the number of threads that a run would use."""
    flops, device = {}, settings.device
    rows, copied = (GPU_MATRIX_ROWS, GPU_COPY_BYTES) if device == "cuda" else (CPU_MATRIX_ROWS, CPU_COPY_BYTES)
    for name, dtype in DTYPES.items():
        matrix = torch.randn(rows, rows, device=device).to(dtype)
        flops[name] = 2 * rows**3 / _measure_best_seconds(lambda matrix=matrix: (matrix @ matrix, synchronize(device)))
    source = torch.ones(copied // 4, device=device)
    target = torch.empty_like(source)
    memory = 2 * copied / _measure_best_seconds(lambda: (target.copy_(source), synchronize(device)))
    return Limits(flops, memory, _measure_jpeg_rate(photos))


def _measure_jpeg_rate(photos: Path) -> float:
    """Measure photos per second that libjpeg-turbo decodes from memory, at ikebana's scale."""
    files = sorted(photos.glob("*/*.jp*g"))[:: max(1, len(list(photos.glob("*/*.jp*g"))) // JPEG_FILES)]
    stored = [file.read_bytes() for file in files]

    def decode(data: bytes) -> None:
        with Image.open(io.BytesIO(data)) as image:
            image.draft(None, (2 * 224, 2 * 224))  # pyright: ignore[reportArgumentType]
            image.load()

    with ThreadPoolExecutor(count_threads()) as pool:
        return len(stored) / _measure_best_seconds(lambda: list(pool.map(decode, stored)), 3)


def _measure_best_seconds(work: Callable[[], object], times: int = 8) -> float:
    """Measure the seconds of the fastest call, after one warm-up call."""
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def estimate_inference(network: nn.Module, side: int) -> Work:
    """Estimate the work of a forward pass, flip TTA included."""
    activation_bytes = (1 + _uses_flip_tta(network)) * layer_table.estimate_activation_bytes(
        layer_table.summarise_layers(network, side), 1, 4
    )
    return Work(_count_operations(network, side)[0], 2.0 * activation_bytes)


def estimate_training(network: nn.Module, recipe: Recipe) -> Work:
    """Estimate the work of a training step: the backward pass costs twice the forward pass."""
    forward, trained = (
        count / (1 + _uses_flip_tta(network)) for count in _count_operations(network, recipe.image_size)
    )
    table = layer_table.summarise_layers(network, recipe.image_size)
    activation_bytes = layer_table.estimate_activation_bytes(table, 1, 4)
    saved_bytes = layer_table.estimate_activation_bytes(layer_table.skip_frozen_layers(table), 1, 4)
    return Work(forward + 2 * trained, 2.0 * activation_bytes + 4.0 * saved_bytes)


def _uses_flip_tta(network: nn.Module) -> bool:
    """Return whether inference averages each photo with its horizontal flip."""
    return any(getattr(module, "flip_tta", False) for module in network.modules())


def _count_operations(network: nn.Module, side: int) -> tuple[float, float]:
    """Count the operations of a forward pass: all, and those of trained layers.

    The backward pass is not counted, because FlopCounterMode overestimates it many times for
    depthwise convolutions.
    """
    photo = torch.zeros((1, 3, side, side), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(photo)
    counts = counter.get_flop_counts()
    trained_names = {
        name
        for name, layer in network.named_modules()
        if any(weight.requires_grad for weight in layer.parameters(recurse=False))
    }
    top = type(network).__name__
    trained = sum(
        sum(layer.values()) for name, layer in counts.items() if name.removeprefix(f"{top}.") in trained_names
    )
    return float(counter.get_total_flops()), float(trained)


@dataclass(frozen=True)
class Row:
    """A row of the table. `limit` has the seconds of arithmetic and of memory."""

    stage: str
    seconds: float
    limit: np.ndarray | None = None
    note: str = ""


def run_fit(photos: Path, recipe: str, epochs: int | None, scratch: Path, export: bool) -> tuple[list[Row], Path]:
    """Run `ikebana fit` with an empty cache, and optionally `ikebana export`."""
    run, cache = scratch / "run", scratch / "cache"
    command = [sys.executable, "-m", "ikebana", "fit", str(photos), "--recipe", recipe, "--run", str(run), "--json"]
    command += ["--epochs", str(epochs)] if epochs else []
    environment = {**os.environ, "IKEBANA_CACHE": str(cache)}
    start, done = time.perf_counter(), 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "done":
                done = time.perf_counter() - start
    total = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"ikebana fit ended with status {process.returncode}")
    stages = json.loads((run / "evaluation.json").read_text("utf-8"))["seconds"]
    rows = [Row("start-up", done - sum(stages.values()))]
    rows += [Row(name, seconds) for name, seconds in stages.items()]
    rows.append(Row("exit", total - done))
    if export:
        start = time.perf_counter()
        command = [sys.executable, "-m", "ikebana", "export", str(run), str(scratch / "model.onnx")]
        subprocess.run(command, check=True, capture_output=True, env=environment)
        rows.append(Row("export", time.perf_counter() - start, note="a process of its own, all test photos included"))
    return rows, run


def add_limits(rows: list[Row], run: Path, limits: Limits, settings: DeviceSettings) -> list[Row]:
    """Add the lower bound of each stage that has one."""
    recipe = recipe_from_json(json.loads((run / "recipe.json").read_text("utf-8")))
    table = _split_counts(run)
    train, held_out = table["train"], table["validation"] + table["test"]
    network = networks.build_network(recipe, len(json.loads((run / "source.json").read_text("utf-8"))["classes"]))
    inference = estimate_inference(network, recipe.image_size)
    fast, exact = (inference.limit(limits, name) for name in (settings.precision, "float32"))
    best = {"read": np.array([(train + held_out) / limits.jpegs, 0.0])}
    if recipe.caches_features:
        best["features"] = train * fast + held_out * exact
    else:
        best["score"] = held_out * exact
        if recipe.fits_linear_probe:
            backbone = network.get_submodule("backbone")
            best["features"] = (train + table["validation"]) * estimate_inference(backbone, recipe.image_size).limit(
                limits, settings.precision
            )
    return [replace(row, limit=best.get(row.stage)) for row in rows]


def _split_counts(run: Path) -> dict[str, int]:
    import polars as pl

    counts = pl.read_parquet(run / "dataset.parquet")["split"].value_counts()
    return {name: count for name, count in counts.iter_rows() if name}


def time_training(recipe: Recipe, classes: int, limits: Limits, settings: DeviceSettings) -> list[Row]:
    """Time a training step and inference on validation photos separately, per photo."""
    rng = np.random.default_rng(0)
    count = max(recipe.gradient_method.batch_size, settings.inference_batch_size)
    photos = make_unlabelled(
        rng.integers(0, 256, (count, recipe.image_size, recipe.image_size, 3), np.uint8), np.arange(count)
    )
    network = networks.build_network(recipe, classes)
    step_seconds = min(
        loop.measure_seconds_per_photo(network, recipe, classes, settings) for _ in range(TIMED_BATCHES // 2)
    )
    step_limit = estimate_training(network, recipe).limit(limits, settings.precision)
    rows = [Row("step", step_seconds, step_limit, "a photo, augmentation included")]
    for name, precision in (("validation", settings.precision), ("score", "float32")):
        rows.append(_time_inference(name, network, photos, replace(settings, precision=precision), recipe, limits))
    return rows


def _time_inference(
    name: str, network: nn.Module, photos: PhotoExamples, settings: DeviceSettings, recipe: Recipe, limits: Limits
) -> Row:
    fused = fused_inference.optimise_for_inference(network, photos)
    seconds = _measure_best_seconds(lambda: scoring.compute_logits(fused, photos, settings), TIMED_BATCHES) / len(
        photos
    )
    return Row(
        name,
        seconds,
        estimate_inference(network, recipe.image_size).limit(limits, settings.precision),
        f"a photo, {settings.precision}",
    )


def print_table(title: str, rows: list[Row], unit: float = 1.0, unit_name: str = "s") -> None:
    """Print the table of a recipe."""
    total = sum(row.seconds for row in rows)
    print(
        f"\n{title}\n  {'stage':<12}{unit_name:>8}{'share':>7}{'arithmetic':>12}{'of it':>7}{'memory':>8}", flush=True
    )
    for row in rows:
        best = f"{'':>27}"
        if row.limit is not None:
            arithmetic, memory = row.limit / unit
            best = f"{arithmetic:>12.2f}{arithmetic * unit / row.seconds:>7.0%}" + (
                f"{memory:>8.2f}" if memory else f"{'':>8}"
            )
        share = f"{row.seconds / total:>7.0%}" if unit == 1.0 else f"{'':>7}"
        print(f"  {row.stage:<12}{row.seconds / unit:>8.2f}{share}{best}  {row.note}".rstrip(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--recipes", default="quick,good,baseline,augmented")
    parser.add_argument("--epochs", type=int, default=1, help="of the recipes that train for more; 0: all of theirs")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--no-export", action="store_true")
    options = parser.parse_args()
    progress.set_reporter(progress.SilentReporter())
    print(format_header("torch", "timm", "numpy", "pillow", "onnxruntime"), flush=True)
    for name in options.recipes.split(","):
        recipe = networks.fill_defaults(recipes.get_recipe(name))
        settings = estimate.configure_device(assemble(recipe, 5))
        limits = measure_limits(settings, options.photos)
        print(f"\n{name}: {settings.precision} ({settings.reasons['precision']})\n{limits}", flush=True)
        all_epochs = recipe.method.epochs if isinstance(recipe.method, GradientMethod) else 1
        epochs = options.epochs if all_epochs > 1 else None
        totals = []
        for number in range(options.rounds):
            with tempfile.TemporaryDirectory() as scratch:
                rows, run = run_fit(options.photos, name, epochs or None, Path(scratch), not options.no_export)
                rows = add_limits(rows, run, limits, settings)
            totals.append(sum(row.seconds for row in rows if row.stage != "export"))
            print_table(
                f"{name}, cold, round {number + 1}" + (f", {epochs} of its {all_epochs} epochs" if epochs else ""),
                rows,
            )
        print(f"{name}, cold: {format_spread(totals, 1)} s, n = {len(totals)}")
        if all_epochs > 1 and not recipe.caches_features:
            print_table(f"{name}, within", time_training(recipe, 5, limits, settings), 1e-3, "ms")


if __name__ == "__main__":
    main()
