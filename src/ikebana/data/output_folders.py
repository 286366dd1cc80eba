"""Folders that ikebana wrote: they contain images, but are no photo collections."""

import json
from itertools import islice
from pathlib import Path

from ikebana.errors import PhotosError

# Files that every run folder has and no photo folder has.
RUN_FILES = frozenset(("recipe.json", "source.json", "environment.json"))
WEB_FILES = frozenset(("index.html", "model.json", "model.onnx", "page.js"))
AUDIT_FILES = frozenset(("index.html", "audit.json", "findings.csv"))
DEMO_FOLDERS = frozenset(("photos", "new", "run"))
# Of a folder that may hold runs, looked at before it is taken for one.
MAX_CHECKED_ENTRIES = 1000


def is_run(folder: Path) -> bool:
    """Return whether the folder is a run."""
    return all((folder / name).is_file() for name in RUN_FILES)


def holds_only_runs(folder: Path) -> bool:
    """Return whether every visible entry of the folder is a run, and there is one."""
    entries = list(islice((entry for entry in folder.iterdir() if not entry.name.startswith(".")), MAX_CHECKED_ENTRIES))
    return bool(entries) and all(map(is_run, entries))


def refuse_output_folder(folder: Path) -> None:
    """Raise PhotosError if ikebana wrote this folder; its advice says where the photos are."""
    try:
        kind, advice = _describe_output(folder)
    # An unreadable folder is reported when its photos are listed.
    except OSError:
        return
    if kind:
        raise PhotosError(f"this is {kind}, not a photo collection", where=folder, advice=advice)


def _describe_output(folder: Path) -> tuple[str, str]:
    """Return what ikebana wrote here and what to use instead; empty if it wrote nothing."""
    own_photos = "give the folder, archive or table of your photos"
    if is_run(folder):
        photos = _read_source(folder)
        return "a run", f"the photos of this run are in {photos}" if photos else own_photos
    if all((folder / name).is_dir() for name in DEMO_FOLDERS) and is_run(folder / "run"):
        return "the folder of a demo", f"{folder / 'photos'}"
    if all((folder / name).is_file() for name in WEB_FILES):
        return "an exported web page", own_photos
    if all((folder / name).is_file() for name in AUDIT_FILES):
        return "the report of an audit", own_photos
    if holds_only_runs(folder):
        return "a folder of runs", own_photos
    return "", ""


def _read_source(run: Path) -> str:
    try:
        return str(json.loads((run / "source.json").read_text("utf-8"))["photos"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
