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
from typing import IO

from ikebana import progress
from ikebana.errors import PhotosError
from ikebana.machine import need_disk
from ikebana.photos import tars
from ikebana.photos.folder import Found, printable
from ikebana.photos.tars import Refused
from ikebana.places import cache_folder, filled, set_aside

MAX_MEMBERS = 2_000_000
# Photos are compressed already, so an archive of them hardly grows; uncompressed drawings may grow thirtyfold.
MAX_GROWTH = 100
ALWAYS_ALLOWED = 2**30  # bytes: a small archive may grow to this in any case
CHUNK = 2**20
DEEPEST = 64  # folders within folders
AN_ENTRY = 4096  # bytes that a file or folder takes on a disk at the least
DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError, RecursionError,
)  # fmt: skip
# How a zip may be packed: zipfile unpacks a chunk of what bzip2 and LZMA wrote at once, be it into gigabytes.
PIECE_BY_PIECE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Windows takes the first for a device, whatever follows its dot, and what has a colon for a stream beside a file.
NOT_ON_WINDOWS = re.compile(r"(con|prn|aux|nul|(com|lpt)[1-9¹²³])\s*(\.|$)|[^:]*:", re.IGNORECASE)
ON_WINDOWS = os.name == "nt"
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

    What cannot or must not be unpacked stays packed and is named: a link, a damaged member, a name that leads outside, ...

    raises  PhotosError if the archive is damaged or a bomb: too many members, too large when unpacked, too much said of them
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
                    raise Refused(f"more than {MAX_MEMBERS:,} members")
                try:
                    budget -= _unpack_one(member, folder, taken, budget)
                    bar.advance(1)
                except _StaysPacked as reason:
                    budget -= member.passed
                    left.append(Found(_shown(member.name), str(reason)))
                if budget < 0:
                    raise Refused(f"it grows to more than {MAX_GROWTH} times its size")
    except Refused as why:
        advice = "unpack it yourself if you trust it, and give the folder"
        raise PhotosError(f"this archive is refused: {why}", where=file, advice=advice) from None
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
    packed = tars.opened(file)
    if packed is not None:  # asked first: a tar whose last member is a zip looks like a zip from behind
        yield from _tar_members(packed)
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
            opened = None if name.endswith("/") else lambda entry=entry: archive.open(entry)
            yield Member(name, _zip_problem(entry), opened, stands_alone=True)


def _zip_problem(entry: zipfile.ZipInfo) -> str | None:
    kind = entry.external_attr >> 28 if entry.create_system == 3 else 0  # the Unix file type, from Unix alone
    if kind not in (0, 0o10, 0o4):
        return "a link or device in an archive"
    if entry.flag_bits & 1:
        return "encrypted"
    if entry.compress_type in PIECE_BY_PIECE:
        return None
    known = entry.compress_type in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    return f"packed by {'bzip2 or LZMA' if known else 'an odd compression'} (pack it again, by deflate)"


def _tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    for entry in tars.entries(archive):
        if entry.isdir():
            yield Member(entry.name, None, None)
        else:
            problem = None if entry.isreg() else "a link or device in an archive"
            yield Member(entry.name, problem, lambda entry=entry: _content(archive, entry), passed=entry.size)


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
    if odd:
        return "its name has unprintable letters"
    return "Windows cannot hold its name (rename it)" if ON_WINDOWS and any(map(NOT_ON_WINDOWS.match, parts)) else None


def _shown(name: str) -> str:
    """A name that a table can hold and a terminal can print."""
    return re.sub(r"[\x00-\x1f\x7f]", progress.spelled, printable(name))


def _damaged(file: Path, how: str) -> PhotosError:
    return PhotosError(f"this archive is damaged: {how}", where=file, advice="fetch or pack it again")


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
