"""A run's photos, found again where they lie: the file that ships is tried on their bytes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ikebana.errors import PhotosError
from ikebana.photos import intake, pixels
from ikebana.photos.dataset import PARTS, USED, Dataset
from ikebana.photos.split import for_choices
from ikebana.run import Run

# How a path in an archive is written; a folder may have a `!` in its name as well.
PACKED = re.compile(
    rf"[^/]*?({'|'.join(map(re.escape, intake.ARCHIVES))})!(?P<member>[^/].*)", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True)
class Known:
    """A photo of a run."""

    path: str
    file: Path
    sha256: str
    label: int  # the index of its class
    for_choices: bool  # of a validation photo: whether choices were made by it


def find(run: Run, photos: str | Path | None = None) -> dict[str, list[Known]]:
    """The photos of each part, in the order of their paths; none of them is opened yet.

    photos  where they are now, if they have moved
    raises  PhotosError if they are not there
    """
    source = photos if photos is not None else run.source["photos"]
    try:
        found = intake.read(source)
    except PhotosError as error:
        moved = "ikebana export RUN FILE --photos DIR, where they are now"
        raise PhotosError(
            f"the photos of this run cannot be found again: {error.what}", where=source, advice=moved
        ) from None
    index = {name: number for number, name in enumerate(run.classes)}
    there = set(found.photos["path"])
    parts: dict[str, list[Known]] = {part: [] for part in PARTS}
    used = run.dataset.filter(pl.col("status") == USED).sort("path")
    for part in PARTS:
        chosen = used.filter(split=part)
        rows = chosen.select("path", "label", "sha256").iter_rows()
        for (path, label, digest), choice in zip(rows, for_choices(chosen), strict=True):
            parts[part].append(Known(path, _file(path, found, there), digest, index[label], bool(choice)))
    return parts


def _file(path: str, found: Dataset, there: set[str]) -> Path:
    """Where a photo lies now; an archive may have been renamed or unpacked since."""
    packed = PACKED.fullmatch(path)
    if path in there or packed is None:
        return found.file(path)
    return found.root / packed["member"]


def spread(photos: Sequence[Known], count: int) -> list[Known]:
    """So many of the photos, evenly spread over all; the same ones each time."""
    places = np.unique(np.linspace(0, len(photos) - 1, count).astype(int)) if photos else ()
    return [photos[place] for place in places]


def read(photo: Known) -> bytes:
    """The very bytes that the run saw.

    raises  PhotosError if they are gone or others
    """
    try:
        data = pixels.read_bytes(photo.file)
    except OSError as error:
        raise PhotosError(
            f"a photo of this run is gone: {error.strerror or error}",
            where=photo.file,
            advice="ikebana export RUN FILE --photos DIR, where they are now",
        ) from None
    if pixels.sha256(data) != photo.sha256:
        raise PhotosError("this photo is no longer the one that the run saw", where=photo.file, advice="put it back")
    return data
