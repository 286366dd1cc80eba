"""A saved list of photos to predict, from which any machine can read them.

A process that lists the photos and a process that reads one may run on different machines and days.
Each row therefore tells where the photo is and which version of it was listed.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ikebana.data import stores
from ikebana.data.folder import STATUS_UNOPENED, to_printable
from ikebana.data.locations import Location, PhotoChanged
from ikebana.data.locations import is_in_store as is_location_in_store
from ikebana.data.photo_file import describe_disk_error, read_photo_file
from ikebana.data.unlabelled import NO_FILE, UnlabelledPhoto
from ikebana.errors import UnreadablePhoto

STATUS_CHANGED = "changed since the photos were listed"


class ListedPhoto(NamedTuple):
    """One row of the list."""

    # The path to show.
    path: str
    # The absolute path of the file, or the address of what contains the photo; empty if there is none.
    address: str
    # The bytes of the photo within an uncompressed archive; None for a whole file.
    offset: int | None
    length: int | None
    # The row of the photo within a table; None otherwise.
    row: int | None
    # Bytes, and the version: the modification time in nanoseconds, or the ETag. None if unknown.
    size: int | None
    stamp: str | None
    # "not opened yet", or why the photo cannot be opened.
    status: str


def list_photos(photos: Iterable[UnlabelledPhoto]) -> Iterator[ListedPhoto]:
    """Yield a row for each photo, in order."""
    for photo in photos:
        if photo.location is not None:
            place = photo.location
            if not stores.is_address(place.address):
                place = replace(place, address=os.path.abspath(place.address))
            columns = (place.address, place.offset, place.length, place.row, place.size, place.stamp)
            yield ListedPhoto(photo.path, *columns, photo.status)
            continue
        size, stamp = _read_version(photo.file) if photo.file != NO_FILE else (None, None)
        address = to_printable(os.path.abspath(photo.file)) if photo.file != NO_FILE else ""
        yield ListedPhoto(photo.path, address, None, None, None, size, stamp, photo.status)


def read_photo(photo: ListedPhoto) -> bytes:
    """Read the photo of a row.

    Raises:
        UnavailablePhoto: its store or its disk fails, or denies access.
        UnreadablePhoto: it cannot be read, or is not the version that was listed.
    """
    if photo.status != STATUS_UNOPENED:
        raise UnreadablePhoto(photo.status)
    location = Location(*photo[1:-1])
    if not location.is_file:
        return _read_location(location)
    file = Path(photo.address)
    data = read_photo_file(file)
    # After reading, so that a change during the reading is noticed too.
    if _read_version(file) != (photo.size, photo.stamp):
        raise UnreadablePhoto(STATUS_CHANGED, where=file)
    return data


def _read_location(location: Location) -> bytes:
    """Read a photo in a store or in a container, if it has not changed."""
    try:
        return location.read()
    except PhotoChanged:
        raise UnreadablePhoto(STATUS_CHANGED, where=location.address) from None
    except OSError as error:
        raise describe_disk_error(error, location.address) from None


def is_in_store(photo: ListedPhoto) -> bool:
    """Return whether reading a photo waits for a store."""
    return is_location_in_store(Location(*photo[1:-1]))


def _read_version(file: Path) -> tuple[int | None, str | None]:
    """Read the size and modification time of a file; None without a file."""
    try:
        stat = os.stat(file)
    # The photo cannot be opened either, and its row will report the reason.
    except (OSError, ValueError):
        return None, None
    return stat.st_size, str(stat.st_mtime_ns)
