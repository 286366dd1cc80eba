"""Epochs as `fit` makes them, on drawn photos, on the device that there is: seconds, memory, and whether they can be repeated.

    python bench/epochs.py [--recipes good,augmented,...] [--train 2590] [--validation 863] [--epochs 3] [--again]

Only training is timed: nothing is read, no figure is drawn. Recipes that learn from kept features are timed while their network
looks at all photos. On a GPU the most memory that was taken stands beside what `fit` expects a step to take. With --again
each training is made twice, the second time it is stopped within its last epoch and gone on with: the bits must be the same.
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

import numpy as np
import torch
from machine import ended, header
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

CLASSES = 5
ROOM = 10**12  # bytes: the drawn pixels lie on a GPU in any case


def drawn(side: int, train: int, validation: int, setting: DeviceSettings) -> tuple[PhotoExamples, PhotoExamples]:
    """Noise with labels, for training and validation."""
    count = train + validation
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    rows = np.arange(count)
    held = None if setting.device == "cpu" else examples.copy_to_device(pixels, setting.device, ROOM)
    whole = PhotoExamples(pixels, rows, rows % CLASSES, rows % 2 == 0, rows, held)
    return whole.select(rows[:train]), whole.select(rows[train:])


@contextlib.contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Within this block Ctrl-C comes in the step after so many."""
    real, left = Trainer.step, [steps]

    def step(self: Trainer, inputs: Tensor, labels: Tensor, settings: DeviceSettings) -> tuple[Tensor, Tensor]:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, inputs, labels, settings)

    Trainer.step = step
    try:
        yield
    finally:
        Trainer.step = real


def timed(recipe: Recipe, chosen: argparse.Namespace) -> None:
    """Some epochs of one network, and what they took."""
    built = assemble(recipe, CLASSES, loads_weights=False)
    setting, recipe = estimate.configure_device(built), recipe.members[0]
    train, validation = drawn(recipe.image_size, chosen.train, chosen.validation, setting)
    on_gpu = setting.device == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    network, seconds = built.members[0].network, []
    stream = loop.train(network, recipe, train, validation, setting)
    for _ in range(chosen.epochs):
        begun = time.perf_counter()
        next(stream)
        ended(setting.device)
        seconds.append(time.perf_counter() - begun)
    print(
        f"{recipe.name}: {setting.precision} ({setting.reasons['precision']}); "
        f"epochs of {', '.join(f'{each:.2f}' for each in seconds)} s, validation included",
        flush=True,
    )
    if on_gpu:
        expected = estimate._estimate_step_memory(recipe.gradient_method.batch_size, built, setting)
        taken = torch.cuda.max_memory_allocated() - before
        print(f"  at most {taken / 1e9:.2f} GB beside the pixels, expected {expected / 1e9:.2f}", flush=True)


def repeated(recipe: Recipe, chosen: argparse.Namespace) -> None:
    """Two epochs without a stop, and the same stopped within the second."""
    setting = estimate.configure_device(assemble(recipe, CLASSES, loads_weights=False))
    short = with_options(recipe.members[0], epochs=2)
    train, validation = drawn(short.image_size, chosen.train, chosen.validation, setting)
    steps = plan_phases(short)[-1].last_epoch * -(-chosen.train // short.gradient_method.batch_size) - 2

    def learned(kept: Path | None) -> list[Tensor]:
        network: nn.Module = networks.get_members(networks.build_network(short, CLASSES))[0]
        for _ in loop.train(network, short, train, validation, setting, kept):
            pass
        return [value.cpu() for value in network.state_dict().values()]

    usual = loop.MIN_CHECKPOINT_INTERVAL_SECONDS, loop.MAX_CHECKPOINT_TIME_FRACTION
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "checkpoint.safetensors"
        # Kept after each step: what raises here is no signal, for which a training would be kept before it ends.
        loop.MIN_CHECKPOINT_INTERVAL_SECONDS, loop.MAX_CHECKPOINT_TIME_FRACTION = 0.0, 1e9
        with stopped_after(steps), contextlib.suppress(KeyboardInterrupt):
            learned(kept)
        loop.MIN_CHECKPOINT_INTERVAL_SECONDS, loop.MAX_CHECKPOINT_TIME_FRACTION = usual
        same = all(torch.equal(one, other) for one, other in zip(learned(None), learned(kept), strict=True))
    print(f"  stopped and gone on with: {'the same bits' if same else 'OTHER BITS'}", flush=True)


def looked(recipe: Recipe, chosen: argparse.Namespace) -> None:
    """A frozen network looks at all photos once."""
    built = assemble(recipe, CLASSES, loads_weights=False)
    found = estimate.configure_device(built)
    for number_format in ("float32", "bfloat16"):
        setting = replace(found, precision=number_format)
        photos, _ = drawn(recipe.image_size, chosen.train + chosen.validation, 0, setting)
        backbone = copy.deepcopy(built.members[0].backbone)
        begun = time.perf_counter()
        feature_cache.extract_features(
            backbone, feature_cache.FeatureKey("drawn", recipe.network, f"{number_format} {begun}"), photos, setting
        )
        seconds = time.perf_counter() - begun
        print(
            f"{recipe.name}: features in {number_format}, {len(photos) / seconds:.0f} photos/s, {seconds:.2f} s",
            flush=True,
        )


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--recipes", default="quick,good,augmented,baseline,finetuned,best")
    flags.add_argument("--train", type=int, default=2590)
    flags.add_argument("--validation", type=int, default=863)
    flags.add_argument("--epochs", type=int, default=3)
    flags.add_argument("--again", action="store_true")
    chosen = flags.parse_args()
    progress.set_reporter(progress.SilentReporter())
    warned: Counter[str] = Counter()
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, *_, **__: warned.update([str(message)])
    print(header("torch", "timm"), torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["IKEBANA_CACHE"] = cache
        for name in chosen.recipes.split(","):
            # Random weights: InceptionV3's are not a package's.
            recipe = networks.fill_defaults(
                recipes.get_recipe(name, **({"truncate_at": "mixed8"} if name == "finetuned" else {}))
            )
            if isinstance(recipe.method, FineTune):  # the last phase is timed, not that of the head alone
                recipe = with_options(recipe, head_epochs=0)
            if recipe.caches_features:
                looked(recipe, chosen)
                continue
            timed(recipe, chosen)
            if chosen.again:
                repeated(recipe, chosen)
    for message, times in warned.items():
        print(f"warned {times} times: {message}", flush=True)


if __name__ == "__main__":
    main()
