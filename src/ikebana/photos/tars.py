"""What lies in a `.tar*`, read within bounds: for Python's `tarfile` all is as long as a header declares it to be."""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

LONGEST_NAME = 2**16  # bytes
MOST_SAID = 2**20  # bytes that may be said of a member: a Mac puts there whatever it knows of the file
LARGEST = 2**60  # bytes of a member: none is larger, and no file has places beyond
BEHIND = 2**30  # bytes that may follow the end: tapes are padded
CHUNK = 2**20
SPARSE = "a member is sparse, packed without its zeros"
RECORD = re.compile(rb"(\d{1,10}) ")  # the length that each thing begins with which is said of a member


class Refused(Exception):
    """The archive would take too much disk, memory or time."""


def opened(file: Path) -> tarfile.TarFile | None:
    """The archive, whose `entries` close it; None if it is no tar. Not `is_tarfile`, which would read the first member without
    bounds.

    raises  Refused, or tarfile's errors
    """
    kind = type("Entry", (Entry,), {})  # of this archive alone: the class remembers
    try:
        return tarfile.open(file, tarinfo=kind)
    except tarfile.TarError:
        return None


def entries(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """What `opened` found, to the very end of the file.

    raises  Refused, or tarfile's errors if it is damaged or its end is missing
    """
    with archive:
        yield from archive
        if archive.tarinfo.last != bytes(tarfile.BLOCKSIZE):  # type: ignore[attr-defined]
            raise tarfile.ReadError("its end is missing")
        _read_on(archive)


class Entry(tarfile.TarInfo):
    """A member that remembers the last header: tarfile takes a cut or garbled one for the end, and says nothing. And that reads
    nothing which fills the memory or takes minutes: for tarfile what is said of a member is as long as it is declared to be."""

    last = b""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        cls.last = bytes(buf)
        entry = super().frombuf(buf, encoding, errors)
        entry.size = _within_a_file(entry.size)
        return entry

    def _proc_gnulong(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        return super()._proc_gnulong(_unless_too_long(self, archive, LONGEST_NAME))  # type: ignore[misc]

    def _proc_sparse(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        raise Refused(SPARSE)

    def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """Name and size alone: tarfile keeps all that is said of all members, and before Python 3.11.10 takes time and memory by
        its square. What is said of all members at once is passed over: it is a comment, and never their name."""
        stream = _unless_too_long(self, archive, MOST_SAID).fileobj
        said = _records(stream.read(self._block(self.size))[: self.size])  # type: ignore
        try:
            entry = self.fromtarfile(archive)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None
        if self.type == tarfile.XGLTYPE:
            return entry
        if any(key.startswith(b"GNU.sparse.") for key in said):
            raise Refused(SPARSE)
        if b"path" in said:
            entry.name = said[b"path"].decode("utf-8", "surrogateescape").rstrip("/")
        if b"size" in said and entry.isreg():
            entry.size = _within_a_file(int(said[b"size"]))
            archive.offset = entry.offset_data + entry._block(entry.size)  # type: ignore
        return entry


def _unless_too_long(said: tarfile.TarInfo, archive: tarfile.TarFile, most: int) -> tarfile.TarFile:
    if said.size > most:
        raise Refused(f"{said.size:,} bytes are said of one member, its content not counted")
    return archive


def _records(said: bytes) -> dict[bytes, bytes]:
    """What the tar format of POSIX says of a member: LENGTH KEY=VALUE, again and again, each with its end of line."""
    told, place = {}, 0
    while start := RECORD.match(said, place):
        end = place + int(start[1])
        key, _, value = said[start.end() : end].partition(b"=")
        if not value.endswith(b"\n"):
            break
        told[key], place = value[:-1], end
    if place != len(said):
        raise tarfile.ReadError("what is said of a member is garbled")
    if len(told.get(b"path", b"")) > LONGEST_NAME:
        raise Refused(f"a name of {len(told[b'path']):,} bytes")
    return told


def _within_a_file(size: int) -> int:
    """A size below zero would have tarfile read the same again and again."""
    if not 0 <= size <= LARGEST:
        raise tarfile.ReadError(f"a member of {size:,} bytes")
    return size


def _read_on(archive: tarfile.TarFile) -> None:
    """To the end of the file, where gzip, bzip2 and xz keep the checksums of what was unpacked."""
    assert archive.fileobj is not None, "it is open"
    behind = 0
    while chunk := archive.fileobj.read(CHUNK):
        behind += len(chunk)
        if behind > BEHIND:
            raise tarfile.ReadError("it goes on and on behind its end")
