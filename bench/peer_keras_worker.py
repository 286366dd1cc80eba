"""Run one contestant of `peer_keras.py`, which trains an epoch on request.

It reads requests from standard input and answers in JSON lines. It runs under the contestant's own
Python, so only the standard library is imported at the top.

    first answer      {"ready": true, "setup_seconds": s, "versions": {...}}
    `epoch` ->        {"epoch": n, "seconds": s, "train_loss": ., "train_accuracy": ., "val_loss": ., "val_accuracy": .}
    `test`  ->        {"test_accuracy": ..., "classes": [...], "confusion": [[...]], "seconds": s}

`seconds` of an epoch is training and validation, up to Keras' `on_epoch_end`. `cpu_seconds` is the
CPU time of the process, without waiting. The time of `fit` after that is `teardown_seconds`, not
charged to Keras: with tf.data's autotuning on (TensorFlow 2.21), dropping an iterator sometimes
sleeps until it is 2.55, 5.1, 10.2, ... s old (TensorFlow's source was not read). This affected 5 of
24 iterators and 2 of 4 `fit` calls, none without autotuning; once it was 35 s. This script calls
`fit` for each epoch, the tutorial once for all. In one `fit` of 14 epochs (a tiny network) no epoch
began late, but validation slept in 7. That is Keras as the tutorial uses it, and stays in
`seconds`. `keras_tuned` has autotuning off.

The choices of `keras_tuned` were measured on a 2-core EPYC (Zen 4, avx512_bf16, no AMX) shared with
other work, so wall and CPU time were compared, interleaved; ms for a batch of 128, 3 repeats (1 for
XLA, after its compilation):
    training step   bfloat16 1254 to 1956 (CPU 1218 to 1263), float32 2220 to 2973 (CPU 2194 to 2318),
                    XLA (jit_compile) float32 4693, bfloat16 5311                        -> mixed_bfloat16, no XLA
    augmentation    five Keras layers 550 to 621; one warp 155 to 166, uint8 as fast as float32   -> one warp, uint8
    left out        max-pool before ReLU: 1 to 4 % less, within the spread; MALLOC_MMAP_THRESHOLD_: no less CPU time
Other choices may be faster on another processor: try `--precision` and `--jit`. Without avx512_bf16
and AMX, the precision is float32.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

# Before the heavy imports, which are part of the setup.
START_TIME = time.perf_counter()
IMAGE_SIZE = 150
BATCH_SIZE = 128
# The tutorial shuffles photos in this order of classes.
TUTORIAL_ORDER = ["sunflower", "tulip", "rose", "daisy", "dandelion"]
PARTS = ("train", "validation", "test")

Photos = list[tuple[Path, str]]  # (file, class)


class Recipe(NamedTuple):
    """The tutorial's options for one of its networks."""

    epochs: int
    rate: float  # of RMSprop
    dropout: float
    augmented: bool


RECIPES = {
    "baseline": Recipe(epochs=20, rate=1e-3, dropout=0.0, augmented=False),
    "augmented": Recipe(epochs=100, rate=1e-5, dropout=0.2, augmented=True),
}


class Task(NamedTuple):
    """The input of every contestant."""

    recipe: Recipe
    photos: Path
    scratch: Path  # removed by the orchestrator, even if this process is killed
    precision: str
    jit: bool


class Contestant(NamedTuple):
    """The interface of a contestant. `next(epochs)` trains one epoch and returns the answer."""

    versions: dict[str, str]
    classes: list[str]
    epochs: Iterator[dict[str, float]]
    confusion: Callable[[], Any]  # of the test photos; rows are the truth, in the order of `classes`


def list_classes(photos: Path) -> list[str]:
    """List the class folders, in the tutorial's order for its classes, otherwise sorted."""
    names = sorted(entry.name for entry in photos.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return TUTORIAL_ORDER if names == sorted(TUTORIAL_ORDER) else names


def list_files(folder: Path) -> list[Path]:
    """List the files of one class in sorted order, without hidden files."""
    return sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))


def split_photos(photos: Path) -> dict[str, Photos]:
    """Split as the tutorial does: shuffle with seed 0, cut at 60 and 80 %.

    Its 4317 photos give 2590, 863 and 864.
    """
    pairs = [(file, label) for label in list_classes(photos) for file in list_files(photos / label)]
    random.seed(0)
    random.shuffle(pairs)
    first, second = int(0.6 * len(pairs)), int(0.8 * len(pairs))
    return dict(zip(PARTS, (pairs[:first], pairs[first:second], pairs[second:]), strict=True))


# --- Keras, both contestants -----------------------------------------------------------------------------------------


