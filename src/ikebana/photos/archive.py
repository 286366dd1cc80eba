"""Photos in a `.zip` or `.tar*`: unpacked once, into the cache, and never outside of it."""

import errno
import hashlib
import json
import lzma
import os
import re
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from ikebana import progress
from ikebana.errors import PhotosError
from ikebana.machine import need_disk
from ikebana.photos.folder import Found, printable
from ikebana.places import cache_folder, filled, set_aside

MAX_MEMBERS = 2_000_000
# Photos are compressed already, so an archive of them hardly grows; uncompressed drawings may grow thirtyfold.
MAX_GROWTH = 100
ALWAYS_ALLOWED = 2**30  # bytes: a small archive may grow to this in any case
CHUNK = 2**20
DEEPEST = 64  # folders within folders
AN_ENTRY = 4096  # bytes that a file or folder takes on a disk at the least
LONGEST_NAME = 2**16  # bytes of a member's name, or of what else a tar says of it
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError)
NO_SUCH_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)  # what a disk says to a name that it cannot hold


@dataclass(frozen=True)
class Member:
    """One member of an archive."""

    name: str
    problem: str | None  # why it must stay packed
    opened: Callable[[], IO[bytes]] | None  # None for a folder
    stands_alone: bool = False  # damage to it leaves the others whole
    passed: int = 0  # bytes that must be unpacked to step over it


@dataclass(frozen=True)
class Unpacked:
    """An archive's photos on disk, and the members that were left packed."""

    folder: Path
    set_aside: tuple[Found, ...]


class _StaysPacked(Exception):
    """One member cannot be unpacked; the others can."""


def unpack(file: Path) -> Unpacked:
    """The archive's members as files in the cache, under the archive's sha256: the second time they are there.

    A link, a device, an encrypted, damaged or repeated member, or one that leads outside, stays packed and is named.

    raises  PhotosError if the archive is damaged or a bomb: too many members, or too large when unpacked
    """
    folder = cache_folder() / "archives" / _sha256(file)
    was_there = folder.exists()  # asked first: another process may finish in between, and its folder is whole
    left = _remembered(folder)
    if left is None:
        if was_there:
            set_aside(folder)
        with filled(folder) as place:
            left = _unpack_into(place / "photos", file)
            told = {"left": [[each.path, each.status] for each in left], "checksum": _checksum(place / "photos")}
            (place / "members.json").write_text(json.dumps(told), "utf-8")
    return Unpacked(folder / "photos", tuple(left))


def _remembered(folder: Path) -> list[Found] | None:
    """What was left packed when this archive was unpacked before; None if it was not, or somebody spoilt it since."""
    try:
        told = json.loads((folder / "members.json").read_text("utf-8"))
        left = [Found(path, status) for path, status in told["left"]]
        whole = (folder / "photos").is_dir() and _checksum(folder / "photos") == told["checksum"]
        return left if whole else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _checksum(folder: Path) -> str:
    """Of all files in a folder and their names, in whatever order the disk lists them."""
    total = 0
    with progress.stage("check what was unpacked", 0, "files") as bar:
        for each in folder.rglob("*"):
            if each.is_file():
                with each.open("rb") as stream:
                    found = hashlib.file_digest(stream, "sha256")
                found.update(os.fsencode(each.relative_to(folder)))
                total += int.from_bytes(found.digest(), "big")
                bar.advance(1)
    return f"{total:x}"


def _unpack_into(folder: Path, file: Path) -> list[Found]:
    budget = max(ALWAYS_ALLOWED, MAX_GROWTH * file.stat().st_size)
    need_disk({folder: file.stat().st_size})
    folder.mkdir()
    left: list[Found] = []
    taken: set[str] = set()
    try:
        with progress.stage(f"unpack {file.name}", 0, "files") as bar:
            for number, member in enumerate(_members(file), 1):
                if number > MAX_MEMBERS:
                    raise _bomb(file, f"more than {MAX_MEMBERS:,} members")
                try:
                    budget -= _unpack_one(member, folder, taken, budget)
                    bar.advance(1)
                except _StaysPacked as reason:
                    budget -= member.passed
                    left.append(Found(_shown(member.name), str(reason)))
                if budget < 0:
                    raise _bomb(file, f"it grows to more than {MAX_GROWTH} times its size")
    except DAMAGED as error:
        raise _damaged(file, str(error)) from None
    except OSError as error:
        if error.errno is not None:  # the disk's; decompressors raise OSError without a number
            raise
        raise _damaged(file, str(error)) from None
    return left


def _unpack_one(member: Member, folder: Path, taken: set[str], budget: int) -> int:
    """Write one member below the folder; at most a chunk more than the budget.

    returns  bytes written, and what files and folders take by themselves
    """
    path = _path(member.name)
    problem = member.problem or _no_path(member.name, path)
    if member.opened is None:
        return AN_ENTRY + _made(folder, path) if problem is None else AN_ENTRY
    if problem is None and path.casefold() in taken:  # names that differ by case alone are one file on many disks
        problem = "stands twice in the archive"
    if problem is not None:
        raise _StaysPacked(problem)
    taken.add(path.casefold())
    room = AN_ENTRY + _made(folder, path.rpartition("/")[0])
    try:
        with _new_file(folder / path) as out, member.opened() as stream:
            return room + _copied(stream, out, budget)
    except DAMAGED as error:
        if not member.stands_alone:
            raise
        (folder / path).unlink()
        raise _StaysPacked(f"damaged in the archive: {error}") from None


