"""Object stores and web servers: `s3://`, `gs://`, `hf://`, `https://` and `http://`.

This is the only module that imports fsspec, and it does so only for such an address: without one,
nothing is ever requested from a network.
"""

import io
import os
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from ikebana.data import store_requests
from ikebana.data.store_errors import ChangedFile, NoRanges, StoreError, request
from ikebana.errors import PhotosError, advise_extra
from ikebana.system.local_paths import ADDRESS_START

SCHEMES = ("s3", "gs", "hf", "https", "http")
ADDRESS = re.compile(rf"({'|'.join(SCHEMES)})://", re.IGNORECASE)
# What pip installs for each kind of address: an extra of ikebana, and the packages alone.
EXTRAS = {"s3": "s3", "gs": "gcs", "http": "https", "https": "https"}
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface-hub", "http": "fsspec aiohttp", "https": "fsspec aiohttp"}
# Requests that run at the same time. They wait for the network, not for a processor.
PARALLEL_REQUESTS = 16
# Bytes of one request while headers are read: most photos are smaller, so one request has several.
BLOCK_BYTES = 2**18
# One PUT can have 5 GB; a shard of predictions has far less.
MAX_PUT_BYTES = 2**30
# Read at most of a file whose size the server does not tell: one more than a photo may have.
MAX_UNKNOWN_BYTES = 512 * 2**20 + 1
GLOB_CHARACTERS = re.compile(r"[*?\[]")

ADVICE_WEB_FOLDER = "end the address of a folder with /"
CHANGED = "it has changed since it was listed"

_filesystems: dict[tuple[str, int], Any] = {}
_lock = threading.Lock()

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a store or of this computer.

    Attributes:
        size: in bytes; None if the store does not tell.
        stamp: what changes with the file, such as its ETag; "" if the store does not tell.
    """

    address: str
    size: int | None
    stamp: str


def is_address(text: object) -> bool:
    """Return whether this is the address of a store, and not a path."""
    return isinstance(text, str) and ADDRESS.match(text) is not None


def describe_unsupported(source: str | Path) -> PhotosError | None:
    """Build the error for an address that no store has; None for a path."""
    match = ADDRESS_START.match(str(source))
    if match is None:
        return None
    scheme = match[1].lower()
    if scheme in SCHEMES:
        what = f"this address lacks a slash after {scheme}:"
        advice = f"{ADDRESS_START.sub(f'{scheme}://', str(source))}, in Python as a str: a Path has only one slash"
    else:
        what = f"addresses that begin with {scheme}:// are not supported"
        advice = f"a path, or an address that begins with {', '.join(f'{name}://' for name in SCHEMES)}"
    return PhotosError(what, where=source, advice=advice)


def get_name(address: str) -> str:
    """Return the last part of an address, without a query and decoded."""
    return decode_path(address).rstrip("/").rpartition("/")[2]


def decode_path(address: str) -> str:
    """Return an address as people read it: web addresses lose percent signs and the query."""
    if not address.lower().startswith("http"):
        return address
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}{unquote(parts.path)}"


def stat(address: str) -> StoredFile | None:
    """Look up a file; None if the address is that of a folder.

    Raises:
        StoreError: there is no such file or folder, or the store refused the request.
    """
    info = request(lambda: _get_filesystem(address).info(address), address)
    return None if info["type"] == "directory" else _to_file(address, info)


def list_files(folder: str, advance: Callable[[int], None] = lambda count: None) -> list[StoredFile]:
    """List all files below a folder; sub-folders are listed at the same time.

    Args:
        advance: receives the number of further files, for a progress bar.
    Raises:
        StoreError: there is no such folder, or the store refused the request.
    """
    files: list[StoredFile] = []
    pending, visited = [folder.rstrip("/") + "/"], set[str]()
    while pending:
        visited.update(pending)
        level, pending = pending, []
        for matches, folders in map_requests(_list_folder, level):
            files += matches
            advance(len(matches))
            pending += [name for name in folders if name not in visited]
    return sorted(_complete(files, folder), key=lambda file: file.address)


def _list_folder(folder: str) -> tuple[list[StoredFile], list[str]]:
    filesystem = _get_filesystem(folder)
    entries = request(lambda: filesystem.ls(folder, detail=True), folder)
    files, folders = [], []
    for entry in entries:
        address = _to_address(folder, entry["name"])
        # Links out of an HTML page, and S3's empty object that stands for the folder itself.
        if not address.startswith(folder) or address.rstrip("/") == folder.rstrip("/"):
            continue
        if entry["type"] == "directory":
            folders.append(address.rstrip("/") + "/")
        elif "?" not in address.removeprefix(folder) or not folder.lower().startswith("http"):
            files.append(_to_file(address, entry))
    return files, folders


def find_matches(pattern: str) -> list[StoredFile]:
    """List the files that match a glob pattern, sorted.

    Those of a web server are found by its index pages.

    Raises:
        StoreError: the store refused the request.
    """
    matches = request(lambda: _get_filesystem(pattern).glob(pattern, detail=True), pattern)
    files = [_to_file(_to_address(pattern, name), info) for name, info in matches.items() if info["type"] == "file"]
    return sorted(_complete(files, pattern), key=lambda file: file.address)


def is_glob(text: str) -> bool:
    """Return whether a path or an address is a pattern.

    A question mark of a web address begins its query.
    """
    if text.lower().startswith("http"):
        return "*" in text.partition("?")[0]
    return GLOB_CHARACTERS.search(text) is not None


def _complete(files: list[StoredFile], address: str) -> list[StoredFile]:
    """Look up the files of a web server, whose index has neither sizes nor ETags."""
    if not address.lower().startswith("http"):
        return files
    return [file for file in map_requests(stat, (file.address for file in files)) if file is not None]


def map_requests(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Run requests on items at the same time; results in order."""
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def read(file: StoredFile, start: int = 0, end: int | None = None) -> bytes:
    """Read a range of a file, on condition that it is still the listed one.

    Raises:
        ChangedFile: the file has changed since it was listed, or it is shorter than it was.
        StoreError: the store refused the request, or a web server cannot send ranges.
    """
    known_end = file.size if end is None else end
    stop = start + MAX_UNKNOWN_BYTES if known_end is None else known_end
    filesystem = _get_filesystem(file.address)
    try:
        data = request(
            lambda: store_requests.read_range(filesystem, file.address, start, stop, file.stamp), file.address
        )
    except NoRanges:
        raise StoreError(
            "this server sends whole files only, not parts of them", where=file.address, advice="download the file"
        ) from None
    if known_end is not None and len(data) != stop - start:
        raise ChangedFile
    return data


