"""Photos without labels: any files, folders, globs or archives become a list of files to predict."""

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ikebana.errors import PhotosError
from ikebana.photos import archive, folder
from ikebana.photos.folder import UNOPENED, file_status
from ikebana.photos.intake import ARCHIVES


@dataclass(frozen=True)
class LoosePhoto:
    """A path to predict: how to show it, where it lies, and whether it can be opened."""

    path: str
    file: Path
    status: str


def find(sources: str | Path | Iterable[str | Path]) -> tuple[list[LoosePhoto], int]:
    """Every path that the sources name, sorted within each, and how many hidden or system files were passed over.

    raises  PhotosError if a source does not exist, or nothing is found
    """
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    found: list[LoosePhoto] = []
    ignored: list[str] = []
    for source in given:
        for place in _places(source):
            found += _below(place, ignored)
    if not found:
        raise PhotosError(
            "no photos found", where=", ".join(str(each) for each in given), advice="files, folders or archives"
        )
    return found, len(ignored)


def _places(source: str | Path) -> list[Path]:
    """The source itself if it exists, else what it matches as a glob: a file may well be called `a[1].jpg`."""
    place = Path(source).expanduser()
    if place.exists() or place.is_symlink():
        return [place]
    matches = sorted(glob.glob(str(place), recursive=True))
    if not matches:
        raise PhotosError("there is no such file or folder", where=source)
    return [Path(each) for each in matches]


def _below(place: Path, ignored: list[str]) -> list[LoosePhoto]:
    if place.is_dir():
        return _scanned(place, f"{place}/", ignored)
    if place.is_file() and place.name.lower().endswith(ARCHIVES):
        unpacked = archive.unpack(place)
        packed = [LoosePhoto(f"{place}!{each.path}", place, each.status) for each in unpacked.set_aside]
        return _scanned(unpacked.folder, f"{place}!", ignored) + packed
    return [LoosePhoto(str(place), place, file_status(place))]


def _scanned(place: Path, prefix: str, ignored: list[str]) -> list[LoosePhoto]:
    rows = sorted(folder.scan(place, ignored), key=lambda each: each.path)
    return [LoosePhoto(prefix + each.path, place / each.path, each.status) for each in rows]


def can_open(photo: LoosePhoto) -> bool:
    return photo.status == UNOPENED