def build_keras_network(task: Task, classes: int, *, pixels: str) -> Any:
    """Build and compile the tutorial's network.

    With `pixels` "uint8" it rescales. With "float32" the generator has done so.
    """
    import keras

    layers = keras.layers
    network = [keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=pixels)]
    if pixels == "uint8":
        network.append(layers.Rescaling(1 / 255))
    for filters in (32, 64, 128, 128):
        network += [layers.Conv2D(filters, 3, activation="relu"), layers.MaxPooling2D(2)]
    network.append(layers.Flatten())
    if task.recipe.dropout:
        network.append(layers.Dropout(task.recipe.dropout))
    # The softmax is always float32: sums and loss would be too inexact in bfloat16.
    network += [layers.Dense(512, activation="relu"), layers.Dense(classes, activation="softmax", dtype="float32")]
    model = keras.Sequential(network)
    optimizer = keras.optimizers.RMSprop(task.recipe.rate)
    model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"], jit_compile=task.jit)
    return model


def train_keras(model: Any, train: Any, validation: Any) -> Iterator[dict[str, float]]:
    """Call `fit` once per epoch, timed up to `on_epoch_end`; see the module docstring."""
    import keras

    end, end_cpu = [0.0], [0.0]

    def stamp(_epoch: int, _logs: Any = None) -> None:
        end[0], end_cpu[0] = time.perf_counter(), time.process_time()

    watch = keras.callbacks.LambdaCallback(on_epoch_end=stamp)
    epoch = 0
    while True:
        start, start_cpu = time.perf_counter(), time.process_time()
        history = model.fit(
            train, initial_epoch=epoch, epochs=epoch + 1, validation_data=validation, verbose=0, callbacks=[watch]
        ).history
        epoch += 1
        yield {
            "epoch": epoch,
            "seconds": end[0] - start,
            "cpu_seconds": end_cpu[0] - start_cpu,
            "teardown_seconds": time.perf_counter() - end[0],
            "train_loss": history["loss"][0],
            "train_accuracy": history["accuracy"][0],
            "val_loss": history["val_loss"][0],
            "val_accuracy": history["val_accuracy"][0],
        }


def get_keras_versions(options: str) -> dict[str, str]:
    """Return the library versions."""
    import keras
    import numpy as np
    import tensorflow as tf

    python, versions = sys.version.split()[0], {"tensorflow": tf, "keras": keras, "numpy": np}
    return {"python": python, **{name: library.__version__ for name, library in versions.items()}, "options": options}


def count_confusion(truth: Any, guess: Any, classes: int) -> Any:
    """Compute the confusion matrix of two arrays of class indices; rows are the truth."""
    import numpy as np

    matrix = np.zeros((classes, classes), dtype=int)
    np.add.at(matrix, (truth, guess), 1)
    return matrix


# --- tutorial --------------------------------------------------------------------------------------------------------


def get_image_data_generator() -> Any:
    """Import the tutorial's generator class, whose module depends on the Keras version."""
    try:
        from keras.preprocessing.image import ImageDataGenerator
    except ImportError:
        from keras.src.legacy.preprocessing.image import ImageDataGenerator
    return ImageDataGenerator


def link_parts(parts: dict[str, Photos], scratch: Path) -> None:
    """Link the photos into train, validation and test folders.

    The tutorial copies them, which costs Keras more time. Each folder has all classes, even empty
    ones, so that Keras numbers them identically.
    """
    classes = {label for pairs in parts.values() for _, label in pairs}
    for part, pairs in parts.items():
        for label in classes:
            (scratch / part / label).mkdir(parents=True, exist_ok=True)
        for file, label in pairs:
            (scratch / part / label / file.name).symlink_to(file.resolve())


def tutorial(task: Task) -> Contestant:
    """Set up Keras as the tutorial does.

    It uses float32, and a generator that decodes and augments every photo in every epoch.
    """
    generator = get_image_data_generator()
    link_parts(split_photos(task.photos), task.scratch)
    augmentation: dict[str, Any] = {"rotation_range": 40, "horizontal_flip": True, "fill_mode": "nearest"}
    augmentation |= dict.fromkeys(("width_shift_range", "height_shift_range", "shear_range", "zoom_range"), 0.2)
    plain = generator(rescale=1 / 255)
    augmenting = generator(rescale=1 / 255, **augmentation) if task.recipe.augmented else plain

    def flow(source: Any, part: str, **more: Any) -> Any:
        return source.flow_from_directory(
            str(task.scratch / part),
            target_size=(IMAGE_SIZE, IMAGE_SIZE),
            batch_size=BATCH_SIZE,
            class_mode="categorical",
            **more,
        )

    train, validation, test = flow(augmenting, "train"), flow(plain, "validation"), flow(plain, "test", shuffle=False)
    classes = sorted(train.class_indices)  # flow_from_directory numbers them in this order
    model = build_keras_network(task._replace(jit=False), len(classes), pixels="float32")

    def confusion() -> Any:
        return count_confusion(test.classes, model.predict(test, verbose=0).argmax(1), len(classes))

    versions = get_keras_versions("ImageDataGenerator, float32, jit_compile=False")
    return Contestant(versions, classes, train_keras(model, train, validation), confusion)


