"""The `Dataset` that sources, audit and split share: a table of photos."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from ikebana.data.locations import Location

STATUS_USED = "used"
STATUS_UNOPENED = "not opened yet"

# Before the names of a table's other columns, such as `column:site`.
EXTRA_PREFIX = "column:"

SPLITS = ("train", "validation", "test")
SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}

# Rows that `collect_rows` holds as Python objects at a time.
CHUNK_ROWS = 8192

# Where the bytes of a photo are: its path in the dataset, then the fields of `Location`.
LOCATION_SCHEMA = {
    "path": pl.String,
    "address": pl.String,
    "offset": pl.Int64,
    "length": pl.Int64,
    "row": pl.Int64,
    "size": pl.Int64,
    "stamp": pl.String,
}

SCHEMA = {
    # Below the root; `archive!member` for an archive; as written for a table.
    "path": pl.String,
    "label": pl.String,
    # train, validation, test; null until split.
    "split": pl.String,
    # Photos of one group stay in one split.
    "group": pl.String,
    # The same for all near-duplicates of each other, else null. Known once the photos are opened.
    "duplicate_of": pl.String,
    # `used`, or why the photo is not used.
    "status": pl.String,
    # Of the file's bytes.
    "sha256": pl.String,
    "bytes": pl.Int64,
    # Pixels, upright.
    "width": pl.Int32,
    "height": pl.Int32,
}


@dataclass(frozen=True)
class NearDuplicate:
    """A pair of photos of which one is a modified copy of the other."""

    # Rows in the dataset's table, in ascending order.
    first: int
    second: int
    # What was done to one of them: "mirrored, cropped".
    transformation: str
    # Correlation of their fine detail after alignment, at most 1.
    similarity: float


@dataclass(frozen=True)
class Dataset:
    """The photos of a source, used and unused."""

    # The path that the user gave, or the type of frame.
    source: str
    # The folder that paths are relative to.
    root: Path
    # SCHEMA: one row per path, sorted by path. For a table, then its other columns, with EXTRA_PREFIX.
    photos: pl.DataFrame
    classes: tuple[str, ...]
    # Number of hidden and system files.
    ignored_count: int = 0
    # `archive!` before each path from an archive.
    archive_prefix: str = ""
    empty_classes: tuple[str, ...] = ()
    # How the source was understood, for the user.
    notes: tuple[str, ...] = ()
    # What may have been understood wrongly: evidence and advice.
    doubts: tuple[tuple[str, str], ...] = ()
    # Near-duplicates; the first of several exact copies stands for all.
    near_duplicates: tuple[NearDuplicate, ...] = ()
    # The rows as given, if they came from a frame: a run stores them, because there is no file to read again.
    frame: pl.DataFrame | None = None
    # For photos in a store, in a tar that is not unpacked or in Parquet: where the bytes of each openable photo are.
    # The columns of `LOCATION_SCHEMA`, sorted by path. None if photos are files of this computer.
    locations: pl.DataFrame | None = None

    def locate(self, path: str) -> Location:
        """Return where the bytes of a row's photo are."""
        if self.locations is None:
            return Location(str(self.resolve_path(path)))
        index = self.locations["path"].search_sorted(path)
        if index == self.locations.height or self.locations["path"][index] != path:
            return Location(path)
        return Location(*self.locations.row(index)[1:])

    def resolve_path(self, path: str) -> Path:
        """Return the file on disk of a row's path."""
        return self.root / path.removeprefix(self.archive_prefix)

    @property
    def command_argument(self) -> str:
        """The photos in a command for the user; a frame has no path."""
        return self.source if self.frame is None else "PHOTOS"

    @property
    def used_photos(self) -> pl.DataFrame:
        return self.photos.filter(pl.col("status") == STATUS_USED)

    @property
    def used_photos_with_row(self) -> pl.DataFrame:
        """The used photos with their `row` among all photos.

        It is also the row of their pixels in the pixel cache.
        """
        return self.photos.with_row_index("row").filter(pl.col("status") == STATUS_USED)

    @property
    def set_aside_photos(self) -> pl.DataFrame:
        return self.photos.filter(pl.col("status") != STATUS_USED)

    def count_photos(self) -> dict[str, dict[str, int]]:
        """Count the used photos per class and split: {"daisy": {"train": 458, ...}, ...}."""
        table = self.used_photos.group_by("label", "split").len()
        counts = {(label, split): number for label, split, number in table.iter_rows()}
        return {label: {split: counts.get((label, split), 0) for split in SPLITS} for label in self.classes}

    def with_photos(self, photos: pl.DataFrame) -> "Dataset":
        return replace(self, photos=photos)

    def __repr__(self) -> str:
        used, skipped = self.used_photos.height, self.set_aside_photos.height
        return f"Dataset({self.source}: {used} photos of {len(self.classes)} classes, {skipped} skipped)"


def collect_rows(rows: Iterable[Mapping[str, Any] | tuple[Any, ...]], schema: Mapping[str, Any]) -> pl.DataFrame:
    """Collect rows into a table, holding at most CHUNK_ROWS of them as Python objects."""
    remaining, tables = iter(rows), [pl.DataFrame(schema=schema)]
    while chunk := list(islice(remaining, CHUNK_ROWS)):
        tables.append(pl.DataFrame(chunk, schema=schema, orient="row"))
    return pl.concat(tables, rechunk=True)


def to_strings(column: pl.Series) -> list[str]:
    """Convert a column without nulls to strings; equal values share one object to save memory."""
    values, ranks = column.unique().sort().to_list(), column.rank("dense").to_numpy()
    return [values[rank - 1] for rank in ranks]
