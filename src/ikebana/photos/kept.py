"""A Dataset's photos as one uint8 array on disk, decoded once; and all of them in small, for the search for twins.

The arrays lie in the cache in a folder named by the hash of what made it: the paths, sizes and times of the files, the
side, and the decoding rules. So there is nothing to invalidate by hand, and a second run starts from it at once. Beside
them lies an index with each photo's status, sha256, size, and the checksum of its pixels, by which a damaged array is
noticed; the index bears its own checksum in its name.
"""

import hashlib
import io
import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import PIL
import polars as pl

from ikebana import progress
from ikebana.errors import MachineError, UnreadablePhoto
from ikebana.machine import need_disk
from ikebana.photos import pixels
from ikebana.photos.dataset import UNOPENED, USED, Dataset, gathered
from ikebana.photos.pixels import read_bytes, threads
from ikebana.places import cache_folder, filled, set_aside
from ikebana.recipe import Fit

ATTEMPTS = 3  # more than one: another process may take away the damaged array that both have found
AHEAD = 8  # chunks that wait for each thread, so that none is idle while one takes long
CHUNK = 8  # photos a task: large enough that handing out work costs nothing, small enough that the bar moves and no thread waits
TRIED = 4  # photos of each passing reason that are tried again before the others are believed
HELD = 2**24  # bytes of pixels a task may hold before they are written
SMALL = 64  # pixels of a side of the photos in small; squashed whole, whatever the fit
KEPT_RULES = 3  # raised when other files are kept
OPENED = {
    "path": pl.String,
    "status": pl.String,
    "sha256": pl.String,
    "bytes": pl.Int64,
    "width": pl.Int32,
    "height": pl.Int32,
    "crc32": pl.Int64,  # of the photo's pixels in the array, and then in small
    "passing": pl.Boolean,  # whether what keeps the photo from being used is not the photo: a disk, memory, an extra
}

Row = tuple[str, str | None, int | None, int | None, int | None, int, bool]  # all of these but the path
Result = TypeVar("Result")


@dataclass(frozen=True)
class Kept:
    """The pixels of a Dataset, row by row; those of photos that were set aside are zeros and never looked at."""

    pixels: np.ndarray  # uint8 [rows of the dataset, side, side, 3], memory-mapped, read-only
    folder: Path
    small: np.ndarray  # uint8 [rows of the dataset, SMALL, SMALL, 3], memory-mapped, read-only


def size_on_disk(dataset: Dataset, side: int) -> int:
    """Bytes that the arrays take."""
    return dataset.photos.height * (side * side + SMALL * SMALL) * 3


def opened(dataset: Dataset, side: int, fit: Fit) -> tuple[Dataset, Kept]:
    """Open every photo once, or find that it was done before.

    returns  the dataset with status, sha256 and size filled in, and its pixels
    raises   MachineError if the disk cannot hold the array, or does not keep it
    """
    folder, rows = place(dataset, side, fit), dataset.photos.height
    for attempt in range(ATTEMPTS + 1):
        found = _load(folder, side, rows)
        if found is not None and attempt == 0 and _has_passed(found[0], dataset, side, fit):
            progress.say("photos that could not be read before can be by now: all are read again")
            found = None  # before its files go: Windows removes none that is mapped
            set_aside(folder)
        if found is not None:
            index, array, small = found
            columns = ("status", "sha256", "bytes", "width", "height")
            photos = dataset.photos.with_columns(index[name] for name in columns)
            return dataset.with_photos(photos), Kept(array, folder, small)
        if attempt < ATTEMPTS:
            _make(dataset, side, fit, folder)
    raise MachineError(
        "the kept pixels are not on the disk as they were written",
        where=folder,
        advice="check the disk, or use another",
    )


