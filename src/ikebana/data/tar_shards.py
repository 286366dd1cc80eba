"""Photos in an uncompressed tar, read by their position and never unpacked.

A WebDataset shard is such a tar. Its members are grouped by their key, which is the path up to the
first dot of the file's name: `000.jpg` beside `000.cls` is a photo and its label.
"""

import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import IO

from ikebana.data import archive_members, sample_labels, stores, tar_reader
from ikebana.data.archive import CORRUPTION_ERRORS, MAX_MEMBERS
from ikebana.data.archive_members import find_path_problem, normalise_path
from ikebana.data.archive_notes import ArchiveNotes
from ikebana.data.dataset import STATUS_UNOPENED, collect_rows
from ikebana.data.folder import is_hidden, to_printable
from ikebana.data.photo_listing import LISTING_SCHEMA, PhotoListing
from ikebana.data.sample_labels import MAX_LABEL_BYTES, SampleLabels, divide_name
from ikebana.data.store_errors import ChangedFile
from ikebana.data.stores import StoredFile
from ikebana.data.tar_reader import ArchiveRefused
from ikebana.errors import PhotosError


@dataclass(frozen=True, slots=True)
class TarMember:
    """A visible file in a tar: its position, and whether it may be read."""

    path: str
    offset: int
    length: int
    status: str


@dataclass
class _Contents:
    """What has been read of a tar so far."""

    members: list[TarMember] = field(default_factory=list)
    labels: SampleLabels = field(default_factory=SampleLabels)
    notes: ArchiveNotes = field(default_factory=ArchiveNotes)
    ignored_count: int = 0
    # As in `archive`: on many disks, paths that differ by case alone are one file.
    taken_paths: dict[str, str] = field(default_factory=dict)


def list_tar(file: StoredFile) -> PhotoListing | None:
    """List the photos of an uncompressed tar; None if it is another kind of file.

    Only headers and labels are read.

    Raises:
        PhotosError: it is damaged or refused; StoreError: the store refused the request.
    """
    contents = _Contents()
    advice = "download or pack it again"
    try:
        with _open(file) as stream:
            tar = tar_reader.open_uncompressed_tar(stream)
            if tar is None:
                return None
            _read_members(tar, contents)
    except ChangedFile:
        raise PhotosError("this tar changed while it was listed", where=file.address, advice="try again") from None
    except ArchiveRefused as reason:
        raise PhotosError(f"this archive is refused: {reason}", where=file.address, advice=advice) from None
    except (*CORRUPTION_ERRORS, OSError) as error:
        raise PhotosError(f"this archive is damaged: {error}", where=file.address, advice=advice) from None
    return _to_listing(file, contents)


def _open(file: StoredFile) -> IO[bytes]:
    return stores.open_stream(file) if stores.is_address(file.address) else open(file.address, "rb")


def is_shard(file: StoredFile, max_members: int = 64) -> bool:
    """Return whether a tar begins with photos beside their labels, as in WebDataset."""
    names: dict[str, set[str]] = {}
    try:
        with _open(file) as stream:
            tar = tar_reader.open_uncompressed_tar(stream)
            if tar is None:
                return False
            with closing(tar):
                for number, entry in enumerate(tar):
                    key, suffix = divide_name(normalise_path(entry.name))
                    names.setdefault(key, set()).add(suffix)
                    if sample_labels.is_sample(names[key]):
                        return True
                    if number >= max_members:
                        break
    except (*CORRUPTION_ERRORS, ArchiveRefused, OSError):
        return False
    return False


def _read_members(tar: tarfile.TarFile, contents: _Contents) -> None:
    members = tar_reader.iterate_members(tar, contents.notes.report_content_after_end)
    for number, entry in enumerate(members, 1):
        if number > MAX_MEMBERS:
            raise ArchiveRefused(f"more than {MAX_MEMBERS:,} members")
        if not entry.isdir():
            _add_member(tar, entry, contents)


def _add_member(tar: tarfile.TarFile, entry: tarfile.TarInfo, contents: _Contents) -> None:
    path = normalise_path(entry.name)
    problem = None if entry.isreg() else "a link or device in an archive"
    problem = problem or find_path_problem(entry.name, path) or _find_conflict(path, contents.taken_paths)
    if problem is not None:
        contents.members.append(TarMember(archive_members.make_printable(entry.name), 0, 0, problem))
        return
    if any(map(is_hidden, path.split("/"))):
        contents.ignored_count += 1
        return
    contents.notes.add_file(path, is_name_guessed=False)
    contents.members.append(TarMember(to_printable(path), entry.offset_data, entry.size, STATUS_UNOPENED))
    key, suffix = divide_name(path)
    if sample_labels.is_label(suffix):
        is_short = entry.size <= MAX_LABEL_BYTES
        contents.labels.add(key, suffix, _read_content(tar, entry) if is_short else b"")


def _read_content(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(entry)
    assert stream is not None, "a regular file has content"
    return stream.read()


def _find_conflict(path: str, taken_paths: dict[str, str]) -> str | None:
    """Describe the conflict with an earlier member of the same path, and remember this one."""
    taken = taken_paths.get(path.casefold())
    if taken is None:
        taken_paths[path.casefold()] = path
        return None
    return "appears twice in the archive" if taken == path else f"differs from {taken} by case alone"


def _to_listing(file: StoredFile, contents: _Contents) -> PhotoListing:
    """Leave out the members that belong to a photo, and give photos their labels."""
    photo_keys = {key for key, suffix in map(divide_name, _list_openable(contents)) if sample_labels.is_photo(suffix)}
    labels, notes = contents.labels.choose(photo_keys)
    rows = []
    for member in contents.members:
        key, suffix = divide_name(member.path)
        if key in photo_keys and not sample_labels.is_photo(suffix) and contents.labels.has(key):
            continue
        rows.append(
            {
                "path": member.path,
                "address": file.address,
                "offset": member.offset,
                "length": member.length,
                "size": member.length,
                "stamp": file.stamp,
                "status": member.status,
                "label": labels.get(key),
            }
        )
    photos = collect_rows(
        rows, {name: dtype for name, dtype in LISTING_SCHEMA.items() if name not in ("prefix", "row")}
    )
    photos = photos.with_columns(prefix=None, row=None).select(*LISTING_SCHEMA).cast(LISTING_SCHEMA)  # type: ignore[arg-type]
    return PhotoListing(photos, contents.ignored_count, (*contents.notes.to_lines(), *notes))


def _list_openable(contents: _Contents) -> Iterator[str]:
    return (member.path for member in contents.members if member.status == STATUS_UNOPENED)
