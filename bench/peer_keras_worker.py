"""One contestant of `peer_keras.py`: waits on standard input, trains an epoch when asked, answers in JSON lines.

It runs under the contestant's own Python, so nothing but the standard library is imported at the top.

    first answer      {"ready": true, "setup_seconds": s, "versions": {...}}
    `epoch` ->        {"epoch": n, "seconds": s, "train_loss": ., "train_accuracy": ., "val_loss": ., "val_accuracy": .}
    `test`  ->        {"test_accuracy": ..., "classes": [...], "confusion": [[...]], "seconds": s}

`seconds` of an epoch: training and validation, up to Keras' `on_epoch_end`; `cpu_seconds` beside it is the process's own
work, without waiting and other people's load. What `fit` does after it is `teardown_seconds`, not charged to Keras: with
tf.data's autotuning on (TensorFlow 2.21), dropping an iterator sometimes sleeps until it is 2.55, 5.1, 10.2, ... s old
(TensorFlow's source was not read): 5 of 24 iterators and 2 of 4 `fit` calls, none without autotuning; once it was 35 s.
We call `fit` each epoch, the tutorial once for all; in one `fit` of 14 epochs (a tiny network) no epoch began late, but
validation slept in 7: that is Keras as the tutorial uses it, and stays in `seconds`. `keras_tuned` has autotuning off.

What `keras_tuned` uses, and why. Measured on a 2-core EPYC (Zen 4, avx512_bf16, no AMX) shared with other work, so wall
and CPU time were compared, interleaved; ms for a batch of 128, 3 repeats (1 for XLA, after its compilation):
    training step   bfloat16 1254 to 1956 (CPU 1218 to 1263), float32 2220 to 2973 (CPU 2194 to 2318),
                    XLA (jit_compile) float32 4693, bfloat16 5311                        -> mixed_bfloat16, no XLA
    augmentation    five Keras layers 550 to 621; one warp 155 to 166, uint8 as fast as float32   -> one warp, uint8
    left out        max-pool before ReLU: 1 to 4 % less, within the spread; MALLOC_MMAP_THRESHOLD_: no less CPU time
Another processor may prefer others: `--precision` and `--jit` try them. Without avx512_bf16 and AMX it is float32.
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

STARTED = time.perf_counter()  # before the heavy imports: they are part of the setup
SIDE = 150  # pixels
BATCH = 128  # photos
TUTORIAL_ORDER = ["sunflower", "tulip", "rose", "daisy", "dandelion"]  # the shuffle starts from this order
PARTS = ("train", "validation", "test")

Photos = list[tuple[Path, str]]  # (file, class)


class Recipe(NamedTuple):
    """What the tutorial chose for one of its networks (DESIGN.md, section 2)."""

    epochs: int
    rate: float  # of RMSprop
    dropout: float
    augmented: bool


RECIPES = {
    "baseline": Recipe(epochs=20, rate=1e-3, dropout=0.0, augmented=False),
    "augmented": Recipe(epochs=100, rate=1e-5, dropout=0.2, augmented=True),
}


class Task(NamedTuple):
    """What every contestant is given."""

    recipe: Recipe
    photos: Path
    scratch: Path  # removed by the orchestrator, even if this process is killed
    precision: str
    jit: bool


class Contestant(NamedTuple):
    """What every contestant gives: each `next(epochs)` trains one epoch and yields the dictionary to answer."""

    versions: dict[str, str]
    classes: list[str]
    epochs: Iterator[dict[str, float]]
    confusion: Callable[[], Any]  # of the test photos; rows are the truth, in the order of `classes`


def classes_of(photos: Path) -> list[str]:
    """The class folders, in the tutorial's order if they are the tutorial's, else sorted."""
    names = sorted(entry.name for entry in photos.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return TUTORIAL_ORDER if names == sorted(TUTORIAL_ORDER) else names


def files_of(folder: Path) -> list[Path]:
    """The files of one class, sorted; hidden ones are skipped."""
    return sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))


def split(photos: Path) -> dict[str, Photos]:
    """The tutorial's split: seed 0, shuffle, cut at 60 and 80 %; 2590, 863 and 864 of its 4317 photos."""
    pairs = [(file, label) for label in classes_of(photos) for file in files_of(photos / label)]
    random.seed(0)
    random.shuffle(pairs)
    first, second = int(0.6 * len(pairs)), int(0.8 * len(pairs))
    return dict(zip(PARTS, (pairs[:first], pairs[first:second], pairs[second:]), strict=True))


# --- Keras, both contestants -----------------------------------------------------------------------------------------


