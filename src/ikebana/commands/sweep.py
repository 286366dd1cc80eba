"""`ikebana sweep`: recipes x seeds x splits, one run each, and their comparison."""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, Unpack

from ikebana.commands.compare import compare_comparable
from ikebana.commands.run_series import (
    check_same_photos,
    fit_or_resume,
    refuse_given_split,
    resolve_series_folder,
)
from ikebana.data import sources
from ikebana.data.sources import PhotoSource
from ikebana.errors import IkebanaError, RecipeError, get_first_line
from ikebana.evaluation.comparison import Comparison
from ikebana.learning import budget
from ikebana.learning.estimate import format_duration
from ikebana.learning.models import networks
from ikebana.recipe import FitOptions, Recipe
from ikebana.recipes import resolve_recipe
from ikebana.runs.comparable import group_contestants, read_comparable
from ikebana.runs.run import Run
from ikebana.runs.run_writer import DEFAULT_RUNS_FOLDER
from ikebana.system import progress
from ikebana.system.files import write_json
from ikebana.system.launch import require_one_process
from ikebana.tracking.follow import followed

DEFAULT_RECIPES = ("quick", "good")
PAGE, RESULT_FILE = "comparison.html", "sweep.json"


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep.

    Attributes:
        folder: contains the runs, `sweep.json` and `comparison.html`.
        runs: the finished ones.
        failures: the reason by name of the run.
        comparison: None if fewer than two runs finished.
    """

    folder: Path
    runs: tuple[Run, ...]
    failures: Mapping[str, str]
    comparison: Comparison | None

    def __repr__(self) -> str:
        failed = [f"failed: {name}: {reason}" for name, reason in self.failures.items()]
        return "\n\n".join([*([repr(self.comparison)] if self.comparison is not None else []), *failed])

    def _repr_html_(self) -> str:
        from ikebana.system.notebook_html import render_view

        failed = [f"failed: {name}: {reason}" for name, reason in self.failures.items()]
        comparison = self.comparison._repr_html_() if self.comparison is not None else ""
        return comparison + render_view(f"{_count_runs(self.runs)} in {self.folder}", *failed)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `sweep.json`."""
        accuracies = {run.folder.name: run.evaluation.accuracy for run in self.runs}
        comparison = self.comparison.to_json() if self.comparison is not None else None
        return {"accuracies": accuracies, "failures": dict(self.failures), "comparison": comparison}


@dataclass(frozen=True)
class PlannedRun:
    """A run of the sweep, by the folder's name."""

    name: str
    recipe: Recipe


class TrainedRun(NamedTuple):
    """How the training of a planned run ended."""

    planned: PlannedRun
    # The run, or why there is none.
    outcome: Run | Exception
    # Of the last attempt, without the time that it waited for a node; 0 if its process ended.
    seconds: float = 0.0


# Trains runs in a folder on a device, or uses the finished ones, and yields each as it ends.
TrainRuns: TypeAlias = Callable[[PhotoSource, Sequence[PlannedRun], Path, str], Iterator[TrainedRun]]


def train_run(photos: PhotoSource, planned: PlannedRun, folder: Path, device: str) -> TrainedRun:
    """Train a run, continue it, or use a finished one; an error is the outcome."""
    started = time.monotonic()
    try:
        with progress.without_messages():
            outcome = fit_or_resume(photos, planned.recipe, folder / planned.name, device=device)
    # One failing run does not end the others.
    except Exception as error:
        outcome = error
    return TrainedRun(planned, outcome, time.monotonic() - started)


def _train_here(photos: PhotoSource, runs: Sequence[PlannedRun], folder: Path, device: str) -> Iterator[TrainedRun]:
    """Train the runs in this process, one after the other."""
    for run in runs:
        yield train_run(photos, run, folder, device)


@followed
def sweep(
    photos: PhotoSource,
    recipes: Sequence[str | Path | Recipe] = DEFAULT_RECIPES,
    *,
    seeds: int = 1,
    split_seeds: int = 1,
    out: str | Path | None = None,
    minutes: float | None = None,
    device: str = "auto",
    watch: bool = False,
    log: str | Sequence[str] = (),
    train: TrainRuns = _train_here,
    **options: Unpack[FitOptions],
) -> Sweep:
    """Train every recipe with several seeds on several splits, and compare the recipes.

    A finished run is used as it is, an interrupted one is continued. So the same call resumes. A run
    that fails does not end the others.

    Args:
        recipes: names, recipe files or Recipes.
        seeds: number of seeds, from 0, of the training.
        split_seeds: number of splits, with split seeds from 0.
        out: the folder to create; default: `runs/sweep-<short hash>`.
        minutes: train as many rounds of one run per recipe as are expected to fit.
        device, watch, log: as for `fit`; page and logs follow one run after the other.
        train: trains the runs, here or on other machines.
        options: changes to every recipe.
    Raises:
        RecipeError: there is no recipe, seed or split, or nothing fits into the minutes.
        PhotosError: the photos cannot be read, or come with a split.
        RunError: the folder is a run itself.
        RunError, MachineError: no run finished; the error of the first.
    """
    require_one_process("a sweep")
    planned = _plan_rounds(_resolve_recipes(recipes, options), seeds, split_seeds)
    first = planned[0][0].recipe
    if split_seeds > 1:
        refuse_given_split(photos, first, "--split-seeds")
    else:
        sources.read(photos, first.class_order)
    folder = resolve_series_folder(out if out is not None else _choose_folder())
    if minutes is not None:
        planned = _select_affordable(planned, photos, folder, minutes, device)
    runs = [run for planned_round in planned for run in planned_round]
    progress.message(f"{_count_runs(runs)} in {folder}; after an interruption, repeat with --out {folder}")
    finished, errors = _train(photos, runs, folder, device, train)
    if not finished:
        raise next(iter(errors.values()))
    return _summarise(folder, finished, {name: _describe(error) for name, error in errors.items()})


