"""Reading of a `.tar*` within bounds.

Python's `tarfile` trusts every length that a header declares.
"""

import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Self

MAX_NAME_BYTES = 2**16
# Extended headers of one member: macOS stores the file's extended attributes there.
MAX_METADATA_BYTES = 2**20
# No member is larger, and no file has offsets beyond.
MAX_MEMBER_BYTES = 2**60
# Bytes that may follow the end of the archive: tapes are padded.
MAX_TRAILING_BYTES = 2**30
CHUNK_BYTES = 2**20
SPARSE_MESSAGE = "a member is a sparse file"
# The length with which each pax record begins.
PAX_RECORD_LENGTH = re.compile(rb"(\d{1,10}) ")


class ArchiveRefused(Exception):
    """The archive would take too much disk, memory or time."""


def open_tar(file: Path) -> tarfile.TarFile | None:
    """Open a tar, which `iterate_members` closes; return None if the file is not a tar.

    `is_tarfile` would read the first member without bounds.

    Raises:
        ArchiveRefused: the first member exceeds a bound; or an error of tarfile.
    """
    try:
        # The default is the encoding of the locale.
        return tarfile.open(file, tarinfo=_make_header_class(), encoding="utf-8")
    except tarfile.TarError:
        return None


def open_uncompressed_tar(stream: IO[bytes]) -> tarfile.TarFile | None:
    """Open an uncompressed tar from a seekable stream; return None if it is none."""
    try:
        return tarfile.open(fileobj=stream, mode="r:", tarinfo=_make_header_class(), encoding="utf-8")
    except tarfile.TarError:
        return None


def _make_header_class() -> type[tarfile.TarInfo]:
    """Make a class per archive, because the class stores the last header."""
    return type("BoundedTarInfo", (BoundedTarInfo,), {})


def iterate_members(
    archive: tarfile.TarFile, report_content_after_end: Callable[[], None]
) -> Iterator[tarfile.TarInfo]:
    """Iterate over the members of a tar from `open_tar`, to the end of the file.

    Args:
        report_content_after_end: called if bytes other than zero follow the end of the archive.
    Raises:
        ArchiveRefused: a member exceeds a bound; or an error of tarfile if the archive is damaged or
            its end is missing.
    """
    with archive:
        yield from archive
        if archive.tarinfo.last_header != bytes(tarfile.BLOCKSIZE):  # type: ignore[attr-defined]
            raise tarfile.ReadError("its end is missing")
        if _read_trailing_bytes(archive):
            report_content_after_end()


class BoundedTarInfo(tarfile.TarInfo):
    """A tar header that limits what is read for it, and remembers the last header.

    tarfile takes a cut or garbled header for the end of the archive and reports nothing. It also
    reads as many metadata bytes as a header declares, which may fill the memory or take minutes.
    """

    last_header = b""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        cls.last_header = bytes(buf)
        entry = super().frombuf(buf, encoding, errors)
        entry.size = _check_member_size(entry.size)
        return entry

    def _proc_gnulong(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        _check_metadata_size(self, MAX_NAME_BYTES)
        return super()._proc_gnulong(archive)  # type: ignore[misc]

    def _proc_sparse(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        raise ArchiveRefused(SPARSE_MESSAGE)

    def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """Apply only the name and size of a pax header.

        tarfile keeps all metadata of all members, and before Python 3.11.10 parses them in
        quadratic time and memory. Global headers are skipped: they hold comments, never names.
        """
        _check_metadata_size(self, MAX_METADATA_BYTES)
        records = _parse_pax_records(archive.fileobj.read(self._block(self.size))[: self.size])  # type: ignore
        try:
            entry = self.fromtarfile(archive)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None
        if self.type == tarfile.XGLTYPE:
            return entry
        if any(key.startswith(b"GNU.sparse.") for key in records):
            raise ArchiveRefused(SPARSE_MESSAGE)
        if b"path" in records:
            entry.name = records[b"path"].decode("utf-8", "surrogateescape").rstrip("/")
        if b"size" in records and entry.isreg():
            entry.size = _check_member_size(int(records[b"size"]))
            archive.offset = entry.offset_data + entry._block(entry.size)  # type: ignore
        return entry


def _check_metadata_size(header: tarfile.TarInfo, max_bytes: int) -> None:
    if header.size > max_bytes:
        raise ArchiveRefused(f"the header of one member is {header.size:,} bytes")


def _parse_pax_records(data: bytes) -> dict[bytes, bytes]:
    """Parse the records of a POSIX pax header: LENGTH KEY=VALUE and a newline, repeated."""
    records, position = {}, 0
    while length := PAX_RECORD_LENGTH.match(data, position):
        end = position + int(length[1])
        key, _, value = data[length.end() : end].partition(b"=")
        if not value.endswith(b"\n"):
            break
        records[key], position = value[:-1], end
    if position != len(data):
        raise tarfile.ReadError("the header of a member is malformed")
    if len(records.get(b"path", b"")) > MAX_NAME_BYTES:
        raise ArchiveRefused(f"the name of one member is {len(records[b'path']):,} bytes long")
    return records


def _check_member_size(size: int) -> int:
    """Refuse an invalid size: a negative one would make tarfile read the same data forever."""
    if not 0 <= size <= MAX_MEMBER_BYTES:
        raise tarfile.ReadError(f"a member declares {size:,} bytes")
    return size


def _read_trailing_bytes(archive: tarfile.TarFile) -> bool:
    """Read to the end of the file, where gzip, bzip2 and xz keep their checksums.

    Returns:
        Whether there are bytes other than the zeros of padding.
    """
    assert archive.fileobj is not None, "it is open"
    trailing_bytes, has_content = 0, False
    while chunk := archive.fileobj.read(CHUNK_BYTES):
        trailing_bytes += len(chunk)
        has_content = has_content or chunk.count(0) < len(chunk)
        if trailing_bytes > MAX_TRAILING_BYTES:
            raise tarfile.ReadError(f"more than {MAX_TRAILING_BYTES:,} bytes follow its end")
    return has_content