def keras_network(task: Task, classes: int, *, pixels: str) -> Any:
    """The tutorial's network, compiled; with `pixels` "uint8" it rescales, with "float32" the generator has done so."""
    import keras

    layers = keras.layers
    network = [keras.Input((SIDE, SIDE, 3), dtype=pixels)]
    if pixels == "uint8":
        network.append(layers.Rescaling(1 / 255))
    for filters in (32, 64, 128, 128):
        network += [layers.Conv2D(filters, 3, activation="relu"), layers.MaxPooling2D(2)]
    network.append(layers.Flatten())
    if task.recipe.dropout:
        network.append(layers.Dropout(task.recipe.dropout))
    # The softmax stays in float32 whatever the policy: in bfloat16 its sums, and the loss, would be too coarse.
    network += [layers.Dense(512, activation="relu"), layers.Dense(classes, activation="softmax", dtype="float32")]
    model = keras.Sequential(network)
    optimizer = keras.optimizers.RMSprop(task.recipe.rate)
    model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"], jit_compile=task.jit)
    return model


def keras_epochs(model: Any, train: Any, validation: Any) -> Iterator[dict[str, float]]:
    """One `fit` call an epoch, timed up to `on_epoch_end`; the opening docstring says why not to its return."""
    import keras

    ended, worked = [0.0], [0.0]

    def stamp(_epoch: int, _logs: Any = None) -> None:
        ended[0], worked[0] = time.perf_counter(), time.process_time()

    watch = keras.callbacks.LambdaCallback(on_epoch_end=stamp)
    epoch = 0
    while True:
        begun, begun_cpu = time.perf_counter(), time.process_time()
        history = model.fit(
            train, initial_epoch=epoch, epochs=epoch + 1, validation_data=validation, verbose=0, callbacks=[watch]
        ).history
        epoch += 1
        yield {
            "epoch": epoch,
            "seconds": ended[0] - begun,
            "cpu_seconds": worked[0] - begun_cpu,
            "teardown_seconds": time.perf_counter() - ended[0],
            "train_loss": history["loss"][0],
            "train_accuracy": history["accuracy"][0],
            "val_loss": history["val_loss"][0],
            "val_accuracy": history["val_accuracy"][0],
        }


def keras_versions(options: str) -> dict[str, str]:
    """What the numbers depend on."""
    import keras
    import numpy as np
    import tensorflow as tf

    python, versions = sys.version.split()[0], {"tensorflow": tf, "keras": keras, "numpy": np}
    return {"python": python, **{name: it.__version__ for name, it in versions.items()}, "options": options}


def counted(truth: Any, guess: Any, classes: int) -> Any:
    """The confusion matrix of two arrays of class indices; rows are the truth."""
    import numpy as np

    matrix = np.zeros((classes, classes), dtype=int)
    np.add.at(matrix, (truth, guess), 1)
    return matrix


# --- tutorial --------------------------------------------------------------------------------------------------------


def image_data_generator() -> Any:
    """The class the tutorial uses; Keras 3 has moved it, and what it is called depends on the version."""
    try:
        from keras.preprocessing.image import ImageDataGenerator
    except ImportError:
        from keras.src.legacy.preprocessing.image import ImageDataGenerator
    return ImageDataGenerator


def part_folders(parts: dict[str, Photos], scratch: Path) -> None:
    """Train, validation and test folders; links, which cost Keras less than the tutorial's copies.

    Each has all the classes, even those it has no photo of, so that Keras numbers them alike everywhere.
    """
    classes = {label for pairs in parts.values() for _, label in pairs}
    for part, pairs in parts.items():
        for label in classes:
            (scratch / part / label).mkdir(parents=True, exist_ok=True)
        for file, label in pairs:
            (scratch / part / label / file.name).symlink_to(file.resolve())


def tutorial(task: Task) -> Contestant:
    """Keras exactly as the tutorial uses it: float32, a generator that opens, and changes, every photo each epoch."""
    generator = image_data_generator()
    part_folders(split(task.photos), task.scratch)
    changes: dict[str, Any] = {"rotation_range": 40, "horizontal_flip": True, "fill_mode": "nearest"}
    changes |= dict.fromkeys(("width_shift_range", "height_shift_range", "shear_range", "zoom_range"), 0.2)
    plain = generator(rescale=1 / 255)
    changing = generator(rescale=1 / 255, **changes) if task.recipe.augmented else plain

    def flow(source: Any, part: str, **more: Any) -> Any:
        return source.flow_from_directory(
            str(task.scratch / part), target_size=(SIDE, SIDE), batch_size=BATCH, class_mode="categorical", **more
        )

    train, validation, test = flow(changing, "train"), flow(plain, "validation"), flow(plain, "test", shuffle=False)
    classes = sorted(train.class_indices)  # flow_from_directory numbers them in this order
    model = keras_network(task._replace(jit=False), len(classes), pixels="float32")

    def confusion() -> Any:
        return counted(test.classes, model.predict(test, verbose=0).argmax(1), len(classes))

    versions = keras_versions("ImageDataGenerator, float32, jit_compile=False")
    return Contestant(versions, classes, keras_epochs(model, train, validation), confusion)


