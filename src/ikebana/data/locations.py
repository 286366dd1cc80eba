"""Where the bytes of a photo are: a file, a range or a Parquet row."""

import io
import os
from dataclasses import dataclass
from typing import IO

from ikebana.data import decoding, parquet_photos, stores
from ikebana.data.decoding import MAX_FILE_BYTES, REASON_STORE_UNAVAILABLE
from ikebana.data.store_errors import ChangedFile, StoreError
from ikebana.data.stores import StoredFile
from ikebana.errors import UnavailablePhoto, UnreadablePhoto

# Bytes of the first request if only the header of a photo is read.
HEADER_BYTES = 2**15


class PhotoChanged(UnreadablePhoto):
    """A photo, or the file that contains it, is not the one that was listed."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where the bytes of a photo are; can be pickled and read on another machine.

    Attributes:
        address: a path or an address of a store: of the photo, or of the file that contains it.
        offset: position of the photo in an uncompressed tar; None otherwise.
        length: bytes of the photo in the tar; None otherwise.
        row: row of a Parquet file; None otherwise.
        size: bytes of the photo, if known.
        stamp: what changes with the file at the address: its modification time in ns, or its ETag;
            None if unknown.
    """

    address: str
    offset: int | None = None
    length: int | None = None
    row: int | None = None
    size: int | None = None
    stamp: str | None = None

    @property
    def is_whole_file(self) -> bool:
        """Whether the photo is a file of its own, here or in a store."""
        return self.offset is None and self.row is None

    @property
    def is_file(self) -> bool:
        """Whether the photo is a file of its own on this computer."""
        return self.is_whole_file and not stores.is_address(self.address)

    def read(self) -> bytes:
        """Read the photo's bytes.

        Raises:
            PhotoChanged: it has changed since it was listed.
            UnavailablePhoto: its store does not answer, or denies access.
            UnreadablePhoto: it is too large, or its store has no such photo.
            OSError: a file of this computer cannot be read.
        """
        try:
            return self._read()
        except ChangedFile:
            raise PhotoChanged(f"unreadable: {stores.CHANGED}", where=self.address) from None
        except StoreError as error:
            raise _describe_failure(error, self.address) from None

    def _read(self) -> bytes:
        if self.row is not None:
            return parquet_photos.read_photo(self.address, self.row, self.stamp or "")
        size = self.size if self.length is None else self.length
        if size is not None and size > MAX_FILE_BYTES:
            raise UnreadablePhoto(decoding.REASON_TOO_LARGE_FILE)
        if self.is_file:
            return decoding.read_bytes(self.address)
        if stores.is_address(self.address):
            start = self.offset or 0
            end = None if size is None else start + size
            data = stores.read(StoredFile(self.address, self.size, self.stamp or ""), start, end)
            if len(data) > MAX_FILE_BYTES:
                raise UnreadablePhoto(decoding.REASON_TOO_LARGE_FILE)
            return data
        return self._read_local_range(size or 0)

    def _read_local_range(self, size: int) -> bytes:
        with open(self.address, "rb") as stream:
            if self.stamp and str(os.fstat(stream.fileno()).st_mtime_ns) != self.stamp:
                raise ChangedFile
            stream.seek(self.offset or 0)
            data = stream.read(size)
        if len(data) != size:
            raise ChangedFile
        return data

    def open(self) -> IO[bytes]:
        """Open the photo as a stream, of which a store sends only what is read.

        Raises:
            UnreadablePhoto, OSError: as in `read`.
        """
        if self.is_file:
            return open(self.address, "rb")
        if self.offset is None and self.row is None and self.size is not None:
            return stores.open_stream(StoredFile(self.address, self.size, self.stamp or ""), HEADER_BYTES)
        return io.BytesIO(self.read())


def _describe_failure(error: StoreError, address: str) -> UnreadablePhoto:
    what = REASON_STORE_UNAVAILABLE if error.is_transient else f"unreadable: {error.what}"
    if not error.is_transient and not error.is_denied:
        return UnreadablePhoto(what, where=address, advice=error.advice)
    unavailable = UnavailablePhoto(what, where=address, advice=error.advice)
    unavailable.is_denied = error.is_denied
    return unavailable


def is_in_store(location: Location) -> bool:
    """Return whether reading a photo waits for a store.

    Photos in Parquet do not: they are read by row groups.
    """
    return location.row is None and stores.is_address(location.address)
