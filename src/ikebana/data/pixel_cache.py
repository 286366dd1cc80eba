"""The pixel cache: a Dataset's photos and thumbnails, decoded once into arrays on disk.

A cache folder is named by the hash of its inputs: the files' paths, sizes and times, the image
size, and the decoder version. So nothing needs manual invalidation, and a second run starts at
once. An index holds each photo's status, sha256, size, and the checksums of its pixels. They are
compared when a row is first read; damaged photos are then decoded again. The index has its own
checksum in its name.
"""

import hashlib
import io
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import PIL
import polars as pl

from ikebana.data import decoding
from ikebana.data.dataset import STATUS_UNOPENED, STATUS_USED, Dataset, collect_rows
from ikebana.data.locations import Location, is_in_store
from ikebana.data.read_ahead import read_ahead
from ikebana.data.verified_array import VerifiedArray, compute_checksum
from ikebana.errors import MachineError, UnavailablePhoto, UnreadablePhoto
from ikebana.recipe import Resize
from ikebana.system import progress
from ikebana.system.cache_folder import cache_folder
from ikebana.system.files import atomic_directory, atomic_write, discard, write_error
from ikebana.system.resources import require_disk
from ikebana.system.threads import map_in_threads

# More than one: another process may remove the damaged array that both have found.
MAX_ATTEMPTS = 3
# Photos per task: large enough that scheduling costs nothing, small enough that the progress bar
# moves and no thread waits.
CHUNK_PHOTOS = 8
# Photos whose sizes and times are read per task.
STAMP_CHUNK_PHOTOS = 4096
# Photos of each transient reason that are retried; if all fail, the others are not retried.
RETRIES_PER_REASON = 4
# Bytes of pixels that a task may hold before it writes them.
MAX_CHUNK_BYTES = 2**24
# Pixels; thumbnails are squashed, whatever the resize option.
THUMBNAIL_SIZE = 64
# Increase it when the format of the cached files changes.
PIXEL_CACHE_VERSION = 4
# Of a cache that several processes build (`data/pixel_cache_parts`), beside the folder that it becomes.
BUILDING_SUFFIX = ".parts"
INDEX_SCHEMA = {
    "path": pl.String,
    "status": pl.String,
    "sha256": pl.String,
    "bytes": pl.Int64,
    "width": pl.Int32,
    "height": pl.Int32,
    # Checksums of the photo's pixels and of its thumbnail.
    "pixels_crc32": pl.Int64,
    "thumbnail_crc32": pl.Int64,
    # Whether the photo is unused for a transient reason: a disk, memory, a missing extra.
    "passing": pl.Boolean,
}

