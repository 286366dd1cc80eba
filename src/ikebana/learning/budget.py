"""The choice of a recipe, or of a sweep's runs, that fit into some minutes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ikebana.data import sources
from ikebana.data.dataset import Dataset
from ikebana.data.sources import PhotoSource
from ikebana.errors import MachineError, ModelError, RecipeError
from ikebana.learning.estimate import FIXED_SECONDS, format_duration
from ikebana.learning.plan import Plan
from ikebana.learning.upgrades import MIN_PHOTOS_PER_CLASS_FOR_FINE_TUNING
from ikebana.recipe import FitOptions, Recipe
from ikebana.recipes import RECIPES
from ikebana.system import progress

# Most accurate first.
CANDIDATE_RECIPES = ("best", "good", "quick")
# Of a run whose features are cached: the head, scores and figures.
CACHED_RUN_SECONDS = 3 * FIXED_SECONDS

Key = TypeVar("Key")


def choose_recipe(
    photos: PhotoSource, minutes: float, *, device: str = "auto", options: FitOptions | None = None
) -> str:
    """Choose the most accurate recipe whose estimated time fits, and report it.

    Below 40 training photos per class it is `quick`: fine-tuning gained nothing there.

    Args:
        options: changes to the recipe.
    Returns:
        The recipe's name.
    Raises:
        RecipeError: not even the fastest fits.
        PhotosError: as for `fit`.
    """
    check_minutes(minutes)
    candidates = CANDIDATE_RECIPES
    if _count_training_photos_per_class(sources.read(photos)) < MIN_PHOTOS_PER_CLASS_FOR_FINE_TUNING:
        candidates = candidates[-1:]
    too_slow: list[str] = []
    seconds = None
    for name in candidates:
        try:
            seconds = estimate_seconds(photos, name, device=device, options=options)
        # Its weights are not installed, it needs more memory, or it does not have the options.
        except (ModelError, MachineError, RecipeError) as error:
            if name == candidates[-1]:
                raise
            too_slow.append(f"{name}: {error.what}")
            continue
        if seconds <= 60 * minutes:
            notes = f" ({'; '.join(too_slow)})" if too_slow else ""
            progress.message(f"{name} fits into {minutes:g} min: about {format_duration(seconds)}{notes}")
            return name
        too_slow.append(f"{name}: about {format_duration(seconds)}")
    raise _make_error(minutes, seconds or 0.0, "; ".join(too_slow))


def check_minutes(minutes: float) -> None:
    """Raise RecipeError if there is no time."""
    if not minutes > 0:
        raise RecipeError(f"--minutes is {minutes:g}", advice="a number above 0")


def estimate_seconds(
    photos: PhotoSource, recipe: str | Recipe, *, device: str = "auto", options: FitOptions | None = None
) -> float:
    """Estimate how long a run takes here, with what is cached now."""
    return Plan.from_photos(photos, recipe, device=device, **(options or FitOptions())).estimate.seconds


def _count_training_photos_per_class(dataset: Dataset) -> float:
    counts = dataset.photos["label"].drop_nulls().value_counts()["count"].median()
    return RECIPES[CANDIDATE_RECIPES[-1]].split_fractions[0] * (counts if isinstance(counts, float) else 0.0)


def _make_error(minutes: float, seconds: float, details: str) -> RecipeError:
    needed = int(seconds // 60) + 1
    return RecipeError(f"no recipe fits into {minutes:g} min ({details})", advice=f"--minutes {needed}")


@dataclass(frozen=True)
class RunCost:
    """Seconds of a recipe's first run, which fills the caches, and of a later one."""

    first: float
    later: float


def estimate_run_cost(photos: PhotoSource, recipe: Recipe, device: str = "auto") -> RunCost:
    """Estimate the cost of several runs of a recipe."""
    first = estimate_seconds(photos, recipe, device=device)
    return RunCost(first, min(first, CACHED_RUN_SECONDS) if recipe.caches_features else first)


def select_rounds(rounds: Sequence[Sequence[Key]], costs: Mapping[Key, RunCost], minutes: float) -> tuple[int, float]:
    """Select how many rounds fit: one run per recipe each, so that recipes stay comparable.

    Args:
        rounds: the recipes that each round still has to train.
        costs: by recipe.
    Returns:
        The number of rounds, and their estimated seconds.
    """
    seconds, trained = 0.0, set[Key]()
    for number, round_recipes in enumerate(rounds):
        added = sum(costs[key].later if key in trained else costs[key].first for key in round_recipes)
        if seconds + added > 60 * minutes:
            return number, seconds
        seconds += added
        trained.update(round_recipes)
    return len(rounds), seconds
