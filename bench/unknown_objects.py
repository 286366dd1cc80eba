"""Measure how well photos of a class that was left out are recognised.

    python bench/unknown_objects.py --photos DIR [--recipe quick] [--seeds 0,1,2] [--others DIR] [--classes NAME,...]
                                    [--keep DIR]

For each split seed and each class: the class is left out of training, validation and the known
test photos, and its test photos are shown. With a linear probe only the head is fitted again; other
recipes are trained again without the class, which takes as long as so many runs. Prints the area
under the ROC curve and the share of detected photos at 95% of known ones kept: of the maximum
softmax probability, the energy (log sum exp of the logits) and the familiarity. Then the same for
drawn images and, with --others, for the usable photos of a folder that shows none of the classes.
With --keep the outputs of the networks are kept as files: the next run with the same photos and
options computes only the scores.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from machine import format_header

from ikebana.data import decoding
from ikebana.errors import UnreadablePhoto
from ikebana.evaluation import drawn_images, familiarity, unknown_objects
from ikebana.learning import familiarity as learning_familiarity
from ikebana.learning import outputs, plan
from ikebana.learning.examples import PhotoExamples, build_split_examples, make_unlabelled
from ikebana.learning.familiarity import KnownPhotos, LabelledOutputs
from ikebana.learning.outputs import Outputs
from ikebana.learning.plan import Plan, TrainingTask
from ikebana.recipe import Recipe
from ikebana.system import progress

SCORES = ("maximum softmax", "energy", "familiarity")


def select_classes(splits: dict[str, PhotoExamples], left_out: int) -> dict[str, PhotoExamples]:
    """Leave one class out of training and validation photos, and renumber the others."""
    selected = dict(splits)
    for name in ("train", "validation"):
        rest = splits[name].select(splits[name].labels != left_out)
        selected[name] = replace(rest, labels=rest.labels - (rest.labels > left_out))
    return selected


def train_on_classes(
    source: Plan,
    splits: dict[str, PhotoExamples],
    pixels: str,
    classes: tuple[str, ...],
    *,
    recipe: Recipe | None = None,
) -> Sequence[TrainingTask]:
    """Train on photos of some classes, whose labels are indices of these.

    Args:
        pixels: the name of the pixel cache.
        recipe: instead of the plan's.
    """
    # Only the number of classes matters to the network.
    dataset = replace(source.dataset, classes=classes)
    smaller = Plan.from_dataset(dataset, recipe or source.recipe, settings=source.settings)
    tasks = plan.prepare_tasks(smaller, splits, pixels)
    for _ in plan.train_tasks(tasks, source.settings, None):
        pass
    return tasks


def fit_model(known: KnownPhotos) -> familiarity.FamiliarityModel:
    """Fit familiarity to known photos."""
    model = learning_familiarity.fit_familiarity(known.train, known.calibration)
    assert model is not None
    return model


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


class Experiment:
    """Training on one split, with outputs that are kept."""

    def __init__(self, seed: int, options: argparse.Namespace):
        self.options = options
        self.source = Plan.from_photos(options.photos, options.recipe, split_seed=seed, seed=seed)
        self.source.apply_settings()
        dataset, self.pixels = plan.open_photos(self.source.dataset, self.source.recipe)
        self.classes = dataset.classes
        self.splits = build_split_examples(dataset, self.pixels.pixels)
        self.keep = options.keep and options.keep / f"{options.recipe}-{seed}"

    def compute_without(self, left_out: int) -> KnownPhotos:
        """Compute the outputs of a network that was trained without a class."""

        def compute() -> dict[str, LabelledOutputs]:
            without = select_classes(self.splits, left_out)
            classes = tuple(name for index, name in enumerate(self.classes) if index != left_out)
            tasks = train_on_classes(self.source, without, self.pixels.folder.name, classes)
            return vars(self._collect(tasks, without))

        return KnownPhotos(**self._keep(self.classes[left_out], compute))

    def compute_with_all(self) -> tuple[KnownPhotos, dict[str, LabelledOutputs]]:
        """Compute the outputs with all classes: of known photos, and of others by kind."""

        def compute() -> dict[str, LabelledOutputs]:
            tasks = plan.prepare_tasks(self.source, self.splits, self.pixels.folder.name)
            for _ in plan.train_tasks(tasks, self.source.settings, None):
                pass
            return vars(self._collect(tasks, self.splits)) | self._compute_others()

        computed = self._keep("all classes", compute)
        known = {name: computed.pop(name) for name in ("train", "calibration", "test")}
        return KnownPhotos(**known), computed

    def _collect(self, tasks: Sequence[TrainingTask], splits: dict[str, PhotoExamples]) -> KnownPhotos:
        held_out = outputs.compute_held_out(tasks, self.source.settings)
        return learning_familiarity.collect_known_photos(tasks, splits, held_out, self.source.settings)

    def _compute_others(self) -> dict[str, LabelledOutputs]:
        drawn = drawn_images.draw_images(self.source.recipe.image_size)
        kinds = {"drawn images": np.concatenate(list(drawn.values()))}
        if self.options.others:
            kinds["other photos"] = read_photos(self.options.others, self.source, self.options.exclude.split(","))
        computed = {}
        for kind, images in kinds.items():
            examples = make_unlabelled(images, np.arange(len(images)))
            of_images = outputs.compute_images(self.source.network, examples, self.source.settings)
            computed[kind] = LabelledOutputs(of_images, np.full(len(images), -1), np.arange(len(images)))
        return computed

    def _keep(self, name: str, compute: Callable[[], dict[str, LabelledOutputs]]) -> dict[str, LabelledOutputs]:
        """Read outputs by the kind of photos; compute them if they have not been kept."""
        file = self.keep and self.keep / f"{name}.npz"
        if file and file.exists():
            return unpack(np.load(file))
        computed = compute()
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, allow_pickle=False, **pack(computed))
        return computed


def pack(computed: dict[str, LabelledOutputs]) -> dict[str, np.ndarray]:
    """Name the arrays of outputs by kind and field."""
    arrays = {}
    for kind, photos in computed.items():
        fields = vars(photos.outputs) | {"labels": photos.labels, "groups": photos.groups}
        arrays.update({f"{kind}/{field}": values for field, values in fields.items()})
    return arrays


def unpack(arrays: Mapping[str, np.ndarray]) -> dict[str, LabelledOutputs]:
    """Read outputs by kind from named arrays."""
    kinds = dict.fromkeys(name.split("/")[0] for name in arrays)
    return {
        kind: LabelledOutputs(
            Outputs(*(arrays[f"{kind}/{field}"] for field in ("features", "probabilities", "energy"))),
            arrays[f"{kind}/labels"],
            arrays[f"{kind}/groups"],
        )
        for kind in kinds
    }


def measure_seed(seed: int, options: argparse.Namespace) -> dict[str, dict[str, tuple[float, float]]]:
    """Measure everything on one split."""
    experiment, results = Experiment(seed, options), {}
    wanted = options.classes.split(",") if options.classes else experiment.classes
    for index, name in enumerate(experiment.classes):
        if name not in wanted:
            continue
        known = experiment.compute_without(index)
        scores = compute_scores(fit_model(known), known.test.outputs)
        is_unknown = known.test.labels == index
        results[name] = describe(select_rows(scores, ~is_unknown), select_rows(scores, is_unknown))
        print(f"  seed {seed}, {name}: {results[name]}", flush=True)
    known, others = experiment.compute_with_all()
    model = fit_model(known)
    scores = compute_scores(model, known.test.outputs)
    for kind, photos in others.items():
        results[kind] = describe(scores, compute_scores(model, photos.outputs))
        print(f"  seed {seed}, {kind} ({len(photos.labels)}): {results[kind]}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--others", type=Path)
    parser.add_argument("--exclude", default="", help="file names of --others that show a flower")
    parser.add_argument("--classes", default="", help="only these are left out")
    parser.add_argument("--keep", type=Path, help="folder for the outputs of the networks")
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