def _count_runs(runs: Sequence[object]) -> str:
    return f"{len(runs)} run{'s' * (len(runs) != 1)}"


def _choose_folder() -> Path:
    return DEFAULT_RUNS_FOLDER / f"sweep-{secrets.token_hex(3)}"


def _resolve_recipes(recipes: Sequence[str | Path | Recipe], options: Mapping[str, Any]) -> list[Recipe]:
    if isinstance(recipes, str) or not recipes:
        raise RecipeError("no recipes were given", advice='--recipes quick,good, or recipes=("quick", "good")')
    for name in ("seed", "split_seed"):
        if name in options:
            flag = name.replace("_", "-")
            raise RecipeError(f"--{flag} has no effect: a sweep has seeds from 0", advice=f"--{flag}s N")
    return [networks.fill_defaults(resolve_recipe(recipe, **options)) for recipe in recipes]


def _plan_rounds(recipes: Sequence[Recipe], seeds: int, split_seeds: int) -> list[list[PlannedRun]]:
    """Plan rounds of one run per recipe, with the same seed and split.

    Splits come first: they tell more than seeds.
    """
    for count, flag in ((seeds, "--seeds"), (split_seeds, "--split-seeds")):
        if count < 1:
            raise RecipeError(f"{flag} is {count}", advice="1 or more")
    names = [recipe.name for recipe in recipes]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"two recipes are called {name}", advice="give each recipe once, or another name")
    return [
        [
            PlannedRun(f"{recipe.name}-split{split}-seed{seed}", replace(recipe, seed=seed, split_seed=split))
            for recipe in recipes
        ]
        for seed in range(seeds)
        for split in range(split_seeds)
    ]


def _select_affordable(
    planned: list[list[PlannedRun]], photos: PhotoSource, folder: Path, minutes: float, device: str
) -> list[list[PlannedRun]]:
    """Select the rounds that fit.

    If not even one does, the most expensive recipe is left out."""
    budget.check_minutes(minutes)
    names = [run.recipe.name for run in planned[0]]
    costs = {run.recipe.name: budget.estimate_run_cost(photos, run.recipe, device) for run in planned[0]}
    dropped: list[str] = []
    while names:
        chosen = [[run for run in planned_round if run.recipe.name in names] for planned_round in planned]
        missing = [
            [run.recipe.name for run in planned_round if not _is_finished(folder, run)] for planned_round in chosen
        ]
        count, seconds = budget.select_rounds(missing, costs, minutes)
        if count:
            left_out = f"; left out: {', '.join(dropped)}" if dropped else ""
            progress.message(
                f"{count} of {len(planned)} rounds of {', '.join(names)} fit into {minutes:g} min: "
                f"about {format_duration(seconds)}{left_out}"
            )
            return chosen[:count]
        slowest = max(names, key=lambda name: costs[name].first)
        dropped.append(f"{slowest} (about {format_duration(costs[slowest].first)} per run)")
        names.remove(slowest)
    cheapest = min(cost.first for cost in costs.values())
    raise RecipeError(
        f"no run fits into {minutes:g} min: {', '.join(dropped)}", advice=f"--minutes {int(cheapest // 60) + 1}"
    )


def _is_finished(folder: Path, run: PlannedRun) -> bool:
    return (folder / run.name / "evaluation.json").exists()


def _train(
    photos: PhotoSource, runs: Sequence[PlannedRun], folder: Path, device: str, train: TrainRuns
) -> tuple[list[Run], dict[str, Exception]]:
    """Train all runs; return the finished ones in order, and errors by name."""
    finished: dict[str, Run] = {}
    errors: dict[str, Exception] = {}
    try:
        for number, (planned, outcome, seconds) in enumerate(train(photos, runs, folder, device), 1):
            if isinstance(outcome, Exception):
                errors[planned.name] = outcome
                progress.warn(f"run {number} of {len(runs)}: {planned.name} failed: {outcome}")
                continue
            finished[planned.name] = outcome
            progress.message(
                f"run {number} of {len(runs)}: accuracy {outcome.evaluation.accuracy:.3f}"
                f"  {format_duration(seconds)}  {outcome.folder}"
            )
    except KeyboardInterrupt:
        progress.message(f"the sweep was interrupted. To go on, repeat the same command with --out {folder}")
        raise
    return [finished[run.name] for run in runs if run.name in finished], errors


def _describe(error: Exception) -> str:
    return error.what if isinstance(error, IkebanaError) else f"{type(error).__name__}: {get_first_line(error)}"


def _summarise(folder: Path, runs: Sequence[Run], failures: Mapping[str, str]) -> Sweep:
    """Compare the runs, and write the result and the page."""
    comparison = None
    failures = dict(failures)
    try:
        check_same_photos(runs)
        contestants = group_contestants([read_comparable(run) for run in runs])
        comparison = compare_comparable(contestants)
    except IkebanaError as error:
        failures["comparison"] = error.what
        progress.warn(f"the runs cannot be compared: {error}")
    else:
        from ikebana.reports.comparison_page import write_comparison_page

        # The page is often read without the terminal beside it.
        missing = [f"not finished: {name} ({reason})" for name, reason in failures.items()]
        shown = replace(comparison, notes=(*comparison.notes, *missing))
        write_comparison_page(folder / PAGE, shown, contestants)
    result = Sweep(folder, tuple(runs), failures, comparison)
    write_json(folder / RESULT_FILE, result.to_json())
    progress.event("sweep", **result.to_json())
    progress.message(f"\n{result!r}\n\npage: {folder / PAGE}")
    return result
