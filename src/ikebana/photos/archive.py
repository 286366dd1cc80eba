"""Photos in a `.zip` or `.tar*`: unpacked once, into the cache, and never outside of it."""

import hashlib
import json
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ikebana import progress
from ikebana.errors import PhotosError
from ikebana.photos.folder import Found
from ikebana.places import cache_folder, filled, need_space

MAX_MEMBERS = 2_000_000
# Photos are compressed already, so an archive of them hardly grows; uncompressed drawings may grow thirtyfold.
MAX_GROWTH = 100
ALWAYS_ALLOWED = 2**30  # bytes: a small archive may grow to this in any case
CHUNK = 2**20
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError)

# One member: its name, why it must stay packed (None if it need not), and its bytes.
Member = tuple[str, str | None, IO[bytes] | None]


@dataclass(frozen=True)
class Unpacked:
    """An archive's photos on disk, and the members that were left packed."""

    folder: Path
    set_aside: tuple[Found, ...]


def unpack(file: Path) -> Unpacked:
    """The archive's members as files in the cache, named by the archive's sha256: the second time they lie there already.

    A member whose path leads outside, a link, a device, an encrypted or repeated one stays packed and is named.

    raises  PhotosError if the archive is damaged or a bomb: too many members, or too large when unpacked
    """
    folder = cache_folder() / "archives" / _sha256(file)
    if not (folder / "members.json").exists():
        with filled(folder) as place:
            left = _unpack_into(place / "photos", file)
            (place / "members.json").write_text(json.dumps([[each.path, each.status] for each in left]), "utf-8")
    listed = json.loads((folder / "members.json").read_text("utf-8"))
    return Unpacked(folder / "photos", tuple(Found(path, status) for path, status in listed))


def _unpack_into(folder: Path, file: Path) -> list[Found]:
    budget = max(ALWAYS_ALLOWED, MAX_GROWTH * file.stat().st_size)
    need_space(file.stat().st_size, folder)
    folder.mkdir()
    left, taken = [], set()
    try:
        with progress.stage(f"unpack {file.name}", 0, "files") as bar:
            for number, (name, problem, stream) in enumerate(_members(file), 1):
                if number > MAX_MEMBERS:
                    raise _bomb(file, f"more than {MAX_MEMBERS:,} members")
                problem = (
                    problem or _leads_outside(name) or ("stands twice in the archive" if _key(name) in taken else None)
                )
                if problem or stream is None:
                    left.append(Found(name, problem or "not a regular file"))
                    continue
                taken.add(_key(name))
                budget -= _write(stream, folder / name, budget, file)
                bar.advance(1)
    except DAMAGED as error:
        raise PhotosError(f"this archive is damaged: {error}", where=file, advice="fetch or pack it again") from None
    return left


def _write(stream: IO[bytes], target: Path, budget: int, archive: Path) -> int:
    """Copy by the bytes that really come: declared sizes may lie."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise PhotosError(f"{target.name} lies below a name that is a file", where=archive) from None
    written = 0
    with stream, target.open("xb") as out:
        while chunk := stream.read(CHUNK):
            written += len(chunk)
            if written > budget:
                raise _bomb(archive, f"it grows to more than {MAX_GROWTH} times its size")
            out.write(chunk)
    return written


def _members(file: Path) -> Iterator[Member]:
    if zipfile.is_zipfile(file):
        yield from _zip_members(file)
    elif tarfile.is_tarfile(file):
        yield from _tar_members(file)
    else:
        raise PhotosError("this archive cannot be read: it is neither a zip nor a tar", where=file)


def _zip_members(file: Path) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.is_dir():
                continue
            kind = entry.external_attr >> 28  # the Unix file type; 0 where a zip was made elsewhere
            if kind not in (0, 0o10):
                yield entry.filename, "a link or device in an archive", None
            elif entry.flag_bits & 1:
                yield entry.filename, "encrypted", None
            else:
                yield entry.filename, _leads_outside(entry.filename), archive.open(entry)


def _tar_members(file: Path) -> Iterator[Member]:
    with tarfile.open(file) as archive:
        for entry in archive:
            if entry.isdir():
                continue
            if not entry.isreg():
                yield entry.name, "a link or device in an archive", None
            else:
                yield entry.name.removeprefix("./"), _leads_outside(entry.name), archive.extractfile(entry)


def _leads_outside(name: str) -> str | None:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\x00" in name:
        return "its path leads out of the archive"
    return None if name.isprintable() else "its name has unprintable letters"


def _key(name: str) -> str:
    """Names that differ by case alone are one file on many disks."""
    return name.casefold()


def _bomb(file: Path, why: str) -> PhotosError:
    return PhotosError(
        f"this archive is refused: {why}", where=file, advice="unpack it yourself if you trust it, and give the folder"
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
