"""A folder, an archive or a table of photos becomes a Dataset, whatever shape it comes in."""

import os
from dataclasses import replace
from pathlib import Path

import polars as pl

from ikebana.errors import PhotosError
from ikebana.photos import archive, folder, table
from ikebana.photos.dataset import UNOPENED, USED, Dataset

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
TABLES = (".csv", ".tsv", ".parquet")


def read(source: str | Path, class_order: tuple[str, ...] = ()) -> Dataset:
    """Find out what photos a folder, an archive or a table holds; their files are not opened yet.

    raises  PhotosError if there is nothing to learn from: no such place, no class folders, one class only
    """
    if not str(source):  # it would be the working directory
        raise PhotosError("an empty path was given", advice="the path of a folder, an archive or a table of photos")
    place = Path(os.path.expanduser(source))
    name = place.name.lower()
    if os.path.isdir(place):  # pathlib's own question ends in an error where a name is too long to be asked for
        dataset = folder.read(place)
    elif not os.path.exists(place):
        what = f"there is no such folder, archive or table{_hindrance(place)}"
        raise PhotosError(what, where=source, advice=_similar(place) or "the path of a folder, an archive or a table")
    elif not os.path.isfile(place):
        raise PhotosError(
            "this is neither a folder nor a file that can be read twice", where=source, advice="a file on the disk"
        )
    elif name.endswith(TABLES):
        dataset = table.read(place)
    elif name.endswith(ARCHIVES):
        unpacked = archive.unpack(place)
        dataset = folder.read(unpacked.folder, source=str(source), prefix=f"{place.name}!", more=unpacked.set_aside)
    else:
        raise PhotosError(
            "this is neither a folder, nor an archive, nor a table of photos",
            where=source,
            advice="a folder with a sub-folder for each class, or a file ending in "
            + ", ".join((*ARCHIVES[:3], *TABLES)),
        )
    return with_classes(dataset, class_order)


def _where_photos_are(dataset: Dataset) -> str:
    """What to try where none was found."""
    if not dataset.source.lower().endswith(TABLES):
        return "a folder with a sub-folder of photos for each class"
    if not dataset.photos.height:
        return "a table with a row for each photo: path,label"
    first = dataset.file(dataset.photos["path"][0])
    return f"paths that start from the table's folder, or absolute ones; the first leads to {first}"


def with_classes(dataset: Dataset, class_order: tuple[str, ...]) -> Dataset:
    """The classes that have a photo left, sorted or in the given order; classes without one are named in the notes.

    raises  PhotosError if fewer than two classes are left
    """
    left = dataset.photos.filter(pl.col("status").is_in((UNOPENED, USED)))
    classes = tuple(sorted(left["label"].drop_nulls().unique().to_list()))
    if not left.height:
        raise PhotosError(
            f"no photos found{_reasons(dataset)}",
            where=dataset.source,
            advice=_where_photos_are(dataset),
        )
    if len(classes) == 1:
        raise PhotosError(
            f"there is only one class with photos: {classes[0]}{_reasons(dataset)}",
            where=dataset.source,
            advice="the folder that holds at least two class folders, each with photos",
        )
    gone = {*dataset.photos["label"].drop_nulls(), *dataset.classes_without_photos} - set(classes)
    # The order was given before anybody knew of which classes no photo can be read.
    order = tuple(name for name in class_order if name not in gone)
    return replace(
        dataset,
        classes=in_order(classes, order, dataset.source),
        classes_without_photos=tuple(sorted(gone)),
    )


def _reasons(dataset: Dataset) -> str:
    """Why so little was usable: the most frequent reason."""
    aside = dataset.set_aside.filter(pl.col("status") != UNOPENED)
    if not aside.height:
        return ""
    reason, number = aside["status"].value_counts(sort=True).row(0)
    return f": {number} of {dataset.photos.height} paths were set aside ({reason})"


def in_order(classes: tuple[str, ...], class_order: tuple[str, ...], source: str) -> tuple[str, ...]:
    """The classes in the order asked for.

    raises  PhotosError if that order does not name each class once
    """
    if not class_order:
        return classes
    if sorted(class_order) != sorted(classes):
        raise PhotosError(
            f"the class order names {', '.join(class_order)}, but the classes are {', '.join(classes)}",
            where=source,
            advice="name each class once",
        )
    return class_order


def _hindrance(place: Path) -> str:
    """What the system says of a place that it cannot look for; nothing of one that is just not there."""
    try:
        os.stat(place)
    except (FileNotFoundError, ValueError):
        return ""
    except OSError as error:
        return f": {error.strerror}"
    return ""


def _similar(place: Path) -> str | None:
    """The name that was probably meant."""
    import difflib

    try:
        names = [each.name for each in place.parent.iterdir()]
    except OSError:
        return None
    close = difflib.get_close_matches(place.name, names, n=1)
    return str(place.parent / close[0]) if close else None
