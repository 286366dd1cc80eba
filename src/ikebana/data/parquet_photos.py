"""Photos in Parquet, as in data sets of Hugging Face.

Row groups are read when a photo of theirs is needed. Of a file in a store, only the bytes of the
footer and of these row groups are requested, into a sparse file of which polars reads them.
"""

import json
import os
import tempfile
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ikebana.data import parquet_footer, stores
from ikebana.data.parquet_footer import DamagedFooter, RowGroup
from ikebana.data.store_errors import ChangedFile
from ikebana.data.stores import StoredFile
from ikebana.errors import PhotosError, UnreadablePhoto, get_first_line

# Names of a column of bytes that are photos. A struct with a field `bytes` may have any name.
IMAGE_COLUMNS = ("image", "img", "photo", "picture", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp", "content")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "class_label", "label_name", "cls", "target")
# Of the photos of one row group, which is in memory at once.
MAX_ROW_GROUP_BYTES = 2**30
# Row groups in memory: two, because threads are in both where one ends.
CACHED_ROW_GROUPS = 2
# Parsed footers in memory.
CACHED_FILES = 64
# Bytes per request.
PART_BYTES = 2**24
ADVICE_IMAGE_COLUMN = (
    f"one column of image bytes: a struct with a field bytes, or a binary column called {', '.join(IMAGE_COLUMNS)}"
)
POLARS_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, OverflowError)
NO_PHOTO = "no photo in this row"


@dataclass(frozen=True)
class ParquetPhotos:
    """A Parquet file with photos."""

    file: StoredFile
    groups: tuple[RowGroup, ...]
    image_column: str
    # None if the photos have no label.
    label_column: str | None
    # Names of the labels 0, 1, …; empty if the labels are names.
    label_names: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)

    def read_labels(self) -> list[str | None]:
        """Read the label of each row; None for one without.

        Raises:
            PhotosError: the file is damaged; StoreError, ChangedFile.
        """
        if self.label_column is None:
            return [None] * self.rows
        with translate_errors(self.file.address), _open_columns(self.file, self.groups, {self.label_column}) as path:
            labels = pl.scan_parquet(path).select(self.label_column).collect()[self.label_column]
        if not self.label_names:
            return labels.cast(pl.String).to_list()
        names = dict(enumerate(self.label_names))
        return [names.get(label) for label in labels.to_list()]

    def find_group(self, row: int) -> RowGroup:
        """Find the row group of a row."""
        return self.groups[bisect_right(self.groups, row, key=lambda group: group.first_row) - 1]


@contextmanager
def translate_errors(address: str) -> Iterator[None]:
    """Turn errors of polars into PhotosError; a hostile file may also make it panic."""
    try:
        yield
    except POLARS_ERRORS as error:
        what = f"this Parquet file cannot be read: {get_first_line(Exception(*error.args))}"
        raise PhotosError(what, where=address, advice="check that the file is complete") from None


def has_photos(file: Path) -> bool:
    """Return whether a Parquet file of this computer has photos, and not paths of photos."""
    try:
        return bool(_find_image_columns(pl.read_parquet_schema(file)))
    except POLARS_ERRORS:
        return False


def open_file(file: StoredFile) -> ParquetPhotos:
    """Read the footer and the schema.

    Raises:
        PhotosError: it is damaged, or has no column of photos, or several; StoreError, ChangedFile.
    """
    with translate_errors(file.address):
        try:
            groups = _read_groups(file)
        except DamagedFooter as error:
            what = f"this Parquet file cannot be read: {error}"
            raise PhotosError(what, where=file.address, advice="check that the file is complete") from None
        with _open_columns(file, (), ()) as path:
            schema, metadata = pl.read_parquet_schema(path), pl.read_parquet_metadata(path)
    image_columns = _find_image_columns(schema)
    if len(image_columns) != 1:
        what = (
            f"has {len(image_columns)} columns of photos ({', '.join(image_columns)})"
            if image_columns
            else "has no photos"
        )
        raise PhotosError(
            f"this Parquet file {what}",
            where=file.address,
            advice=ADVICE_IMAGE_COLUMN,
        )
    label_column = next((name for name in LABEL_COLUMNS if name in schema and _is_label(schema[name])), None)
    names = _read_label_names(metadata, label_column) if label_column and schema[label_column].is_integer() else ()
    return ParquetPhotos(file, tuple(groups), image_columns[0], label_column, names, tuple(schema))


def _is_label(dtype: pl.DataType) -> bool:
    return dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum, pl.Boolean)


def _find_image_columns(schema: dict[str, Any]) -> list[str]:
    """Find the columns of photos: structs with bytes, or bytes under a usual name."""
    structs = [
        name
        for name, dtype in schema.items()
        if isinstance(dtype, pl.Struct)
        and {"bytes": pl.Binary}.items() <= {f.name: f.dtype for f in dtype.fields}.items()
    ]
    return structs or [name for name, dtype in schema.items() if dtype == pl.Binary and name.lower() in IMAGE_COLUMNS]


def _read_label_names(metadata: dict[str, str], column: str) -> tuple[str, ...]:
    """Read the names of a `ClassLabel` from the metadata that Hugging Face's `datasets` writes."""
    try:
        names = json.loads(metadata["huggingface"])["info"]["features"][column]["names"]
        if isinstance(names, dict):
            names = [names[str(number)] for number in range(len(names))]
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()