class RangeReader(io.RawIOBase):
    """A stored file as a seekable stream, read by ranges.

    Raises OSError for an error of the store, as a disk would.
    """

    def __init__(self, file: StoredFile):
        super().__init__()
        self.file, self.position, self.size = file, 0, file.size or 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        end = min(self.position + len(buffer), self.size)
        data = read(self.file, self.position, end) if self.position < end else b""
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def open_stream(file: StoredFile, block_bytes: int = BLOCK_BYTES) -> io.BufferedReader:
    """Open a stored file as a seekable stream, which requests a block at a time."""
    return io.BufferedReader(RangeReader(file), block_bytes)


def write(address: str, data: bytes, *, is_new: bool = False) -> bool:
    """Write a file with one PUT, so that readers see all of it or none.

    Args:
        is_new: leave a file that exists.
    Returns:
        Whether the file was written.
    Raises:
        StoreError: the store refused the request.
    """
    refuse_web_server(address)
    assert len(data) <= MAX_PUT_BYTES, "the store would write it in parts"
    # gcsfs and s3fs divide a file that is larger than their chunk.
    options: dict[str, Any] = {"chunksize": MAX_PUT_BYTES} if address.lower().startswith(("s3:", "gs:")) else {}
    if is_new and address.lower().startswith("s3:"):
        options["mode"] = "create"
    elif is_new and _exists(address):
        return False
    try:
        request(lambda: _get_filesystem(address).pipe_file(address, data, **options), address)
    except StoreError as error:
        if is_new and error.is_conflict:
            return False
        raise
    return True


def _exists(address: str) -> bool:
    try:
        return stat(address) is not None
    except StoreError as error:
        if error.is_missing:
            return False
        raise


def remove(address: str) -> None:
    """Remove a file; nothing happens if there is none.

    Raises:
        StoreError: the store refused the request.
    """
    if _exists(address):
        request(lambda: _get_filesystem(address).rm_file(address), address)


def list_names(folder: str) -> set[str]:
    """List the names of the files in a folder; none if it does not exist.

    Raises:
        StoreError: the store refused the request.
    """
    refuse_web_server(folder)
    try:
        files, _ = _list_folder(folder.rstrip("/") + "/")
    except StoreError as error:
        if error.is_missing:
            return set()
        raise
    return {get_name(file.address) for file in files}


def require_bucket(address: str) -> None:
    """Raise StoreError if the bucket of an address does not exist.

    Callers check it before long work, which would end there. Other stores have no buckets, and one
    may exist although its name cannot be looked up.
    """
    scheme, _, path = address.partition("://")
    if scheme.lower() not in ("s3", "gs"):
        return
    try:
        stat(f"{scheme}://{path.partition('/')[0]}")
    except StoreError as error:
        if not error.is_denied:
            raise


def refuse_web_server(address: str) -> None:
    """Raise StoreError if the address is that of a web server, which cannot be written."""
    if address.lower().startswith("http"):
        raise StoreError(
            "a web server takes no files", where=address, advice="write to a folder, or to s3://, gs:// or hf://"
        )


def _to_file(address: str, info: dict[str, Any]) -> StoredFile:
    return StoredFile(address, info.get("size"), store_requests.get_stamp(info))


def _to_address(example: str, name: str) -> str:
    """Return the address of a name from fsspec, which drops `s3://` and the like."""
    return name if "://" in name else f"{example.partition('://')[0].lower()}://{name}"


def _get_filesystem(address: str) -> Any:
    """Get the file system of an address; one per process, which all threads share.

    Raises:
        PhotosError: the package for this kind of address is not installed.
    """
    protocol = address.partition("://")[0].lower()
    key = protocol, os.getpid()
    with _lock:
        if key not in _filesystems:
            _filesystems[key] = _make_filesystem(protocol, address)
        return _filesystems[key]


def _make_filesystem(protocol: str, address: str) -> Any:
    # Listings are never reused: files may have changed.
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if protocol == "s3":
        # Retries are those of `store_errors`.
        options["config_kwargs"] = {
            "retries": {"total_max_attempts": 1},
            "connect_timeout": 20,
            "read_timeout": 60,
            # By default, ten connections would serve all threads.
            "max_pool_connections": PARALLEL_REQUESTS,
        }
    try:
        import fsspec

        return fsspec.filesystem(protocol, **options)
    except ImportError:
        packages = f"pip install -c requirements.lock {PACKAGES[protocol]}"
        raise PhotosError(
            f"addresses that begin with {protocol}:// need another package",
            where=address,
            advice=f"{advise_extra(EXTRAS[protocol])}; without PyTorch: {packages}" if protocol in EXTRAS else packages,
        ) from None
