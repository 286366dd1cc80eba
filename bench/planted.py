"""Measure how many planted defects `ikebana audit` finds among the photos.

    python bench/planted.py --photos DIR [--awkward DIR] [--seeds 3] [--only labels,odd,blurred,shortcut]

DIR is not changed: a table lists the photos, and planted files are written to a temporary folder.

labels    3 % of all labels are changed to another class. Reports the recall among as many suspects
          as were planted (which equals the precision) and among three times as many, beside
          cleanlab's ranking of five-fold logistic regressions. Suspects whose label was wrong
          before are counted as false positives.
odd       20 foreign photos with random labels: up to ten files of --awkward, the others drawn
blurred   20 photos with a Gaussian blur of 3 to 6 pixels at a shorter side of 240 pixels
shortcut  a border of 4 pixels around every photo of one class
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from foreign import draw_pictures
from machine import format_header, format_spread
from PIL import Image, ImageFilter, ImageOps

from ikebana.auditing import content_checks, image_quality, label_errors, shortcuts
from ikebana.auditing.findings import Finding
from ikebana.data import pixel_cache, sources, split
from ikebana.data.dataset import STATUS_USED, Dataset
from ikebana.data.pixel_cache import PixelCache
from ikebana.learning.models import networks
from ikebana.learning.plan import Plan
from ikebana.recipes import DEFAULT_RECIPE, RECIPES
from ikebana.system import progress

# Fraction of the labels that are changed.
FLIPPED_FRACTION = 0.03
# Number of foreign photos, and of blurred ones.
PLANTED_PHOTOS = 20
BORDER_PIXELS = 4
BORDER_COLOUR = (24, 24, 24)
# The awkward files that show something, without duplicates.
FOREIGN_FILES = (
    "Channel_digital_image_CMYK_color_no_profile.jpg", "Flag_of_the_Netherlands-16bit.png", "exif_landscape_1.jpg",
    "exif_portrait_6.jpg", "exif_typeerror.jpg", "hopper.avif", "imageNotFound.gif", "iss634.gif", "sugarshack.mpo",
    "transparent.png",
)  # fmt: skip


@dataclass(frozen=True)
class PlantedPhotos:
    """The original photos, and the planted ones of every seed.

    `dataset` has all of them. `planted` maps the path of a planted photo to its kind and seed.
    """

    dataset: Dataset
    cache: PixelCache
    plan: Plan
    planted: dict[str, tuple[str, int]]

    def with_planted(self, kind: str, seed: int) -> Dataset:
        """Select the original photos and those planted of one kind for one seed.

        A changed copy replaces its original.
        """
        own_paths = {path for path, kind_and_seed in self.planted.items() if kind_and_seed == (kind, seed)}
        replaced_names = {Path(path).name.partition("@")[2] for path in own_paths}
        is_left_out = [
            (path in self.planted and path not in own_paths)
            or (path not in self.planted and path.replace("/", "-") in replaced_names)
            for path in self.dataset.photos["path"]
        ]
        status = pl.when(pl.Series(is_left_out)).then(pl.lit("left out")).otherwise(pl.col("status")).alias("status")
        return split.split_photos(self.dataset.with_photos(self.dataset.photos.with_columns(status)), self.plan.recipe)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--awkward", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="labels,odd,blurred,shortcut")
    options = parser.parse_args()
    progress.set_reporter(progress.SilentReporter())
    print(format_header("torch", "timm", "scikit-learn"), flush=True)
    kinds = {
        "labels": measure_flipped_labels,
        "odd": measure_foreign_photos,
        "blurred": measure_blurred_photos,
        "shortcut": measure_bordered_class,
    }
    with tempfile.TemporaryDirectory() as scratch:
        photo_set = plant(
            Path(scratch), options.photos.resolve(), options.awkward, options.seeds, options.only.split(",")
        )
        for kind in options.only.split(","):
            kinds[kind](photo_set, options.seeds)


def plant(scratch: Path, photos: Path, awkward: Path | None, seeds: int, kinds: Sequence[str]) -> PlantedPhotos:
    """Write all planted photos, and read them and the originals from one table."""
    # With float32 throughout, the cached features are the same for every seed and training set.
    recipe = replace(networks.fill_defaults(RECIPES[DEFAULT_RECIPE]), precision="float32")
    source = sources.read(photos)
    rows = [
        (str(source.resolve_path(path)), label) for path, label in source.photos.select("path", "label").iter_rows()
    ]
    classes = sorted({label for _, label in rows})
    planted_rows: list[tuple[str, str, str, int]] = []
    for seed in range(seeds):
        if "odd" in kinds:
            planted_rows += [
                (*row, "odd", seed) for row in _plant_foreign(scratch / f"odd-{seed}", awkward, classes, seed)
            ]
        if "blurred" in kinds:
            planted_rows += [(*row, "blurred", seed) for row in _plant_blurred(scratch / f"blurred-{seed}", rows, seed)]
        if "shortcut" in kinds:
            name = classes[seed % len(classes)]
            planted_rows += [
                (*row, "shortcut", seed) for row in _plant_bordered(scratch / f"border-{seed}", rows, name)
            ]
    table = pl.DataFrame([*rows, *(row[:2] for row in planted_rows)], schema=["path", "label"], orient="row")
    table.write_csv(scratch / "photos.csv")
    plan = Plan.from_dataset(sources.read(scratch / "photos.csv"), recipe)
    dataset, cache = pixel_cache.open_pixel_cache(plan.dataset, recipe.image_size, recipe.resize)
    return PlantedPhotos(
        sources.assign_classes(dataset, ()), cache, plan, {row[0]: (row[2], row[3]) for row in planted_rows}
    )


def _make_copy_path(folder: Path, path: str) -> Path:
    """Return the path of a changed copy, whose name contains that of the original."""
    folder.mkdir(exist_ok=True)
    return folder / f"copy@{path.replace('/', '-')}"


def _plant_foreign(folder: Path, awkward: Path | None, classes: Sequence[str], seed: int) -> Iterator[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    files = []
    if awkward is not None:
        for name in FOREIGN_FILES:
            files.append(folder / name)
            files[-1].write_bytes((awkward / name).read_bytes())
    for number, picture in enumerate(draw_pictures(PLANTED_PHOTOS - len(files), seed)):
        files.append(folder / f"drawn-{number}.jpg")
        picture.save(files[-1], quality=90)
    for file in files:
        yield str(file), classes[int(rng.integers(len(classes)))]


def _plant_blurred(folder: Path, rows: Sequence[tuple[str, str]], seed: int) -> Iterator[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    for index in rng.choice(len(rows), PLANTED_PHOTOS, replace=False):
        path, label = rows[int(index)]
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            radius = rng.uniform(3, 6) * min(upright.size) / 240
            yield (
                _save_like_original(
                    upright.filter(ImageFilter.GaussianBlur(radius)), picture, _make_copy_path(folder, path)
                ),
                label,
            )


def _plant_bordered(folder: Path, rows: Sequence[tuple[str, str]], name: str) -> Iterator[tuple[str, str]]:
    for path, label in rows:
        if label == name:
            with Image.open(path) as picture:
                upright = ImageOps.exif_transpose(picture).convert("RGB")
                inside = upright.crop(
                    (BORDER_PIXELS, BORDER_PIXELS, upright.width - BORDER_PIXELS, upright.height - BORDER_PIXELS)
                )
                yield (
                    _save_like_original(
                        ImageOps.expand(inside, BORDER_PIXELS, BORDER_COLOUR), picture, _make_copy_path(folder, path)
                    ),
                    label,
                )


def _save_like_original(changed: Image.Image, original: Image.Image, file: Path) -> str:
    """Save with the quantisation tables of the original, so that only the change differs."""
    tables = getattr(original, "quantization", None)
    changed.save(file, "JPEG", **({"qtables": tables, "subsampling": "4:2:0"} if tables else {"quality": 90}))
    return str(file)


def measure_flipped_labels(photo_set: PlantedPhotos, seeds: int) -> None:
    """Measure the recall of changed labels, and that of cleanlab."""
    scores: dict[str, list[tuple[float, float]]] = {"ours": [], "heads alone": [], "cleanlab": []}
    counts, clean = [], photo_set.with_planted("labels", -1)
    for seed in range(seeds):
        dataset, wrong = _flip_labels(clean, seed)
        evidence = content_checks.collect_label_evidence(dataset, photo_set.cache, photo_set.plan)
        planted = np.array([path in wrong for path in evidence.paths])
        scores["ours"].append(
            _compute_recalls(
                label_errors.rank_suspect_labels(evidence.combined, evidence.labels, evidence.errors), planted
            )
        )
        scores["heads alone"].append(
            _compute_recalls(label_errors.rank_suspect_labels(evidence.out_of_fold, evidence.labels), planted)
        )
        if (order := _rank_with_cleanlab(evidence)) is not None:
            scores["cleanlab"].append(_compute_recalls(order, planted))
        reported = label_errors.find_suspect_labels(evidence.combined, evidence.labels, evidence.errors)
        hits = [error for error in reported if planted[error.photo]]
        corrected = [
            error for error in hits if dataset.classes[error.suggested_label] == wrong[evidence.paths[error.photo]]
        ]
        counts.append((len(reported), len(hits), len(corrected)))
    for name, recalls in scores.items():
        if recalls:
            recall_at_count, recall_at_triple = zip(*recalls, strict=True)
            print(
                f"labels, {name}: recall among as many {format_spread(recall_at_count, 3)}, "
                f"among three times as many {format_spread(recall_at_triple, 3)}"
            )
    print(f"labels reported, of these planted, of these with the correct suggestion: {counts}", flush=True)


def _flip_labels(dataset: Dataset, seed: int) -> tuple[Dataset, dict[str, str]]:
    """Change 3 % of the labels.

    Returns: the dataset, and {path: true label} of the changed photos
    """
    rng = np.random.default_rng(seed)
    labels, used = dataset.photos["label"].to_list(), np.flatnonzero(dataset.photos["status"] == STATUS_USED)
    wrong = {}
    for row in rng.choice(used, round(FLIPPED_FRACTION * len(used)), replace=False):
        others = [name for name in dataset.classes if name != labels[row]]
        wrong[dataset.photos["path"][int(row)]] = labels[row]
        labels[row] = others[rng.integers(len(others))]
    return dataset.with_photos(dataset.photos.with_columns(pl.Series("label", labels))), wrong


def _compute_recalls(order: np.ndarray, wrong: np.ndarray) -> tuple[float, float]:
    count = int(wrong.sum())
    return float(wrong[order[:count]].mean()), float(wrong[order[: 3 * count]].sum() / count)


def _rank_with_cleanlab(evidence: content_checks.LabelEvidence) -> np.ndarray | None:
    """Rank the photos by cleanlab's score from five-fold logistic regressions of scikit-learn."""
    try:
        from cleanlab.rank import get_label_quality_scores  # pyright: ignore[reportMissingImports]  (not needed)
    except ImportError:
        return None
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=200))
    features, folds = (
        evidence.features[np.arange(len(evidence.labels))],
        StratifiedKFold(5, shuffle=True, random_state=0),
    )
    probabilities = cross_val_predict(model, features, evidence.labels, cv=folds, method="predict_proba")
    return np.argsort(
        get_label_quality_scores(evidence.labels, np.asarray(probabilities), method="self_confidence"), kind="stable"
    )


