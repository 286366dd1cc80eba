"""`ikebana report`: one page about a run, made from its folder alone."""

from pathlib import Path

from ikebana.errors import MachineError, RunError, UsageError
from ikebana.reports import report_page
from ikebana.runs.run import Run, open_run
from ikebana.system import progress
from ikebana.system.files import resolve_output_path

SUFFIXES = (".html", ".htm")
# In the title of every report, near its beginning.
REPORT_MARK, MARK_BYTES = b"ikebana report</title>", 1000


def report(run: str | Path | Run, out: str | Path | None = None) -> Path:
    """Write one self-contained HTML page about a finished run.

    The photos are not needed: the page shows the thumbnails that the run folder has.

    Args:
        run: the run's folder.
        out: the file to write; default: `report.html` in the run's folder.
    Returns:
        The file.
    Raises:
        RunError: the run is not finished or damaged.
        UsageError: `out` does not end in .html.
        MachineError: the page cannot be written, or `out` is another file.
    """
    opened = open_run(run.folder if isinstance(run, Run) else run)
    if not opened.is_finished:
        raise RunError("this run has not finished", where=opened.folder, advice=opened.resume_command)
    file = _resolve_output(opened, out)
    with progress.stage("write report", 1, "pages") as bar:
        report_page.write(file, opened)
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


def _is_report(file: Path) -> bool:
    """Return whether a file is a report, which may be overwritten."""
    try:
        with open(file, "rb") as stream:
            return REPORT_MARK in stream.read(MARK_BYTES)
    except OSError:
        return False
