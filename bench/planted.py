"""What is planted among the photos, and how much of it `audit` finds: wrong labels, foreign photos, blurred ones, a border.

    python bench/planted.py --photos DIR [--awkward DIR] [--seeds 3] [--only labels,odd,blurred,shortcut]

Nothing in DIR is changed: the photos are named by a table, and what is planted is written to a temporary folder beside it.

labels    3 % of all labels are changed to another class. Recall among as many suspects as were planted (which is also
          precision) and among three times as many; beside it cleanlab's own ranking of five-fold logistic regressions.
          Labels that were wrong before count as mistakes here, though they are none.
odd       20 foreign photos: up to ten files of --awkward and drawn ones, under labels by chance
blurred   20 photos blurred by a Gaussian of 3 to 6 pixels where the shorter side has 240
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

from ikebana.auditing import content_checks, image_quality, shortcuts
from ikebana.auditing import label_errors as doubts
from ikebana.auditing.findings import Finding
from ikebana.data import pixel_cache, sources, split
from ikebana.data.dataset import STATUS_USED, Dataset
from ikebana.data.pixel_cache import PixelCache
from ikebana.learning.models import networks
from ikebana.learning.plan import Plan
from ikebana.recipes import DEFAULT_RECIPE, RECIPES
from ikebana.system import progress

FLIPPED = 0.03  # of the labels
PLANTED = 20  # foreign photos, and blurred ones
BORDER = 4  # pixels
GREY = (24, 24, 24)  # of the border
FOREIGN = (  # of the awkward files, those that are photos or drawings of something, each once
    "Channel_digital_image_CMYK_color_no_profile.jpg", "Flag_of_the_Netherlands-16bit.png", "exif_landscape_1.jpg",
    "exif_portrait_6.jpg", "exif_typeerror.jpg", "hopper.avif", "imageNotFound.gif", "iss634.gif", "sugarshack.mpo",
    "transparent.png",
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """Photos as they are, and what is planted for each seed."""

    dataset: Dataset  # all of them, opened
    keep: PixelCache
    plan: Plan
    planted: dict[str, tuple[str, int]]  # path → kind and seed

    def with_planted(self, kind: str, seed: int) -> Dataset:
        """The photos as they are and those planted of one kind for one seed; a blurred one takes its original's place."""
        own = {path for path, what in self.planted.items() if what == (kind, seed)}
        names = {Path(path).name.partition("@")[2] for path in own}
        left_out = [
            (path in self.planted and path not in own) or (path not in self.planted and path.replace("/", "-") in names)
            for path in self.dataset.photos["path"]
        ]
        status = pl.when(pl.Series(left_out)).then(pl.lit("left out")).otherwise(pl.col("status")).alias("status")
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
    kinds = {"labels": flipped, "odd": foreign, "blurred": blurred, "shortcut": bordered}
    with tempfile.TemporaryDirectory() as scratch:
        bench = planted(
            Path(scratch), options.photos.resolve(), options.awkward, options.seeds, options.only.split(",")
        )
        for kind in options.only.split(","):
            kinds[kind](bench, options.seeds)


def planted(scratch: Path, photos: Path, awkward: Path | None, seeds: int, kinds: Sequence[str]) -> Bench:
    """A table of all photos as they are and of everything that is planted, opened once."""
    # float32 throughout: one array of features then serves every seed, whichever photos are trained on.
    recipe = replace(networks.fill_defaults(RECIPES[DEFAULT_RECIPE]), precision="float32")
    found = sources.read(photos)
    rows = [(str(found.resolve_path(path)), label) for path, label in found.photos.select("path", "label").iter_rows()]
    classes = sorted({label for _, label in rows})
    plants: list[tuple[str, str, str, int]] = []
    for seed in range(seeds):
        if "odd" in kinds:
            plants += [(*row, "odd", seed) for row in _foreign(scratch / f"odd-{seed}", awkward, classes, seed)]
        if "blurred" in kinds:
            plants += [(*row, "blurred", seed) for row in _blurred(scratch / f"blurred-{seed}", rows, seed)]
        if "shortcut" in kinds:
            name = classes[seed % len(classes)]
            plants += [(*row, "shortcut", seed) for row in _bordered(scratch / f"border-{seed}", rows, name)]
    table = pl.DataFrame([*rows, *(each[:2] for each in plants)], schema=["path", "label"], orient="row")
    table.write_csv(scratch / "photos.csv")
    plan = Plan.from_dataset(sources.read(scratch / "photos.csv"), recipe)
    opened, keep = pixel_cache.open_pixel_cache(plan.dataset, recipe.image_size, recipe.resize)
    return Bench(sources.assign_classes(opened, ()), keep, plan, {each[0]: (each[2], each[3]) for each in plants})