def _has_passed(index: pl.DataFrame, dataset: Dataset, side: int, fit: Fit) -> bool:
    """Whether what kept photos from being used is gone; a few of each reason are tried."""
    tried = index.filter("passing").group_by("status").head(TRIED)["path"].to_list()
    target, small = (np.zeros((size, size, 3), np.uint8) for size in (side, SMALL))
    return any(_open(dataset.file(path), UNOPENED, target, small, fit)[0] == USED for path in tried)


def place(dataset: Dataset, side: int, fit: Fit) -> Path:
    """Where the pixels of these very files are kept, or will be; what is there may still turn out damaged."""
    made_of = hashlib.sha256()
    rules = [pixels.RULES, KEPT_RULES, PIL.__version__, side, fit, str(dataset.root.resolve())]
    made_of.update(json.dumps(rules).encode())
    for path, status in dataset.photos.select("path", "status").iter_rows():
        made_of.update(json.dumps([path, status, _stamp(dataset.file(path)) if status == UNOPENED else None]).encode())
    return cache_folder() / "pixels" / made_of.hexdigest()[:32]


def _stamp(file: Path) -> tuple[int, ...] | None:
    """What changes when a file does: its size and the times of its last change."""
    try:
        told = os.stat(file)
    except OSError:  # gone since the scan; opening it will say so
        return None
    return told.st_size, told.st_mtime_ns, told.st_ctime_ns


def _make(dataset: Dataset, side: int, fit: Fit, place: Path) -> None:
    shapes = {"pixels": (dataset.photos.height, side, side, 3), "small": (dataset.photos.height, SMALL, SMALL, 3)}
    need_disk({cache_folder(): size_on_disk(dataset, side)})
    with filled(place) as folder:
        for name, shape in shapes.items():
            reserve(folder / f"{name}.npy", shape, np.dtype(np.uint8))
        _write_index(folder, _read_into(folder, dataset, side, fit))