def _print_counts(name: str, counts: list[tuple[int, int, int]], expected: int) -> None:
    hits = ", ".join(str(count[0]) for count in counts)
    others = ", ".join(str(count[1]) for count in counts)
    print(f"{name}: found {hits} of {expected}; other photos reported {others}", flush=True)


def _count_hits(findings: Sequence[Finding], planted: set[str]) -> tuple[int, int, int]:
    paths = {path for finding in findings for path in finding.paths}
    return len(paths & planted), len(paths - planted), len(planted)


def measure_foreign_photos(photo_set: PlantedPhotos, seeds: int) -> None:
    """Count the foreign photos that are reported."""
    counts = []
    for seed in range(seeds):
        evidence = content_checks.collect_label_evidence(
            photo_set.with_planted("odd", seed), photo_set.cache, photo_set.plan
        )
        outliers = {
            evidence.paths[photo]
            for photo, _ in label_errors.find_outliers(evidence.features, evidence.labels, evidence.neighbours)
        }
        planted = {path for path, kind_and_seed in photo_set.planted.items() if kind_and_seed == ("odd", seed)}
        counts.append((len(outliers & planted), len(outliers - planted), len(planted)))
    _print_counts("odd", counts, PLANTED_PHOTOS)


def measure_blurred_photos(photo_set: PlantedPhotos, seeds: int) -> None:
    """Count the blurred photos that are reported."""
    counts = []
    for seed in range(seeds):
        dataset = photo_set.with_planted("blurred", seed)
        planted = {path for path, kind_and_seed in photo_set.planted.items() if kind_and_seed == ("blurred", seed)}
        findings = [
            finding
            for finding in image_quality.check_image_quality(dataset, photo_set.cache.pixels)
            if finding.kind == "blurry"
        ]
        counts.append(_count_hits(findings, planted))
    _print_counts("blurred", counts, PLANTED_PHOTOS)


def measure_bordered_class(photo_set: PlantedPhotos, seeds: int) -> None:
    """Check whether the class with a border is reported, and none without it."""
    for seed in (-1, *range(seeds)):
        dataset = photo_set.with_planted("shortcut", seed)
        evaluation = content_checks.evaluate_file_facts(dataset, photo_set.cache)
        details = [
            f"{dataset.classes[result.label]} {result.auc:.3f} "
            f"(by {result.fact} {result.fact_auc:.3f}, {result.picked_share:.0%})"
            for result in evaluation.per_class
        ]
        name = "photos as they are" if seed < 0 else f"border around {dataset.classes[seed % len(dataset.classes)]}"
        reported = [dataset.classes[result.label] for result in shortcuts.find_shortcuts(evaluation)]
        print(
            f"shortcut, {name}: reported {', '.join(reported) or 'none'}; accuracy by facts {evaluation.accuracy:.3f}, majority "
            f"{evaluation.majority_accuracy:.3f}; {'; '.join(details)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
