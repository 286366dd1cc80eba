"""Measure whether the stated probability of suspect labels is the share that is wrong.

    python bench/label_confidence.py --photos DIR [--pair rose,tulip] [--seeds 3] [--rates 0.01,0.03,0.1]
                                     [--only flowers,pair,degraded,drawn,degraded-drawn]

In each collection, labels of random photos are changed to another class, and suspect labels are
listed as in `ikebana audit`. Photos that are suspect before that may be wrong by themselves and are
left out. Prints per range of stated probability its mean, the share of changed labels and their
number, and the recall of changed labels among as many suspects.

flowers         all photos of DIR
pair            two of its classes
degraded        200 photos per class of DIR, reduced to a shorter side of 24 pixels and enlarged
drawn           80 paper flowers per kind
degraded-drawn  the same, reduced to 14 pixels
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from machine import format_header, format_spread
from PIL import Image, ImageFilter

from ikebana.auditing import label_confidence, label_errors
from ikebana.auditing.label_confidence import ErrorEstimates
from ikebana.data import pixel_cache, sources, split
from ikebana.data.duplicates import near_duplicates
from ikebana.demo_data import paper_flowers
from ikebana.learning import examples
from ikebana.learning.features import out_of_fold
from ikebana.learning.features.out_of_fold import LabelledFeatures
from ikebana.learning.models import networks
from ikebana.learning.plan import Plan
from ikebana.recipes import DEFAULT_RECIPE, RECIPES
from ikebana.system import progress

Rows = list[tuple[Path, str]]
# The last bound is above 1, so that probabilities of 1 are included.
RANGES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.01)
PHOTOS_PER_DEGRADED_CLASS, DRAWN_PHOTOS_PER_KIND = 200, 80
DEGRADED_PIXELS, DEGRADED_DRAWN_PIXELS = 24, 14
# Stated probability from which a photo counts as suspect before labels are changed.
MIN_SUSPECT_BEFORE = 0.5


@dataclass(frozen=True)
class Collection:
    """The features of a collection, with labels and groups per photo."""

    features: LabelledFeatures
    groups: np.ndarray
    class_count: int


@dataclass(frozen=True)
class Trial:
    """Stated probabilities, and which labels were changed, for the photos that count."""

    stated: np.ndarray
    is_changed: np.ndarray
    recall: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--pair", default="rose,tulip")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", default="0.01,0.03,0.1")
    parser.add_argument("--only", default="flowers,pair,degraded,drawn,degraded-drawn")
    options = parser.parse_args()
    progress.set_reporter(progress.SilentReporter())
    print(format_header("torch", "timm", "scikit-learn"), flush=True)
    rates = [float(rate) for rate in options.rates.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only.split(","):
            rows = list_photos(name, options.photos.resolve(), options.pair.split(","), Path(scratch))
            measure(name, open_collection(rows, Path(scratch) / f"{name}.csv"), rates, options.seeds)


def list_photos(name: str, photos: Path, pair: Sequence[str], scratch: Path) -> Rows:
    """Make a collection, and list its photos with their labels."""
    if name == "drawn":
        return list(draw_photos(scratch / "drawn"))
    if name == "degraded-drawn":
        return list(degrade(list_photos("drawn", photos, pair, scratch), scratch / name, DEGRADED_DRAWN_PIXELS))
    source = sources.read(photos)
    listed = source.photos.filter(pl.col("label").is_not_null()).select("path", "label").iter_rows()
    rows = [(source.resolve_path(path), label) for path, label in listed]
    if name == "flowers":
        return rows
    if name == "pair":
        return [row for row in rows if row[1] in pair]
    few = [row for label in sorted({label for _, label in rows}) for row in _sample(rows, label)]
    return list(degrade(few, scratch / name, DEGRADED_PIXELS))


def _sample(rows: Rows, label: str) -> Rows:
    labelled = [row for row in rows if row[1] == label]
    count = min(len(labelled), PHOTOS_PER_DEGRADED_CLASS)
    return [labelled[index] for index in np.random.default_rng(0).choice(len(labelled), count, replace=False)]


def draw_photos(folder: Path) -> Iterator[tuple[Path, str]]:
    """Draw paper flowers without faults."""
    for kind in paper_flowers.KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(DRAWN_PHOTOS_PER_KIND):
            file = folder / kind / f"{number}.jpg"
            if not file.exists():
                size = paper_flowers.SIZES[number % len(paper_flowers.SIZES)]
                paper_flowers.draw(kind, 7_000_000 + number, size).save(file, quality=88)
            yield file, kind


def degrade(rows: Rows, folder: Path, shorter_side: int) -> Iterator[tuple[Path, str]]:
    """Reduce photos to a few pixels, blur them and enlarge them again."""
    folder.mkdir()
    for number, (file, label) in enumerate(rows):
        with Image.open(file) as original:
            photo = original.convert("RGB")
        scale = shorter_side / min(photo.size)
        reduced_size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
        reduced = photo.resize(reduced_size, Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.5))
        reduced.resize(photo.size, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=88)
        yield folder / f"{number}.jpg", label


def open_collection(rows: Rows, table: Path) -> Collection:
    """Decode and split the photos like `ikebana audit`, and extract their features."""
    pl.DataFrame([(str(file), label) for file, label in rows], schema=["path", "label"], orient="row").write_csv(table)
    # With float32 throughout, features do not depend on the split.
    recipe = replace(networks.fill_defaults(RECIPES[DEFAULT_RECIPE]), precision="float32")
    plan = Plan.from_dataset(sources.read(table), recipe)
    opened, cache = pixel_cache.open_pixel_cache(plan.dataset, recipe.image_size, recipe.resize)
    dataset = sources.assign_classes(near_duplicates.find_near_duplicates(opened, cache), ())
    dataset = split.split_photos(dataset, recipe)
    splits = examples.build_split_examples(dataset, cache.pixels)
    (member,) = plan.assembly.members
    features = out_of_fold.extract_labelled_features(splits, member, cache.folder.name, plan.settings)
    groups = np.array(split.find_groups(dataset.photos[features.rows]))
    return Collection(features, groups, len(dataset.classes))


def measure(name: str, collection: Collection, rates: Sequence[float], seeds: int) -> None:
    """Print the reliability without changed labels, and with each share of them."""
    labels = collection.features.labels
    probabilities, errors = judge(collection, labels)
    before, accuracy = errors.probabilities, (probabilities.argmax(1) == labels).mean()
    print(
        f"{name}: {len(before):,} photos, {accuracy:.3f} agree with the label; "
        f"untouched: {(before >= MIN_SUSPECT_BEFORE).sum()} reported, "
        f"{before.sum():.1f} errors expected among all",
        flush=True,
    )
    for rate in rates:
        trials = [run_trial(collection, before, rate, seed) for seed in range(seeds)]
        stated = np.concatenate([trial.stated for trial in trials])
        is_changed = np.concatenate([trial.is_changed for trial in trials])
        recalls = format_spread([trial.recall for trial in trials], 3)
        print(f"  {rate:.0%} changed: {format_reliability(stated, is_changed)}; recall {recalls}", flush=True)


def judge(collection: Collection, labels: np.ndarray) -> tuple[np.ndarray, ErrorEstimates]:
    """Predict each photo from the others with these labels, and estimate errors like `ikebana audit`."""
    features, groups, classes = replace(collection.features, labels=labels), collection.groups, collection.class_count
    alone, is_known = out_of_fold.predict_out_of_fold(features, groups, classes, "planted")
    votes = label_errors.vote(label_errors.find_neighbours(features.features, labels, groups), labels, classes)
    probabilities = label_errors.combine_probabilities(alone, votes, labels, is_known)
    return probabilities, label_confidence.estimate_errors(probabilities, labels, groups, is_known)


def run_trial(collection: Collection, before: np.ndarray, rate: float, seed: int) -> Trial:
    """Change some labels, and estimate errors."""
    rng, true_labels = np.random.default_rng(seed), collection.features.labels
    rows = rng.choice(len(true_labels), round(rate * len(true_labels)), replace=False)
    labels = true_labels.copy()
    labels[rows] = (labels[rows] + rng.integers(1, collection.class_count, len(rows))) % collection.class_count
    is_changed = labels != true_labels
    probabilities, errors = judge(collection, labels)
    order = label_errors.rank_suspect_labels(probabilities, labels, errors)
    counts = is_changed | (before < MIN_SUSPECT_BEFORE)
    recall = float(is_changed[order[: is_changed.sum()]].mean())
    return Trial(errors.probabilities[counts], is_changed[counts], recall)


def format_reliability(stated: np.ndarray, is_changed: np.ndarray) -> str:
    """Format per range: stated probability, share of changed labels, number of photos."""
    parts = []
    for low, high in itertools.pairwise(RANGES):
        in_range = (stated >= low) & (stated < high)
        if in_range.any():
            parts.append(f"{stated[in_range].mean():.2f} {is_changed[in_range].mean():.2f} ({in_range.sum()})")
    return "  ".join(parts)


if __name__ == "__main__":
    main()