def _read_into(folder: Path, dataset: Dataset, side: int, fit: Fit) -> pl.DataFrame:
    """Open every photo and write its pixels into the arrays there; what became of each, as the index has it."""
    named = dataset.photos.select("path", "status")

    def open_rows(chosen: range) -> list[tuple[str, *Row]]:
        array, small = (np.zeros((len(chosen), size, size, 3), np.uint8) for size in (side, SMALL))
        rows = zip(named[chosen.start : chosen.stop].iter_rows(), array, small, strict=True)
        found = [(path, *_open(dataset.file(path), status, one, two, fit)) for (path, status), one, two in rows]
        for name, each in (("pixels", array), ("small", small)):
            _write_rows(folder / f"{name}.npy", chosen.start, each)
        return found

    def opened_rows() -> Iterator[tuple[str, *Row]]:
        with (
            progress.stage("read photos", named.height) as bar,
            closing(in_threads(open_rows, chunks(named.height, max(1, min(CHUNK, HELD // (3 * side**2)))))) as parts,
        ):
            for part in parts:
                yield from part
                bar.advance(len(part))

    return gathered(opened_rows(), OPENED)


def _open(file: Path, status: str, target: np.ndarray, small: np.ndarray, fit: Fit) -> Row:
    """Read one photo into its rows; whatever is wrong with it becomes its status."""
    if status != UNOPENED:
        return status, None, None, None, None, 0, False
    digest = size = None
    try:
        size = os.stat(file).st_size
        data = read_bytes(file)
        size, digest = len(data), pixels.sha256(data)
        photo = pixels.decode(data, len(target), fit, SMALL)
    except UnreadablePhoto as reason:
        return reason.what, digest, size, None, None, 0, reason.what in pixels.PASSING
    except OSError as error:
        return f"unreadable: {error.strerror or error}", digest, size, None, None, 0, True
    target[:], small[:] = photo.pixels, photo.small
    return USED, digest, size, photo.width, photo.height, _checksum(target, small), False


def _checksum(photo: np.ndarray, small: np.ndarray) -> int:
    return zlib.crc32(small.data, zlib.crc32(photo.data))


def in_threads(work: Callable[[range], Result], chunks: Sequence[range]) -> Generator[Result]:
    """The chunks' results, in order; when the caller is interrupted, what has not begun is dropped.

    Only some are handed out ahead, so that neither the waiting nor the results of a slow caller fill the memory.
    """
    pool, waiting = ThreadPoolExecutor(threads()), deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(work, chunk))
            if len(waiting) > AHEAD * threads():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def chunks(rows: int, size: int = CHUNK) -> list[range]:
    """So many rows in pieces of a size, for `in_threads`."""
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]


def reserve(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """An array file of zeros whose blocks exist: writing into a mapped hole on a full disk would kill the process, not raise."""
    header: dict[str, Any] = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with file.open("wb") as stream:
        np.lib.format.write_array_header_2_0(stream, header)
        allocate(stream, int(np.prod(shape)) * dtype.itemsize)


def _write_rows(file: Path, first: int, rows: np.ndarray) -> None:
    """Fill in rows of a reserved array: written, since to fill a page of a new file through a map takes ten times as long."""
    with file.open("r+b") as stream:
        np.lib.format.read_magic(stream)
        np.lib.format.read_array_header_2_0(stream)
        stream.seek(first * rows[0].nbytes, os.SEEK_CUR)
        stream.write(rows.data)


def allocate(stream: IO[bytes], size: int) -> None:
    """So many zeros from here on, whose blocks exist."""
    stream.flush()
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(stream.fileno(), stream.tell(), size)
    else:
        block = bytes(2**24)
        for done in range(0, size, len(block)):
            stream.write(block[: min(len(block), size - done)])
        stream.flush()


def _write_index(folder: Path, index: pl.DataFrame) -> None:
    stream = io.BytesIO()
    index.write_parquet(stream)
    (folder / f"index.{pixels.sha256(stream.getvalue())}.parquet").write_bytes(stream.getvalue())


def _read_index(folder: Path) -> pl.DataFrame:
    """The index, if it is what was written; ValueError if not."""
    for file in folder.glob("index.*.parquet"):
        data = file.read_bytes()
        if file.name == f"index.{pixels.sha256(data)}.parquet":
            return pl.read_parquet(io.BytesIO(data))
    raise ValueError("there is no index")


def _load(place: Path, side: int, rows: int) -> tuple[pl.DataFrame, np.ndarray, np.ndarray] | None:
    """The index and the arrays, or None if they are not there; what is no longer as it was written is taken away."""
    if not place.exists():
        return None
    if (found := _if_whole(place, side, rows)) is not None:
        return found
    progress.say("the kept pixels have changed on disk: the photos are read again")
    set_aside(place)
    return None


def _if_whole(place: Path, side: int, rows: int) -> tuple[pl.DataFrame, np.ndarray, np.ndarray] | None:
    """The index and the arrays, if they are as they were written; else nothing of them stays mapped."""
    try:
        index = _read_index(place)
        array, small = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("pixels", "small"))
        fits = _fits(array, (rows, side, side, 3)) and _fits(small, (rows, SMALL, SMALL, 3))
        fits = fits and index.schema == pl.Schema(OPENED) and index.height == rows
        return (index, array, small) if fits and _whole(index, array, small) else None
    except (OSError, ValueError, EOFError, pl.exceptions.PolarsError):
        return None


def _fits(array: np.ndarray, shape: tuple[int, ...]) -> bool:
    return array.shape == shape and array.dtype == np.uint8 and array.flags.c_contiguous


def _whole(index: pl.DataFrame, array: np.ndarray, small: np.ndarray) -> bool:
    used = (index["status"] == USED).to_numpy()
    expected = index["crc32"].to_numpy()

    def check(chosen: range) -> bool:
        return all(_checksum(array[row], small[row]) == expected[row] for row in chosen if used[row])

    return all(in_threads(check, chunks(index.height)))
