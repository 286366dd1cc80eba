"""A pixel cache that several processes build on a shared disk.

The building folder has the reserved arrays. A process decodes photos into their rows and then writes
a part of the index. Once all parts exist, any process joins them and renames the folder.

A row at the border of two ranges shares a page with the other range. Network disks write pages, so
it may be torn. Its checksum then differs, and it is decoded again when it is first read.
"""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import polars as pl

from ikebana.data import pixel_cache, stores
from ikebana.data.dataset import Dataset
from ikebana.data.parts import Parts, create_parts, open_parts
from ikebana.data.pixel_cache import (
    BUILDING_SUFFIX,
    INDEX_SCHEMA,
    THUMBNAIL_SIZE,
    compute_cache_bytes,
    decode_photos,
    reserve_arrays,
    write_index,
)
from ikebana.errors import MachineError
from ikebana.recipe import Resize
from ikebana.system import progress
from ikebana.system.files import atomic_directory, discard, write_error
from ikebana.system.resources import require_disk


@dataclass(frozen=True)
class PixelParts:
    """A pixel cache that is being built."""

    # The folder that it becomes.
    target: Path
    # Of the index, in the building folder.
    parts: Parts
    image_size: int
    resize: Resize

    @property
    def folder(self) -> Path:
        """The building folder."""
        return self.parts.folder.parent


def prepare(dataset: Dataset, target: Path, image_size: int, resize: Resize, part_photos: int) -> PixelParts:
    """Open the building folder of earlier processes, or make it.

    Args:
        target: the cache folder of exactly these photos.
        part_photos: per part, unless an earlier process has chosen another number.
    Raises:
        MachineError: the disk cannot hold the arrays.
    """
    folder, rows = target.with_name(target.name + BUILDING_SUFFIX), dataset.photos.height
    parts = _open(folder, rows)
    if parts is None:
        discard(folder)
        require_disk({folder.parent: compute_cache_bytes(dataset, image_size)})
        with atomic_directory(folder) as partial:
            reserve_arrays(partial, rows, image_size)
            create_parts(partial / "index", rows, part_photos)
        # Another process may have been faster.
        parts = _open(folder, rows)
    if parts is None:
        raise MachineError("this folder is not what was written", where=folder, advice="check the disk")
    return PixelParts(target, parts, image_size, resize)


def _open(folder: Path, rows: int) -> Parts | None:
    is_complete = all((folder / name).exists() for name in ("pixels.npy", "small.npy"))
    return open_parts(folder / "index", rows) if is_complete else None


def select_photos(dataset: Dataset, rows: range | None) -> Dataset:
    """Return what a process on another machine needs to read some photos.

    Paths are absolute, because that process has another working directory.

    Args:
        rows: of the dataset's table; None to locate any photo, without a table.
    """
    photos = dataset.photos.select("path", "status")
    photos = photos[:0] if rows is None else photos[rows.start : rows.stop]
    locations = dataset.locations
    if locations is not None:
        if photos.height:
            # Both tables are sorted by path.
            first = locations["path"].search_sorted(photos["path"][0], side="left")
            last = locations["path"].search_sorted(photos["path"][-1], side="right")
            locations = locations[first:last]
        addresses = [
            address if stores.is_address(address) else os.path.abspath(address) for address in locations["address"]
        ]
        locations = locations.with_columns(pl.Series("address", addresses, pl.String))
    return Dataset(
        dataset.source,
        Path(os.path.abspath(dataset.root)),
        photos,
        (),
        archive_prefix=dataset.archive_prefix,
        locations=locations,
    )


def compute_part(
    pixel_parts: PixelParts, number: int, photos: Dataset, unusable: Mapping[int, str] = MappingProxyType({})
) -> None:
    """Decode the photos of a part, then write its part of the index.

    Args:
        photos: of this part alone, as `select_photos` returns them.
        unusable: the status of photos that must not be opened, by their position in the part.
    Raises:
        MachineError: the disk is full, or the folder has gone.
    """
    statuses = photos.photos["status"].to_list()
    for position, status in unusable.items():
        statuses[position] = status
    photos = photos.with_photos(photos.photos.with_columns(pl.Series("status", statuses, pl.String)))
    first_row = pixel_parts.parts.get_rows(number).start
    try:
        index = decode_photos(
            pixel_parts.folder, photos, pixel_parts.image_size, pixel_parts.resize, first_row=first_row
        )
    except OSError as error:
        raise write_error(error, pixel_parts.folder) from error
    pixel_parts.parts.write(number, pixel_cache.encode_index(index))


def try_photos(photos: Dataset, image_size: int, resize: Resize) -> None:
    """Decode photos and keep nothing, to see whether the process crashes."""
    target, small = (np.zeros((size, size, 3), np.uint8) for size in (image_size, THUMBNAIL_SIZE))
    for path, status in photos.photos.iter_rows():
        pixel_cache.decode_into(photos.locate(path), status, target, small, resize)


def join(pixel_parts: PixelParts, dataset: Dataset) -> None:
    """Join the parts of the index and rename the folder.

    If another process has done it, nothing is left to do.

    Args:
        dataset: of all photos, not opened.
    Raises:
        MachineError: a part is missing.
    """
    contents = pixel_parts.parts.read_all()
    try:
        if contents is not None:
            tables = [pl.read_parquet(io.BytesIO(content)) for content in contents]
            index = pl.concat([pl.DataFrame(schema=INDEX_SCHEMA), *tables], rechunk=True)
            write_index(pixel_parts.folder, _read_again(pixel_parts, dataset, index))
        pixel_parts.folder.rename(pixel_parts.target)
    except (MachineError, OSError) as error:
        if not pixel_parts.target.is_dir():
            raise error if isinstance(error, MachineError) else write_error(error, pixel_parts.target) from error
        discard(pixel_parts.folder)
    discard(pixel_parts.target / pixel_parts.parts.folder.name)


def _read_again(pixel_parts: PixelParts, dataset: Dataset, index: pl.DataFrame) -> pl.DataFrame:
    """Decode what another machine could not read for a transient reason, if this machine can.

    Otherwise the cache would count as outdated when it is opened here, and all photos be read again.
    """
    if not pixel_cache.can_read_more(index, dataset, pixel_parts.image_size, pixel_parts.resize):
        return index
    rows = np.flatnonzero(index["passing"].to_numpy()).tolist()
    tables = []
    with progress.stage("read photos", len(rows)) as bar:
        for row in rows:
            photo = select_photos(dataset, range(row, row + 1))
            tables.append(
                decode_photos(
                    pixel_parts.folder,
                    photo,
                    pixel_parts.image_size,
                    pixel_parts.resize,
                    first_row=row,
                    advance=bar.advance,
                )
            )
    numbered = index.with_row_index("row").filter(~pl.col("passing"))
    again = pl.concat(tables).with_columns(pl.Series("row", rows, pl.UInt32))
    return pl.concat([numbered, again.select(numbered.columns)]).sort("row").drop("row")
