"""A folder of class folders becomes a Dataset: one row for every path found.

    flowers/daisy/1.jpg                   a sub-folder a class
    flowers/train/daisy/1.jpg             parts given: train, validation (or val, valid) and test, kept as they are
    somewhere/flowers/daisy/1.jpg         one of the above, wrapped in a single folder

Nothing in here opens a photo or changes a file of the user's.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ikebana.errors import PhotosError
from ikebana.photos.dataset import PART_NAMES, SCHEMA, UNOPENED, Dataset

SYSTEM_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "icon\r"}


@dataclass(frozen=True)
class Found:
    """One path of a scan."""

    path: str  # below the scanned folder, with forward slashes
    status: str


def read(folder: Path, *, source: str | None = None, prefix: str = "", more: Iterable[Found] = ()) -> Dataset:
    """The photos of a folder of class folders, with or without parts above the classes."""
    notes: list[str] = []
    top = folder
    while (inner := _only_a_wrapper(top)) is not None:
        top = inner
    if top != folder:
        notes.append(f"{folder.name} holds only {top.relative_to(folder).as_posix()}/: its sub-folders are the classes")
    parted = _has_parts(top)
    ignored: list[str] = []
    rows = [_row(found, prefix, top.relative_to(folder).as_posix(), parted) for found in scan(folder, ignored)]
    rows += [{"path": prefix + each.path, "status": each.status} for each in more]
    photos = pl.DataFrame(rows, schema=SCHEMA).sort("path")
    empty = _class_folders(top, parted) - set(photos["label"].drop_nulls())
    return Dataset(source or str(folder), folder, photos, (), len(ignored), prefix, tuple(sorted(empty)), tuple(notes))


def _class_folders(top: Path, parted: bool) -> set[str]:
    parents = _folders(top) if parted else [top]
    return {each.name for parent in parents for each in _folders(parent)}


def _row(found: Found, prefix: str, top: str, parted: bool) -> dict[str, str | None]:
    """A scanned path as a row: its folders tell part and label."""
    inside = found.path if top == "." else found.path.removeprefix(f"{top}/")
    folders = inside.split("/")[:-1]
    part = None
    if parted and folders:
        part, folders = PART_NAMES.get(folders[0].lower()), folders[1:]
    label = folders[0] if folders else None
    status = found.status
    if label is None and status == UNOPENED:
        status = "lies outside any class folder"
    return {"path": prefix + found.path, "label": label, "split": part, "status": status}


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir())


def _only_a_wrapper(folder: Path) -> Path | None:
    """The single sub-folder of a folder that holds nothing else, if class folders lie in there."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not is_hidden(entry.name)]
        inner = folder / names[0] if len(names) == 1 else None
        return (
            inner
            if inner is not None and inner.is_dir() and not inner.is_symlink() and len(_folders(inner)) > 0
            else None
        )
    except OSError as error:
        raise PhotosError(f"this folder cannot be read: {error.strerror}", where=folder) from None


def _has_parts(folder: Path) -> bool:
    """Whether the sub-folders are parts: all of them bear a part's name, `train` is there, and class folders lie below.

    A class may well be called `train` (beside `bus` and `tram`): then the others give it away.
    """
    folders = _folders(folder)
    parts = [PART_NAMES.get(each.name.lower()) for each in folders]
    if not folders or None in parts or "train" not in parts:
        return False
    if len(set(parts)) != len(parts):
        raise PhotosError(
            f"two folders are the same part: {', '.join(each.name for each in folders)}",
            where=folder,
            advice="one folder each for train, validation and test",
        )
    return len(folders) > 1 and all(_folders(each) for each in folders)


def is_hidden(name: str) -> bool:
    """Whether a name belongs to the system or was hidden on purpose: not a photo of the user's."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def scan(folder: Path, ignored: list[str]) -> Iterator[Found]:
    """Every path below a folder, in no order; links are followed, loops are named; hidden ones go to `ignored`."""
    visited = {os.path.realpath(folder)}
    waiting = [("", folder)]
    while waiting:
        inside, place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield Found(_printable(inside), f"folder cannot be read: {error.strerror}")
            continue
        for entry in listed:
            path = f"{inside}/{entry.name}" if inside else entry.name
            if is_hidden(entry.name):
                ignored.append(path)
            elif _is_folder(entry):
                real = os.path.realpath(entry.path)
                if real in visited:
                    yield Found(_printable(path), "a link to a folder that is scanned already")
                else:
                    visited.add(real)
                    waiting.append((path, Path(entry.path)))
            else:
                yield Found(_printable(path), file_status(entry.path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle: file_status names it
        return False


def file_status(file: str | Path) -> str:
    """Whether a path can be opened at all, before it is: pipes would wait for ever, links may lead nowhere."""
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        return "a link that leads nowhere" if os.path.islink(file) else "there is no such file"
    except OSError as error:
        return f"unreadable: {error.strerror}"
    if not stat.S_ISREG(mode):
        return "not a regular file"
    if _printable(str(file)) != str(file):
        return "unreadable: its name is not valid Unicode (rename it)"
    return UNOPENED


def _printable(path: str) -> str:
    """A name that is no valid UTF-8 still has to be shown, and no table could hold it as it is."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