def _beside(folder: Path, path: str) -> Path:
    """Where a changed copy of a photo goes: its name tells which photo it stands for."""
    folder.mkdir(exist_ok=True)
    return folder / f"copy@{path.replace('/', '-')}"


def _foreign(folder: Path, awkward: Path | None, classes: Sequence[str], seed: int) -> Iterator[tuple[str, str]]:
    dice = np.random.default_rng(seed)
    folder.mkdir()
    files = []
    if awkward is not None:
        for name in FOREIGN:
            files.append(folder / name)
            files[-1].write_bytes((awkward / name).read_bytes())
    for number, picture in enumerate(draw_pictures(PLANTED - len(files), seed)):
        files.append(folder / f"drawn-{number}.jpg")
        picture.save(files[-1], quality=90)
    for file in files:
        yield str(file), classes[int(dice.integers(len(classes)))]


def _blurred(folder: Path, rows: Sequence[tuple[str, str]], seed: int) -> Iterator[tuple[str, str]]:
    dice = np.random.default_rng(seed)
    for place in dice.choice(len(rows), PLANTED, replace=False):
        path, label = rows[int(place)]
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            radius = dice.uniform(3, 6) * min(upright.size) / 240
            yield _saved(upright.filter(ImageFilter.GaussianBlur(radius)), picture, _beside(folder, path)), label


def _bordered(folder: Path, rows: Sequence[tuple[str, str]], name: str) -> Iterator[tuple[str, str]]:
    for path, label in rows:
        if label == name:
            with Image.open(path) as picture:
                upright = ImageOps.exif_transpose(picture).convert("RGB")
                inside = upright.crop((BORDER, BORDER, upright.width - BORDER, upright.height - BORDER))
                yield _saved(ImageOps.expand(inside, BORDER, GREY), picture, _beside(folder, path)), label


def _saved(changed: Image.Image, original: Image.Image, file: Path) -> str:
    """With the original's own quantisation, so that nothing tells the copy but what was changed."""
    tables = getattr(original, "quantization", None)
    changed.save(file, "JPEG", **({"qtables": tables, "subsampling": "4:2:0"} if tables else {"quality": 90}))
    return str(file)


def flipped(bench: Bench, seeds: int) -> None:
    """Wrong labels, found by ours and by cleanlab's way."""
    scores: dict[str, list[tuple[float, float]]] = {"ours": [], "heads alone": [], "cleanlab": []}
    shares, clean = [], bench.with_planted("labels", -1)
    for seed in range(seeds):
        dataset, wrong = _with_flips(clean, seed)
        seen = content_checks.collect_label_evidence(dataset, bench.keep, bench.plan)
        planted_here = np.array([path in wrong for path in seen.paths])
        scores["ours"].append(_recalls(doubts.rank_suspect_labels(seen.combined, seen.labels), planted_here))
        scores["heads alone"].append(_recalls(doubts.rank_suspect_labels(seen.out_of_fold, seen.labels), planted_here))
        if (order := _cleanlabs(seen)) is not None:
            scores["cleanlab"].append(_recalls(order, planted_here))
        listed = doubts.find_suspect_labels(seen.combined, seen.labels)
        right = [each for each in listed if planted_here[each.photo]]
        named = [each for each in right if dataset.classes[each.suggested_label] == wrong[seen.paths[each.photo]]]
        shares.append((len(listed), len(right), len(named)))
    for name, found in scores.items():
        if found:
            once, thrice = zip(*found, strict=True)
            print(
                f"labels, {name}: recall among as many {format_spread(once, 3)}, three times as many {format_spread(thrice, 3)}"
            )
    print(f"labels reported, of these planted, of these with the right name: {shares}", flush=True)


