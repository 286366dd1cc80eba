"""`ikebana report`: one page about a run, made from its folder alone."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ikebana.errors import MachineError, RunError, UsageError
from ikebana.reports import pages, report_page
from ikebana.reports.mistakes import ScoredPhoto
from ikebana.reports.report_page import HeatMapPicture
from ikebana.reports.report_pictures import LARGE_PIXELS, open_thumbnails
from ikebana.runs.run import Run, open_run
from ikebana.system import progress
from ikebana.system.files import resolve_output_path

if TYPE_CHECKING:
    from torch import nn

SUFFIXES = (".html", ".htm")
# In the title of every report, near its beginning.
REPORT_MARK, MARK_BYTES = b"ikebana report</title>", 1000


def report(
    run: str | Path | Run,
    out: str | Path | None = None,
    *,
    heat_maps: bool = False,
    model: "nn.Module | None" = None,
) -> Path:
    """Write one self-contained HTML page about a finished run.

    The photos are not needed: the page shows the thumbnails that the run folder has.

    Args:
        run: the run's folder.
        out: the file to write; default: `report.html` in the run's folder.
        heat_maps: also show which parts of the worst mistakes spoke for the predicted class.
        model: your own module, if the run trained one; only heat maps need it.
    Returns:
        The file.
    Raises:
        RunError: the run is not finished or damaged; or with `heat_maps`, its network was retrained.
        UsageError: `out` does not end in .html.
        MachineError: the page cannot be written, or `out` is another file.
    """
    opened = open_run(run.folder if isinstance(run, Run) else run)
    if not opened.is_finished:
        raise RunError("this run has not finished", where=opened.folder, advice=opened.resume_command)
    file = _resolve_output(opened, out)
    pictures = _explain_mistakes(opened, model) if heat_maps else None
    with progress.stage("write report", 1, "pages") as bar:
        report_page.write(file, opened, pictures)
        bar.advance(1)
    return file


def _resolve_output(run: Run, out: str | Path | None) -> Path:
    """Return the file to write, and refuse what would be lost or cannot be written."""
    if out is None:
        return resolve_output_path(run.report_file)
    file = resolve_output_path(out)
    if file.is_dir():
        raise MachineError("this is a folder, not a file", where=file, advice=str(file / "report.html"))
    if file.suffix.lower() not in SUFFIXES:
        raise UsageError(f"the name of a report must end in .html, not {file.name!r}", advice=f"{file.name}.html")
    if file.exists() and not _is_report(file):
        raise MachineError("this file exists and is not a report", where=file, advice="another --out FILE.html")
    return file


def _explain_mistakes(run: Run, model: "nn.Module | None") -> dict[str, HeatMapPicture]:
    """Compute the heat maps of the worst mistakes for their predicted class, by path."""
    if run.recipe.refit_on_all:
        raise RunError(
            "there are no heat maps of mistakes: the network of this run was retrained on its test photos",
            where=run.folder,
            advice="leave --heat-maps out",
        )
    from ikebana.explanation import heat_maps
    from ikebana.learning.models.assembly import load_trained_network

    shown = _read_squares(run, report_page.list_worst_mistakes(run))
    if not shown:
        return {}
    network = load_trained_network(run.recipe, len(run.classes), run.weights, run.calibration.temperature, model)
    predicted = [run.classes.index(photo.predicted) for photo, _, _ in shown]
    pictures = {}
    with progress.stage("explain mistakes", len(shown)) as bar:
        maps = heat_maps.explain_photos(network, np.stack([square for _, _, square in shown]), predicted)
        for (photo, thumbnail, square), heat_map in zip(shown, maps, strict=True):
            drawn = Image.fromarray(heat_maps.overlay(square, heat_map)).resize(thumbnail.shape[1::-1])
            source = pages.to_data_uri(np.asarray(drawn), LARGE_PIXELS) if heat_map.is_trusted else ""
            pictures[photo.path] = HeatMapPicture(source)
        bar.advance(len(shown))
    return pictures


def _read_squares(run: Run, photos: list[ScoredPhoto]) -> list[tuple[ScoredPhoto, np.ndarray, np.ndarray]]:
    """Read thumbnails that are there, and the square that the network sees of each."""
    thumbnails, size = open_thumbnails(run), (run.recipe.image_size, run.recipe.image_size)
    read = [(photo, thumbnails.read(photo.sha256)) for photo in photos]
    return [
        (photo, thumbnail, np.array(Image.fromarray(thumbnail).resize(size, Image.Resampling.BILINEAR)))
        for photo, thumbnail in read
        if thumbnail is not None
    ]


def _is_report(file: Path) -> bool:
    """Return whether a file is a report, which may be overwritten."""
    try:
        with open(file, "rb") as stream:
            return REPORT_MARK in stream.read(MARK_BYTES)
    except OSError:
        return False
