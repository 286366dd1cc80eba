"""`ikebana fit --split-seeds N`: one recipe on N splits, and the spread of its score."""

import secrets
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from ikebana.commands.run_series import (
    check_same_photos,
    fit_or_resume,
    refuse_given_split,
    resolve_series_folder,
)
from ikebana.data.sources import PhotoSource
from ikebana.errors import RecipeError
from ikebana.learning.models import networks
from ikebana.recipe import FitOptions, Recipe
from ikebana.recipes import DEFAULT_RECIPE, resolve_recipe
from ikebana.runs.run import Run
from ikebana.runs.run_writer import DEFAULT_RUNS_FOLDER
from ikebana.system import progress
from ikebana.system.files import write_json
from ikebana.system.launch import require_one_process

# One split has no spread.
MIN_SPLITS = 2
SCORES_FILE = "split-scores.json"


@dataclass(frozen=True)
class SplitScores:
    """Test accuracies of one recipe on several splits of the same photos.

    Attributes:
        folder: contains one run per split, and these scores as `split-scores.json`.
        recipe: its name.
        accuracies: by split seed, from 0.
        standard_deviation: of one accuracy, not of the mean.
    """

    folder: Path
    recipe: str
    accuracies: tuple[float, ...]
    mean: float
    lowest: float
    highest: float
    standard_deviation: float

    def __repr__(self) -> str:
        scores = ", ".join(f"{accuracy:.3f}" for accuracy in self.accuracies)
        return (
            f"{self.recipe} on {len(self.accuracies)} splits: accuracy {self.mean:.3f} on average, "
            f"{self.lowest:.3f} to {self.highest:.3f}, standard deviation {self.standard_deviation:.3f}\n"
            f"split seeds 0 to {len(self.accuracies) - 1}: {scores}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `split-scores.json`."""
        return asdict(self) | {"folder": str(self.folder)}


def fit_splits(
    photos: PhotoSource,
    recipe: str | Path | Recipe | None = None,
    *,
    splits: int,
    run: str | Path | None = None,
    device: str = "auto",
    robustness: bool = False,
    **options: Unpack[FitOptions],
) -> SplitScores:
    """Train and score a recipe on several splits, with the split seeds 0, 1, ...

    A run that is there already is continued or, if it is finished, used as it is. So the same call
    resumes after an interruption.

    Args:
        recipe: as for `fit`.
        splits: number of splits, at least two.
        run: the folder to create, with the runs `split-0`, `split-1`, ... in it.
        device, robustness: as for `fit`.
        options: changes to the recipe.
    Raises:
        PhotosError: the photos come with a split, or as for `fit`.
        RunError: the folder is a run itself, has a run of another recipe or of other photos, or as for `fit`.
        RecipeError: fewer than two splits, a split seed is given, or as for `fit`.
        MachineError: as for `fit`.
    """
    require_one_process("a series of runs")
    if splits < MIN_SPLITS:
        raise RecipeError(
            f"--split-seeds is {splits}, and fewer than {MIN_SPLITS} splits have no spread",
            advice=f"--split-seeds {MIN_SPLITS}",
        )
    if "split_seed" in options:
        raise RecipeError("--split-seed and --split-seeds exclude each other", advice="one of them")
    resolved = networks.fill_defaults(resolve_recipe(recipe or DEFAULT_RECIPE, **options))
    refuse_given_split(photos, resolved, "--split-seeds")
    folder = resolve_series_folder(run if run is not None else _choose_folder(resolved))
    runs: list[Run] = []
    for seed in range(splits):
        progress.message(f"split {seed + 1} of {splits} (split seed {seed})")
        place = folder / f"split-{seed}"
        of_split = replace(resolved, split_seed=seed)
        runs.append(fit_or_resume(photos, of_split, place, device=device, robustness=robustness))
    check_same_photos(runs)
    scores = summarise(folder, runs)
    write_json(folder / SCORES_FILE, scores.to_json())
    progress.event("splits", **scores.to_json())
    progress.message(f"\n{scores!r}")
    return scores


def summarise(folder: Path, runs: list[Run]) -> SplitScores:
    """Summarise the test accuracies of finished runs on different splits."""
    accuracies = tuple(run.evaluation.accuracy for run in runs)
    return SplitScores(
        folder,
        runs[0].recipe.name,
        accuracies,
        statistics.mean(accuracies),
        min(accuracies),
        max(accuracies),
        statistics.stdev(accuracies),
    )


def _choose_folder(recipe: Recipe) -> Path:
    return DEFAULT_RUNS_FOLDER / f"{recipe.name}-splits-{secrets.token_hex(3)}"
