"""Measure how well photos of a class that was left out are recognised.

    python bench/unknown_objects.py --photos DIR [--recipe quick] [--seeds 0,1,2] [--others DIR] [--classes NAME,...]

For each split seed and each class: the class is left out of training, validation and the known
test photos, and its test photos are shown. With a linear probe only the head is fitted again; other
recipes are trained again without the class, which takes as long as so many runs. Prints the area
under the ROC curve and the share of detected photos at 95% of known ones kept: of the maximum
softmax probability, the energy (log sum exp of the logits) and the familiarity. Then the same for
drawn images and, with --others, for the usable photos of a folder that shows none of the classes.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from machine import format_header

from ikebana.data import decoding
from ikebana.data.dataset import Dataset
from ikebana.errors import UnreadablePhoto
from ikebana.evaluation import drawn_images, familiarity, unknown_objects
from ikebana.learning import familiarity as learning_familiarity
from ikebana.learning import outputs, plan
from ikebana.learning.examples import PhotoExamples, build_split_examples, make_unlabelled
from ikebana.learning.outputs import Outputs
from ikebana.learning.plan import Plan, TrainingTask
from ikebana.system import progress

SCORES = ("maximum softmax", "energy", "familiarity")


def select_classes(splits: dict[str, PhotoExamples], left_out: int) -> dict[str, PhotoExamples]:
    """Leave one class out of training and validation photos, and renumber the others."""
    selected = dict(splits)
    for name in ("train", "validation"):
        rest = splits[name].select(splits[name].labels != left_out)
        selected[name] = replace(rest, labels=rest.labels - (rest.labels > left_out))
    return selected


def train_without(source: Plan, splits: dict[str, PhotoExamples], pixels: str, left_out: int) -> Sequence[TrainingTask]:
    """Train the recipe without a class."""
    dataset = source.dataset
    classes = tuple(name for index, name in enumerate(dataset.classes) if index != left_out)
    smaller = Plan.from_dataset(replace_classes(dataset, classes), source.recipe, settings=source.settings)
    tasks = plan.prepare_tasks(smaller, splits, pixels)
    for _ in plan.train_tasks(tasks, source.settings, None):
        pass
    return tasks


def replace_classes(dataset: Dataset, classes: tuple[str, ...]) -> Dataset:
    """Return the dataset with other classes: only their number matters to the network."""
    return replace(dataset, classes=classes)


def score_photos(
    tasks: Sequence[TrainingTask], splits: dict[str, PhotoExamples], held_out: Outputs, source: Plan
) -> tuple[dict[str, np.ndarray], familiarity.FamiliarityModel]:
    """Compute each score of the test photos, calibrated where that matters."""
    known = learning_familiarity.collect_known_photos(tasks, splits, held_out, source.settings)
    model = learning_familiarity.fit_familiarity(known.train, known.calibration)
    assert model is not None
    return compute_scores(model, known.test.outputs), model


def compute_scores(model: familiarity.FamiliarityModel, values: Outputs) -> dict[str, np.ndarray]:
    return {
        "maximum softmax": values.probabilities.max(1),
        "energy": values.energy,
        "familiarity": learning_familiarity.compute_familiarity(model, values),
    }


def describe(known: dict[str, np.ndarray], unknown: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Return area and detected share per score; the threshold keeps 95% of these known photos."""
    results = {}
    for name in SCORES:
        detection = unknown_objects.measure_detection(known[name], unknown[name], float(np.quantile(known[name], 0.05)))
        results[name] = detection.auroc, detection.detected
    return results


def select_rows(scores: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[rows] for name, values in scores.items()}


def read_photos(folder: Path, source: Plan, excluded: Iterable[str]) -> np.ndarray:
    """Decode the usable photos of a folder."""
    images = []
    for file in sorted(folder.iterdir()):
        if file.name in excluded:
            continue
        try:
            images.append(decoding.decode(file.read_bytes(), source.recipe.image_size, source.recipe.resize).pixels)
        except UnreadablePhoto as error:
            print(f"  not used: {file.name}: {error.what}")
    return np.stack(images)


def measure_seed(seed: int, options: argparse.Namespace) -> dict[str, dict[str, tuple[float, float]]]:
    """Measure everything on one split."""
    source = Plan.from_photos(options.photos, options.recipe, split_seed=seed, seed=seed)
    source.apply_settings()
    dataset, pixels = plan.open_photos(source.dataset, source.recipe)
    splits = build_split_examples(dataset, pixels.pixels)
    results = {}
    wanted = options.classes.split(",") if options.classes else dataset.classes
    for index, name in enumerate(dataset.classes):
        if name not in wanted:
            continue
        without = select_classes(splits, index)
        tasks = train_without(source, without, pixels.folder.name, index)
        held_out = outputs.compute_held_out(tasks, source.settings)
        scores, _ = score_photos(tasks, without, held_out, source)
        is_unknown = splits["test"].labels == index
        results[name] = describe(select_rows(scores, ~is_unknown), select_rows(scores, is_unknown))
        print(f"  seed {seed}, {name}: {results[name]}", flush=True)
    tasks = plan.prepare_tasks(source, splits, pixels.folder.name)
    for _ in plan.train_tasks(tasks, source.settings, None):
        pass
    held_out = outputs.compute_held_out(tasks, source.settings)
    scores, model = score_photos(tasks, splits, held_out, source)
    kinds = {"drawn images": np.concatenate(list(drawn_images.draw_images(source.recipe.image_size).values()))}
    if options.others:
        kinds["other photos"] = read_photos(options.others, source, options.exclude.split(","))
    for kind, images in kinds.items():
        of_images = outputs.compute_images(
            source.network, make_unlabelled(images, np.arange(len(images))), source.settings
        )
        results[kind] = describe(scores, compute_scores(model, of_images))
        print(f"  seed {seed}, {kind} ({len(images)}): {results[kind]}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--others", type=Path)
    parser.add_argument("--exclude", default="", help="file names of --others that show a flower")
    parser.add_argument("--classes", default="", help="only these are left out")
    options = parser.parse_args()
    progress.set_reporter(progress.SilentReporter())
    print(format_header("torch"), flush=True)
    collected: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for seed in map(int, options.seeds.split(",")):
        for kind, by_score in measure_seed(seed, options).items():
            for name, values in by_score.items():
                collected[kind, name].append(values)
    for (kind, name), values in collected.items():
        areas, shares = np.array(values).T
        print(
            f"{kind:<14} {name:<16} area {areas.mean():.3f} ({areas.min():.3f} to {areas.max():.3f})  "
            f"detected {shares.mean():.2f} ({shares.min():.2f} to {shares.max():.2f}), n = {len(values)}"
        )


if __name__ == "__main__":
    main()
