"""Tables of the photos of two classes, and reading them with ikebana."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from ikebana.data import sources
from ikebana.data.dataset import Dataset
from ikebana.errors import PhotosError
from support.images import two_classes

# Path and label of each photo of `two_classes` in the folder `photos`.
ROWS = [(f"photos/{name}", name[0]) for name in two_classes()]


def make_csv(
    separator: str = ",", header: Sequence[str] = ("path", "label"), rows: Sequence[Sequence[str]] = ROWS
) -> str:
    """Write rows as CSV, without quotation marks."""
    return "".join(separator.join(row) + "\n" for row in [header, *rows])


def read_table(folder: Path, text: str | bytes, name: str = "photos.csv") -> Dataset:
    """Read the photos of a table, which is written into a folder first."""
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return sources.read(folder / name)


def get_refusal(folder: Path, text: str | bytes, name: str = "photos.csv") -> PhotosError:
    """Return the error with which ikebana refuses a table."""
    with pytest.raises(PhotosError) as refusal:
        read_table(folder, text, name)
    assert str(refusal.value.where) == str(folder / name)
    return refusal.value


def list_rows(dataset: Dataset) -> list[tuple[str, str]]:
    """List path and label of each row."""
    return list(dataset.photos.select("path", "label").iter_rows())
