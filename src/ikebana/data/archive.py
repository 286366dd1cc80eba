"""Photos in a `.zip` or `.tar*`, unpacked once into the cache and never outside it."""

import errno
import hashlib
import json
import lzma
import os
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ikebana.data import archive_members
from ikebana.data.archive_members import Member
from ikebana.data.archive_notes import ArchiveNotes
from ikebana.data.folder import UTF8_ADVICE, ScannedPath, describe_encoding
from ikebana.data.tar_reader import ArchiveRefused
from ikebana.errors import PhotosError
from ikebana.system import progress
from ikebana.system.cache_folder import cache_folder
from ikebana.system.files import atomic_directory, compute_file_sha256, discard
from ikebana.system.resources import require_disk

# Increase it when members get other names or reasons: cached archives are then unpacked again.
UNPACKING_VERSION = 3
MAX_MEMBERS = 2_000_000
# Photos are already compressed, so an archive of them hardly grows. Uncompressed drawings may
# grow thirtyfold.
MAX_EXPANSION_RATIO = 100
# A small archive may always grow to this many bytes.
MIN_UNPACK_BUDGET_BYTES = 2**30
CHUNK_BYTES = 2**20
# Bytes that a file or folder takes on a disk at least.
ENTRY_OVERHEAD_BYTES = 4096
CORRUPTION_ERRORS = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError, RecursionError,
)  # fmt: skip
# Errors that a file system raises for a name that it cannot store.
INVALID_NAME_ERRNOS = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)


@dataclass(frozen=True)
class UnpackedArchive:
    """An archive's photos on disk, and the members that were not unpacked."""

    folder: Path
    skipped_members: tuple[ScannedPath, ...]
    # How the archive was understood, for the user.
    notes: tuple[str, ...] = ()


class _MemberSkipped(Exception):
    """One member cannot be unpacked; the others can."""


@dataclass
class _Target:
    """The folder that an archive is unpacked into, and what happened to its members."""

    folder: Path
    skipped: list[ScannedPath] = field(default_factory=list)
    notes: ArchiveNotes = field(default_factory=ArchiveNotes)
    # The path of each file by its case-folded path: on many disks, both are one file.
    taken_paths: dict[str, str] = field(default_factory=dict)
    made_folders: set[str] = field(default_factory=set)


def unpack(file: Path) -> UnpackedArchive:
    """Unpack an archive into the cache, under its sha256, or reuse what is there.

    Members that cannot or must not be unpacked are listed with the reason: a link, a damaged
    member, a name that leads outside, ...

    Raises:
        PhotosError: the archive is damaged or a bomb: too many members, too large when unpacked,
            or headers that are too large; or it contains only other archives.
    """
    folder = cache_folder() / "archives" / _hash_file(file)
    # Checked before loading: another process may finish in between, and its folder is intact.
    existed = folder.exists()
    unpacked = _load_unpacked(folder)
    if unpacked is None:
        if existed:
            discard(folder)
        with atomic_directory(folder) as partial:
            target = _Target(partial / "photos")
            _unpack_members(target, file)
            notes = target.notes.to_lines()
            record = {
                "version": UNPACKING_VERSION,
                "skipped": [[member.path, member.status] for member in target.skipped],
                "notes": notes,
                "checksum": _checksum_folder(target.folder),
            }
            (partial / "members.json").write_text(json.dumps(record), "utf-8")
        unpacked = UnpackedArchive(folder / "photos", tuple(target.skipped), notes)
    return unpacked


def _load_unpacked(folder: Path) -> UnpackedArchive | None:
    """Load an intact earlier unpacking by the same rules; None if there is none."""
    try:
        record = json.loads((folder / "members.json").read_text("utf-8"))
        skipped = tuple(ScannedPath(path, status) for path, status in record["skipped"])
        is_current = record["version"] == UNPACKING_VERSION and (folder / "photos").is_dir()
        is_intact = is_current and _checksum_folder(folder / "photos") == record["checksum"]
        return UnpackedArchive(folder / "photos", skipped, tuple(record["notes"])) if is_intact else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _checksum_folder(folder: Path) -> str:
    """Compute a checksum of all files and their names, independent of the order of listing."""
    total = 0
    with progress.stage("verify archive", 0, "files") as bar:
        for file in folder.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256")
                digest.update(os.fsencode(file.relative_to(folder)))
                total += int.from_bytes(digest.digest(), "big")
                bar.advance(1)
    return f"{total:x}"


