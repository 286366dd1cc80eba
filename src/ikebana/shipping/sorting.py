"""Photos sorted into folders by what they show: copied or linked, never moved, and nothing that is there is written over."""

import errno
import hashlib
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ikebana.places import cannot_write
from ikebana.shipping.prediction import NOT_SURE, Prediction

UNUSABLE = "unusable"
FORBIDDEN = frozenset('/\\:*?"<>|')  # in a folder's name, on one system or another
RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)  # on Windows
LONGEST = 255  # bytes in UTF-8 of a name, on most disks
ROOM = 15  # of them for what follows a folder's name: a number


def folders(names: Sequence[str]) -> list[str]:
    """A folder's name for each of these names, no two alike on any disk, none leading anywhere else.

    A model file may come from anybody: what its classes are called is not trusted to be a folder's name.
    """
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        plain, number = _plain(name), 2
        kept = plain
        while _folded(kept) in taken:
            kept, number = f"{plain}-{number}", number + 1
        taken.add(_folded(kept))
        found.append(kept)
    return found


def _plain(name: str) -> str:
    letters = unicodedata.normalize("NFC", name)  # letters that look alike are one name on some disks
    kept = "".join("_" if each in FORBIDDEN or not each.isprintable() else each for each in letters)
    kept = _cut(kept.strip(". "), LONGEST - ROOM).strip(". ") or "_"
    return f"_{kept}" if RESERVED.fullmatch(kept) else kept


def _folded(name: str) -> str:
    """What two names share that are one on a disk which does not tell capitals, or ways to write an accent, apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _cut(name: str, most: int) -> str:
    """Its beginning, of so many bytes at most, cut between letters."""
    whole = os.fsencode(name)
    return name if len(whole) <= most else whole[:most].decode("utf-8", "ignore")


@dataclass(slots=True)
class _Alike:
    """The photos of one name in one folder."""

    numbers: dict[bytes | None, int] = field(
        default_factory=dict
    )  # by what they hold; None is what is no photo of ours
    seen: int = 0  # numbers that were looked at: all of them are taken


class Sorter:
    """Puts each photo into the folder of its class, or of those that are not sure or unusable."""

    def __init__(self, place: Path, classes: Sequence[str], link: bool):
        self.place, self.link = Path(os.path.expanduser(place)), link
        *of_classes, self.not_sure, self.unusable = folders([*classes, NOT_SURE, UNUSABLE])
        self.folders = dict(zip(classes, of_classes, strict=True))
        self.alike: dict[str, _Alike] = {}  # of each name that several photos have: those of the others need no memory

    def put(self, prediction: Prediction, file: Path) -> Path | None:
        """Copy or link one photo; None if there is no file to copy.

        A name that is taken by another photo gets a number. A photo that is there already is left alone, so that the same
        command may be given again. What came in an archive is copied: it lies in the cache, which may be deleted.

        raises  MachineError if the place cannot be written to
        """
        if not os.path.isfile(file):  # pathlib's own question ends in an error where a name is too long
            return None
        folder = self.place / (self.not_sure if prediction.usable else self.unusable)
        if prediction.label is not None:
            folder = self.place / self.folders[prediction.label]
        link = self.link and Path(prediction.path) == file
        target = folder / file.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if str(target) not in self.alike and (_made(target, file, link) or _is_there(target, file, link)):
                return target
            return self._beside(target, file, link)
        except OSError as error:
            raise cannot_write(error, folder) from error

    def _beside(self, target: Path, file: Path, link: bool) -> Path:
        """The photo at the first number that is free, unless it is there already; each that is there is looked at once."""
        alike = self.alike.setdefault(str(target), _Alike())
        mine = _held(file, link)
        while mine not in alike.numbers:
            alike.seen += 1
            place = _numbered(target, alike.seen)
            new = _made(place, file, link)
            alike.numbers.setdefault(mine if new else _held_there(place), alike.seen)
        return _numbered(target, alike.numbers[mine])


def _numbered(target: Path, number: int) -> Path:
    if number == 1:
        return target
    ending = f"-{number}{_cut(target.suffix, ROOM)}"
    return target.with_name(_cut(target.stem, LONGEST - len(os.fsencode(ending))) + ending)


def _is_there(target: Path, file: Path, link: bool) -> bool:
    return target.is_symlink() == link and _held_there(target) == _held(file, link)


def _held_there(place: Path) -> bytes | None:
    """What tells the photo or the link at a place from others; None for what is neither."""
    if place.is_symlink():
        return _held(place, True) if place.exists() else None
    return _held(place, False) if place.is_file() else None


def _held(file: Path, link: bool) -> bytes:
    """What tells a photo from others: as a copy what is in it, as a link which file it is."""
    if link:
        about = os.stat(file)
        return f"{about.st_dev} {about.st_ino}".encode()
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, partial(hashlib.blake2b, digest_size=16)).digest()


def _made(target: Path, file: Path, link: bool) -> bool:
    """Whether the photo is at its place now; False if the name was taken."""
    try:
        if link:
            target.symlink_to(file.absolute())
        else:
            _copy(file, target)
    except FileExistsError:
        return False
    return True


def _copy(file: Path, target: Path) -> None:
    """A whole copy appears at once; FileExistsError if the name is taken."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "taken", str(target))
    beside = target.with_name(f".{secrets.token_hex(4)}.partial")
    try:
        shutil.copyfile(file, beside)
        try:
            os.link(beside, target)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise
            os.rename(beside, target)  # a disk without hard links
    finally:
        beside.unlink(missing_ok=True)
