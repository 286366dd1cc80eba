"""A folder of class folders becomes a Dataset: one row for every path found.

    flowers/daisy/1.jpg                   a sub-folder a class
    flowers/daisy/garden/1.jpg            photos of one folder inside a class are a group, where every class has enough of them
    flowers/train/daisy/1.jpg             parts given: train, validation (or val, valid) and test, kept as they are
    somewhere/flowers/daisy/1.jpg         one of the above, wrapped in a folder (files beside it do not matter)

Nothing in here opens a photo or changes a file of the user's.
"""

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import polars as pl

from ikebana.errors import PhotosError
from ikebana.photos.dataset import PART_NAMES, SCHEMA, UNOPENED, Dataset, gathered

# Folders inside a class are groups only if each class so has this many groups, a photo beside them being one of its own, and
# none holds more than this share of it: otherwise some part would have no photo of the class, or far too many.
LEAST_GROUPS = 5
LARGEST_GROUP = 0.4

OF_A_RUN = {"recipe.json", "source.json", "environment.json"}  # what every run's folder holds, and no folder of photos
SYSTEM_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "icon\r"}


@dataclass(frozen=True)
class Found:
    """One path of a scan."""

    path: str  # below the scanned folder, with forward slashes
    status: str


def read(folder: Path, *, source: str | None = None, prefix: str = "", more: Iterable[Found] = ()) -> Dataset:
    """The photos of a folder of class folders, with or without parts above the classes.

    raises  PhotosError if the folder cannot be read, or two of its folders are the same part
    """
    notes: list[str] = []
    top = folder
    while (inner := _only_a_wrapper(top)) is not None:
        top = inner
    inside = printable(top.relative_to(folder).as_posix())
    if top != folder:
        notes.append(
            f"{printable(Path(source or folder).name)} holds no other folder than {inside}/: the classes are in there"
        )
    parts = _parts(top)
    beside = sorted(_names(top) - parts.keys()) if parts else []
    if beside:
        notes.append(f"{', '.join(beside)}: beside {', '.join(sorted(parts))}, and therefore not used")
    ignored: list[str] = []
    rows = (_row(found, prefix, inside, parts) for found in scan(folder, ignored))
    aside = ({"path": prefix + each.path, "status": each.status} for each in more)
    photos = _grouped(gathered(chain(rows, aside), SCHEMA).sort("path"), notes)
    empty = set().union(*(_names(top / name) for name in parts)) if parts else _names(top)
    empty -= set(photos["label"].drop_nulls())
    return Dataset(source or str(folder), folder, photos, (), len(ignored), prefix, tuple(sorted(empty)), tuple(notes))


def _row(found: Found, prefix: str, top: str, parts: Mapping[str, str]) -> dict[str, str | None]:
    """A scanned path as a row: its folders tell part and label."""
    beside = top != "." and not found.path.startswith(f"{top}/")  # of the wrapper: no class of its own
    inside = found.path if top == "." else found.path.removeprefix(f"{top}/")
    folders = [] if beside else inside.split("/")[:-1]
    part, outside = None, "lies outside any class folder"
    if parts and folders:
        part = parts.get(folders[0])
        folders = folders[1:] if part is not None else []
        outside = outside if part is not None else f"lies outside {', '.join(sorted(parts))}"
    label = folders[0] if folders else None
    status = outside if label is None and found.status == UNOPENED else found.status
    group = "/".join([*inside.split("/")[: len(parts) > 0], *folders[:2]]) if len(folders) > 1 else None
    return {"path": prefix + found.path, "label": label, "split": part, "status": status, "group": group}


def _grouped(photos: pl.DataFrame, notes: list[str]) -> pl.DataFrame:
    """The folders inside classes as groups, if a split can do them justice; else no groups, and a note that says so."""
    if photos["group"].is_null().all():
        return photos
    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for number, (label, group) in enumerate(photos.filter(status=UNOPENED).select("label", "group").iter_rows()):
        sizes[label][group or f"/{number}"] += 1
    for label, held in sorted(sizes.items()):
        share = max(held.values()) / held.total()
        if len(held) < LEAST_GROUPS or share > LARGEST_GROUP:
            what = f"it has {len(held)} groups" if len(held) < LEAST_GROUPS else f"one holds {share:.0%} of it"
            notes.append(
                f"folders inside classes are not kept together: class {label} could not be split so, {what} "
                "(a table with a group column is always followed)"
            )
            return photos.with_columns(pl.lit(None, pl.String).alias("group"))
    notes.append(
        f"{photos['group'].n_unique() - photos['group'].has_nulls()} folders inside classes: each stays in one part"
    )
    return photos


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            found = [folder / entry.name for entry in entries if not is_hidden(entry.name) and _is_folder(entry)]
    except OSError as error:
        raise PhotosError(
            f"this folder cannot be read: {error.strerror}", where=folder, advice="a folder that you may read"
        ) from None
    return sorted(each for each in found if not _is_ours(each))


