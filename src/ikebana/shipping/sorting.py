"""Photos sorted into folders by what they show: copied or linked, never moved, and nothing that is there is written over."""

import errno
import filecmp
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ikebana.places import cannot_write
from ikebana.shipping.prediction import Prediction

NOT_SURE, UNUSABLE = "not sure", "unusable"
FORBIDDEN = frozenset('/\\:*?"<>|')  # in a folder's name, on one system or another
LONGEST = 100  # letters of a folder's name


def folders(names: Sequence[str]) -> list[str]:
    """A folder's name for each of these names, no two alike on any disk, none leading anywhere else.

    A model file may come from anybody: what its classes are called is not trusted to be a folder's name.
    """
    found: list[str] = []
    for name in names:
        kept = "".join("_" if each in FORBIDDEN or not each.isprintable() else each for each in name)
        plain, number = kept[:LONGEST].strip(". ") or "_", 2
        kept = plain
        while kept.casefold() in {each.casefold() for each in found}:
            kept, number = f"{plain}-{number}", number + 1
        found.append(kept)
    return found


class Sorter:
    """Puts each photo into the folder of its class, or of those that are not sure or unusable."""

    def __init__(self, place: Path, classes: Sequence[str], link: bool):
        self.place, self.link = place, link
        *of_classes, self.not_sure, self.unusable = folders([*classes, NOT_SURE, UNUSABLE])
        self.folders = dict(zip(classes, of_classes, strict=True))

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
        name, number = Path(file.name), 1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while True:
                target = folder / (name if number == 1 else f"{name.stem}-{number}{name.suffix}")
                if _is_there(target, file, link) or _made(target, file, link):
                    return target
                number += 1
        except OSError as error:
            raise cannot_write(error, folder) from error


def _is_there(target: Path, file: Path, link: bool) -> bool:
    if target.is_symlink():
        return link and os.readlink(target) == str(file.absolute())
    return not link and target.is_file() and filecmp.cmp(target, file, shallow=False)


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
    beside = target.with_name(f".{os.getpid()}.partial")
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
