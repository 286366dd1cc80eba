"""Photos sorted into a folder per predicted class.

They are copied or linked, never moved. Existing files are never overwritten.
"""

import errno
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ikebana.inference.prediction import NOT_SURE, UNKNOWN, Prediction
from ikebana.system.files import compute_file_sha256, write_error

UNUSABLE = "unusable"
# Characters that a folder's name cannot contain on some system.
FORBIDDEN_CHARACTERS = frozenset('/\\:*?"<>|')
# Names that Windows reserves.
RESERVED_NAME = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
# UTF-8 bytes of a name on most file systems, of which some are reserved for a number at the end.
MAX_NAME_BYTES = 255
SUFFIX_BYTES = 15


def make_folder_names(names: Sequence[str]) -> list[str]:
    """Make a safe folder name for each name, distinct on every file system.

    A model file may be untrusted, so the names of its classes are not used as paths.
    """
    folder_names: list[str] = []
    taken: set[str] = set()
    for name in names:
        safe_name, number = _sanitise(name), 2
        candidate = safe_name
        while _fold(candidate) in taken:
            candidate, number = f"{safe_name}-{number}", number + 1
        taken.add(_fold(candidate))
        folder_names.append(candidate)
    return folder_names


def _sanitise(name: str) -> str:
    normalised = unicodedata.normalize("NFC", name)  # some file systems do so themselves
    safe = "".join("_" if char in FORBIDDEN_CHARACTERS or not char.isprintable() else char for char in normalised)
    safe = _truncate(safe.strip(". "), MAX_NAME_BYTES - SUFFIX_BYTES).strip(". ") or "_"
    return f"_{safe}" if RESERVED_NAME.fullmatch(safe) else safe


def _fold(name: str) -> str:
    """Make a key that is equal for names that some file system treats as equal."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _truncate(name: str, max_bytes: int) -> str:
    """Cut a name to at most so many bytes, between characters."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= max_bytes else encoded[:max_bytes].decode("utf-8", "ignore")


@dataclass(slots=True)
class _SameName:
    """The files of one folder whose names differ only in their number."""

    # By identity of the photo; None stands for files that are neither photo nor link.
    numbers: dict[bytes | None, int] = field(default_factory=dict)
    # Numbers 1 to this one are taken and checked.
    checked: int = 0


class Sorter:
    """A sorter of photos into folders: one per class, "not sure", "unknown" and "unusable"."""

    def __init__(self, folder: Path, classes: Sequence[str], link: bool):
        self.target_folder, self.link = Path(os.path.expanduser(folder)), link
        *class_folders, not_sure, unknown, unusable = make_folder_names([*classes, NOT_SURE, UNKNOWN, UNUSABLE])
        self.status_folders, self.unusable_folder = {NOT_SURE: not_sure, UNKNOWN: unknown}, unusable
        self.class_folders = dict(zip(classes, class_folders, strict=True))
        # Only for names that several photos share: all others need no memory.
        self.same_name: dict[str, _SameName] = {}

    def put(self, prediction: Prediction, file: Path) -> Path | None:
        """Copy or link one photo; return its new path, None without a file.

        A number is added if another photo has taken the name. A photo that is already there stays,
        so that the same command can run again. Photos from archives are always copied: they are in
        the cache, which may be deleted.

        Raises:
            MachineError: the folder is not writable.
        """
        if not os.path.isfile(file):  # Path.is_file raises an error if the name is too long
            return None
        folder = self.target_folder / self.status_folders.get(prediction.status, self.unusable_folder)
        if prediction.label is not None:
            folder = self.target_folder / self.class_folders[prediction.label]
        link = self.link and Path(prediction.path) == file
        target = folder / file.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if str(target) not in self.same_name and (_create(target, file, link) or _is_there(target, file, link)):
                return target
            return self._put_numbered(target, file, link)
        except OSError as error:
            raise write_error(error, folder) from error

    def _put_numbered(self, target: Path, file: Path, link: bool) -> Path:
        """Put the photo at the first free number, unless it is there already.

        Each existing file is read once.
        """
        same_name = self.same_name.setdefault(str(target), _SameName())
        identity = _identify(file, link)
        while identity not in same_name.numbers:
            same_name.checked += 1
            path = _add_number(target, same_name.checked)
            is_created = _create(path, file, link)
            same_name.numbers.setdefault(identity if is_created else _identify_existing(path), same_name.checked)
        return _add_number(target, same_name.numbers[identity])


def _add_number(target: Path, number: int) -> Path:
    if number == 1:
        return target
    ending = f"-{number}{_truncate(target.suffix, SUFFIX_BYTES)}"
    return target.with_name(_truncate(target.stem, MAX_NAME_BYTES - len(os.fsencode(ending))) + ending)


def _is_there(target: Path, file: Path, link: bool) -> bool:
    return target.is_symlink() == link and _identify_existing(target) == _identify(file, link)


def _identify_existing(path: Path) -> bytes | None:
    """Identify the photo or link at a path; None if it is neither."""
    if path.is_symlink():
        return _identify(path, True) if path.exists() else None
    return _identify(path, False) if path.is_file() else None


def _identify(file: Path, link: bool) -> bytes:
    """Identify a photo: a link by device and inode, a copy by its hash."""
    if link:
        stat = os.stat(file)
        return f"{stat.st_dev} {stat.st_ino}".encode()
    return compute_file_sha256(file).encode()


def _create(target: Path, file: Path, link: bool) -> bool:
    """Link or copy the photo; False if the name is taken."""
    try:
        if link:
            target.symlink_to(file.absolute())
        else:
            _copy(file, target)
    except FileExistsError:
        return False
    return True


def _copy(file: Path, target: Path) -> None:
    """Copy atomically; FileExistsError if the name is taken."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "taken", str(target))
    partial_file = target.with_name(f".{secrets.token_hex(4)}.partial")
    try:
        shutil.copyfile(file, partial_file)
        try:
            os.link(partial_file, target)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise
            os.rename(partial_file, target)  # the file system has no hard links
    finally:
        partial_file.unlink(missing_ok=True)
