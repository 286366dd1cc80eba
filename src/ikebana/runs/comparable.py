"""Finished runs as a comparison needs them: their test photos and their grouping.

A test photo is its bytes (sha256) and its label, not its path: a renamed or moved photo stays the
same photo. Exact copies with the same label count once.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from ikebana.data.dataset import STATUS_USED
from ikebana.data.split import find_groups
from ikebana.errors import RunError
from ikebana.evaluation.comparison import SplitPredictions
from ikebana.recipe import Recipe, recipe_to_json
from ikebana.runs.run import DAMAGED_ADVICE, Run

KEY_COLUMNS = ("sha256", "label")
# Options in which runs of one contestant may differ: chance, and what changes no prediction. The number
# format of training is there because `auto` measures it, so that it may differ between seeds.
POOLED_OPTIONS = {"seed": 0, "split_seed": 0, "coverage": 0.9, "at_most_wrong": None, "refit_on_all": False} | {
    "precision": "auto"
}
MAX_NAMED_PHOTOS = 3
SPLIT_ADVICE = "train one of them again on the split of the other: ikebana fit PHOTOS --split-from RUN"


@dataclass(frozen=True)
class ComparableRun:
    """A finished run and the predictions of its test photos."""

    run: Run
    # sha256, label, predicted, path, duplicate_of, group; unique in KEY_COLUMNS and sorted by them.
    photos: pl.DataFrame
    # Test photos left out, because they are exact copies of one of `photos` with the same label.
    copies: int = 0

    @property
    def name(self) -> str:
        """The folder, as the user gave it."""
        return str(self.run.folder)

    @cached_property
    def test_id(self) -> str:
        """The same for runs with the same test photos and labels."""
        return _hash_rows(self.photos.select(KEY_COLUMNS))

    @cached_property
    def pooled_recipe(self) -> Recipe:
        """The recipe without the options in which pooled runs may differ."""
        return replace(self.run.recipe, class_order=(), **POOLED_OPTIONS)

    def hash_photos(self, split: str | None) -> str:
        """Return the same text for runs on the same photos with the same labels.

        Args:
            split: only the photos of this split; None for all.
        """
        used = self.run.dataset.filter(status=STATUS_USED)
        chosen = used if split is None else used.filter(split=split)
        return _hash_rows(chosen.select(KEY_COLUMNS).unique().sort(KEY_COLUMNS))


def _hash_rows(rows: pl.DataFrame) -> str:
    digest = hashlib.sha256()
    for sha256, label in rows.iter_rows():
        digest.update(f"{sha256} {label}\n".encode())
    return digest.hexdigest()


def read_comparable(run: Run) -> ComparableRun:
    """Read the predictions of a run's test photos.

    Raises:
        RunError: the run has not finished, or a file of it is damaged.
    """
    _ = run.evaluation
    columns = [f"p:{name}" for name in run.classes]
    predictions = run.predictions.filter(split="test")
    classes = np.array(run.classes)
    predicted = classes[predictions.select(columns).to_numpy().argmax(1)] if predictions.height else []
    predicted_labels = predictions.select("path", predicted=pl.Series(predicted, dtype=pl.String))
    used = run.dataset.filter(pl.col("status") == STATUS_USED, pl.col("split") == "test")
    photos = used.join(predicted_labels, on="path", how="inner")
    if used.height != predictions.height or photos.height != used.height:
        raise RunError(
            "predictions.parquet is damaged: it has other test photos than dataset.parquet",
            where=run.folder,
            advice=DAMAGED_ADVICE,
        )
    photos = photos.select(*KEY_COLUMNS, "predicted", "path", "duplicate_of", "group")
    unique = photos.sort(*KEY_COLUMNS, "path").unique(KEY_COLUMNS, keep="first", maintain_order=True)
    return ComparableRun(run, unique, photos.height - unique.height)


def check_same_classes(runs: Sequence[ComparableRun]) -> None:
    """Raise RunError if runs distinguish different classes. Their order does not matter."""
    first, reference = runs[0], set(runs[0].run.classes)
    for other in runs[1:]:
        classes = set(other.run.classes)
        if classes != reference:
            only = [
                f"only {comparable.name} has {', '.join(sorted(names))}"
                for comparable, names in ((first, reference - classes), (other, classes - reference))
                if names
            ]
            raise RunError(
                f"these runs distinguish different classes: {'; '.join(only)}",
                where=other.name,
                advice="compare runs on the same classes",
            )


def group_contestants(runs: Sequence[ComparableRun]) -> dict[str, list[ComparableRun]]:
    """Group runs of one recipe on the same photos, whatever their seeds and splits.

    With a single split, runs on other training photos are other contestants: that is how more photos
    are compared with fewer.

    Returns:
        The runs by a name for people, which is unique.
    """
    part = "train" if len({comparable.test_id for comparable in runs}) == 1 else None
    groups: dict[Any, list[ComparableRun]] = {}
    for comparable in runs:
        key = (repr(comparable.pooled_recipe), comparable.hash_photos(part))
        groups.setdefault(key, []).append(comparable)
    separated = [part for members in groups.values() for part in _separate_repeats(members)]
    # A user who gives two seeds of one recipe asks whether they differ.
    if len(separated) == 1 and len({comparable.test_id for comparable in runs}) == 1:
        separated = [[comparable] for comparable in runs]
    return dict(zip(_name_contestants(separated), separated, strict=True))


def _separate_repeats(runs: list[ComparableRun]) -> list[list[ComparableRun]]:
    """Separate runs that share seed and split: repeats, or another number format."""
    chances = {(comparable.run.recipe.seed, comparable.test_id) for comparable in runs}
    return [runs] if len(chances) == len(runs) else [[comparable] for comparable in runs]


def _name_contestants(groups: Sequence[Sequence[ComparableRun]]) -> list[str]:
    """Name contestants by recipe, and namesakes by folder or by options."""
    recipes = [members[0].pooled_recipe for members in groups]
    names = [recipe.name for recipe in recipes]
    folders = [members[0].run.folder for members in groups]
    short = [folder.name for folder in folders]
    labels = [
        name
        if names.count(name) == 1
        else folder
        if len(members) == 1
        else " ".join([name, *describe_options(recipe, recipes[names.index(name)])])
        for name, folder, recipe, members in zip(names, short, recipes, groups, strict=True)
    ]
    return labels if len(set(labels)) == len(labels) else list(map(str, folders))


def describe_options(recipe: Recipe, other: Recipe) -> list[str]:
    """List the options in which a recipe differs from another, such as image_size=160."""
    values, others = _flatten(recipe_to_json(recipe)), _flatten(recipe_to_json(other))
    return [f"{name}={_format(value)}" for name, value in values.items() if others.get(name) != value]


def _flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Return the options of nested records beside the others; their names are unique."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value) if isinstance(value, dict) else {name: value}
    return flat


def collect_splits(contestants: dict[str, list[ComparableRun]]) -> list[SplitPredictions]:
    """Collect which photos each contestant's runs classify correctly, by split.

    Raises:
        RunError: two contestants have no test photos in common; it says what differs.
    """
    by_test: dict[str, dict[str, list[ComparableRun]]] = {}
    for name, members in contestants.items():
        for comparable in members:
            by_test.setdefault(comparable.test_id, {}).setdefault(name, []).append(comparable)
    _check_common_splits(contestants)
    numbers = _number_groups([next(iter(named.values()))[0] for named in by_test.values()])
    names = name_splits([next(iter(named.values()))[0] for named in by_test.values()])
    splits = []
    for split_name, groups, named in zip(names, numbers, by_test.values(), strict=True):
        is_right = {
            name: np.stack(
                [(comparable.photos["predicted"] == comparable.photos["label"]).to_numpy() for comparable in members]
            )
            for name, members in named.items()
        }
        splits.append(SplitPredictions(split_name, groups, is_right))
    return splits


def _number_groups(runs: Sequence[ComparableRun]) -> list[np.ndarray]:
    """Number groups of duplicates over all splits, which may share test photos."""
    columns = ("sha256", "duplicate_of", "group")
    numbers = np.array(find_groups(pl.concat([comparable.photos.select(columns) for comparable in runs])), np.int64)
    ends = np.cumsum([comparable.photos.height for comparable in runs])
    return np.split(numbers, ends[:-1])


def name_splits(runs: Sequence[ComparableRun]) -> list[str]:
    """Name the splits of runs on different test photos, for people."""
    if len(runs) == 1:
        return ["the same test photos"]
    seeds = [f"split seed {comparable.run.recipe.split_seed}" for comparable in runs]
    return seeds if len(set(seeds)) == len(seeds) else [f"split of {comparable.name}" for comparable in runs]


def _check_common_splits(contestants: dict[str, list[ComparableRun]]) -> None:
    members = list(contestants.values())
    for number, first in enumerate(members):
        for second in members[number + 1 :]:
            if not {comparable.test_id for comparable in first} & {comparable.test_id for comparable in second}:
                raise _describe_other_photos(first[0], second[0])


def _describe_other_photos(first: ComparableRun, second: ComparableRun) -> RunError:
    """Build the error for runs with different test photos, or different labels of them."""
    labels = first.photos.join(second.photos, on="sha256", suffix="_now").filter(pl.col("label") != pl.col("label_now"))
    if labels.height:
        rows = labels.select("path", "label", "label_now").head(MAX_NAMED_PHOTOS).iter_rows()
        named = ", ".join(f"{path} ({label}, then {label_now})" for path, label, label_now in rows)
        photos = "1 test photo has" if labels.height == 1 else f"{labels.height:,} test photos have"
        what = f"{photos} different labels in the two runs: {named}"
        return RunError(
            what, where=second.name, advice="train both on the same labels; --split-from RUN keeps the split"
        )
    common = first.photos.join(second.photos, on=list(KEY_COLUMNS), how="semi").height
    counts = f"{first.name} has {first.photos.height:,}, {second.name} {second.photos.height:,}, {common:,} in common"
    if first.hash_photos(None) == second.hash_photos(None):
        options = _describe_split(first, second)
        reason = f"the runs have different test photos, because they split the same photos differently{options}"
    elif common:
        reason = "the runs were trained on different collections, so their test photos differ"
    else:
        reason = "the runs have no test photo in common: they were trained on other photos"
    return RunError(f"{reason}; {counts}", where=second.name, advice=SPLIT_ADVICE)


def _describe_split(first: ComparableRun, second: ComparableRun) -> str:
    options = ("split", "split_seed", "split_fractions", "class_order")
    pairs = [(name, getattr(first.run.recipe, name), getattr(second.run.recipe, name)) for name in options]
    lines = [f"{name} {_format(before)} and {_format(after)}" for name, before, after in pairs if before != after]
    return f" ({'; '.join(lines)})" if lines else ""


def _format(value: Any) -> str:
    return (",".join(map(str, value)) or "sorted") if isinstance(value, tuple) else str(value)
