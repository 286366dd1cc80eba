"""A folder of class folders, read into a Dataset with one row per path.

    flowers/daisy/1.jpg               one sub-folder per class
    flowers/daisy/garden/1.jpg        a folder inside a class is a group, if every class has enough
    flowers/train/daisy/1.jpg         given splits: train, validation (or val, valid) and test
    somewhere/flowers/daisy/1.jpg     any of these inside a wrapper folder (other files are allowed)

This module neither opens a photo nor changes a user's file.
"""

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import polars as pl

from ikebana.data import output_folders
from ikebana.data.dataset import SCHEMA, SPLIT_ALIASES, STATUS_UNOPENED, Dataset, collect_rows
from ikebana.errors import PhotosError

# Folders inside a class are groups only if each class then has this many groups (a photo beside
# the folders is its own group), and no group exceeds this share of its class. Otherwise some split
# would have no photo of the class, or far too many.
MIN_GROUPS_PER_CLASS = 5
MAX_GROUP_SHARE = 0.4

SYSTEM_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "icon\r"}


@dataclass(frozen=True)
class ScannedPath:
    """One path of a scan."""

    # Below the scanned folder, with forward slashes.
    path: str
    status: str


def read(
    folder: Path, *, source: str | None = None, archive_prefix: str = "", skipped_members: Iterable[ScannedPath] = ()
) -> Dataset:
    """List the photos of a folder of class folders.

    Split folders may be above the class folders.

    Args:
        source: the path that the user gave, if it is not the folder.
        archive_prefix: put before each path.
        skipped_members: paths to add that are not in the folder.
    Raises:
        PhotosError: the folder cannot be read, or two of its folders are the same split.
    """
    notes: list[str] = []
    top = folder
    while (inner := _find_wrapped_folder(top)) is not None:
        top = inner
    top_path = to_printable(top.relative_to(folder).as_posix())
    if top != folder:
        notes.append(
            f"the classes are read from {top_path}/, the only folder in {to_printable(Path(source or folder).name)}"
        )
    splits = _find_split_folders(top)
    unused = sorted(_list_folder_names(top) - splits.keys()) if splits else []
    if unused:
        notes.append(f"folders that are not used: {', '.join(unused)} (outside {', '.join(sorted(splits))})")
    ignored: list[str] = []
    rows = (_to_row(scanned, archive_prefix, top_path, splits) for scanned in scan(folder, ignored))
    extra_rows = ({"path": archive_prefix + scanned.path, "status": scanned.status} for scanned in skipped_members)
    photos = _check_groups(collect_rows(chain(rows, extra_rows), SCHEMA).sort("path"), notes)
    empty = set().union(*(_list_folder_names(top / name) for name in splits)) if splits else _list_folder_names(top)
    empty -= set(photos["label"].drop_nulls())
    return Dataset(
        source or str(folder), folder, photos, (), len(ignored), archive_prefix, tuple(sorted(empty)), tuple(notes)
    )


def _to_row(scanned: ScannedPath, prefix: str, top: str, splits: Mapping[str, str]) -> dict[str, str | None]:
    """Make a row of a scanned path; its folders are split, label and group."""
    is_beside_top = top != "." and not scanned.path.startswith(f"{top}/")
    path = scanned.path if top == "." else scanned.path.removeprefix(f"{top}/")
    folders = [] if is_beside_top else path.split("/")[:-1]
    split, reason = None, "outside any class folder"
    if splits and folders:
        split = splits.get(folders[0])
        folders = folders[1:] if split is not None else []
        reason = reason if split is not None else f"outside {', '.join(sorted(splits))}"
    label = folders[0] if folders else None
    status = reason if label is None and scanned.status == STATUS_UNOPENED else scanned.status
    group = "/".join([*path.split("/")[: len(splits) > 0], *folders[:2]]) if len(folders) > 1 else None
    return {"path": prefix + scanned.path, "label": label, "split": split, "status": status, "group": group}


def _check_groups(photos: pl.DataFrame, notes: list[str]) -> pl.DataFrame:
    """Keep the folders inside classes as groups if every class can be split by them.

    Otherwise remove all groups. A note reports the decision.
    """
    if photos["group"].is_null().all():
        return photos
    group_sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for number, (label, group) in enumerate(photos.filter(status=STATUS_UNOPENED).select("label", "group").iter_rows()):
        group_sizes[label][group or f"/{number}"] += 1
    for label, sizes in sorted(group_sizes.items()):
        share = max(sizes.values()) / sizes.total()
        if len(sizes) < MIN_GROUPS_PER_CLASS or share > MAX_GROUP_SHARE:
            is_few = len(sizes) < MIN_GROUPS_PER_CLASS
            reason = f"has only {len(sizes)} groups" if is_few else f"has {share:.0%} of its photos in one group"
            notes.append(
                f"folders inside classes are not used as groups: class {label} {reason} "
                "(to set groups yourself, use a table with a group column)"
            )
            return photos.with_columns(pl.lit(None, pl.String).alias("group"))
    group_count = photos["group"].n_unique() - photos["group"].has_nulls()
    notes.append(f"{group_count} folders inside classes are used as groups: each stays in one split")
    return photos


