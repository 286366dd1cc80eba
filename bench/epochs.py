"""Measure time, memory and reproducibility of training epochs on random photos.

    python bench/epochs.py [--recipes good,augmented,...] [--train 2590] [--validation 863] [--epochs 3] [--again]

Uses the device that `fit` would choose. Only training is timed: no photos are read and no figures
are drawn. For recipes that train on cached features, feature extraction is timed. On a GPU, the
peak memory is printed beside the estimate of `fit` for one step. With --again, every recipe is
trained twice: the second training is interrupted in its last epoch and resumed. The weights must be
bit-identical.
"""

import argparse
import contextlib
import copy
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import format_header, synchronize
from torch import Tensor, nn

from ikebana import recipes
from ikebana.learning import estimate, examples
from ikebana.learning.device import DeviceSettings
from ikebana.learning.examples import PhotoExamples
from ikebana.learning.features import feature_cache
from ikebana.learning.models import networks
from ikebana.learning.models.assembly import assemble
from ikebana.learning.training import loop
from ikebana.learning.training.trainer import Trainer, plan_phases
from ikebana.recipe import FineTune, Recipe, with_options
from ikebana.system import progress
from ikebana.system.contention import avoid_spinning

CLASSES = 5
# Large enough that the random pixels are always copied to the GPU.
GPU_MEMORY_BYTES = 10**12


def draw_examples(
    side: int, train: int, validation: int, settings: DeviceSettings
) -> tuple[PhotoExamples, PhotoExamples]:
    """Draw labelled noise images for training and validation."""
    count = train + validation
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    rows = np.arange(count)
    gpu_pixels = (
        None if settings.device == "cpu" else examples.copy_to_device(pixels, settings.device, GPU_MEMORY_BYTES)
    )
    photos = PhotoExamples(pixels, rows, rows % CLASSES, rows % 2 == 0, rows, gpu_pixels)
    return photos.select(rows[:train]), photos.select(rows[train:])


@contextlib.contextmanager
def interrupt_after(steps: int) -> Iterator[None]:
    """Raise KeyboardInterrupt in the training step after `steps` steps."""
    original, steps_left = Trainer.step, [steps]

    def step(self: Trainer, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        if not steps_left[0]:
            raise KeyboardInterrupt
        steps_left[0] -= 1
        return original(self, *arguments, **options)

    Trainer.step = step
    try:
        yield
    finally:
        Trainer.step = original


def measure_epochs(recipe: Recipe, options: argparse.Namespace) -> None:
    """Train for some epochs, and print their times and the peak GPU memory."""
    assembled = assemble(recipe, CLASSES, loads_weights=False)
    settings, recipe = estimate.configure_device(assembled), recipe.members[0]
    train, validation = draw_examples(recipe.image_size, options.train, options.validation, settings)
    on_gpu = settings.device == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    network, seconds = assembled.members[0].network, []
    stream = loop.train(network, recipe, train, validation, settings)
    for _ in range(options.epochs):
        start = time.perf_counter()
        next(stream)
        synchronize(settings.device)
        seconds.append(time.perf_counter() - start)
    print(
        f"{recipe.name}: {settings.precision} ({settings.reasons['precision']}); "
        f"epochs of {', '.join(f'{duration:.2f}' for duration in seconds)} s, validation included",
        flush=True,
    )
    if on_gpu:
        expected = estimate._estimate_step_memory(recipe.gradient_method.batch_size, assembled, settings)
        peak_bytes = torch.cuda.max_memory_allocated() - before
        print(f"  peak {peak_bytes / 1e9:.2f} GB without the pixels, estimated {expected / 1e9:.2f} GB", flush=True)


def check_resume(recipe: Recipe, options: argparse.Namespace) -> None:
    """Compare two uninterrupted epochs with two that are interrupted and resumed."""
    settings = estimate.configure_device(assemble(recipe, CLASSES, loads_weights=False))
    short = with_options(recipe.members[0], epochs=2)
    train, validation = draw_examples(short.image_size, options.train, options.validation, settings)
    steps = plan_phases(short)[-1].last_epoch * -(-options.train // short.gradient_method.batch_size) - 2

    def train_weights(checkpoint: Path | None) -> list[Tensor]:
        network: nn.Module = networks.get_members(networks.build_network(short, CLASSES))[0]
        for _ in loop.train(network, short, train, validation, settings, checkpoint):
            pass
        return [value.cpu() for value in network.state_dict().values()]

    intervals = loop.MIN_CHECKPOINT_INTERVAL_SECONDS, loop.MAX_CHECKPOINT_TIME_FRACTION
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.safetensors"
        # Write a checkpoint after every step: training saves one on a signal, but not on the
        # exception that this script raises.
        loop.MIN_CHECKPOINT_INTERVAL_SECONDS, loop.MAX_CHECKPOINT_TIME_FRACTION = 0.0, 1e9
        with interrupt_after(steps), contextlib.suppress(KeyboardInterrupt):
            train_weights(checkpoint)
        loop.MIN_CHECKPOINT_INTERVAL_SECONDS, loop.MAX_CHECKPOINT_TIME_FRACTION = intervals
        is_equal = all(
            torch.equal(first, second)
            for first, second in zip(train_weights(None), train_weights(checkpoint), strict=True)
        )
    print(f"  interrupted and resumed: {'bit-identical' if is_equal else 'DIFFERENT'}", flush=True)


def measure_features(recipe: Recipe, options: argparse.Namespace) -> None:
    """Time feature extraction with the frozen backbone in both precisions."""
    assembled = assemble(recipe, CLASSES, loads_weights=False)
    default_settings = estimate.configure_device(assembled)
    for number_format in ("float32", "bfloat16"):
        settings = replace(default_settings, precision=number_format)
        photos, _ = draw_examples(recipe.image_size, options.train + options.validation, 0, settings)
        backbone = copy.deepcopy(assembled.members[0].backbone)
        start = time.perf_counter()
        feature_cache.extract_features(
            backbone, feature_cache.FeatureKey("drawn", recipe.network, f"{number_format} {start}"), photos, settings
        )
        seconds = time.perf_counter() - start
        print(
            f"{recipe.name}: features in {number_format}, {len(photos) / seconds:.0f} photos/s, {seconds:.2f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="quick,good,augmented,baseline,finetuned,best")
    parser.add_argument("--train", type=int, default=2590)
    parser.add_argument("--validation", type=int, default=863)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    progress.set_reporter(progress.SilentReporter())
    warning_counts: Counter[str] = Counter()
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, *_, **__: warning_counts.update([str(message)])
    print(
        format_header("torch", "timm"),
        torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as cache, avoid_spinning():
        os.environ["IKEBANA_CACHE"] = cache
        for name in options.recipes.split(","):
            # InceptionV3 has random weights: no package provides pretrained ones.
            recipe = networks.fill_defaults(
                recipes.get_recipe(name, **({"truncate_at": "mixed8"} if name == "finetuned" else {}))
            )
            # Time the last phase, not the one that trains the head alone.
            if isinstance(recipe.method, FineTune):
                recipe = with_options(recipe, head_epochs=0)
            if recipe.caches_features:
                measure_features(recipe, options)
                continue
            measure_epochs(recipe, options)
            if options.again:
                check_resume(recipe, options)
    for message, count in warning_counts.items():
        print(f"warning, {count} times: {message}", flush=True)


if __name__ == "__main__":
    main()
