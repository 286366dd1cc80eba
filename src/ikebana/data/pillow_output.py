"""Output of Pillow and libtiff during decoding: warnings, logs and lines on standard error.

Their messages do not name the photo. The decoder checks what matters and reports it per photo.
"""

import ctypes
import functools
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL

# As `warnings.filterwarnings` stores it; the comment distinguishes it from a user's own.
PILLOW_FILTER = ("ignore", None, Warning, re.compile(r"PIL\.(?#ikebana)"), 0)
LIBTIFF_SETTERS = ("TIFFSetErrorHandler", "TIFFSetWarningHandler")

# Without a handler, logging prints Pillow's errors on stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class PillowOutput:
    """The output of Pillow and libtiff, which threads may silence at the same time.

    `warnings.catch_warnings` is not safe with threads: one that ends would restore the filters that
    another has changed. libtiff's handlers, too, hold for the whole process. Both are therefore set
    by the first open block and restored by the last.
    """

    def __init__(self) -> None:
        self.lock, self.open_blocks = threading.Lock(), 0
        self.handlers: list[int | None] = []

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Silence the output within this block."""
        with self.lock:
            self.open_blocks += 1
            if self.open_blocks == 1:
                self.handlers = _set_libtiff_handlers([None, None])
            filters: list[Any] = warnings.filters  # type: ignore[assignment]
            if PILLOW_FILTER not in filters:
                filters.insert(0, PILLOW_FILTER)
        try:
            yield
        finally:
            with self.lock:
                self.open_blocks -= 1
                filters = warnings.filters  # type: ignore[assignment]
                if not self.open_blocks:
                    _set_libtiff_handlers(self.handlers)
                    if PILLOW_FILTER in filters:
                        filters.remove(PILLOW_FILTER)


silence_pillow = PillowOutput().silence


def _set_libtiff_handlers(handlers: list[int | None]) -> list[int | None]:
    """Set the functions that libtiff prints with, None for silence; return the previous ones."""
    library = _load_libtiff()
    if library is None:
        return handlers
    return [getattr(library, name)(handler) for name, handler in zip(LIBTIFF_SETTERS, handlers, strict=True)]


@functools.cache
def _load_libtiff() -> ctypes.CDLL | None:
    """Return Pillow's libtiff, if it is a separate library in Pillow's package."""
    package = Path(PIL.__file__).parent
    files = [*package.parent.glob("[pP]illow.libs/libtiff*"), *package.glob(".dylibs/libtiff*")]
    try:
        library = ctypes.CDLL(str(files[0]))
        for name in LIBTIFF_SETTERS:
            setter = getattr(library, name)
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
    except (IndexError, OSError, AttributeError):
        return None
    return library
