"""The bytes of a photo's file, or why it cannot be read."""

import errno
from pathlib import Path

from ikebana.data import decoding
from ikebana.errors import UnavailablePhoto, UnreadablePhoto

# A disk, often one in a network, that fails now; too many open files, or too little memory.
TRANSIENT_DISK_ERRORS = frozenset(
    getattr(errno, name)
    for name in (
        "EIO", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "EMFILE", "ENETDOWN",
        "ENETUNREACH", "ENFILE", "ENOMEM", "ENOTCONN", "EREMOTEIO", "ESHUTDOWN", "ESTALE", "ETIMEDOUT",
    )
    if hasattr(errno, name)
)  # fmt: skip


def read_photo_file(file: Path) -> bytes:
    """Read the file of a photo.

    Raises:
        UnavailablePhoto: the disk fails.
        UnreadablePhoto: with the reason.
    """
    try:
        return decoding.read_bytes(file)
    except FileNotFoundError:
        raise UnreadablePhoto("there is no such file", where=file) from None
    except IsADirectoryError:
        raise UnreadablePhoto("this is a folder", where=file, advice="ikebana.predict(model, folder)") from None
    except OSError as error:
        raise describe_disk_error(error, file) from None
    except ValueError as error:
        raise UnreadablePhoto(f"unreadable: {error}", where=file) from None


def describe_disk_error(error: OSError, where: str | Path) -> UnreadablePhoto:
    """Describe why a photo cannot be read from a disk."""
    kind = UnavailablePhoto if error.errno in TRANSIENT_DISK_ERRORS else UnreadablePhoto
    return kind(f"unreadable: {error.strerror or error}", where=where)