def _list_folders(folder: Path) -> list[Path]:
    """List the visible sub-folders, without run folders."""
    try:
        with os.scandir(folder) as entries:
            folders = [folder / entry.name for entry in entries if not is_hidden(entry.name) and _is_folder(entry)]
    except OSError as error:
        raise PhotosError(
            f"this folder cannot be read: {error.strerror}", where=folder, advice="check its permissions"
        ) from None
    return sorted(path for path in folders if not _is_run_output(path))


def _is_run_output(folder: Path) -> bool:
    """Return whether a folder is a run, or holds only runs.

    The thumbnails of a run are not the user's photos.
    """
    try:
        return output_folders.is_run(folder) or output_folders.holds_only_runs(folder)
    except OSError:
        # The scan reports unreadable folders.
        return False


def _list_folder_names(folder: Path) -> set[str]:
    return {to_printable(path.name) for path in _list_folders(folder)}


def _find_wrapped_folder(folder: Path) -> Path | None:
    """Find the only sub-folder, if it has sub-folders in turn.

    It is then a wrapper, because a classifier needs at least two classes.
    """
    folders = _list_folders(folder)
    inner = folders[0] if len(folders) == 1 and not folders[0].is_symlink() else None
    return inner if inner is not None and _list_folders(inner) else None


def _find_split_folders(folder: Path) -> dict[str, str]:
    """Map split folders to splits: {"Train": "train", "val": "validation"}; empty if there are none.

    A class may be called `train` (beside `bus` and `tram`). So splits need several folders, one of
    them `train`, with class folders in each. If there are other folders, the splits must share a class.

    Raises:
        PhotosError: two folders are the same split.
    """
    folders = _list_folders(folder)
    splits = {path.name: SPLIT_ALIASES[path.name.lower()] for path in folders if path.name.lower() in SPLIT_ALIASES}
    classes = [_list_folder_names(folder / name) for name in splits]
    if "train" not in splits.values() or len(splits) < 2 or not all(classes):
        return {}
    if len(splits) < len(folders) and not set.intersection(*classes):
        return {}
    if len(set(splits.values())) != len(splits):
        raise PhotosError(
            f"two folders are the same split: {', '.join(splits)}",
            where=folder,
            advice="keep one folder each for train, validation and test",
        )
    return splits


def is_hidden(name: str) -> bool:
    """Return whether a name is a system file or hidden, and so not a photo."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def scan(folder: Path, ignored: list[str], excluded_folder: str | None = None) -> Iterator[ScannedPath]:
    """Iterate over all paths below a folder.

    The files of a folder come first, sorted by name, then its sub-folders.

    Links are followed last. A folder already seen under another name, or one above, is reported
    instead of entered, because links may form a cycle.

    Args:
        ignored: receives hidden paths, run folders and the excluded folder.
        excluded_folder: the real path of a folder not to enter.
    """
    visited = {os.path.realpath(folder)}
    parents = {str(parent) for parent in Path(os.path.realpath(folder)).parents}
    folders, links = [("", folder)], []
    while folders or links:
        relative, current = (folders or links).pop()
        real = os.path.realpath(current)
        if relative and (real in visited or real in parents):
            yield ScannedPath(to_printable(relative), "a folder that was already scanned under another name")
            continue
        if relative and (real == excluded_folder or _is_run_output(current)):
            ignored.append(relative)
            continue
        visited.add(real)
        try:
            folder_names, link_names, file_names = _list_folder(current, relative, ignored)
        except OSError as error:
            yield ScannedPath(to_printable(relative), f"folder cannot be read: {error.strerror}")
            continue
        for name in file_names:
            path = _join(relative, name)
            yield ScannedPath(to_printable(path), check_file(current / name))
        folders += [(_join(relative, name), current / name) for name in reversed(folder_names)]
        links += [(_join(relative, name), current / name) for name in link_names]


def _list_folder(folder: Path, relative: str, ignored: list[str]) -> tuple[list[str], list[str], list[str]]:
    """List the sorted names of sub-folders, links to folders, and files.

    Names rather than objects: a folder may hold a million.
    """
    folders, links, files = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                ignored.append(_join(relative, entry.name))
            elif _is_folder(entry):
                (links if entry.is_symlink() else folders).append(entry.name)
            else:
                files.append(entry.name)
    return sorted(folders), sorted(links), sorted(files)


def _join(relative: str, name: str) -> str:
    return f"{relative}/{name}" if relative else name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A circular link, which `check_file` reports.
        return False


def check_file(file: str | Path) -> str:
    """Check whether a path can be opened, without opening it: a pipe would block forever."""
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        return "a broken symbolic link" if os.path.islink(file) else "there is no such file"
    except OSError as error:
        return f"unreadable: {error.strerror}"
    if not stat.S_ISREG(mode):
        return "not a regular file"
    if to_printable(str(file)) != str(file):
        return "unreadable: its name is not valid Unicode (rename it)"
    return STATUS_UNOPENED


def to_printable(path: str) -> str:
    """Escape bytes of a name that are not valid UTF-8: no table can hold them."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
