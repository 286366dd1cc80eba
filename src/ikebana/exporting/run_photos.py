"""The photos of a run, on whose bytes the exported file is verified."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ikebana.data import decoding, sources
from ikebana.data.dataset import SPLITS, STATUS_USED, Dataset
from ikebana.data.locations import Location
from ikebana.data.sources import PhotoSource
from ikebana.data.split import get_selection_mask
from ikebana.errors import PhotosError
from ikebana.runs.moved_photos import restore_paths
from ikebana.runs.photo_source import read_photos
from ikebana.runs.run import Run

# How the dataset writes the path of a photo in an archive. A folder's name may contain `!` as well.
PATH_IN_ARCHIVE = re.compile(
    rf"[^/]*?({'|'.join(map(re.escape, sources.ARCHIVE_SUFFIXES))})!(?P<member>[^/].*)", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True)
class RunPhoto:
    """A photo of a run."""

    path: str
    location: Location
    sha256: str
    # Class index.
    label: int
    # For a validation photo: whether it was used for model selection.
    for_selection: bool


def find_photos(run: Run, photos: PhotoSource | None = None) -> dict[str, list[RunPhoto]]:
    """List the photos of each split, sorted by path, without opening any.

    Args:
        photos: where they are now, if they have moved.
    Raises:
        PhotosError: they are not there.
    """
    try:
        dataset = restore_paths(read_photos(run, photos), run.dataset)
    except PhotosError as error:
        advice = "ikebana export RUN FILE --photos DIR with their new folder"
        raise PhotosError(
            f"the photos of this run were not found: {error.what}", where=error.where, advice=advice
        ) from None
    class_indices = {name: index for index, name in enumerate(run.classes)}
    present = set(dataset.photos["path"])
    splits: dict[str, list[RunPhoto]] = {split: [] for split in SPLITS}
    used = run.dataset.filter(pl.col("status") == STATUS_USED).sort("path")
    for split in SPLITS:
        in_split = used.filter(split=split)
        rows = in_split.select("path", "label", "sha256").iter_rows()
        for (path, label, digest), selected in zip(rows, get_selection_mask(in_split), strict=True):
            location = _locate(path, dataset, present)
            splits[split].append(RunPhoto(path, location, digest, class_indices[label], bool(selected)))
    return splits


def _locate(path: str, dataset: Dataset, present: set[str]) -> Location:
    """Return where a photo is now; the archive may have been renamed or unpacked since."""
    in_archive = PATH_IN_ARCHIVE.fullmatch(path)
    if path in present or in_archive is None:
        return dataset.locate(path)
    return Location(str(dataset.root / in_archive["member"]))


def sample_evenly(photos: Sequence[RunPhoto], count: int) -> list[RunPhoto]:
    """Pick `count` evenly spaced photos; the same ones each time."""
    indices = np.unique(np.linspace(0, len(photos) - 1, count).astype(int)) if photos else ()
    return [photos[index] for index in indices]


def read_photo(photo: RunPhoto) -> bytes:
    """Read a photo's bytes and verify that they are those of the run.

    Raises:
        PhotosError: the photo is missing or has changed.
    """
    try:
        data = photo.location.read()
    except OSError as error:
        raise PhotosError(
            f"a photo of this run cannot be read: {error.strerror or error}",
            where=photo.location.address,
            advice="ikebana export RUN FILE --photos DIR with their new folder",
        ) from None
    if decoding.compute_sha256(data) != photo.sha256:
        raise PhotosError(
            "this photo has changed since the run", where=photo.location.address, advice="restore the original file"
        )
    return data
