"""Bytes of an open file, or of an upload that a web framework hands out."""

import inspect
import io
import threading
from typing import Any, Protocol

from ikebana.errors import UnreadablePhoto

# Several threads may get the same file, and reading it takes three steps.
_reading = threading.Lock()


class BinaryFile(Protocol):
    """A file opened with 'rb', or anything else whose `read` returns bytes."""

    def read(self, size: int = -1, /) -> bytes: ...


def is_file(value: object) -> bool:
    """Return whether this can be read like a file."""
    return callable(getattr(value, "read", None))


def get_name(file: object) -> str:
    """Return the name of an open file; empty if it has none."""
    # Uploads of Flask and FastAPI have a `filename`; the `name` of Flask's is that of the form field.
    name = getattr(file, "filename", None) or getattr(file, "name", None)
    return name if isinstance(name, str) else ""


def read(file: Any, max_bytes: int) -> bytes:
    """Read an open file from its start, wherever it stands, and put it back there.

    Raises:
        UnreadablePhoto: it cannot be read, gives no bytes, or is too large.
    """
    if isinstance(file, io.TextIOBase):
        raise UnreadablePhoto("this file is opened as text", advice="open it with 'rb'")
    try:
        with _reading:
            data = _read_all(file, max_bytes)
    except (OSError, ValueError) as error:
        raise UnreadablePhoto(f"unreadable: {error}") from None
    return _require_bytes(data, file, max_bytes)


def _read_all(file: Any, max_bytes: int) -> Any:
    position = file.tell() if hasattr(file, "seekable") and file.seekable() else None
    if position is not None:
        file.seek(0)
    try:
        data = file.read(max_bytes + 1)
    except TypeError:
        # The response of an HTTP client, whose `read` takes no size.
        data = file.read()
    if position is not None:
        file.seek(position)
    return data


def _require_bytes(data: Any, file: object, max_bytes: int) -> bytes:
    kind = type(file).__name__
    if inspect.iscoroutine(data):
        data.close()
        raise UnreadablePhoto(f"a {kind} is read asynchronously", advice="give its bytes: await photo.read()")
    if not isinstance(data, bytes | bytearray | memoryview):
        what = f"a {kind} cannot be used: its read() returns {type(data).__name__} instead of bytes"
        raise UnreadablePhoto(what, advice="give the bytes of a file, or a file opened with 'rb'")
    if len(data) > max_bytes:
        raise UnreadablePhoto(f"too large: a file of more than {max_bytes // 2**20} MB")
    return bytes(data)