def _is_ours(folder: Path) -> bool:
    """Whether this is a run, or a folder of nothing but runs: the thumbnails in there are no photos of the user's."""
    try:
        if _is_run(folder):
            return True
        with os.scandir(folder) as entries:
            shown = (Path(entry.path) for entry in entries if not is_hidden(entry.name))
            first = next(shown, None)
            return first is not None and all(map(_is_run, chain([first], shown)))
    except OSError:  # what cannot be read is named when it is scanned
        return False


def _is_run(folder: Path) -> bool:
    return all((folder / name).is_file() for name in OF_A_RUN)


def _names(folder: Path) -> set[str]:
    return {printable(each.name) for each in _folders(folder)}


def _only_a_wrapper(folder: Path) -> Path | None:
    """The only sub-folder of a folder, if folders lie in there in turn: a single class would be nothing to learn."""
    folders = _folders(folder)
    inner = folders[0] if len(folders) == 1 and not folders[0].is_symlink() else None
    return inner if inner is not None and _folders(inner) else None


def _parts(folder: Path) -> dict[str, str]:
    """Which sub-folders are parts: {"Train": "train", "val": "validation"}; empty if the sub-folders are classes.

    A class may well be called `train` (beside `bus` and `tram`). Parts are several, `train` is one of them, and class
    folders lie in each; if other folders are beside them, the parts must have a class in common.

    raises  PhotosError if two folders are the same part
    """
    folders = _folders(folder)
    parts = {each.name: PART_NAMES[each.name.lower()] for each in folders if each.name.lower() in PART_NAMES}
    classes = [_names(folder / name) for name in parts]
    if "train" not in parts.values() or len(parts) < 2 or not all(classes):
        return {}
    if len(parts) < len(folders) and not set.intersection(*classes):
        return {}
    if len(set(parts.values())) != len(parts):
        raise PhotosError(
            f"two folders are the same part: {', '.join(parts)}",
            where=folder,
            advice="one folder each for train, validation and test",
        )
    return parts


def is_hidden(name: str) -> bool:
    """Whether a name belongs to the system or was hidden on purpose: not a photo of the user's."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def scan(folder: Path, ignored: list[str], apart: str | None = None) -> Iterator[Found]:
    """Every path below a folder: its files sorted by name, then folder by folder; hidden ones go to `ignored`, and so do runs
    of ours, which may lie here since somebody called `fit` from here, and the folder `apart`, by its real path.

    Links are followed, after all that lies here itself; a folder that was seen under another name, or that lies above,
    is named instead: links may lead round in a circle.
    """
    visited = {os.path.realpath(folder)}
    above = {str(each) for each in Path(os.path.realpath(folder)).parents}
    here, links = [("", folder)], []
    while here or links:
        inside, place = (here or links).pop()
        real = os.path.realpath(place)
        if inside and (real in visited or real in above):
            yield Found(printable(inside), "a folder that is scanned already under another name")
            continue
        if inside and (real == apart or _is_ours(place)):
            ignored.append(inside)
            continue
        visited.add(real)
        try:
            inner, links_here, files = _listed(place, inside, ignored)
        except OSError as error:
            yield Found(printable(inside), f"folder cannot be read: {error.strerror}")
            continue
        for name in files:
            path = _below(inside, name)
            yield Found(printable(path), file_status(place / name))
        here += [(_below(inside, name), place / name) for name in reversed(inner)]
        links += [(_below(inside, name), place / name) for name in links_here]


def _listed(folder: Path, inside: str, ignored: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Names in a folder: sub-folders, links to folders, all else; each sorted. Names alone: a folder may hold a million."""
    inner, links, files = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                ignored.append(_below(inside, entry.name))
            elif _is_folder(entry):
                (links if entry.is_symlink() else inner).append(entry.name)
            else:
                files.append(entry.name)
    return sorted(inner), sorted(links), sorted(files)


def _below(inside: str, name: str) -> str:
    return f"{inside}/{name}" if inside else name


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
    if printable(str(file)) != str(file):
        return "unreadable: its name is not valid Unicode (rename it)"
    return UNOPENED


def printable(path: str) -> str:
    """A name that is no valid UTF-8 still has to be shown, and no table could hold it as it is."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