def _read_groups(file: StoredFile) -> list[RowGroup]:
    size = file.size or 0
    tail = _read_range(file, max(0, size - parquet_footer.TAIL_BYTES), size)
    footer = _read_range(file, size - parquet_footer.get_footer_bytes(tail, size), size)
    return parquet_footer.parse_row_groups(footer, size)


def _read_range(file: StoredFile, start: int, end: int) -> bytes:
    if stores.is_address(file.address):
        return stores.read(file, start, end)
    with open(file.address, "rb") as stream:
        if file.stamp and str(os.fstat(stream.fileno()).st_mtime_ns) != file.stamp:
            raise ChangedFile
        stream.seek(start)
        return stream.read(end - start)


@contextmanager
def _open_columns(file: StoredFile, groups: Iterable[RowGroup], columns: Iterable[str]) -> Iterator[str]:
    """Provide a path where polars can read these columns of these row groups."""
    if not stores.is_address(file.address):
        # Raises an error if the file has changed.
        _read_range(file, 0, 0)
        yield file.address
        return
    size = file.size or 0
    tail = _read_range(file, size - parquet_footer.TAIL_BYTES, size)
    ranges = [(0, len(parquet_footer.MAGIC)), (size - parquet_footer.get_footer_bytes(tail, size), size)]
    ranges += [(chunk.start, chunk.end) for group in groups for chunk in group.chunks if chunk.column in set(columns)]
    with tempfile.TemporaryDirectory(prefix="ikebana-") as folder:
        path = os.path.join(folder, "part.parquet")
        parts = _divide(ranges)
        with open(path, "wb") as stream:
            stream.truncate(size)
            for start, data in stores.map_requests(lambda part: (part[0], _read_range(file, *part)), parts):
                stream.seek(start)
                stream.write(data)
        yield path


def _divide(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join adjacent ranges, and divide long ones into requests."""
    joined: list[list[int]] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    return [(part, min(part + PART_BYTES, end)) for start, end in joined for part in range(start, end, PART_BYTES)]


class _RowGroupCache:
    """Opened files, and the photos of the last row groups; threads share it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.files: OrderedDict[tuple[str, str], ParquetPhotos] = OrderedDict()
        self.groups: OrderedDict[tuple[str, str, int], Sequence[Any] | pl.Series] = OrderedDict()

    def read(self, address: str, row: int, stamp: str) -> bytes | None:
        with self.lock:
            photos = self._open(address, stamp)
            group = photos.find_group(row)
            key = address, stamp, group.first_row
            if key not in self.groups:
                while len(self.groups) >= CACHED_ROW_GROUPS:
                    self.groups.popitem(last=False)
                self.groups[key] = _read_group(photos, group)
            self.groups.move_to_end(key)
            values = self.groups[key]
        return values[row - group.first_row]

    def _open(self, address: str, stamp: str) -> ParquetPhotos:
        key = address, stamp
        if key not in self.files:
            while len(self.files) >= CACHED_FILES:
                self.files.popitem(last=False)
            self.files[key] = open_file(locate(address, stamp))
        self.files.move_to_end(key)
        return self.files[key]


def locate(address: str, stamp: str = "") -> StoredFile:
    """Look up a file of a store or of this computer.

    Raises:
        ChangedFile: it has another stamp than the given one.
    """
    if stores.is_address(address):
        file = stores.stat(address)
        if file is None:
            raise PhotosError("this is a folder", where=address, advice="give a file")
    else:
        status = os.stat(address)
        file = StoredFile(address, status.st_size, str(status.st_mtime_ns))
    if stamp and file.stamp != stamp:
        raise ChangedFile
    return file


def _read_group(photos: ParquetPhotos, group: RowGroup) -> pl.Series:
    """Read the photos of a row group.

    Raises:
        UnreadablePhoto: it is too large.
    """
    size = sum(chunk.uncompressed_bytes for chunk in group.chunks if chunk.column == photos.image_column)
    if size > MAX_ROW_GROUP_BYTES:
        what = f"too large: its row group has {size // 2**20:,} MB (write the file with smaller row groups)"
        raise UnreadablePhoto(what, where=photos.file.address)
    with _open_columns(photos.file, (group,), {photos.image_column}) as path:
        column = pl.scan_parquet(path).slice(group.first_row, group.rows).select(photos.image_column).collect()
    values = column[photos.image_column]
    return values.struct.field("bytes") if isinstance(values.dtype, pl.Struct) else values


_cache = _RowGroupCache()


def read_photo(address: str, row: int, stamp: str = "") -> bytes:
    """Read the bytes of the photo in a row.

    Raises:
        UnreadablePhoto: there is none, or the file is damaged; StoreError, ChangedFile.
    """
    try:
        with translate_errors(address):
            data = _cache.read(address, row, stamp)
    except (UnreadablePhoto, stores.StoreError):
        raise
    except PhotosError as error:
        raise UnreadablePhoto(f"unreadable: {error.what}", where=address) from None
    if data is None:
        raise UnreadablePhoto(NO_PHOTO, where=address)
    return data
