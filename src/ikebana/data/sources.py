"""Sources of photos: a folder, an archive or a table becomes a Dataset."""

import os
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import polars as pl

from ikebana.data import (
    archive,
    archive_members,
    class_folders,
    container_sources,
    containers,
    output_folders,
    stores,
    table,
)
from ikebana.data.archive_notes import ARCHIVE_SUFFIXES, FOREIGN_SUFFIXES, ArchiveNotes
from ikebana.data.dataset import STATUS_UNOPENED, STATUS_USED, Dataset
from ikebana.data.frame import Frame, is_frame
from ikebana.data.similar_paths import MAX_SIBLINGS, suggest_similar_path
from ikebana.data.table_paths import COMMON_SUFFIXES
from ikebana.errors import PhotosError

# A folder, an archive, a table, or a table in memory.
PhotoSource: TypeAlias = str | Path | Frame

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
WORKBOOK_SUFFIXES = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")


def read(source: PhotoSource, class_order: tuple[str, ...] = ()) -> Dataset:
    """List photos of a folder, an archive, a table or a frame, without opening them.

    Raises:
        PhotosError: the source does not exist, has no class folders, or has only one class.
    """
    if is_frame(source):
        return assign_classes(table.read_frame(source), class_order)
    source = _require_path(source)
    if containers.is_container_source(source):
        return assign_classes(container_sources.read(source), class_order)
    # An empty path would be the working directory.
    if not str(source):
        raise PhotosError(
            "an empty path was given", advice="give the path of a folder, an archive or a table of photos"
        )
    path = Path(os.path.expanduser(source))
    name = path.name.lower()
    # pathlib's `is_dir` raises where a name is too long.
    if os.path.isdir(path):
        output_folders.refuse_output_folder(path)
        dataset = class_folders.read(path)
    elif not os.path.exists(path):
        raise _describe_missing_source(source, path)
    elif not os.path.isfile(path):
        raise PhotosError(
            "this is neither a folder nor a regular file", where=source, advice="save it as a file on disk first"
        )
    elif name.endswith(TABLE_SUFFIXES):
        dataset = table.read(path)
    elif name.endswith(ARCHIVE_SUFFIXES):
        unpacked = archive.unpack(path)
        dataset = class_folders.read(
            unpacked.folder,
            source=str(source),
            archive_prefix=f"{path.name}!",
            skipped_members=unpacked.skipped_members,
        )
        dataset = replace(dataset, notes=(*unpacked.notes, *dataset.notes))
    elif name.endswith(FOREIGN_SUFFIXES):
        raise PhotosError(
            f"ikebana does not read {path.suffix} files",
            where=source,
            advice="unpack it and give the folder, or repack it as .zip or .tar.gz",
        )
    else:
        raise PhotosError(
            "this is not a folder, an archive or a table of photos",
            where=source,
            advice=_advise_format(name),
        )
    return assign_classes(dataset, class_order)


def _require_path(source: object) -> str | Path:
    if isinstance(source, str | Path):
        return source
    if isinstance(source, os.PathLike):
        return Path(os.fsdecode(source))
    raise PhotosError(
        f"photos cannot be given as {type(source).__name__}",
        advice="give the path of a folder, an archive or a table, or a frame with the columns path and label",
    )


def _advise_format(name: str) -> str:
    if name.endswith(WORKBOOK_SUFFIXES):
        return "save the sheet as 'CSV UTF-8'"
    suffixes = ", ".join((*ARCHIVE_SUFFIXES[:3], *TABLE_SUFFIXES))
    return f"give a folder with one sub-folder per class, or a file ending in {suffixes}"


def _is_table(dataset: Dataset) -> bool:
    return dataset.frame is not None or dataset.source.lower().endswith(TABLE_SUFFIXES)


def _advise_without_photos(dataset: Dataset) -> str:
    """Suggest what to try if no photos were found."""
    if _is_table(dataset):
        return table.advise_without_photos(dataset)
    return _advise_packed_labels(dataset) or "give a folder with one sub-folder of photos per class"


def _advise_packed_labels(dataset: Dataset) -> str | None:
    """Suggest to use a table or to unpack encrypted members, if there are any."""
    if archive_members.ENCRYPTED in dataset.photos["status"]:
        return "unpack the archive with its password, and give the folder"
    if files := _advise_files(dataset):
        return files
    prefix = dataset.archive_prefix
    paths = [path.removeprefix(prefix) for path in dataset.photos["path"] if path.lower().endswith(TABLE_SUFFIXES)]
    if not paths:
        return None
    first = min(paths, key=lambda path: (path.count("/"), path))
    is_in_tar = dataset.locations is not None and dataset.source.lower().endswith(containers.CONTAINER_SUFFIXES)
    if prefix or is_in_tar:
        return f"if the labels are in a table, unpack the archive and give the table: {first}"
    if stores.is_address(dataset.source):
        return _advise_stored_table(f"{dataset.source.rstrip('/')}/{first}")
    return f"if the labels are in a table, give the table: {dataset.root / first}"


def _advise_stored_table(address: str) -> str:
    """Suggest how to use a table in a store; only Parquet is read there."""
    if address.lower().endswith(containers.PARQUET_SUFFIX):
        return f"if the photos and their labels are in the Parquet file, give the file itself: {address}"
    return f"if the labels are in a table, download it and the photos, and give the table: {address}"


