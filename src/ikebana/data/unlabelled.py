"""Photos without labels: files, folders, globs, archives, or photos in stores to predict."""

import glob
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, field
from pathlib import Path

from ikebana.data import archive, containers, folder, stores
from ikebana.data.archive import UnpackedArchive
from ikebana.data.archive_notes import ARCHIVE_SUFFIXES
from ikebana.data.containers import Container, is_container_source
from ikebana.data.dataset import LOCATION_SCHEMA
from ikebana.data.folder import STATUS_UNOPENED, check_file
from ikebana.data.locations import Location
from ikebana.data.locations import is_in_store as is_location_in_store
from ikebana.data.photo_file import describe_disk_error, read_photo_file
from ikebana.data.photo_listing import PhotoListing
from ikebana.data.similar_paths import suggest_similar_path
from ikebana.errors import PhotosError, UnreadablePhoto
from ikebana.system import progress

# The file of a photo that does not exist on disk.
NO_FILE = Path()


@dataclass(frozen=True, slots=True)
class UnlabelledPhoto:
    """A photo to predict.

    Attributes:
        path: the path to show.
        file: the file on disk; NO_FILE without one.
        status: whether it can be opened, or why not.
        location: where the photo is in a store, a tar shard or a Parquet file; None for a file on disk.
    """

    path: str
    file: Path
    status: str
    location: Location | None = None

    @property
    def stamp(self) -> str | None:
        """What changes with a photo that is no file on disk; None for a file."""
        return None if self.location is None else json.dumps(astuple(self.location))


@dataclass
class UnlabelledPhotos:
    """The photos of some sources, listed again in each iteration to save memory."""

    # A str is an address, or a path or pattern of containers that are read in place.
    paths: list[Path | str]
    # More sources, one per line, from a stream that can be iterated once.
    path_lines: Iterator[str] | None = None
    # Whether a path that is missing or a damaged archive is a photo with a reason, not an error.
    reports_errors: bool = False
    # The real path of a folder not to enter.
    excluded_folder: str | None = None
    # Hidden and system files of the last iteration.
    ignored_paths: list[str] = field(default_factory=list)
    unpacked_archives: dict[Path, UnpackedArchive] = field(default_factory=dict)
    # What stores and containers contain: they are listed once.
    listings: dict[str, list[tuple[Container, PhotoListing]]] = field(default_factory=dict)

    @property
    def has_containers(self) -> bool:
        """Whether some photos are no files on this computer."""
        return any(isinstance(path, str) for path in self.paths)

    def __iter__(self) -> Iterator[UnlabelledPhoto]:
        self.ignored_paths.clear()
        for path in self.paths:
            yield from self._iterate_line(path) if self.reports_errors else self._iterate_source(path)
        for line in self.path_lines or ():
            if text := line.rstrip("\r\n"):
                yield from self._iterate_text(text)

    def _iterate_text(self, text: str) -> Iterator[UnlabelledPhoto]:
        if containers.is_photo_address(text):
            # Not looked up, because a list may have millions: its size and its ETag stay unknown.
            yield UnlabelledPhoto(folder.to_printable(text), NO_FILE, STATUS_UNOPENED, Location(text))
        else:
            yield from self._iterate_line(text if is_container_source(text) else Path(os.path.expanduser(text)))

    def count(self) -> int:
        """Count the paths; 0 if the number is not known yet."""
        return 0 if self.path_lines is not None else sum(1 for _ in self)

    def _iterate_line(self, path: Path | str) -> Iterator[UnlabelledPhoto]:
        """Report an archive that cannot be unpacked like any other bad line, and go on."""
        try:
            yield from self._iterate_source(path)
        except PhotosError as error:
            yield UnlabelledPhoto(folder.to_printable(str(path)), NO_FILE, error.what)

    def _iterate_source(self, path: Path | str) -> Iterator[UnlabelledPhoto]:
        if isinstance(path, str):
            yield from self._iterate_containers(path)
        elif "\0" in str(path):
            yield UnlabelledPhoto(str(path).replace("\0", "\\0"), NO_FILE, "there is no such file")
        # pathlib's `is_dir` raises where a name is too long.
        elif os.path.isdir(path):
            yield from self._iterate_folder(path, f"{path}/")
        elif os.path.isfile(path) and path.name.lower().endswith(ARCHIVE_SUFFIXES):
            if path not in self.unpacked_archives:
                self.unpacked_archives[path] = archive.unpack(path)
                for note in self.unpacked_archives[path].notes:
                    progress.warn(f"{path.name}: {note}")
            unpacked = self.unpacked_archives[path]
            yield from self._iterate_folder(unpacked.folder, f"{path}!")
            for member in unpacked.skipped_members:
                yield UnlabelledPhoto(f"{path}!{member.path}", NO_FILE, member.status)
        else:
            yield UnlabelledPhoto(folder.to_printable(str(path)), path, check_file(path))

    def _iterate_containers(self, source: str) -> Iterator[UnlabelledPhoto]:
        for container, listing in self._list_containers(source):
            self.ignored_paths += [container.address] * listing.ignored_count
            prefix = container.photo_prefix
            for path, *place, status in listing.photos.select(*LOCATION_SCHEMA, "status").iter_rows():
                yield UnlabelledPhoto(folder.to_printable(prefix + path), NO_FILE, status, Location(*place))

    def find_container_folder(self) -> tuple[str, str] | None:
        """Find a folder that contains only tars or Parquet files, and what to give instead."""
        for source in self.paths:
            if not os.path.isdir(source) and not (isinstance(source, str) and self._is_store_folder(source)):
                continue
            if advice := containers.advise_files(str(source), (photo.path for photo in self._iterate_source(source))):
                return str(source), advice
        return None

    def _is_store_folder(self, source: str) -> bool:
        return all(container.is_folder for container, _ in self._list_containers(source))

    def _list_containers(self, source: str) -> list[tuple[Container, PhotoListing]]:
        if source not in self.listings:
            members = containers.find_containers(source)
            self.listings[source] = list(zip(members, containers.list_containers(members), strict=True))
        return self.listings[source]

    def _iterate_folder(self, path: Path, prefix: str) -> Iterator[UnlabelledPhoto]:
        for scanned in folder.scan(path, self.ignored_paths, self.excluded_folder):
            yield UnlabelledPhoto(folder.to_printable(prefix) + scanned.path, path / scanned.path, scanned.status)


