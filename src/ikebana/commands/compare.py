"""`ikebana compare`: which of several runs is better, and whether the test photos can tell."""

import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ikebana.data.output_folders import is_run
from ikebana.errors import RunError, UsageError
from ikebana.evaluation.comparison import Comparison, compare_contestants
from ikebana.recipe import Recipe
from ikebana.runs.comparable import (
    KEY_COLUMNS,
    ComparableRun,
    check_same_classes,
    collect_splits,
    describe_options,
    group_contestants,
    read_comparable,
)
from ikebana.runs.run import ADVICE_RUN_FOLDER, Run, open_run
from ikebana.system import progress
from ikebana.system.files import resolve_output_path


def compare(*runs: str | Path | Run, out: str | Path | None = None) -> Comparison:
    """Compare runs on their test photos, which must be the same.

    Runs of one recipe with several seeds are pooled. Runs on several splits are compared split by
    split, and over all of them.

    Args:
        runs: run folders, what `fit` returned, or folders of runs, such as `sweep` writes.
        out: an HTML page to write, with the photos on which the runs differ.
    Raises:
        RunError: fewer than two runs, a run twice, an unfinished one, or other classes or test photos.
        MachineError: the page cannot be written.
    """
    page = resolve_output_path(out) if out is not None else None
    comparable = [read_comparable(run) for run in _open_runs(runs)]
    check_same_classes(comparable)
    contestants = group_contestants(comparable)
    if len(contestants) == 1:
        raise RunError(
            "these runs have the same recipe and different test photos, so there is nothing to compare",
            where=comparable[0].name,
            advice="add runs of another recipe on the same splits: ikebana sweep PHOTOS --recipes A,B",
        )
    comparison = compare_comparable(contestants)
    progress.event("comparison", **comparison.to_json())
    if page is not None:
        from ikebana.reports.comparison_page import write_comparison_page

        write_comparison_page(page, comparison, contestants)
        progress.message(f"page: {page}")
    return comparison


def compare_comparable(contestants: dict[str, list[ComparableRun]]) -> Comparison:
    """Compare contestants, each with its runs.

    Raises:
        RunError: two of them have no test photos in common.
    """
    splits = collect_splits(contestants)
    # In the order of the splits, as their accuracies are.
    order = list(dict.fromkeys(comparable.test_id for members in contestants.values() for comparable in members))
    runs = {
        name: [comparable.name for comparable in sorted(members, key=lambda member: order.index(member.test_id))]
        for name, members in contestants.items()
    }
    notes = [*_describe_copies(contestants), *_describe_repeats(contestants), *_describe_pooling(contestants)]
    return compare_contestants(splits, runs, notes, differ_by_chance=_differ_by_chance(contestants))


def _differ_by_chance(contestants: dict[str, list[ComparableRun]]) -> bool:
    """Return whether all are runs of one recipe, trained on the same photos."""
    return _have_same_recipe(contestants) and (
        len({members[0].hash_photos("train") for members in contestants.values()}) == 1
    )


def _have_same_recipe(contestants: dict[str, list[ComparableRun]]) -> bool:
    return len({repr(members[0].pooled_recipe) for members in contestants.values()}) == 1


def _describe_copies(contestants: dict[str, list[ComparableRun]]) -> list[str]:
    """Say how many copies do not count, since a run has more test photos."""
    # Runs on the same split may have different copies of the same photos.
    by_split: dict[str, int] = {}
    for comparable in (comparable for members in contestants.values() for comparable in members):
        by_split[comparable.test_id] = max(by_split.get(comparable.test_id, 0), comparable.copies)
    count = sum(by_split.values())
    return [f"{count:,} exact {'copy' if count == 1 else 'copies'} of test photos left out"] if count else []


def _describe_repeats(contestants: dict[str, list[ComparableRun]]) -> list[str]:
    """Say how many photos are test photos of several splits."""
    by_split = {comparable.test_id: comparable for members in contestants.values() for comparable in members}
    if len(by_split) == 1:
        return []
    photos = pl.concat([comparable.photos.select(KEY_COLUMNS) for comparable in by_split.values()])
    count = photos.filter(pl.struct(KEY_COLUMNS).is_duplicated()).unique().height
    if not count:
        return []
    are = "photo is a test photo" if count == 1 else "photos are test photos"
    return [f"{count:,} {are} of several splits: counted once per split, but as one unit in intervals and p"]


def _describe_pooling(contestants: dict[str, list[ComparableRun]]) -> list[str]:
    seeds = {name: {comparable.run.recipe.seed for comparable in members} for name, members in contestants.items()}
    pooled = [name for name, own in seeds.items() if len(own) > 1]
    notes = _describe_namesakes(contestants)
    if pooled:
        notes.append(f"pooled over seeds: {', '.join(pooled)}. A photo counts as the share of runs that are right.")
    elif len(contestants) > 1 and _have_same_recipe(contestants):
        is_chance = _differ_by_chance(contestants)
        same = "and training photos: they differ by chance only" if is_chance else "and differ in training photos"
        notes.append(f"these runs have the same recipe {same}")
    return notes


def _describe_namesakes(contestants: dict[str, list[ComparableRun]]) -> list[str]:
    """Say how recipes of the same name differ."""
    first: dict[str, Recipe] = {}
    notes = []
    for name, members in contestants.items():
        recipe = members[0].pooled_recipe
        other = first.setdefault(recipe.name, recipe)
        if options := describe_options(recipe, other):
            notes.append(f"{name} is {recipe.name} with {', '.join(options)}")
    return notes


def _open_runs(runs: Sequence[str | Path | Run]) -> list[Run]:
    opened = [run for given in runs for run in _open_folder(given)]
    if len(opened) < 2:
        raise UsageError(
            f"{'one run has' if opened else 'no run was given, so there is'} nothing to compare",
            advice="ikebana compare RUN RUN",
        )
    resolved: dict[Path, Run] = {}
    for run in opened:
        if resolved.setdefault(run.folder.resolve(), run) is not run:
            raise RunError("this run is given twice", where=run.folder, advice="give each run once")
    return opened


def _open_folder(given: str | Path | Run) -> list[Run]:
    """Open a run, or all runs of a folder, sorted by name."""
    if isinstance(given, Run):
        return [given]
    folder = Path(os.path.expanduser(given))
    if not folder.is_dir() or (folder / "recipe.json").exists():
        return [open_run(given)]
    members = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and is_run(entry)]
    if not members:
        raise RunError("there is no run in this folder", where=given, advice=ADVICE_RUN_FOLDER)
    return [open_run(member) for member in members]
