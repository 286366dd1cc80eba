"""Photos without labels: any files, folders, globs or archives, to be predicted."""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ikebana.errors import PhotosError
from ikebana.photos import archive, folder
from ikebana.photos.archive import Unpacked
from ikebana.photos.folder import UNOPENED, file_status
from ikebana.photos.intake import ARCHIVES

NOWHERE = Path()  # where a photo lies that is no file


@dataclass(frozen=True, slots=True)
class LoosePhoto:
    """A path to predict: how to show it, where it lies, and whether it can be opened."""

    path: str
    file: Path
    status: str


@dataclass
class Search:
    """What some sources name. Folders are read as the photos are asked for, and anew each time: a million need no memory."""

    places: list[Path]
    listed: Iterator[str] | None = None  # more sources, one a line, that come as they come: they can be asked for once
    apart: str | None = None  # the real path of a folder that is not looked into where it lies in another
    ignored: list[str] = field(default_factory=list)  # hidden and system files of the last pass
    unpacked: dict[Path, Unpacked] = field(default_factory=dict)

    def __iter__(self) -> Iterator[LoosePhoto]:
        self.ignored.clear()
        for place in self.places:
            yield from self._below(place)
        for line in self.listed or ():
            if line.rstrip("\r\n"):
                yield from self._of_line(Path(os.path.expanduser(line.rstrip("\r\n"))))

    def count(self) -> int:
        """How many paths there are; 0 if nobody knows yet."""
        return 0 if self.listed is not None else sum(1 for _ in self)

    def _of_line(self, place: Path) -> Iterator[LoosePhoto]:
        """An archive that cannot be unpacked is told of like any other bad line: a million good ones may come after it."""
        try:
            yield from self._below(place)
        except PhotosError as error:
            yield LoosePhoto(folder.printable(str(place)), place, error.what)

    def _below(self, place: Path) -> Iterator[LoosePhoto]:
        if "\0" in str(place):
            yield LoosePhoto(str(place).replace("\0", "\\0"), NOWHERE, "there is no such file")
        elif os.path.isdir(place):  # pathlib's own question ends in an error where a name is too long
            yield from self._scanned(place, f"{place}/")
        elif os.path.isfile(place) and place.name.lower().endswith(ARCHIVES):
            if place not in self.unpacked:
                self.unpacked[place] = archive.unpack(place)
            inside = self.unpacked[place]
            yield from self._scanned(inside.folder, f"{place}!")
            for each in inside.set_aside:
                yield LoosePhoto(f"{place}!{each.path}", NOWHERE, each.status)
        else:
            yield LoosePhoto(folder.printable(str(place)), place, file_status(place))

    def _scanned(self, place: Path, prefix: str) -> Iterator[LoosePhoto]:
        for each in folder.scan(place, self.ignored, self.apart):
            yield LoosePhoto(folder.printable(prefix) + each.path, place / each.path, each.status)


def search(
    sources: str | Path | Iterable[str | Path], listed: Iterator[str] | None = None, apart: Path | None = None
) -> Search:
    """What the sources name, in their order.

    listed  paths that come one a line, as from standard input; one that is not there is said of when its turn comes
    apart   a folder that is not looked into where it lies in one of the sources: what is in there was made of them
    raises  PhotosError if a source is empty or does not exist, or nothing is found; so does the search, of an archive that is a
            source
    """
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    if not all(map(str, given)):  # it would be the working directory
        raise PhotosError("an empty path was given", advice="photos, folders or archives")
    places = [place for source in given for place in _places(source)]
    found = Search(places, listed, os.path.realpath(apart) if apart is not None else None)
    if listed is None and next(iter(found), None) is None:
        raise PhotosError(
            "no photos found", where=", ".join(str(each) for each in given), advice="files, folders or archives"
        )
    return found


def _places(source: str | Path) -> list[Path]:
    """The source itself if it exists, else what it matches as a glob: a file may well be called `a[1].jpg`."""
    place = Path(os.path.expanduser(source))
    if os.path.lexists(place):
        return [place]
    matches = sorted(glob.glob(str(place), recursive=True))
    if not matches:
        raise PhotosError(
            "there is no such file or folder", where=source, advice="photos, folders or archives that are there"
        )
    return [Path(each) for each in matches]


def can_open(photo: LoosePhoto) -> bool:
    return photo.status == UNOPENED