def find_photos(
    sources: str | Path | Iterable[str | Path],
    path_lines: Iterator[str] | None = None,
    excluded_folder: Path | None = None,
    *,
    reports_errors: bool = False,
) -> UnlabelledPhotos:
    """Find the photos of the sources, in the order of the sources.

    Iterating over the result raises PhotosError too, if a source is a damaged archive.

    Args:
        path_lines: more paths, one per line, as from standard input; a missing one is reported in turn.
        excluded_folder: a folder not to enter where a source contains it, because it holds output.
        reports_errors: whether a missing path or a damaged archive is a photo with a reason.
    Raises:
        PhotosError: a source is empty or does not exist, or no photo is found.
    """
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    # An empty path would be the working directory.
    if not all(map(str, given)):
        raise PhotosError("an empty path was given", advice="give photos, folders or archives")
    paths: list[Path | str] = []
    for source in given:
        paths += [str(source)] if is_container_source(source) else _expand_source(source, reports_errors)
    excluded = os.path.realpath(excluded_folder) if excluded_folder is not None else None
    photos = UnlabelledPhotos(paths, path_lines, reports_errors, excluded)
    if path_lines is None and next(iter(photos), None) is None:
        raise PhotosError(
            "no photos found",
            where=", ".join(str(source) for source in given),
            advice="give photos, folders or archives",
        )
    if not reports_errors and (refused := photos.find_container_folder()):
        where, advice = refused
        raise PhotosError(containers.REASON_ONLY_CONTAINERS, where=where, advice=advice)
    return photos


def _expand_source(source: str | Path, reports_errors: bool) -> list[Path]:
    """Return the source if it exists, else its glob matches.

    An existing file or folder comes first, because it may be called `a[1].jpg`. In a list from
    Python, which is one of names, brackets alone are not a pattern.
    """
    path = Path(os.path.expanduser(source))
    if os.path.lexists(path):
        return [path]
    is_name = reports_errors and not re.search(r"[*?]", str(path))
    matches = [] if is_name else sorted(glob.glob(_escape_existing(path), recursive=True))
    if not matches and reports_errors:
        return [path]
    if not matches:
        if error := stores.describe_unsupported(source):
            raise error
        advice = suggest_similar_path(path) or "give existing photos, folders or archives"
        raise PhotosError("there is no such file or folder", where=source, advice=advice)
    return [Path(match) for match in matches]


def _escape_existing(path: Path) -> str:
    """Write a pattern so that the part that exists is read literally."""
    base = next((parent for parent in path.parents if os.path.lexists(parent)), None)
    return str(path) if base is None else str(Path(glob.escape(str(base)), path.relative_to(base)))


def is_openable(photo: UnlabelledPhoto) -> bool:
    return photo.status == STATUS_UNOPENED


def read_photo(photo: UnlabelledPhoto) -> bytes:
    """Read the bytes of a photo.

    Raises:
        UnreadablePhoto: with the reason.
    """
    if not is_openable(photo):
        raise UnreadablePhoto(photo.status)
    if photo.location is None:
        return read_photo_file(photo.file)
    try:
        return photo.location.read()
    except OSError as error:
        raise describe_disk_error(error, photo.path) from None


def is_in_store(photo: UnlabelledPhoto) -> bool:
    return photo.location is not None and is_location_in_store(photo.location)
