"""Several runs on the same photos: each is trained, continued, or used as it is."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ikebana.commands.fit import fit, resume
from ikebana.data import sources
from ikebana.data.sources import PhotoSource
from ikebana.errors import PhotosError, RunError
from ikebana.recipe import Recipe
from ikebana.runs.run import Run, open_run
from ikebana.system.files import resolve_output_path


def refuse_given_split(photos: PhotoSource, recipe: Recipe, flag: str) -> None:
    """Raise PhotosError if the photos come with a split, so that there are no others.

    Args:
        flag: the command-line flag that asks for several splits.
    """
    listed = sources.read(photos, recipe.class_order)
    if listed.photos["split"].count():
        raise PhotosError(
            "the photos come with a split, so there are no others to score",
            where=listed.source,
            advice=f"leave {flag} out, or give the photos without their split",
        )


def resolve_series_folder(folder: str | Path) -> Path:
    """Expand the folder of a series of runs and check it early.

    Raises:
        RunError: it is a run itself.
        MachineError: it cannot be written.
    """
    place = resolve_output_path(folder, is_new_folder=True)
    if (place / "recipe.json").exists():
        raise RunError("this is a run, not a folder of runs", where=folder, advice="another folder for the runs")
    return place


def fit_or_resume(
    photos: PhotoSource, recipe: Recipe, place: Path, *, device: str = "auto", robustness: bool = False
) -> Run:
    """Train a run, continue it, or return a finished one.

    So a repeated call resumes a series.

    Args:
        place: the run folder.
    Raises:
        RunError: the folder has a run of another recipe, or as for `fit`.
    """
    if not (place / "recipe.json").exists():
        return fit(photos, recipe, run=place, device=device, robustness=robustness)
    existing = open_run(place)
    # `fit` recorded the precision that it measured.
    if existing.recipe != replace(recipe, precision=existing.recipe.precision):
        raise RunError("this run has another recipe", where=place, advice="another folder for the runs")
    return resume(place, robustness=robustness)


def check_same_photos(runs: Sequence[Run]) -> None:
    """Raise RunError if the runs were trained on different photos."""
    for run in runs[1:]:
        if run.source["fingerprint"] != runs[0].source["fingerprint"]:
            raise RunError(
                f"this run has other photos than {runs[0].folder.name}",
                where=run.folder,
                advice="another folder for the runs",
            )
