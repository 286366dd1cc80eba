"""Hash everything that training computes, to prove that a refactoring changes no bit.

    python bench/golden.py --out before.json            # before a change
    python bench/golden.py --against before.json        # after it: exits 1 if anything differs

Every recipe is trained in float32 on small drawn photos, which takes a few minutes in total. The
bits depend on the processor, its number of threads and the libraries. The file is therefore only
valid on the machine that wrote it, and is never committed. Weights are hashed by value, shape and
type, not by name, so they may be renamed.

The hashes cover:
  - weights and predictions of each recipe, of runs that were interrupted within an epoch and
    resumed, and of a run that was refitted on all photos
  - the features that `quick` caches
  - the predictions of exported files for new photos
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from machine import format_header
from safetensors.torch import load_file, save_file

import ikebana
from ikebana.demo_data import paper_flowers
from ikebana.learning.training import loop
from ikebana.learning.training.trainer import Trainer
from ikebana.runs.run import Run

PHOTOS_PER_KIND = 12
COMMON: dict[str, Any] = {"precision": "float32"}
OPTIONS: dict[str, dict[str, Any]] = {
    "baseline": {"image_size": 48, "batch_size": 16, "epochs": 3},
    "augmented": {"image_size": 48, "batch_size": 16, "epochs": 3},
    "features": {"image_size": 75, "batch_size": 16, "epochs": 3, "truncate_at": "mixed0"},
    "frozen": {"image_size": 75, "batch_size": 16, "epochs": 2, "truncate_at": "mixed0"},
    "finetuned": {"image_size": 75, "batch_size": 16, "epochs": 2, "truncate_at": "mixed0"},
    "quick": {"image_size": 96},
    "good": {"image_size": 64, "batch_size": 16, "epochs": 2},
    "best": {"image_size": 64, "batch_size": 16, "epochs": 1},
}
INCEPTION_RECIPES = ("features", "frozen", "finetuned")
INTERRUPTED_RECIPES = ("augmented", "finetuned", "good")
STEPS_BEFORE_INTERRUPT = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the file to write")
    parser.add_argument("--against", type=Path, help="a file that --out wrote on this machine")
    options = parser.parse_args()
    print(format_header("torch", "timm", "numpy", "pillow"), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        hashes = compute_hashes(Path(scratch))
    if options.out is not None:
        options.out.write_text(json.dumps(hashes, indent=1) + "\n", "utf-8")
    if options.against is not None:
        compare(json.loads(options.against.read_text("utf-8")), hashes)


def compare(before: dict[str, str], after: dict[str, str]) -> None:
    """Print what differs, and exit with status 1 if anything does."""
    different = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    for name in sorted(different):
        print(f"{name}: was {before.get(name, 'missing')[:12]}, is {after.get(name, 'missing')[:12]}")
    print(f"{len(before.keys() & after.keys()) - len(different)} of {len(before)} hashes are equal")
    sys.exit(1 if different else 0)


def compute_hashes(scratch: Path) -> dict[str, str]:
    os.environ["IKEBANA_CACHE"] = str(scratch / "cache")
    paper_flowers.draw_collection(scratch / "photos", photos_per_kind=PHOTOS_PER_KIND)
    paper_flowers.draw_new(scratch / "new", photos_per_kind=2)
    inception_weights = draw_inception_weights(scratch / "inception.safetensors")
    hashes: dict[str, str] = {}

    def record(name: str, run: Run) -> None:
        hashes[f"{name} weights"] = hash_arrays(tensor.numpy() for tensor in load_file(run.weights).values())
        hashes[f"{name} predictions"] = hash_arrays([get_probabilities(run)])
        print(f"{name}: {hashes[f'{name} weights'][:12]}", flush=True)

    runs = {}
    for recipe, small_options in OPTIONS.items():
        options = COMMON | small_options
        if recipe in INCEPTION_RECIPES:
            options["weights"] = str(inception_weights)
        fit = partial(ikebana.fit, scratch / "photos", recipe, **options)
        runs[recipe] = run_quietly(fit, run=scratch / recipe)
        record(recipe, runs[recipe])
        if recipe in INTERRUPTED_RECIPES:
            with interrupt_after(STEPS_BEFORE_INTERRUPT):
                run_quietly(fit, run=scratch / f"{recipe}-resumed")
            record(f"{recipe} resumed", run_quietly(ikebana.resume, scratch / f"{recipe}-resumed"))
    options = COMMON | OPTIONS["baseline"] | {"refit_on_all": True}
    record("all", run_quietly(ikebana.fit, scratch / "photos", "baseline", run=scratch / "all", **options))
    feature_files = sorted((scratch / "cache" / "features").glob("*/features.npy"))
    hashes["features"] = hash_arrays(np.load(file) for file in feature_files)
    for recipe in ("baseline", "good"):
        classifier = run_quietly(ikebana.export, runs[recipe], scratch / f"{recipe}.onnx")
        predictions = [classifier.predict(photo) for photo in sorted((scratch / "new").glob("*.*"))]
        hashes[f"{recipe} exported"] = hash_arrays([np.array([list(p.probabilities.values()) for p in predictions])])
    return hashes


def draw_inception_weights(file: Path) -> Path:
    """Random weights for InceptionV3, since no package has them."""
    torch.manual_seed(0)
    save_file(timm.create_model("inception_v3", pretrained=False).state_dict(), file)
    return file


def get_probabilities(run: Run) -> np.ndarray:
    return run.predictions.select(f"p:{name}" for name in run.classes).to_numpy()


def hash_arrays(arrays: Iterable[np.ndarray]) -> str:
    """Hash arrays independently of their order and names."""
    digests = sorted(hash_array(array) for array in arrays)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def hash_array(array: np.ndarray) -> str:
    header = f"{array.dtype} {array.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


def run_quietly(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call `work` without showing its progress bars. Show its output if it fails."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stream, redirect_stderr(stream):
        try:
            return work(*arguments, **options)
        except Exception:
            stream.seek(0)
            sys.stdout.write(stream.read())
            raise


class StepLimitReached(KeyboardInterrupt):
    """Interrupts training as Ctrl-C does, but is distinct from a Ctrl-C of the user."""


@contextmanager
def interrupt_after(steps: int) -> Iterator[None]:
    """Raise KeyboardInterrupt after `steps` training steps, with a checkpoint after every step."""
    step, intervals, steps_run = (
        Trainer.step,
        (loop.MIN_CHECKPOINT_INTERVAL_SECONDS, loop.MAX_CHECKPOINT_TIME_FRACTION),
        0,
    )

    def interrupted_step(*arguments: Any) -> Any:
        nonlocal steps_run
        if steps_run == steps:
            raise StepLimitReached
        steps_run += 1
        return step(*arguments)

    setattr(Trainer, "step", interrupted_step)  # noqa: B010
    loop.MIN_CHECKPOINT_INTERVAL_SECONDS, loop.MAX_CHECKPOINT_TIME_FRACTION = 0, 1e9
    try:
        yield
    except StepLimitReached:
        # The training ended as intended. Any other exception is an error.
        pass
    else:
        raise AssertionError(f"training ended within {steps} steps")
    finally:
        Trainer.step = step
        loop.MIN_CHECKPOINT_INTERVAL_SECONDS, loop.MAX_CHECKPOINT_TIME_FRACTION = intervals


if __name__ == "__main__":
    main()