# All columns of INDEX_SCHEMA but the path.
IndexRow = tuple[str, str | None, int | None, int | None, int | None, int, int, bool]
# The index, the pixels and the thumbnails.
LoadedCache: TypeAlias = tuple[pl.DataFrame, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class PixelCache:
    """The memory-mapped, read-only pixels of a Dataset's rows; those of unused photos are zeros."""

    # uint8 [rows of the dataset, image_size, image_size, 3].
    pixels: VerifiedArray
    folder: Path
    # uint8 [rows of the dataset, THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3].
    thumbnails: VerifiedArray


def compute_cache_bytes(dataset: Dataset, image_size: int) -> int:
    """Compute the bytes that the arrays take."""
    return dataset.photos.height * (image_size * image_size + THUMBNAIL_SIZE * THUMBNAIL_SIZE) * 3


def open_pixel_cache(dataset: Dataset, image_size: int, resize: Resize) -> tuple[Dataset, PixelCache]:
    """Decode every photo, or load the pixels of an earlier call.

    Returns:
        The dataset with status, sha256 and size filled in, and its pixels.
    Raises:
        MachineError: the disk cannot hold the array, or does not keep it.
    """
    folder, rows = get_cache_path(dataset, image_size, resize), dataset.photos.height
    for attempt in range(MAX_ATTEMPTS + 1):
        loaded = _load(folder, image_size, rows) if attempt else load_current(dataset, image_size, resize, folder)
        if loaded is not None:
            index, *arrays = loaded
            columns = ("status", "sha256", "bytes", "width", "height")
            photos = dataset.photos.with_columns(index[name] for name in columns)
            return dataset.with_photos(photos), _verify_on_use(dataset, index, folder, resize, arrays)
        if attempt < MAX_ATTEMPTS:
            _build(dataset, image_size, resize, folder)
    raise _corruption_error(folder)


def load_current(dataset: Dataset, image_size: int, resize: Resize, folder: Path) -> LoadedCache | None:
    """Load a cache; remove one that is damaged or lacks photos that are readable now."""
    loaded = _load(folder, image_size, dataset.photos.height)
    if loaded is not None and can_read_more(loaded[0], dataset, image_size, resize):
        progress.message("some photos that could not be read earlier can be read now: reading all photos again")
        # Unmap the arrays before their files are removed, as Windows demands.
        loaded = None
        discard(folder)
    return loaded


def reopen_pixel_cache(dataset: Dataset, rows: int, image_size: int, resize: Resize, folder: Path) -> PixelCache:
    """Open a cache that another process has completed.

    Args:
        dataset: locates photos whose pixels are damaged; its table is not used.
        rows: of the cache.
    Raises:
        MachineError: it is missing or damaged.
    """
    loaded = _load_if_complete(folder, image_size, rows)
    if loaded is None:
        raise MachineError(
            "the cached pixels are missing or damaged", where=folder, advice="run the same command again"
        )
    index, *arrays = loaded
    return _verify_on_use(dataset, index, folder, resize, arrays)


def _corruption_error(folder: Path) -> MachineError:
    return MachineError(
        "the cached pixels on disk differ from what was written",
        where=folder,
        advice="check the disk, or move the cache to another one: IKEBANA_CACHE=DIR",
    )


def _verify_on_use(
    dataset: Dataset, index: pl.DataFrame, folder: Path, resize: Resize, arrays: Sequence[np.ndarray]
) -> PixelCache:
    """Make both arrays compare the checksum of each row when it is first read."""
    is_used, lock = (index["status"] == STATUS_USED).to_numpy(), threading.Lock()

    def repair(rows: np.ndarray) -> None:
        # A photo and its thumbnail may be found damaged by two threads.
        with lock:
            progress.warn(f"cached pixels of {len(rows):,} photos have changed on disk: reading these photos again")
            for row in rows.tolist():
                _decode_again(dataset, index.row(row, named=True), row, folder, arrays, resize)

    pixels, thumbnails = (
        VerifiedArray(array, index[name].to_numpy(), is_used, repair)
        for array, name in zip(arrays, ("pixels_crc32", "thumbnail_crc32"), strict=True)
    )
    return PixelCache(pixels, folder, thumbnails)


def _decode_again(
    dataset: Dataset, photo: dict[str, Any], row: int, folder: Path, arrays: Sequence[np.ndarray], resize: Resize
) -> None:
    """Decode the photo of a damaged row into the files that the arrays map.

    A row that is written only in part is still damaged, so an interruption loses nothing.

    Args:
        photo: its row of the index.
    Raises:
        MachineError: the photo has changed since it was decoded, or the disk does not keep pixels.
    """
    target, small = (np.zeros(array.shape[1:], np.uint8) for array in arrays)
    decode_into(dataset.locate(photo["path"]), STATUS_UNOPENED, target, small, resize)
    expected = (photo["pixels_crc32"], photo["thumbnail_crc32"])
    if (compute_checksum(target), compute_checksum(small)) != expected:
        raise MachineError(
            f"the cached pixels of {photo['path']} are damaged, and the photo itself can no longer be read as before",
            where=folder,
            advice="run the command again: it reads changed photos anew",
        )
    try:
        for name, values in (("pixels", target), ("small", small)):
            _write_rows(folder / f"{name}.npy", row, values[None])
    except OSError as error:
        raise write_error(error, folder) from error
    if tuple(compute_checksum(array[row]) for array in arrays) != expected:
        raise _corruption_error(folder)


def can_read_more(index: pl.DataFrame, dataset: Dataset, image_size: int, resize: Resize) -> bool:
    """Return whether a transient reason is gone, by retrying a few photos of each reason."""
    retried = index.filter("passing").group_by("status").head(RETRIES_PER_REASON)["path"].to_list()
    target, small = (np.zeros((size, size, 3), np.uint8) for size in (image_size, THUMBNAIL_SIZE))
    return any(
        decode_into(dataset.locate(path), STATUS_UNOPENED, target, small, resize)[0] == STATUS_USED for path in retried
    )


def get_cache_path(dataset: Dataset, image_size: int, resize: Resize) -> Path:
    """Return the cache folder of exactly these files; it may be missing or damaged."""
    digest = hashlib.sha256()
    versions = [
        decoding.DECODER_VERSION,
        PIXEL_CACHE_VERSION,
        PIL.__version__,
        image_size,
        resize,
        str(dataset.root.resolve()) if dataset.locations is None else dataset.source,
    ]
    digest.update(json.dumps(versions).encode())
    photos, folder = dataset.photos.select("path", "status"), os.fspath(dataset.root)

    def stamp_chunk(chunk: range) -> bytes:
        """Write the stamps of some photos as one JSON text, for speed."""
        stamps = []
        for path, status in photos[chunk.start : chunk.stop].iter_rows():
            if dataset.locations is not None:
                stamps.append((path, status, *astuple(dataset.locate(path))))
                continue
            file = os.path.join(folder, path.removeprefix(dataset.archive_prefix))
            stamps.append((path, status, _stamp_file(file) if status == STATUS_UNOPENED else None))
        return json.dumps(stamps).encode()

    # A network disk answers several threads at once.
    for stamps in map_in_threads(stamp_chunk, make_chunks(photos.height, STAMP_CHUNK_PHOTOS)):
        digest.update(stamps)
    return cache_folder() / "pixels" / digest.hexdigest()[:32]


def _stamp_file(file: str) -> tuple[int, ...] | None:
    """Return what changes with a file: its size and its modification times."""
    try:
        stat = os.stat(file)
    # Removed since the scan, which opening the file will report.
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _build(dataset: Dataset, image_size: int, resize: Resize, target: Path) -> None:
    require_disk({cache_folder(): compute_cache_bytes(dataset, image_size)})
    with atomic_directory(target) as folder:
        reserve_arrays(folder, dataset.photos.height, image_size)
        with progress.stage("read photos", dataset.photos.height) as bar:
            write_index(folder, decode_photos(folder, dataset, image_size, resize, advance=bar.advance))
    # What other processes had begun together takes as much space.
    discard(target.with_name(target.name + BUILDING_SUFFIX))


def reserve_arrays(folder: Path, rows: int, image_size: int) -> None:
    """Write both array files of zeros."""
    for name, size in (("pixels", image_size), ("small", THUMBNAIL_SIZE)):
        reserve_array(folder / f"{name}.npy", (rows, size, size, 3), np.dtype(np.uint8))


def decode_photos(
    folder: Path,
    dataset: Dataset,
    image_size: int,
    resize: Resize,
    *,
    first_row: int = 0,
    advance: Callable[[int], object] = lambda count: None,
) -> pl.DataFrame:
    """Decode photos into the arrays of the folder, and return their index.

    Args:
        first_row: of the arrays, for the first photo.
        advance: called with the number of photos that were decoded since the last call.
    """
    table = dataset.photos.select("path", "status")

    def decode_chunk(chunk: range) -> list[tuple[str, *IndexRow]]:
        array, small = (np.zeros((len(chunk), size, size, 3), np.uint8) for size in (image_size, THUMBNAIL_SIZE))
        photos = table[chunk.start : chunk.stop].rows()
        # The photos of a chunk are requested from a store at the same time.
        contents = read_ahead((dataset.locate(path) for path, _ in photos), Location.read, is_in_store)
        index_rows = [
            (path, *decode_into(location, status, target, small_target, resize, read))
            for (path, status), (location, read), target, small_target in zip(
                photos, contents, array, small, strict=True
            )
        ]
        for name, values in (("pixels", array), ("small", small)):
            _write_rows(folder / f"{name}.npy", first_row + chunk.start, values)
        return index_rows

    def decode_rows() -> Iterator[tuple[str, *IndexRow]]:
        chunk_size = max(1, min(CHUNK_PHOTOS, MAX_CHUNK_BYTES // (3 * image_size**2)))
        with closing(map_in_threads(decode_chunk, make_chunks(table.height, chunk_size))) as results:
            for index_rows in results:
                yield from index_rows
                advance(len(index_rows))

    return collect_rows(decode_rows(), INDEX_SCHEMA)


def decode_into(
    location: Location,
    status: str,
    target: np.ndarray,
    small: np.ndarray,
    resize: Resize,
    read: Callable[[], bytes] | None = None,
) -> IndexRow:
    """Decode one photo into its rows; an error becomes its status.

    Args:
        read: returns the bytes of the photo, if they were requested earlier.
    """
    if status != STATUS_UNOPENED:
        return status, None, None, None, None, 0, 0, False
    digest = size = None
    try:
        size = os.stat(location.address).st_size if location.is_file else location.size
        data = location.read() if read is None else read()
        size, digest = len(data), decoding.compute_sha256(data)
        photo = decoding.decode(data, len(target), resize, THUMBNAIL_SIZE)
    except UnreadablePhoto as reason:
        is_transient = isinstance(reason, UnavailablePhoto) or reason.what in decoding.TRANSIENT_REASONS
        return reason.what, digest, size, None, None, 0, 0, is_transient
    except OSError as error:
        return f"unreadable: {error.strerror or error}", digest, size, None, None, 0, 0, True
    target[:], small[:] = photo.pixels, photo.thumbnail
    checksums = compute_checksum(target), compute_checksum(small)
    return STATUS_USED, digest, size, photo.width, photo.height, *checksums, False


def make_chunks(rows: int, size: int = CHUNK_PHOTOS) -> list[range]:
    """Divide rows into ranges of a size, for `threads.map_in_threads`."""
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]


def reserve_array(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Write an array file of zeros with allocated blocks.

    Writing into a mapped hole of a file on a full disk would kill the process instead of raising.
    """
    header: dict[str, Any] = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with file.open("wb") as stream:
        np.lib.format.write_array_header_2_0(stream, header)
        allocate_zeros(stream, int(np.prod(shape)) * dtype.itemsize)


def _write_rows(file: Path, first: int, rows: np.ndarray) -> None:
    """Write rows into a reserved array.

    Filling new pages through a memory map takes ten times as long.
    """
    with file.open("r+b") as stream:
        stream.seek(skip_header(stream) + first * rows[0].nbytes)
        stream.write(rows.data)


def skip_header(stream: IO[bytes]) -> int:
    """Read the header of a reserved array; return the position of its first row."""
    np.lib.format.read_magic(stream)
    np.lib.format.read_array_header_2_0(stream)
    return stream.tell()


def allocate_zeros(stream: IO[bytes], size: int) -> None:
    """Write zeros from the current position on, with allocated blocks."""
    stream.flush()
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(stream.fileno(), stream.tell(), size)
    else:
        block = bytes(2**24)
        for written in range(0, size, len(block)):
            stream.write(block[: min(len(block), size - written)])
        stream.flush()


def write_index(folder: Path, index: pl.DataFrame) -> None:
    """Write the index of all rows, with its checksum in the name."""
    data = encode_index(index)
    with atomic_write(folder / f"index.{decoding.compute_sha256(data)}.parquet", create_parent=False) as partial:
        partial.write_bytes(data)


def encode_index(index: pl.DataFrame) -> bytes:
    """Encode the index, or a part of it, as Parquet."""
    stream = io.BytesIO()
    index.write_parquet(stream)
    return stream.getvalue()


def _read_index(folder: Path) -> pl.DataFrame:
    """Read the index; raise ValueError if it is missing or damaged."""
    for file in folder.glob("index.*.parquet"):
        data = file.read_bytes()
        if file.name == f"index.{decoding.compute_sha256(data)}.parquet":
            return pl.read_parquet(io.BytesIO(data))
    raise ValueError("there is no index")


def _load(folder: Path, image_size: int, rows: int) -> LoadedCache | None:
    """Load the index and the arrays, whose rows are checked when they are read.

    If files are missing or damaged, remove them and return None.
    """
    if not folder.exists():
        return None
    if (loaded := _load_if_complete(folder, image_size, rows)) is not None:
        return loaded
    progress.warn("the cached pixels have changed on disk: reading the photos again")
    discard(folder)
    return None


def _load_if_complete(folder: Path, image_size: int, rows: int) -> LoadedCache | None:
    """Load the index and the arrays if they fit each other, else leave nothing memory-mapped."""
    try:
        index = _read_index(folder)
        array, small = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("pixels", "small"))
    except (OSError, ValueError, EOFError, pl.exceptions.PolarsError):
        return None
    is_complete = (
        _has_layout(array, (rows, image_size, image_size, 3))
        and _has_layout(small, (rows, THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3))
        and index.schema == pl.Schema(INDEX_SCHEMA)
        and index.height == rows
    )
    return (index, np.asarray(array), np.asarray(small)) if is_complete else None


def _has_layout(array: np.ndarray, shape: tuple[int, ...]) -> bool:
    return array.shape == shape and array.dtype == np.uint8 and array.flags.c_contiguous