def _unpack_members(target: _Target, file: Path) -> None:
    """Write all members below the target, and list those that were skipped."""
    budget = max(MIN_UNPACK_BUDGET_BYTES, MAX_EXPANSION_RATIO * file.stat().st_size)
    require_disk({target.folder: file.stat().st_size})
    target.folder.mkdir()
    try:
        with progress.stage(f"unpack {file.name}", 0, "files") as bar:
            for number, member in enumerate(archive_members.iterate_members(file, target.notes), 1):
                if number > MAX_MEMBERS:
                    raise ArchiveRefused(f"more than {MAX_MEMBERS:,} members")
                try:
                    budget -= _unpack_member(member, target, budget)
                    bar.advance(1)
                except _MemberSkipped as reason:
                    budget -= member.skip_bytes
                    target.skipped.append(ScannedPath(archive_members.make_printable(member.name), str(reason)))
                if budget < 0:
                    raise ArchiveRefused(f"it expands to more than {MAX_EXPANSION_RATIO} times its size")
    except ArchiveRefused as reason:
        advice = "if you trust it, unpack it yourself and give the folder"
        raise PhotosError(f"this archive is refused: {reason}", where=file, advice=advice) from None
    except CORRUPTION_ERRORS as error:
        raise _translate_corruption(file, error) from None
    except OSError as error:
        # Decompressors raise OSError without a number; with one, it comes from the disk.
        if error.errno is not None:
            raise
        raise _translate_corruption(file, error) from None
    if target.notes.holds_only_archives:
        what = f"this archive contains only other archives: {target.notes.name_inner_archives()}"
        raise PhotosError(
            what, where=file, advice="unpack them into one folder per class, and give the folder around them"
        )


def _unpack_member(member: Member, target: _Target, budget: int) -> int:
    """Write one member below the target; at most one chunk more than the budget.

    Returns:
        Bytes written, including the overhead of new files and folders.
    """
    path = archive_members.normalise_path(member.name)
    problem = member.problem or archive_members.find_path_problem(member.name, path)
    if member.open_content is None:
        return ENTRY_OVERHEAD_BYTES + (_make_folders(target, path) if problem is None else 0)
    # Letters of a guessed name are not known, so neither is their case.
    key = path if member.is_name_guessed else path.casefold()
    taken_path = target.taken_paths.get(key)
    if problem is None and taken_path is not None:
        problem = "appears twice in the archive" if taken_path == path else f"differs from {taken_path} by case alone"
    if problem is not None:
        raise _MemberSkipped(problem)
    target.taken_paths[key] = path
    overhead = ENTRY_OVERHEAD_BYTES + _make_folders(target, path.rpartition("/")[0])
    try:
        with _create_file(target.folder / path) as out, member.open_content() as stream:
            written = _copy_content(stream, out, budget)
    except CORRUPTION_ERRORS as error:
        if not member.is_independent or isinstance(error, UnicodeEncodeError):
            raise
        (target.folder / path).unlink()
        raise _MemberSkipped(f"damaged in the archive: {error}") from None
    target.notes.add_file(path, member.is_name_guessed)
    return overhead + written


def _copy_content(stream: IO[bytes], out: IO[bytes], budget: int) -> int:
    """Copy and count the bytes that are really read: declared sizes may be wrong."""
    written = 0
    while written <= budget and (chunk := _read_chunk(stream)):
        written += out.write(chunk)
    return written


def _read_chunk(stream: IO[bytes]) -> bytes:
    try:
        return stream.read(CHUNK_BYTES)
    except OSError as error:
        # bz2 and gzip raise OSError without a number for damaged data.
        if error.errno is not None:
            raise
        raise EOFError(str(error)) from None


def _make_folders(target: _Target, path: str) -> int:
    """Make the folders of a path and return the bytes that new ones take."""
    folder, relative, overhead = target.folder, "", 0
    for part in filter(None, path.split("/")):
        folder, relative = folder / part, f"{relative}/{part}"
        if relative in target.made_folders:
            continue
        try:
            folder.mkdir()
        except OSError as error:
            # Some disks ignore case: two classes would become one.
            if isinstance(error, FileExistsError) and folder.is_dir():
                raise _MemberSkipped("this disk does not distinguish its folder from another one") from None
            raise _convert_os_error(error) from None
        target.made_folders.add(relative)
        overhead += ENTRY_OVERHEAD_BYTES
    return overhead


def _create_file(target: Path) -> IO[bytes]:
    try:
        return target.open("xb")
    except OSError as error:
        raise _convert_os_error(error) from None


def _convert_os_error(error: OSError) -> Exception:
    """Convert the error of a damaged or invalid member to one that skips it.

    The error of a full or broken disk stays as it is.
    """
    if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
        return _MemberSkipped("another member has the same path")
    return _MemberSkipped("this disk cannot store its name") if error.errno in INVALID_NAME_ERRNOS else error


def _translate_corruption(file: Path, error: Exception) -> PhotosError:
    """Translate an error of a decompressor, or of a name that cannot be encoded."""
    if isinstance(error, UnicodeEncodeError):
        what = f"this archive has names that need UTF-8, but {describe_encoding()}"
        return PhotosError(what, where=file, advice=UTF8_ADVICE)
    return archive_members.damaged_archive(file, str(error))


def _hash_file(file: Path) -> str:
    try:
        return compute_file_sha256(file)
    except OSError as error:
        raise PhotosError(
            f"this archive cannot be read: {error.strerror or error}", where=file, advice="check its permissions"
        ) from None
