"""Where the photos of a run come from, and how to list them again.

A folder, an archive or a table is recorded by its path. A frame has none, so the run stores its
rows in photos.parquet, and the folder where its relative paths start.
"""

import os
from pathlib import Path

import polars as pl

from ikebana.data import sources, table
from ikebana.data.dataset import Dataset
from ikebana.data.sources import PhotoSource
from ikebana.data.stores import is_address
from ikebana.errors import RunError, get_first_line
from ikebana.runs.run import DAMAGED_ADVICE, Run

FRAME_FILE = "photos.parquet"


def describe_source(dataset: Dataset) -> dict[str, str]:
    """Return the entries of source.json by which `read_photos` finds the photos."""
    if dataset.frame is not None:
        return {"photos": FRAME_FILE, "root": str(dataset.root)}
    if is_address(dataset.source):
        return {"photos": dataset.source}
    return {"photos": str(Path(os.path.expanduser(dataset.source)).resolve())}


def read_photos(run: Run, photos: PhotoSource | None = None, class_order: tuple[str, ...] = ()) -> Dataset:
    """List the photos of a run without opening any.

    Args:
        photos: where they are now, if they have moved; a frame again for a run from a frame.
    Raises:
        PhotosError: they are not there.
        RunError: the run's copy of the frame is damaged.
    """
    root = run.source.get("root")
    if photos is None and isinstance(root, str):
        return sources.assign_classes(table.read_frame(_read_frame(run), Path(root)), class_order)
    return sources.read(run.source["photos"] if photos is None else photos, class_order)


def get_location(run: Run) -> str:
    """Return where the photos of a run are; for a frame, where relative paths start."""
    return run.source.get("root") or run.source["photos"]


def _read_frame(run: Run) -> pl.DataFrame:
    try:
        return pl.read_parquet(run.folder / FRAME_FILE)
    except (OSError, pl.exceptions.PolarsError) as error:
        what = f"{FRAME_FILE} cannot be read: {get_first_line(error)}"
        raise RunError(what, where=run.folder, advice=DAMAGED_ADVICE) from None
