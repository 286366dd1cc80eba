"""Measure false alarms of slices, and whether planted differences are found.

    python bench/slices.py --photos DIR --out DIR [--recipe quick] [--rounds 200] [--class rose]
        [--dark-factor 0.04]

The photos are split as `fit` splits them by default. Its validation photos are scored in place of
the test photos, which are left out. Then

- outcomes without any effect are drawn --rounds times for the real properties of these photos, once
  per photo and once per group of ten photos, and the share of rounds with a report is printed
- 30% of the scored photos of one class are multiplied by --dark-factor, and the recipe is trained and scored
- the photos get a random site, and at one of five sites a fifth of all labels becomes wrong
"""

import argparse
import random
from pathlib import Path

import numpy as np
import polars as pl
from machine import format_header
from PIL import Image

import ikebana
from ikebana import recipes
from ikebana.auditing.slice_properties import collect_properties
from ikebana.data import decoding, pixel_cache, sources, split
from ikebana.evaluation.slices import Properties, score_slices
from ikebana.evaluation.statistics import wilson_interval
from ikebana.runs.run import Run
from ikebana.system import progress

ACCURACY = 0.92
PHOTOS_PER_GROUP = 10
SITES = ("Bonn", "Lund", "Oslo", "Turin", "Vilnius")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--dark-factor", type=float, default=0.04)
    parser.add_argument("--class", dest="darkened_class", default="rose")
    options = parser.parse_args()
    progress.set_reporter(progress.SilentReporter())
    print(format_header("torch", "timm", "scipy"), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    table = split_photos(options.photos, options.recipe)
    properties = read_properties(table, options.out / "plain.csv", options.recipe)
    for name, group_size in (("photos", 1), (f"groups of {PHOTOS_PER_GROUP}", PHOTOS_PER_GROUP)):
        print(f"false alarms, {name}: {count_false_alarms(properties, options.rounds, group_size)}", flush=True)
    darkened = darken(table, options.darkened_class, options.dark_factor, options.out / "dark")
    report(
        "30% of one class darkened",
        darkened,
        options.out / "darkened",
        options.recipe,
        pl.col("path").str.contains("/dark/"),
    )
    report("a site with wrong labels", spoil_labels(table), options.out / "sites", options.recipe)


def split_photos(photos: Path, recipe: str) -> pl.DataFrame:
    """Return path, label and split of each photo; validation photos become the test photos."""
    settings = recipes.get_recipe(recipe)
    dataset, _ = pixel_cache.open_pixel_cache(sources.read(photos), 32, "squash")
    used = split.split_photos(dataset, settings).used_photos.filter(pl.col("split") != "test")
    absolute = pl.Series([str(photos.resolve() / path) for path in used["path"]])
    return used.select("label", pl.col("split").replace({"validation": "test"})).with_columns(path=absolute)


def read_properties(table: pl.DataFrame, file: Path, recipe: str) -> Properties:
    table.write_csv(file)
    image_size = ikebana.Plan.from_photos(file, recipe).recipe.image_size
    dataset, pixels = pixel_cache.open_pixel_cache(sources.read(file), image_size, recipes.get_recipe(recipe).resize)
    rows = dataset.used_photos_with_row.filter(split="test")["row"].to_numpy().astype(np.int64)
    return collect_properties(dataset, pixels.pixels, rows)


def count_false_alarms(properties: Properties, rounds: int, group_size: int) -> str:
    """Count the rounds that report a slice although outcomes depend on no property."""
    n = len(properties["brightness"])
    groups, alarms, tests = np.arange(n) // group_size, 0, 0
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        # Photos of one group have the same properties, so that a group is in one slice.
        order = rng.permutation(n)[groups]
        rates = rng.beta(ACCURACY, 1 - ACCURACY, n)[groups] if group_size > 1 else np.full(n, ACCURACY)
        slices = score_slices(
            rng.random(n) < rates, {name: values[order] for name, values in properties.items()}, groups
        )
        assert slices is not None
        alarms, tests = alarms + bool(slices.worse), len(slices.tested)
    low, high = wilson_interval(alarms, rounds)
    return f"{alarms} of {rounds} rounds, {alarms / rounds:.3f} ({low:.3f} to {high:.3f}); {n} photos, {tests} slices"


def darken(table: pl.DataFrame, name: str, factor: float, folder: Path) -> pl.DataFrame:
    """Darken 30% of the test photos of a class."""
    folder.mkdir(exist_ok=True)
    paths = table.filter(label=name, split="test")["path"].to_list()
    darkened = {}
    for path in random.Random(0).sample(paths, round(0.3 * len(paths))):
        photo = decoding.decode_full_size(Path(path).read_bytes()) * factor
        darkened[path] = str(folder.resolve() / f"{Path(path).stem}.jpg")
        Image.fromarray(photo.astype(np.uint8)).save(darkened[path], quality=90)
    print(f"darkened {len(darkened)} of {len(paths)} scored photos of {name}", flush=True)
    return table.with_columns(pl.col("path").replace(darkened))


def spoil_labels(table: pl.DataFrame) -> pl.DataFrame:
    """Give each photo a random site, and one site a fifth of wrong labels."""
    rng = random.Random(0)
    classes = sorted(set(table["label"]))
    sites = [rng.choice(SITES) for _ in range(table.height)]
    labels = [
        rng.choice([other for other in classes if other != label]) if site == SITES[1] and rng.random() < 0.2 else label
        for label, site in zip(table["label"], sites, strict=True)
    ]
    return table.with_columns(label=pl.Series(labels), site=pl.Series(sites))


def report(title: str, table: pl.DataFrame, place: Path, recipe: str, is_planted: pl.Expr | None = None) -> None:
    table.write_csv(place.with_suffix(".csv"))
    run = ikebana.fit(place.with_suffix(".csv"), recipe, run=place)
    evaluation = run.evaluation
    assert evaluation.slices is not None
    print(f"{title}: accuracy {evaluation.accuracy:.3f} on {evaluation.n} photos")
    if is_planted is not None:
        print(f"accuracy on the changed photos: {score(run, is_planted):.3f}")
    print(f"{len(evaluation.slices.tested)} slices tested; significantly worse:")
    for worse in evaluation.slices.worse:
        print(f"  {worse.describe()}, p = {worse.p_value:.2g}", flush=True)


def score(run: Run, selection: pl.Expr) -> float:
    """Compute the accuracy on some of the test photos."""
    predictions = run.predictions.filter(pl.col("split") == "test").filter(selection)
    predicted = predictions.select(f"p:{name}" for name in run.classes).to_numpy().argmax(1)
    return float(
        np.mean([run.classes[index] == label for index, label in zip(predicted, predictions["label"], strict=True)])
    )


if __name__ == "__main__":
    main()