def _advise_files(dataset: Dataset) -> str | None:
    """Suggest how to give the tars or Parquet files of a folder without others."""
    if dataset.archive_prefix or not (stores.is_address(dataset.source) or os.path.isdir(dataset.source)):
        return None
    folder = dataset.source.rstrip("/")
    return containers.advise_files(folder, (f"{folder}/{path}" for path in dataset.photos["path"]))


def _name_archives(dataset: Dataset) -> str:
    """Name the archives of a folder that has nothing else; empty if it has."""
    notes = ArchiveNotes()
    for path in dataset.photos["path"]:
        notes.add_file(path, is_name_guessed=False)
    return notes.name_inner_archives() if notes.holds_only_archives and not _is_table(dataset) else ""


def assign_classes(dataset: Dataset, class_order: tuple[str, ...]) -> Dataset:
    """Set the classes that still have photos, and the empty ones.

    They are sorted, or in the given order.

    Raises:
        PhotosError: fewer than two classes are left.
    """
    usable = dataset.photos.filter(pl.col("status").is_in((STATUS_UNOPENED, STATUS_USED)))
    classes = tuple(sorted(usable["label"].drop_nulls().unique().to_list()))
    if not usable.height and (archives := _name_archives(dataset)):
        unpack = "unpack them into one folder per class, and give the folder around them"
        files = _advise_files(dataset)
        raise PhotosError(
            f"this folder contains only archives: {archives}",
            where=dataset.source,
            advice=f"{files}; or {unpack}" if files else f"{unpack}; or give one archive alone",
        )
    if not usable.height and (parent := _find_parent_of_class(dataset)):
        raise PhotosError(
            "this folder has photos but no class folders: it looks like the folder of one class",
            where=dataset.source,
            advice=f"did you mean {parent}?",
        )
    if not usable.height:
        raise PhotosError(
            f"no photos found{_summarise_reasons(dataset)}",
            where=dataset.source,
            advice=_advise_without_photos(dataset),
        )
    if len(classes) == 1:
        raise PhotosError(
            f"only one class has photos: {classes[0]}{_summarise_reasons(dataset)}",
            where=dataset.source,
            advice="label photos of at least two classes"
            if _is_table(dataset)
            else _advise_packed_labels(dataset) or "give a folder with at least two class folders, each with photos",
        )
    empty = {*dataset.photos["label"].drop_nulls(), *dataset.empty_classes} - set(classes)
    # The user gave the order before it was known that these classes have no readable photo.
    order = tuple(name for name in class_order if name not in empty)
    return replace(
        dataset,
        classes=_order_classes(classes, order, dataset.source),
        empty_classes=tuple(sorted(empty)),
    )


def _find_parent_of_class(dataset: Dataset) -> Path | None:
    """Return the folder above, if the user gave one of several class folders."""
    given = Path(os.path.expanduser(dataset.source))
    if not os.path.isdir(given) or not dataset.photos.height:
        return None
    parent = given.absolute().parent
    try:
        siblings = [folder for folder in _list_visible_folders(parent) if _has_photos(folder)]
        is_class = _has_photos(given) and not any(entry.is_dir() for entry in given.iterdir())
    except OSError:
        return None
    # As the user wrote it, if possible: relative paths stay relative.
    return (given.parent if given.name else parent) if is_class and len(siblings) > 1 else None


def _summarise_reasons(dataset: Dataset) -> str:
    """Name the most frequent reason why photos are not used."""
    unused = dataset.set_aside_photos.filter(pl.col("status") != STATUS_UNOPENED)
    if not unused.height:
        return ""
    reason, number = unused["status"].value_counts(sort=True).row(0)
    return f"; {number} of {dataset.photos.height} paths were skipped ({reason})"


def _order_classes(classes: tuple[str, ...], class_order: tuple[str, ...], source: str) -> tuple[str, ...]:
    """Check that the order names each class once, and return it."""
    if not class_order:
        return classes
    if sorted(class_order) != sorted(classes):
        raise PhotosError(
            f"the class order names {', '.join(class_order)}, but the classes are {', '.join(classes)}",
            where=source,
            advice="name each class once",
        )
    return class_order


def _describe_missing_source(source: str | Path, path: Path) -> PhotosError:
    """Build the error for a path that does not exist, perhaps a web address."""
    if error := stores.describe_unsupported(source):
        return error
    what = f"there is no such folder, archive or table{_describe_access_error(path)}"
    advice = suggest_similar_path(path, _may_have_photos) or "give the path of a folder, an archive or a table"
    return PhotosError(what, where=source, advice=advice)


def _describe_access_error(path: Path) -> str:
    """Describe the system's error for a path; empty if the path just does not exist."""
    try:
        os.stat(path)
    except (FileNotFoundError, ValueError):
        return ""
    except OSError as error:
        return f": {error.strerror}"
    return ""


def _may_have_photos(path: Path) -> bool:
    """Return whether the path looks like a collection: class folders, an archive or a table."""
    if not path.is_dir():
        return path.name.lower().endswith((*ARCHIVE_SUFFIXES, *TABLE_SUFFIXES))
    return bool(_list_visible_folders(path))


def _list_visible_folders(folder: Path) -> list[Path]:
    entries = islice(folder.iterdir(), MAX_SIBLINGS)
    return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _has_photos(folder: Path) -> bool:
    """Return whether the folder itself has a photo, by the names of its files."""
    return any(entry.suffix.lower() in COMMON_SUFFIXES for entry in islice(folder.iterdir(), MAX_SIBLINGS))
