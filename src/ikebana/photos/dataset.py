"""The noun that intake, audit and split hand on: what photos there are."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

USED = "used"
UNOPENED = "not opened yet"

PARTS = ("train", "validation", "test")
PART_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}

ROWS = 8192  # that are gathered at a time

SCHEMA = {
    "path": pl.String,  # below the root; `archive!member` for what came in an archive; as written for a table
    "label": pl.String,
    "split": pl.String,  # train, validation, test; null until split
    "group": pl.String,  # photos of one group are never parted
    "twins": pl.String,  # the same for near-copies of each other, null for all others; found once the photos are opened
    "status": pl.String,  # `used`, or the reason why not
    "sha256": pl.String,  # of the file's bytes
    "bytes": pl.Int64,
    "width": pl.Int32,  # pixels, upright
    "height": pl.Int32,
}


@dataclass(frozen=True)
class Twin:
    """Two photos of which one is a copy of the other, though not to the byte."""

    first: int  # row of the dataset's table
    second: int  # a later one
    how: str  # what was done to the one or the other: "mirrored, cropped"
    alike: float  # correlation of their fine detail once they lie on each other; 1 is the same


@dataclass(frozen=True)
class Dataset:
    """What photos there are."""

    source: str  # what the user pointed at
    root: Path  # the folder that the paths start from
    photos: pl.DataFrame  # SCHEMA: one row for every path found, sorted by path
    classes: tuple[str, ...]
    ignored: int = 0  # hidden and system files
    prefix: str = ""  # `archive!` before each path that came in an archive
    classes_without_photos: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what the user should know about how the source was understood
    twins: tuple[Twin, ...] = ()  # near-twins; of exact copies the first stands for all

    def file(self, path: str) -> Path:
        """Where a row's photo lies on disk."""
        return self.root / path.removeprefix(self.prefix)

    @property
    def used(self) -> pl.DataFrame:
        return self.photos.filter(pl.col("status") == USED)

    @property
    def used_by_row(self) -> pl.DataFrame:
        """The used photos, each with the `row` that it has among all: the place of its pixels."""
        return self.photos.with_row_index("row").filter(pl.col("status") == USED)

    @property
    def set_aside(self) -> pl.DataFrame:
        return self.photos.filter(pl.col("status") != USED)

    def counts(self) -> dict[str, dict[str, int]]:
        """Usable photos, class by class and part by part: {"daisy": {"train": 458, ...}, ...}."""
        table = self.used.group_by("label", "split").len()
        found = {(label, part): number for label, part, number in table.iter_rows()}
        return {label: {part: found.get((label, part), 0) for part in PARTS} for label in self.classes}

    def with_photos(self, photos: pl.DataFrame) -> "Dataset":
        return replace(self, photos=photos)

    def __repr__(self) -> str:
        used, aside = self.used.height, self.set_aside.height
        return f"Dataset({self.source}: {used} photos of {len(self.classes)} classes, {aside} set aside)"


def gathered(rows: Iterable[Mapping[str, Any] | tuple[Any, ...]], schema: Mapping[str, Any]) -> pl.DataFrame:
    """A table of rows that come one by one; as Python's own values only some thousand of them are ever held."""
    coming, pieces = iter(rows), [pl.DataFrame(schema=schema)]
    while some := list(islice(coming, ROWS)):
        pieces.append(pl.DataFrame(some, schema=schema, orient="row"))
    return pl.concat(pieces, rechunk=True)


def texts(column: pl.Series) -> list[str]:
    """A column without nulls as Python's texts, equal ones one object: a million labels are but a few."""
    names, places = column.unique().sort().to_list(), column.rank("dense").to_numpy()
    return [names[place - 1] for place in places]
