"""Where the time of `fit` and `export` goes, stage by stage, and how near each stage comes to what this machine could do at best.

    python bench/stages.py --photos DIR [--recipes quick,good,baseline,augmented] [--epochs 1] [--rounds 1] [--no-export]

Each recipe is fitted as a stranger would, in a process with an empty cache, then exported. Beside a stage stands the time its
arithmetic would take as products of large matrices, and the time that its layers' outputs would take to be written to
memory and read again once each, which a processor's cache may spare; for reading, the time that libjpeg-turbo alone needs to
decode the same files. All of these are measured on the spot. --epochs shortens the recipes that train for long; their step and
validation are timed by themselves too.
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

SQUARE, ON_CUDA = 2048, 8192  # rows of the matrices whose product is the limit of arithmetic
COPIED, IN_CUDA = 2**28, 2**31  # bytes that are copied to find the limit of memory
BATCHES = 8  # that a step and a look are timed for
FILES = 1000  # photos that libjpeg-turbo is timed with


@dataclass(frozen=True)
class Limits:
    """What this machine does at best."""

    flops: dict[str, float]  # operations a second, for each number format
    memory: float  # bytes a second, read or written
    jpegs: float  # photos a second, decoded and nothing else

    def __str__(self) -> str:
        formats = ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in self.flops.items())
        return f"limits: {formats}, memory {self.memory / 1e9:.1f} GB/s, libjpeg-turbo {self.jpegs:.0f} photos/s"


@dataclass(frozen=True)
class Work:
    """What one photo costs."""

    operations: float
    bytes: float  # of the layers' outputs, written and read once, 4 bytes each

    def limit(self, limits: Limits, number_format: str) -> np.ndarray:
        """Seconds a photo, of arithmetic and of memory."""
        size = torch.finfo(DTYPES[number_format]).bits / 32
        return np.array([self.operations / limits.flops[number_format], self.bytes * size / limits.memory])


def limits_of(setting: DeviceSettings, photos: Path) -> Limits:
    """Measured now, with the threads that a run would use."""
    flops, on = {}, setting.device
    rows, copied = (ON_CUDA, IN_CUDA) if on == "cuda" else (SQUARE, COPIED)
    for name, dtype in DTYPES.items():
        one = torch.randn(rows, rows, device=on).to(dtype)
        flops[name] = 2 * rows**3 / _best(lambda one=one: (one @ one, synchronize(on)))
    source = torch.ones(copied // 4, device=on)
    target = torch.empty_like(source)
    memory = 2 * copied / _best(lambda: (target.copy_(source), synchronize(on)))
    return Limits(flops, memory, _jpegs(photos))


def _jpegs(photos: Path) -> float:
    """Decoded by Pillow's own load, which is libjpeg-turbo's, at the scale that ours would take; from memory."""
    files = sorted(photos.glob("*/*.jp*g"))[:: max(1, len(list(photos.glob("*/*.jp*g"))) // FILES)]
    stored = [file.read_bytes() for file in files]

    def decode(data: bytes) -> None:
        with Image.open(io.BytesIO(data)) as image:
            image.draft(None, (2 * 224, 2 * 224))  # pyright: ignore[reportArgumentType]
            image.load()

    with ThreadPoolExecutor(count_threads()) as pool:
        return len(stored) / _best(lambda: list(pool.map(decode, stored)), 3)


def _best(work: Callable[[], object], times: int = 8) -> float:
    """Seconds of the fastest of some tries, the first dropped."""
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def look(network: nn.Module, side: int) -> Work:
    """One photo seen by a network, and its mirror image where the network looks at that too."""
    passed = (1 + _mirrored(network)) * layer_table.estimate_activation_bytes(
        layer_table.summarise_layers(network, side), 1, 4
    )
    return Work(_operations(network, side)[0], 2.0 * passed)


def step(network: nn.Module, recipe: Recipe) -> Work:
    """One photo of a training step: for each layer that learns, its arithmetic twice more on the way back."""
    forward, of_learning = (each / (1 + _mirrored(network)) for each in _operations(network, recipe.image_size))
    table = layer_table.summarise_layers(network, recipe.image_size)
    passed = layer_table.estimate_activation_bytes(table, 1, 4)
    kept_for_back = layer_table.estimate_activation_bytes(layer_table.skip_frozen_layers(table), 1, 4)
    return Work(forward + 2 * of_learning, 2.0 * passed + 4.0 * kept_for_back)


def _mirrored(network: nn.Module) -> bool:
    """Whether a photo is looked at twice outside of training."""
    return any(getattr(each, "flip_tta", False) for each in network.modules())


def _operations(network: nn.Module, side: int) -> tuple[float, float]:
    """Of one photo's way through: all, and those of layers that learn. (What the counter says of the way back of depthwise
    convolutions is many times too much.)"""
    photo = torch.zeros((1, 3, side, side), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(photo)
    counts = counter.get_flop_counts()
    learns = {
        name
        for name, layer in network.named_modules()
        if any(each.requires_grad for each in layer.parameters(recurse=False))
    }
    top = type(network).__name__
    own = sum(sum(each.values()) for name, each in counts.items() if name.removeprefix(f"{top}.") in learns)
    return float(counter.get_total_flops()), float(own)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    stage: str
    seconds: float
    limit: np.ndarray | None = None  # seconds, of arithmetic and of memory
    note: str = ""


def fitted(photos: Path, recipe: str, epochs: int | None, scratch: Path, export: bool) -> tuple[list[Row], Path]:
    """The command as a stranger gives it, from the start of the process to its end."""
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
    whole = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"ikebana fit ended with status {process.returncode}")
    stages = json.loads((run / "evaluation.json").read_text("utf-8"))["seconds"]
    rows = [Row("start-up", done - sum(stages.values()))]
    rows += [Row(name, seconds) for name, seconds in stages.items()]
    rows.append(Row("exit", whole - done))
    if export:
        start = time.perf_counter()
        command = [sys.executable, "-m", "ikebana", "export", str(run), str(scratch / "model.onnx")]
        subprocess.run(command, check=True, capture_output=True, env=environment)
        rows.append(Row("export", time.perf_counter() - start, note="a process of its own, all test photos included"))
    return rows, run


def with_limits(rows: list[Row], run: Path, limits: Limits, setting: DeviceSettings) -> list[Row]:
    """The same with what each stage would take at best, where that can be said."""
    recipe = recipe_from_json(json.loads((run / "recipe.json").read_text("utf-8")))
    table = _split_counts(run)
    train, held_out = table["train"], table["validation"] + table["test"]
    network = networks.build_network(recipe, len(json.loads((run / "source.json").read_text("utf-8"))["classes"]))
    seen = look(network, recipe.image_size)
    fast, exact = (seen.limit(limits, name) for name in (setting.precision, "float32"))
    best = {"read": np.array([(train + held_out) / limits.jpegs, 0.0])}
    if recipe.caches_features:
        best["features"] = train * fast + held_out * exact
    else:
        best["score"] = held_out * exact
        if recipe.fits_linear_probe:
            backbone = network.get_submodule("backbone")
            best["features"] = (train + table["validation"]) * look(backbone, recipe.image_size).limit(
                limits, setting.precision
            )
    return [replace(row, limit=best.get(row.stage)) for row in rows]


def _split_counts(run: Path) -> dict[str, int]:
    import polars as pl

    counted = pl.read_parquet(run / "dataset.parquet")["split"].value_counts()
    return {name: count for name, count in counted.iter_rows() if name}


def within_training(recipe: Recipe, classes: int, limits: Limits, setting: DeviceSettings) -> list[Row]:
    """A step and a look at validation photos, by themselves, a photo each."""
    dice = np.random.default_rng(0)
    count = max(recipe.gradient_method.batch_size, setting.inference_batch_size)
    photos = make_unlabelled(
        dice.integers(0, 256, (count, recipe.image_size, recipe.image_size, 3), np.uint8), np.arange(count)
    )
    network = networks.build_network(recipe, classes)
    a_step = min(loop.measure_seconds_per_photo(network, recipe, classes, setting) for _ in range(BATCHES // 2))
    of_step = step(network, recipe).limit(limits, setting.precision)
    rows = [Row("step", a_step, of_step, "a photo, augmentation included")]
    for name, form in (("validation", setting.precision), ("score", "float32")):
        rows.append(_looked(name, network, photos, replace(setting, precision=form), recipe, limits))
    return rows


def _looked(
    name: str, network: nn.Module, photos: PhotoExamples, setting: DeviceSettings, recipe: Recipe, limits: Limits
) -> Row:
    looking = fused_inference.optimise_for_inference(network, photos)
    seconds = _best(lambda: scoring.compute_logits(looking, photos, setting), BATCHES) / len(photos)
    return Row(
        name,
        seconds,
        look(network, recipe.image_size).limit(limits, setting.precision),
        f"a photo, {setting.precision}",
    )


def shown(title: str, rows: list[Row], unit: float = 1.0, word: str = "s") -> None:
    """The table of a recipe."""
    whole = sum(row.seconds for row in rows)
    print(f"\n{title}\n  {'stage':<12}{word:>8}{'share':>7}{'arithmetic':>12}{'of it':>7}{'memory':>8}", flush=True)
    for row in rows:
        best = f"{'':>27}"
        if row.limit is not None:
            arithmetic, memory = row.limit / unit
            best = f"{arithmetic:>12.2f}{arithmetic * unit / row.seconds:>7.0%}" + (
                f"{memory:>8.2f}" if memory else f"{'':>8}"
            )
        share = f"{row.seconds / whole:>7.0%}" if unit == 1.0 else f"{'':>7}"
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
        setting = estimate.configure_device(assemble(recipe, 5))
        limits = limits_of(setting, options.photos)
        print(f"\n{name}: {setting.precision} ({setting.reasons['precision']})\n{limits}", flush=True)
        all_epochs = recipe.method.epochs if isinstance(recipe.method, GradientMethod) else 1
        epochs = options.epochs if all_epochs > 1 else None
        wholes = []
        for number in range(options.rounds):
            with tempfile.TemporaryDirectory() as scratch:
                rows, run = fitted(options.photos, name, epochs or None, Path(scratch), not options.no_export)
                rows = with_limits(rows, run, limits, setting)
            wholes.append(sum(row.seconds for row in rows if row.stage != "export"))
            shown(
                f"{name}, cold, round {number + 1}" + (f", {epochs} of its {all_epochs} epochs" if epochs else ""),
                rows,
            )
        print(f"{name}, cold: {format_spread(wholes, 1)} s, n = {len(wholes)}")
        if all_epochs > 1 and not recipe.caches_features:
            shown(f"{name}, within", within_training(recipe, 5, limits, setting), 1e-3, "ms")


if __name__ == "__main__":
    main()