# --- keras_tuned -----------------------------------------------------------------------------------------------------


def decode_photos(pairs: Photos, classes: list[str]) -> tuple[Any, Any]:
    """Decode all photos of a split once, in a thread pool.

    Returns: uint8 array of photos x side x side x 3, class indices
    """
    import keras
    import numpy as np

    def pixels(pair: tuple[Path, str]) -> Any:
        photo = keras.utils.load_img(pair[0], target_size=(IMAGE_SIZE, IMAGE_SIZE), interpolation="bilinear")
        return np.asarray(photo, dtype=np.uint8)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        photos = np.stack(list(pool.map(pixels, pairs)))
    return photos, np.array([classes.index(label) for _, label in pairs])


def draw_warps(count: Any) -> Any:
    """Draw `count` random transforms for ImageProjectiveTransformV3, 8 numbers each.

    Each composes rotation x shift x shear x zoom as Keras does, then the flip. It maps a point of
    the result to a point of the photo.
    """
    import math

    import tensorflow as tf

    def draw_uniform(low: float, high: float) -> Any:
        return tf.random.uniform([count], low, high)

    angle, shear = (
        draw_uniform(-math.radians(40), math.radians(40)),
        draw_uniform(-math.radians(0.2), math.radians(0.2)),
    )
    across, down = draw_uniform(-0.2 * IMAGE_SIZE, 0.2 * IMAGE_SIZE), draw_uniform(-0.2 * IMAGE_SIZE, 0.2 * IMAGE_SIZE)
    wide, tall = draw_uniform(0.8, 1.2), draw_uniform(0.8, 1.2)
    wide *= tf.where(draw_uniform(-1, 1) < 0, -1.0, 1.0)
    cos, sin, middle = tf.cos(angle), tf.sin(angle), (IMAGE_SIZE - 1) / 2
    x_x, x_y = cos * wide, -(cos * tf.sin(shear) + sin * tf.cos(shear)) * tall
    y_x, y_y = sin * wide, (cos * tf.cos(shear) - sin * tf.sin(shear)) * tall
    x = middle + cos * across - sin * down - (x_x + x_y) * middle
    y = middle + sin * across + cos * down - (y_x + y_y) * middle
    zero = tf.zeros([count])
    return tf.stack([x_x, x_y, x, y_x, y_y, y, zero, zero], axis=1)


def build_pipeline(photos: Any, labels: Any, classes: int, *, shuffled: bool, augmented: bool) -> Any:
    """Build a tf.data pipeline that gathers batches from photos in memory.

    Autotuning is off because of the sleep described in the module docstring.
    """
    import tensorflow as tf

    pixels, targets = tf.constant(photos), tf.one_hot(labels, classes)
    warp_options = {
        "output_shape": [IMAGE_SIZE, IMAGE_SIZE],
        "fill_value": 0.0,
        "interpolation": "BILINEAR",
        "fill_mode": "NEAREST",
    }

    def batch(indices: Any) -> tuple[Any, Any]:
        images = tf.gather(pixels, indices)
        if augmented:
            warps = draw_warps(tf.shape(indices)[0])
            images = tf.raw_ops.ImageProjectiveTransformV3(images=images, transforms=warps, **warp_options)
        return tf.ensure_shape(images, (None, IMAGE_SIZE, IMAGE_SIZE, 3)), tf.gather(targets, indices)

    indices = tf.data.Dataset.range(len(photos))
    if shuffled:
        indices = indices.shuffle(len(photos))
    options = tf.data.Options()
    options.autotune.enabled = False
    return indices.batch(BATCH_SIZE).map(batch, num_parallel_calls=os.cpu_count()).prefetch(2).with_options(options)


