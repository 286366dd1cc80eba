"""Roboflow's `_classes.csv`: the labels of the photos in a folder without class folders.

filename, daisy, rose
1.jpg, 1, 0
"""

import csv
import os
from dataclasses import dataclass
from pathlib import Path

from ikebana.errors import PhotosError

FILE_NAME = "_classes.csv"
NOT_LISTED = f"not listed in {FILE_NAME}"


@dataclass(frozen=True)
class LabelTable:
    """The labels of the photos in one folder, by file name.

    Attributes:
        reasons: why a listed photo has no label.
        missing: listed photos that do not exist.
    """

    classes: tuple[str, ...]
    labels: dict[str, str]
    reasons: dict[str, str]
    missing: tuple[str, ...]


def has_table(folder: Path) -> bool:
    """Return whether a folder has such a table."""
    return (folder / FILE_NAME).is_file()


def read_table(folder: Path) -> LabelTable:
    """Read the table of a folder.

    Raises:
        PhotosError: the file is no such table.
    """
    file = folder / FILE_NAME
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = [[cell.strip() for cell in row] for row in csv.reader(stream, skipinitialspace=True) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PhotosError(f"this table cannot be read: {error}", where=file, advice="export it again") from None
    header = rows[0] if rows else []
    if len(header) < 2 or header[0].lower() != "filename" or any(len(row) != len(header) for row in rows):
        raise PhotosError(
            f"this is not Roboflow's table of classes; its first line is {', '.join(header) or 'empty'}",
            where=file,
            advice="start it with the line: filename, CLASS, CLASS, …   and give each photo a 1 in one column",
        )
    classes = tuple(header[1:])
    marked: dict[str, set[str]] = {}
    for name, *values in rows[1:]:
        marked.setdefault(name, set()).update(
            label for label, value in zip(classes, values, strict=True) if value not in ("", "0", "0.0")
        )
    labels = {name: next(iter(of_photo)) for name, of_photo in marked.items() if len(of_photo) == 1}
    reasons = {name: _explain(of_photo) for name, of_photo in marked.items() if name not in labels}
    missing = tuple(name for name in marked if not os.path.lexists(folder / name))
    return LabelTable(classes, labels, reasons | {FILE_NAME: "the table of the labels"}, missing)


def _explain(classes: set[str]) -> str:
    if not classes:
        return f"no label in {FILE_NAME}"
    return f"several labels in {FILE_NAME}: {', '.join(sorted(classes))} (multi-label classification is not supported)"
