"""The pictures of a run, without which it is complete: its figures, thumbnails and report.

Each of the two folders appears when it is complete; the report shows what is in them. What cannot
be written, because a disk is full or a library is missing, is reported and can be written later.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ikebana.data.dataset import Dataset
from ikebana.data.pixel_cache import PixelCache
from ikebana.errors import IkebanaError
from ikebana.evaluation.metrics import Evaluation
from ikebana.evaluation.robustness import Robustness
from ikebana.reports.thumbnails import write_thumbnails
from ikebana.runs.run import Run
from ikebana.system import progress
from ikebana.system.files import atomic_directory

FIGURES, THUMBNAILS, REPORT = "figures", "thumbnails", "report.html"
ROBUSTNESS_FIGURE = "robustness.png"
DrawExamples = Callable[[np.ndarray], Sequence[np.ndarray]]


def has_all_pictures(run: Run) -> bool:
    """Return whether figures, thumbnails and report are complete."""
    return has_photo_pictures(run) and run.report_file.exists()


def has_photo_pictures(run: Run) -> bool:
    """Return whether figures and thumbnails are complete: the report needs no photos."""
    return all((run.folder / name).is_dir() for name in (FIGURES, THUMBNAILS))


def draw_missing(
    run: Run, dataset: Dataset, pixels: PixelCache, evaluation: Evaluation, draw_examples: DrawExamples
) -> None:
    """Draw the figures and write the thumbnails that the run lacks.

    No error ends a training that is complete: it is reported with the command that tries again.

    Args:
        dataset: opened and split.
        draw_examples: augments the first training photo.
    """

    def draw_figures(folder: Path) -> None:
        # matplotlib takes half a second to load, and may be missing.
        from ikebana.reports import run_figures

        first_row = dataset.used_photos_with_row.filter(split="train")["row"][0]
        examples = draw_examples(pixels.pixels[first_row])
        with atomic_directory(folder, create_parent=False) as partial_folder:
            run_figures.draw_all(
                partial_folder, run, evaluation, dataset=dataset, pixels=pixels.pixels, examples=examples
            )

    writers: dict[str, Callable[[Path], None]] = {
        FIGURES: draw_figures,
        THUMBNAILS: lambda folder: write_thumbnails(
            folder, dataset, pixels.pixels, run.recipe.resize, _find_others(run)
        ),
    }
    missing = {name: write for name, write in writers.items() if not (run.folder / name).is_dir()}
    if missing or not run.report_file.exists():
        _write_missing(run, {**missing, REPORT: _write_report})


def write_report(run: Run) -> None:
    """Write the report of a finished run, which needs no photos; an error is reported."""
    _write_missing(run, {REPORT: _write_report})


def _write_report(file: Path) -> None:
    from ikebana.reports import report_page

    # Read again: the scores have just been written.
    report_page.write(file, Run(file.parent))


def _write_missing(run: Run, writers: Mapping[str, Callable[[Path], None]]) -> None:
    """Write what is missing, and report what cannot be written."""
    with progress.stage("draw figures", len(writers), "steps") as bar:
        failures = {name: _try_to_write(write, run.folder / name, bar) for name, write in writers.items()}
    reasons = [f"{name}: {reason}" for name, reason in failures.items() if reason]
    if reasons:
        lines = "\n  ".join(reasons)
        progress.warn(
            "the run is complete, but not all of its figures, thumbnails and report could be written\n"
            f"  {lines}\n  try  {run.resume_command}"
        )


def _find_others(run: Run) -> list[str]:
    """Return the sha256 of the training photos that the report shows."""
    neighbours = run.mistake_neighbours
    return [] if neighbours is None else neighbours["sha256"].unique().sort().to_list()


def draw_robustness(run: Run, robustness: Robustness) -> None:
    """Add the figure of the robustness to the other figures.

    Where these are missing, all are drawn together later.
    """

    def draw(file: Path) -> None:
        from ikebana.reports import run_figures

        run_figures.draw_robustness(robustness, file)

    if not (run.folder / FIGURES).is_dir():
        return
    with progress.stage("draw figures", 1, "steps") as bar:
        if reason := _try_to_write(draw, run.folder / FIGURES / ROBUSTNESS_FIGURE, bar):
            progress.warn(f"the figure of the robustness could not be written\n  {reason}")


def _try_to_write(write: Callable[[Path], None], folder: Path, bar: progress.Bar) -> str:
    """Write a folder of pictures; return why that failed, or ""."""
    try:
        write(folder)
    except Exception as error:
        return error.what if isinstance(error, IkebanaError) else f"{type(error).__name__}: {error}"
    bar.advance(1)
    return ""