def keras_tuned(task: Task) -> Contestant:
    """Set up Keras as an experienced user would; see the module docstring."""
    import keras

    keras.mixed_precision.set_global_policy(task.precision)
    parts, classes = split_photos(task.photos), sorted(list_classes(task.photos))
    arrays = {part: decode_photos(pairs, classes) for part, pairs in parts.items()}
    count, augmented = len(classes), task.recipe.augmented
    train = build_pipeline(*arrays["train"], count, shuffled=True, augmented=augmented)
    validation, test = (build_pipeline(*arrays[part], count, shuffled=False, augmented=False) for part in PARTS[1:])
    model = build_keras_network(task, len(classes), pixels="uint8")

    def confusion() -> Any:
        return count_confusion(arrays["test"][1], model.predict(test, verbose=0).argmax(1), len(classes))

    versions = get_keras_versions(f"tf.data in memory, {task.precision}, jit_compile={task.jit}, autotune off")
    return Contestant(versions, classes, train_keras(model, train, validation), confusion)


# --- ikebana ---------------------------------------------------------------------------------------------------------


def ikebana(task: Task) -> Contestant:
    """Train as `ikebana fit` does, checkpoints included, on the same photos and split."""
    from dataclasses import asdict
    from importlib.metadata import version

    from ikebana import recipes
    from ikebana.data import pixel_cache, sources
    from ikebana.data.split import split_photos as split_dataset
    from ikebana.learning import device, estimate, examples, scoring
    from ikebana.learning.models.assembly import assemble
    from ikebana.learning.training import loop
    from ikebana.system import progress

    progress.set_reporter(progress.SilentReporter())
    classes = list_classes(task.photos)
    name = "augmented" if task.recipe.augmented else "baseline"
    recipe = recipes.get_recipe(name, split="shuffle", class_order=tuple(classes))
    assembled = assemble(recipe, len(classes))
    settings = estimate.configure_device(assembled)
    photo_set, cache = pixel_cache.open_pixel_cache(
        sources.read(task.photos, recipe.class_order), recipe.image_size, recipe.resize
    )
    parts = examples.build_split_examples(split_dataset(photo_set, recipe), cache.pixels)
    network = assembled.network

    def epochs() -> Iterator[dict[str, float]]:
        """Timed from outside, around each epoch, as the others are."""
        stream = loop.train(network, recipe, parts["train"], parts["validation"], settings, task.scratch / "checkpoint")
        while True:
            start = time.perf_counter()
            epoch = asdict(next(stream))
            yield {**epoch, "seconds": time.perf_counter() - start}

    def confusion() -> Any:
        probabilities = scoring.predict_probabilities(network, parts["test"], device.configure())
        return count_confusion(parts["test"].labels, probabilities.argmax(1), len(classes))

    versions = {
        "ikebana": version("ikebana"),
        "torch": version("torch"),
        "setting": f"{settings.precision}, {settings.allocator}",
    }
    return Contestant(versions, classes, epochs(), confusion)


# --- the protocol ----------------------------------------------------------------------------------------------------

CONTESTANTS: dict[str, Callable[[Task], Contestant]] = {
    "tutorial": tutorial,
    "keras_tuned": keras_tuned,
    "ikebana": ikebana,
}


def run_test(contestant: Contestant) -> dict[str, Any]:
    """Compute the answer to `test`."""
    start = time.perf_counter()
    matrix = contestant.confusion()
    facts = {"seconds": time.perf_counter() - start, "test_accuracy": float(matrix.trace() / matrix.sum())}
    return {**facts, "classes": contestant.classes, "confusion": matrix.tolist()}


def parse_arguments() -> argparse.Namespace:
    """The flags; `peer_keras.py` sets them all."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--contestant", choices=list(CONTESTANTS), required=True)
    flags.add_argument("--recipe", choices=list(RECIPES), default="baseline")
    flags.add_argument("--photos", type=Path, required=True)
    flags.add_argument("--scratch", type=Path, required=True, help="an empty folder; the caller removes it")
    flags.add_argument("--precision", default="mixed_bfloat16", help="of keras_tuned: a Keras dtype policy")
    flags.add_argument("--jit", action="store_true", help="XLA for keras_tuned")
    return flags.parse_args()


def main() -> None:
    """Set up, report that it is ready, and answer until standard input ends."""
    options = parse_arguments()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # The output of libraries must not be taken for an answer.
    os.dup2(2, 1)
    task = Task(RECIPES[options.recipe], options.photos, options.scratch, options.precision, options.jit)
    contestant = CONTESTANTS[options.contestant](task)
    setup = time.perf_counter() - START_TIME
    print(json.dumps({"ready": True, "setup_seconds": setup, "versions": contestant.versions}), file=answers)
    for line in sys.stdin:
        answer = {"epoch": lambda: next(contestant.epochs), "test": lambda: run_test(contestant)}.get(line.strip())
        if answer is None:
            raise SystemExit(f"unknown command {line.strip()!r}: `epoch` or `test`")
        print(json.dumps(answer()), file=answers)


if __name__ == "__main__":
    main()