def _copied(stream: IO[bytes], out: IO[bytes], budget: int) -> int:
    """Copy by the bytes that really come: declared sizes may lie."""
    written = 0
    while written <= budget and (chunk := _read(stream)):
        written += out.write(chunk)
    return written


def _read(stream: IO[bytes]) -> bytes:
    try:
        return stream.read(CHUNK)
    except OSError as error:
        if error.errno is not None:  # the disk's own
            raise
        raise EOFError(str(error)) from None  # bz2 and gzip call damaged data so


def _made(folder: Path, path: str) -> int:
    """Make the folders of a path; returns the bytes that new ones take."""
    room = 0
    for part in filter(None, path.split("/")):
        folder /= part
        try:
            if not folder.is_dir():
                folder.mkdir()
                room += AN_ENTRY
        except OSError as error:
            raise _unless_the_disks(error) from None
    return room


def _new_file(target: Path) -> IO[bytes]:
    try:
        return target.open("xb")
    except OSError as error:
        raise _unless_the_disks(error) from None


def _unless_the_disks(error: OSError) -> Exception:
    """A member's own fault stays with it; a full or broken disk is everybody's."""
    if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
        return _StaysPacked("its path is taken by another member")
    return _StaysPacked("this disk cannot hold its name") if error.errno in NO_SUCH_NAME else error


def _members(file: Path) -> Iterator[Member]:
    if tarfile.is_tarfile(file):  # asked first: a tar whose last member is a zip looks like a zip from behind
        yield from _tar_members(file)
    elif zipfile.is_zipfile(file):
        yield from _zip_members(file)
    elif _starts_with(file, b"PK\x03\x04"):
        raise _damaged(file, "the end of the zip is missing")
    else:
        raise PhotosError(
            "this archive cannot be read: it is neither a zip nor a tar that this Python knows",
            where=file,
            advice="pack it again, as .zip or .tar.gz",
        )


def _zip_members(file: Path) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            name = entry.filename.replace("\\", "/")  # some Windows programs write what the format forbids
            kind = entry.external_attr >> 28 if entry.create_system == 3 else 0  # the Unix file type, from Unix alone
            problem = "encrypted" if entry.flag_bits & 1 else None
            if kind not in (0, 0o10, 0o4):
                problem = "a link or device in an archive"
            opened = None if name.endswith("/") else lambda entry=entry: archive.open(entry)
            yield Member(name, problem, opened, stands_alone=True)


def _tar_members(file: Path) -> Iterator[Member]:
    class Entry(tarfile.TarInfo):
        """Remembers the last header: tarfile takes a cut or garbled one for the end, and says nothing. And reads no name that
        would fill the memory, nor what else is told of a member: tarfile takes it as long as it is declared to be."""

        last = b""

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            Entry.last = bytes(buf)
            return super().frombuf(buf, encoding, errors)

        def _proc_gnulong(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
            return super()._proc_gnulong(_unless_too_long(self, archive))  # type: ignore[misc]

        def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
            return super()._proc_pax(_unless_too_long(self, archive))  # type: ignore[misc]

    with tarfile.open(file, tarinfo=Entry) as archive:
        for entry in archive:
            if entry.isdir():
                yield Member(entry.name, None, None)
            else:
                problem = None if entry.isreg() else "a link or device in an archive"
                yield Member(entry.name, problem, lambda entry=entry: _content(archive, entry), passed=entry.size)
        if Entry.last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end is missing")
        _read_on(archive)


def _unless_too_long(said: tarfile.TarInfo, archive: tarfile.TarFile) -> tarfile.TarFile:
    if said.size > LONGEST_NAME:
        raise tarfile.ReadError(f"{said.size:,} bytes are said of one member")
    return archive


def _read_on(archive: tarfile.TarFile) -> None:
    """To the end of the file, where gzip, bzip2 and xz keep the checksums of what was unpacked."""
    assert archive.fileobj is not None, "it is open"
    behind = 0
    while chunk := archive.fileobj.read(CHUNK):
        behind += len(chunk)
        if behind > ALWAYS_ALLOWED:
            raise tarfile.ReadError("it goes on and on behind its end")


def _content(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(entry)
    assert stream is not None, "a regular file has content"
    return stream


def _path(name: str) -> str:
    """A member's name without `.` and doubled slashes."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _no_path(name: str, path: str) -> str | None:
    """Why a name is no path below the archive."""
    everywhere = path.replace("\\", "/")
    parts = everywhere.split("/")
    if name.startswith("/") or everywhere.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", path):
        return "its path leads out of the archive"
    if len(parts) > DEEPEST:
        return "it lies too deep"
    if not path:
        return "it has no name"
    odd = any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)  # control letters, broken Unicode
    return "its name has unprintable letters" if odd else None


def _shown(name: str) -> str:
    """A name that a table can hold and a terminal can print."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", printable(name))


def _damaged(file: Path, how: str) -> PhotosError:
    return PhotosError(f"this archive is damaged: {how}", where=file, advice="fetch or pack it again")


def _bomb(file: Path, why: str) -> PhotosError:
    return PhotosError(
        f"this archive is refused: {why}", where=file, advice="unpack it yourself if you trust it, and give the folder"
    )


def _starts_with(file: Path, magic: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise PhotosError(
            f"this archive cannot be read: {error.strerror or error}", where=file, advice="a file that you may read"
        ) from None
