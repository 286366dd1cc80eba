"""Reading of a range of a stored file, if the file has not changed.

fsspec returns only the bytes of a response. S3 and HTTP can compare the ETag within the same
request. Other stores need a second request.
"""

import asyncio
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from ikebana.data.store_errors import CHANGED_STATUSES, ChangedFile, NoRanges, find_status

# Of one request.
TIMEOUT_SECONDS = 120
CHUNK_BYTES = 2**20
HTTP_PARTIAL = 206
# The range begins after the end: of a file that was not listed, the file is empty.
HTTP_NO_RANGE = 416
# How long a compared stamp counts, and how many are kept.
STAMP_SECONDS = 60
MAX_CHECKED_STAMPS = 1000
# Bytes that are skipped if a server sends the whole file instead of a range.
MAX_SKIPPED_BYTES = 2**24

# By address: the stamp that was compared, and when.
_checked_stamps: dict[str, tuple[str, float]] = {}


def read_range(filesystem: Any, address: str, start: int, end: int, stamp: str) -> bytes:
    """Read the bytes from `start` to `end`; fewer if the file ends before.

    Args:
        filesystem: of fsspec.
        stamp: of the listed file; "" if any version is fine.
    Raises:
        ChangedFile: the file has another stamp.
        NoRanges: a web server cannot send this range alone.
        Exception: any of the store's client.
    """
    if start >= end:
        return b""
    protocol = address.partition("://")[0]
    if protocol in ("http", "https"):
        return _run(filesystem, _read_http(filesystem, address, start, end, stamp))
    if protocol == "s3":
        return _run(filesystem, _read_s3(filesystem, address, start, end, stamp))
    if stamp:
        _check_stamp(filesystem, address, stamp)
    return filesystem.cat_file(address, start=start, end=end)


def _check_stamp(filesystem: Any, address: str, stamp: str) -> None:
    """Compare the stamp, once a minute per file: a tar is read photo by photo."""
    known_stamp, checked_at = _checked_stamps.get(address, ("", 0.0))
    if known_stamp != stamp or time.monotonic() - checked_at > STAMP_SECONDS:
        if get_stamp(filesystem.info(address)) != stamp:
            raise ChangedFile
        if len(_checked_stamps) >= MAX_CHECKED_STAMPS:
            _checked_stamps.clear()
        _checked_stamps[address] = stamp, time.monotonic()


def get_stamp(info: Mapping[str, Any]) -> str:
    """Return what changes with a file: ETag, hash, or modification time."""
    for name in ("ETag", "etag", "generation", "blob_id", "Last-Modified", "LastModified", "mtime"):
        if info.get(name):
            return normalise_etag(str(info[name]))
    return ""


def normalise_etag(etag: str) -> str:
    """Remove quotation marks, and the mark of a weak ETag."""
    return etag.removeprefix("W/").strip('"')


def _run(filesystem: Any, work: Coroutine[Any, Any, bytes]) -> bytes:
    """Run a coroutine in fsspec's event loop, which other threads share."""
    future = asyncio.run_coroutine_threadsafe(work, filesystem.loop)
    try:
        return future.result(TIMEOUT_SECONDS)
    except BaseException:
        future.cancel()
        raise


async def _read_s3(filesystem: Any, address: str, start: int, end: int, stamp: str) -> bytes:
    bucket, key, version = filesystem.split_path(address)
    conditions = {"IfMatch": f'"{stamp}"'} if stamp else {}
    if version:
        conditions["VersionId"] = version
    try:
        response = await filesystem._call_s3(
            "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", **conditions
        )
    except Exception as error:
        status = find_status(error)
        if status == HTTP_NO_RANGE and start == 0 and not stamp:
            return b""
        if status in CHANGED_STATUSES:
            raise ChangedFile from None
        raise
    try:
        return await response["Body"].read()
    finally:
        response["Body"].close()


async def _read_http(filesystem: Any, address: str, start: int, end: int, stamp: str) -> bytes:
    """Read a range; without support of ranges, read the file up to its end."""
    session = await filesystem.set_session()
    options = dict(filesystem.kwargs)
    options["headers"] = {
        **options.get("headers", {}), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"
    }  # fmt: skip
    async with session.get(filesystem.encode_url(address), **options) as response:
        if response.status == HTTP_NO_RANGE and start == 0 and not stamp:
            return b""
        if response.status in CHANGED_STATUSES:
            raise ChangedFile
        response.raise_for_status()
        if stamp and get_stamp(response.headers) != stamp:
            raise ChangedFile
        skipped = 0 if response.status == HTTP_PARTIAL else start
        if skipped > MAX_SKIPPED_BYTES:
            raise NoRanges
        data, wanted = bytearray(), skipped + end - start
        while len(data) < wanted and (chunk := await response.content.read(min(CHUNK_BYTES, wanted - len(data)))):
            data += chunk
        return bytes(data[skipped:])