# --- keras_tuned -----------------------------------------------------------------------------------------------------


def decoded(pairs: Photos, classes: list[str]) -> tuple[Any, Any]:
    """All photos of a part as uint8 [photos, side, side, 3], opened once by a pool of threads; their class indices."""
    import keras
    import numpy as np

    def pixels(pair: tuple[Path, str]) -> Any:
        photo = keras.utils.load_img(pair[0], target_size=(SIDE, SIDE), interpolation="bilinear")
        return np.asarray(photo, dtype=np.uint8)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        photos = np.stack(list(pool.map(pixels, pairs)))
    return photos, np.array([classes.index(label) for _, label in pairs])


def warps(count: Any) -> Any:
    """Keras' own composition, rotation x shift x shear x zoom, then the flip, as `count` rows of 8 numbers.

    A row maps a place (x, y) in the result to a place in the photo: the order ImageProjectiveTransformV3 wants.
    """
    import math

    import tensorflow as tf

    def drawn(low: float, high: float) -> Any:
        return tf.random.uniform([count], low, high)

    angle, shear = drawn(-math.radians(40), math.radians(40)), drawn(-math.radians(0.2), math.radians(0.2))
    across, down = drawn(-0.2 * SIDE, 0.2 * SIDE), drawn(-0.2 * SIDE, 0.2 * SIDE)
    wide, tall = drawn(0.8, 1.2), drawn(0.8, 1.2)
    wide *= tf.where(drawn(-1, 1) < 0, -1.0, 1.0)  # the flip mirrors the result about its centre
    cos, sin, middle = tf.cos(angle), tf.sin(angle), (SIDE - 1) / 2
    x_x, x_y = cos * wide, -(cos * tf.sin(shear) + sin * tf.cos(shear)) * tall
    y_x, y_y = sin * wide, (cos * tf.cos(shear) - sin * tf.sin(shear)) * tall
    x = middle + cos * across - sin * down - (x_x + x_y) * middle
    y = middle + sin * across + cos * down - (y_x + y_y) * middle
    zero = tf.zeros([count])
    return tf.stack([x_x, x_y, x, y_x, y_y, y, zero, zero], axis=1)


def pipeline(photos: Any, labels: Any, classes: int, *, shuffled: bool, augmented: bool) -> Any:
    """A tf.data pipeline over photos already in memory: it draws indices and gathers whole batches.

    Autotuning is off and the parallelism given by hand, for the sleep told of in the opening docstring.
    """
    import tensorflow as tf

    pixels, targets = tf.constant(photos), tf.one_hot(labels, classes)
    how = {"output_shape": [SIDE, SIDE], "fill_value": 0.0, "interpolation": "BILINEAR", "fill_mode": "NEAREST"}

    def batch(chosen: Any) -> tuple[Any, Any]:
        chosen_pixels = tf.gather(pixels, chosen)
        if augmented:
            rows = warps(tf.shape(chosen)[0])
            chosen_pixels = tf.raw_ops.ImageProjectiveTransformV3(images=chosen_pixels, transforms=rows, **how)
        return tf.ensure_shape(chosen_pixels, (None, SIDE, SIDE, 3)), tf.gather(targets, chosen)

    indices = tf.data.Dataset.range(len(photos))
    if shuffled:
        indices = indices.shuffle(len(photos))
    options = tf.data.Options()
    options.autotune.enabled = False
    return indices.batch(BATCH).map(batch, num_parallel_calls=os.cpu_count()).prefetch(2).with_options(options)


