"""The members of an archive, and why some must not be unpacked."""

import os
import re
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ikebana.data import tar_reader, zip_names
from ikebana.data.archive_notes import ArchiveNotes
from ikebana.data.folder import to_printable
from ikebana.errors import PhotosError
from ikebana.system import progress

FOREIGN_SIGNATURES = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"PK\x07\x08": "part of a split zip",
}
# Why a member was not unpacked: it needs a password.
ENCRYPTED = "encrypted"
ZIP_SIGNATURE = b"PK\x03\x04"
TAR_SIGNATURE, TAR_SIGNATURE_POSITION = b"ustar", 257
# The record at the end of a zip begins so; a comment of at most 64 KiB follows it.
ZIP_END_SIGNATURE, MAX_ZIP_END_BYTES = b"PK\x05\x06", 22 + 2**16
# The number of the part is then in another record, which zipfile checks.
ZIP64_PLACEHOLDER = 0xFFFF
MAX_PATH_DEPTH = 64
# zipfile decompresses a whole chunk of bzip2 or LZMA data at once, even if it expands to gigabytes.
STREAMABLE_COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Windows treats the first as a device, whatever its suffix, and a colon as the start of a
# stream name. It drops dots and spaces at the end, which may make one folder of two.
WINDOWS_RESERVED_NAME = re.compile(r"(con|prn|aux|nul|(com|lpt)[1-9¹²³])\s*(\.|$)|[^:]*:|.*(\\|[. ]$)", re.IGNORECASE)
IS_WINDOWS = os.name == "nt"


@dataclass(frozen=True)
class Member:
    """One member of an archive."""

    name: str
    # Why the member must not be unpacked.
    problem: str | None
    # None for a folder.
    open_content: Callable[[], IO[bytes]] | None
    # Whether the other members survive damage to this one.
    is_independent: bool = False
    # Bytes that must be decompressed to skip the member.
    skip_bytes: int = 0
    # Whether the encoding of the name is not known.
    is_name_guessed: bool = False


def iterate_members(file: Path, notes: ArchiveNotes) -> Iterator[Member]:
    """Iterate over the members of an archive, in its order.

    Raises:
        PhotosError: it is damaged or of another kind.
    """
    # Tar first: a tar whose last member is a zip looks like a zip from its end.
    tar = tar_reader.open_tar(file)
    if tar is not None:
        yield from _iterate_tar_members(tar, notes)
    elif zipfile.is_zipfile(file):
        yield from _iterate_zip_members(file, notes)
    elif _starts_with(file, TAR_SIGNATURE, TAR_SIGNATURE_POSITION):
        raise damaged_archive(file, "its first member is cut")
    elif file.stat().st_size == 0:
        raise damaged_archive(file, "it is empty")
    elif _starts_with(file, ZIP_SIGNATURE):
        raise damaged_archive(file, "the end of the zip is missing")
    else:
        names = [name for signature, name in FOREIGN_SIGNATURES.items() if _starts_with(file, signature)]
        reason = f"it is {names[0]}" if names else "it is not a zip or tar file that this Python supports"
        advice = "repack it as .zip or .tar.gz"
        raise PhotosError(f"this archive cannot be read: {reason}", where=file, advice=advice)


def _iterate_zip_members(file: Path, notes: ArchiveNotes) -> Iterator[Member]:
    _refuse_split_zip(file)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if _starts_with(file, ZIP_SIGNATURE):
            notes.unlisted_bytes = min((entry.header_offset for entry in entries), default=0)
        for entry, name in zip(entries, zip_names.read_names(entries), strict=True):
            open_content = None if name.text.endswith("/") else lambda entry=entry: archive.open(entry)
            problem = name.problem or _find_zip_problem(entry)
            yield Member(name.text, problem, open_content, is_independent=True, is_name_guessed=name.is_guessed)


def _refuse_split_zip(file: Path) -> None:
    """Refuse the last part of a split zip, which does not hold all members."""
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - MAX_ZIP_END_BYTES))
        end = stream.read()
    position = end.rfind(ZIP_END_SIGNATURE) + len(ZIP_END_SIGNATURE)
    part = int.from_bytes(end[position : position + 2], "little")
    if part not in (0, ZIP64_PLACEHOLDER):
        advice = f"zip -s 0 {file.name} --out joined.zip, with all parts in one folder"
        raise PhotosError(f"this is the last of the {part + 1} parts of a split zip", where=file, advice=advice)


def _find_zip_problem(entry: zipfile.ZipInfo) -> str | None:
    """Describe why a zip member must not be unpacked; None if it may be."""
    # Only zips made on Unix carry the Unix file type.
    file_type = entry.external_attr >> 28 if entry.create_system == 3 else 0
    if file_type not in (0, 0o10, 0o4):
        return "a link or device in an archive"
    if entry.flag_bits & 1:
        return ENCRYPTED
    if entry.compress_type in STREAMABLE_COMPRESSION:
        return None
    is_known = entry.compress_type in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    return f"compressed with {'bzip2 or LZMA' if is_known else 'an unsupported method'} (repack it with deflate)"


def _iterate_tar_members(archive: tarfile.TarFile, notes: ArchiveNotes) -> Iterator[Member]:
    for entry in tar_reader.iterate_members(archive, notes.report_content_after_end):
        if entry.isdir():
            yield Member(entry.name, None, None)
        else:
            problem = None if entry.isreg() else "a link or device in an archive"
            yield Member(
                entry.name, problem, lambda entry=entry: _open_tar_content(archive, entry), skip_bytes=entry.size
            )


def _open_tar_content(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(entry)
    assert stream is not None, "a regular file has content"
    return stream


def normalise_path(name: str) -> str:
    """Remove `.` and doubled slashes from a member's name.

    Letters are composed: macOS writes ä as a and an accent, which is the same text.
    """
    return unicodedata.normalize("NFC", "/".join(part for part in name.split("/") if part not in ("", ".")))


def find_path_problem(name: str, path: str) -> str | None:
    """Describe why a name is not a valid path below the archive.

    Returns None if it is valid.
    """
    with_slashes = path.replace("\\", "/")
    parts = with_slashes.split("/")
    if name.startswith("/") or with_slashes.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", path):
        return "its path points outside the archive"
    if len(parts) > MAX_PATH_DEPTH:
        return f"its path is deeper than {MAX_PATH_DEPTH} levels"
    if not path:
        return "it has no name"
    # Broken Unicode: bytes of a tar in another encoding.
    categories = {unicodedata.category(letter) for letter in name}
    if "Cs" in categories:
        return "its name is not valid UTF-8 (repack the archive with UTF-8 names)"
    if "Cc" in categories:
        return "its name has unprintable characters"
    is_reserved = IS_WINDOWS and any(map(WINDOWS_RESERVED_NAME.match, path.split("/")))
    return "Windows cannot store its name (rename it)" if is_reserved else None


def make_printable(name: str) -> str:
    """Escape a name that a table cannot hold or a terminal cannot print."""
    return re.sub(r"[\x00-\x1f\x7f]", progress.escape_control_character, to_printable(name))


def damaged_archive(file: Path, how: str) -> PhotosError:
    """Make the error of a damaged archive."""
    return PhotosError(f"this archive is damaged: {how}", where=file, advice="download or pack it again")


def _starts_with(file: Path, magic: bytes, position: int = 0) -> bool:
    with file.open("rb") as stream:
        stream.seek(position)
        return stream.read(len(magic)) == magic