def _with_flips(dataset: Dataset, seed: int) -> tuple[Dataset, dict[str, str]]:
    """The same photos with 3 % of the labels changed, and the true label of each of those."""
    dice = np.random.default_rng(seed)
    labels, used = dataset.photos["label"].to_list(), np.flatnonzero(dataset.photos["status"] == STATUS_USED)
    wrong = {}
    for row in dice.choice(used, round(FLIPPED * len(used)), replace=False):
        others = [name for name in dataset.classes if name != labels[row]]
        wrong[dataset.photos["path"][int(row)]] = labels[row]
        labels[row] = others[dice.integers(len(others))]
    return dataset.with_photos(dataset.photos.with_columns(pl.Series("label", labels))), wrong


def _recalls(order: np.ndarray, wrong: np.ndarray) -> tuple[float, float]:
    count = int(wrong.sum())
    return float(wrong[order[:count]].mean()), float(wrong[order[: 3 * count]].sum() / count)


def _cleanlabs(seen: content_checks.LabelEvidence) -> np.ndarray | None:
    """cleanlab's ranking by its normalised margin, on scikit-learn's plain logistic regression in five folds."""
    try:
        from cleanlab.rank import get_label_quality_scores  # pyright: ignore[reportMissingImports]  (not needed)
    except ImportError:
        return None
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=200))
    features, folds = seen.features[np.arange(len(seen.labels))], StratifiedKFold(5, shuffle=True, random_state=0)
    said = cross_val_predict(model, features, seen.labels, cv=folds, method="predict_proba")
    return np.argsort(get_label_quality_scores(seen.labels, np.asarray(said), method="self_confidence"), kind="stable")


def _counted(name: str, found: list[tuple[int, int, int]], of: int) -> None:
    hits = ", ".join(str(each[0]) for each in found)
    others = ", ".join(str(each[1]) for each in found)
    print(f"{name}: found {hits} of {of}; other photos reported {others}", flush=True)


def _hits(findings: Sequence[Finding], planted_here: set[str]) -> tuple[int, int, int]:
    paths = {path for each in findings for path in each.paths}
    return len(paths & planted_here), len(paths - planted_here), len(planted_here)


def foreign(bench: Bench, seeds: int) -> None:
    """Photos of something else."""
    found = []
    for seed in range(seeds):
        seen = content_checks.collect_label_evidence(bench.with_planted("odd", seed), bench.keep, bench.plan)
        strange = {seen.paths[photo] for photo, _ in doubts.find_outliers(seen.features, seen.labels, seen.neighbours)}
        here = {path for path, what in bench.planted.items() if what == ("odd", seed)}
        found.append((len(strange & here), len(strange - here), len(here)))
    _counted("odd", found, PLANTED)


def blurred(bench: Bench, seeds: int) -> None:
    """Photos out of focus."""
    found = []
    for seed in range(seeds):
        dataset = bench.with_planted("blurred", seed)
        here = {path for path, what in bench.planted.items() if what == ("blurred", seed)}
        named = [
            each for each in image_quality.check_image_quality(dataset, bench.keep.pixels) if each.kind == "blurry"
        ]
        found.append(_hits(named, here))
    _counted("blurred", found, PLANTED)


def bordered(bench: Bench, seeds: int) -> None:
    """A class with a border, and the same photos without."""
    for seed in (-1, *range(seeds)):
        dataset = bench.with_planted("shortcut", seed)
        judged = content_checks.evaluate_file_facts(dataset, bench.keep)
        told = [
            f"{dataset.classes[each.label]} {each.auc:.3f} (by {each.fact} {each.fact_auc:.3f}, {each.picked_share:.0%})"
            for each in judged.per_class
        ]
        name = "photos as they are" if seed < 0 else f"border around {dataset.classes[seed % len(dataset.classes)]}"
        named = [dataset.classes[each.label] for each in shortcuts.find_shortcuts(judged)]
        print(
            f"shortcut, {name}: named {', '.join(named) or 'none'}; accuracy by facts {judged.accuracy:.3f}, majority "
            f"{judged.majority_accuracy:.3f}; {'; '.join(told)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