def keras_tuned(task: Task) -> Contestant:
    """Keras as someone who knows it well would set it up by hand; the opening docstring has the measurements."""
    import keras

    keras.mixed_precision.set_global_policy(task.precision)
    parts, classes = split(task.photos), sorted(classes_of(task.photos))
    arrays = {part: decoded(pairs, classes) for part, pairs in parts.items()}
    count, augmented = len(classes), task.recipe.augmented
    train = pipeline(*arrays["train"], count, shuffled=True, augmented=augmented)
    validation, test = (pipeline(*arrays[part], count, shuffled=False, augmented=False) for part in PARTS[1:])
    model = keras_network(task, len(classes), pixels="uint8")

    def confusion() -> Any:
        return counted(arrays["test"][1], model.predict(test, verbose=0).argmax(1), len(classes))

    versions = keras_versions(f"tf.data in memory, {task.precision}, jit_compile={task.jit}, autotune off")
    return Contestant(versions, classes, keras_epochs(model, train, validation), confusion)


# --- ikebana ---------------------------------------------------------------------------------------------------------


def ikebana(task: Task) -> Contestant:
    """ikebana as `ikebana fit` does it, checkpoints included, on the same photos and the same split."""
    from dataclasses import asdict
    from importlib.metadata import version

    from ikebana import recipes
    from ikebana.data import pixel_cache, sources
    from ikebana.data.split import split as dealt
    from ikebana.learning import device, estimate, examples, scoring
    from ikebana.learning.models.assembly import assemble
    from ikebana.learning.training import loop
    from ikebana.system import progress

    progress.set_reporter(progress.SilentReporter())
    classes = classes_of(task.photos)
    name = "augmented" if task.recipe.augmented else "baseline"
    chosen = recipes.get_recipe(name, split="shuffle", class_order=tuple(classes))
    built = assemble(chosen, len(classes))
    setting = estimate.configure_device(built)
    opened, keep = pixel_cache.open_pixel_cache(
        sources.read(task.photos, chosen.class_order), chosen.image_size, chosen.resize
    )
    parts = examples.build_split_examples(dealt(opened, chosen), keep.pixels)
    network = built.network

    def epochs() -> Iterator[dict[str, float]]:
        """Timed from outside, around each epoch, as the others are."""
        stream = loop.train(network, chosen, parts["train"], parts["validation"], setting, task.scratch / "checkpoint")
        while True:
            begun = time.perf_counter()
            epoch = asdict(next(stream))
            yield {**epoch, "seconds": time.perf_counter() - begun}

    def confusion() -> Any:
        probabilities = scoring.predict_probabilities(network, parts["test"], device.configure())
        return counted(parts["test"].labels, probabilities.argmax(1), len(classes))

    versions = {
        "ikebana": version("ikebana"),
        "torch": version("torch"),
        "setting": f"{setting.precision}, {setting.allocator}",
    }
    return Contestant(versions, classes, epochs(), confusion)


# --- the protocol ----------------------------------------------------------------------------------------------------

CONTESTANTS: dict[str, Callable[[Task], Contestant]] = {
    "tutorial": tutorial,
    "keras_tuned": keras_tuned,
    "ikebana": ikebana,
}


def tested(contestant: Contestant) -> dict[str, Any]:
    """The answer to `test`."""
    begun = time.perf_counter()
    matrix = contestant.confusion()
    facts = {"seconds": time.perf_counter() - begun, "test_accuracy": float(matrix.trace() / matrix.sum())}
    return {**facts, "classes": contestant.classes, "confusion": matrix.tolist()}


def arguments() -> argparse.Namespace:
    """The flags; `peer_keras.py` sets them all."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--contestant", choices=list(CONTESTANTS), required=True)
    flags.add_argument("--recipe", choices=list(RECIPES), default="baseline")
    flags.add_argument("--photos", type=Path, required=True)
    flags.add_argument("--scratch", type=Path, required=True, help="an empty folder; whoever made it removes it")
    flags.add_argument("--precision", default="mixed_bfloat16", help="of keras_tuned: a Keras dtype policy")
    flags.add_argument("--jit", action="store_true", help="XLA for keras_tuned")
    return flags.parse_args()


def main() -> None:
    """Set up, say so, then answer until standard input ends."""
    chosen = arguments()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    task = Task(RECIPES[chosen.recipe], chosen.photos, chosen.scratch, chosen.precision, chosen.jit)
    contestant = CONTESTANTS[chosen.contestant](task)
    setup = time.perf_counter() - STARTED
    print(json.dumps({"ready": True, "setup_seconds": setup, "versions": contestant.versions}), file=answers)
    for line in sys.stdin:
        answer = {"epoch": lambda: next(contestant.epochs), "test": lambda: tested(contestant)}.get(line.strip())
        if answer is None:
            raise SystemExit(f"unknown command {line.strip()!r}: `epoch` or `test`")
        print(json.dumps(answer()), file=answers)


if __name__ == "__main__":
    main()
