"""What could tell a class without looking at its subject: the photos' sizes, files and borders."""

from collections.abc import Mapping

import numpy as np

from ikebana.errors import UnreadablePhoto
from ikebana.photos import pixels as photos
from ikebana.photos.dataset import Dataset
from ikebana.photos.kept import chunks, in_threads

CHUNK = 128  # photos a task
OUTERMOST = slice(0, 2)  # rows of kept pixels that count as border
WITHIN = slice(8, 10)  # and those that they are compared with
CORNER = 8  # pixels at both ends of a side that belong to another one

Facts = Mapping[str, np.ndarray]  # name in words → float [photos, columns]


def of(dataset: Dataset, pixels: np.ndarray, chosen: np.ndarray | None = None) -> Facts:
    """The facts of usable photos, in the dataset's order; files are opened for their headers alone.

    pixels  uint8 [rows of the dataset, side, side, 3]
    chosen  which of the usable photos, int64; all if not given
    """
    used = dataset.used_by_row if chosen is None else dataset.used_by_row[chosen]
    width, height, size = (used[name].to_numpy().astype(float) for name in ("width", "height", "bytes"))
    return {
        "size in pixels": np.stack((width, height, width * height), axis=1),
        "aspect": (width / height)[:, None],
        "file size": size[:, None],
        "bytes a pixel": (size / (width * height))[:, None],
        **_headers(dataset, used["path"].to_list()),
        "border": _borders(pixels, used["row"].to_numpy().astype(np.int64)),
    }


def _headers(dataset: Dataset, paths: list[str]) -> Facts:
    def read(chosen: range) -> list[photos.Header]:
        return [_header(dataset, paths[place]) for place in chosen]

    found = [each for part in in_threads(read, chunks(len(paths), CHUNK)) for each in part]
    return {
        "file type": np.stack([_numbered([each.kind for each in found]), _numbered([each.mode for each in found])], 1),
        "JPEG quality": np.array([[each.compression] for each in found]),
        "marks of a program": _numbered([each.marks for each in found])[:, None],
    }


def _header(dataset: Dataset, path: str) -> photos.Header:
    """The pixels are kept: a file that has gone since then says nothing more."""
    try:
        return photos.header(dataset.file(path))
    except (UnreadablePhoto, OSError):
        return photos.Header("", "", 0.0, "")


def _numbered(words: list[str]) -> np.ndarray:
    """Each word as its place among all of them."""
    places = {word: place for place, word in enumerate(sorted(set(words)))}
    return np.array([places[word] for word in words], float)


def _borders(pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """How even each photo's sides are, and how far they step off from what lies inside: float [photos, 5].

    A frame is even and steps off; what grows at the edge of a photo is neither. Of the four sides the evenest two and the
    steepest two are told, since a squarely cut photo keeps only two of them; and how light the evenest is.
    """

    def look(chosen: range) -> np.ndarray:
        some = pixels[rows[chosen.start : chosen.stop]]
        sides = [some, some[:, ::-1], some.transpose(0, 2, 1, 3), some[:, :, ::-1].transpose(0, 2, 1, 3)]
        told = np.stack([_side(each) for each in sides], axis=1)
        uneven, step = np.sort(told[:, :, 0], axis=1), -np.sort(-told[:, :, 1], axis=1)
        light = np.take_along_axis(told[:, :, 2], told[:, :, 0].argmin(1)[:, None], 1)
        return np.concatenate((uneven[:, :2], step[:, :2], light), axis=1)

    parts = list(in_threads(look, chunks(len(rows), CHUNK)))
    return np.concatenate(parts) if parts else np.zeros((0, 5))


def _side(some: np.ndarray) -> np.ndarray:
    """Of the top side: spread along it, mean step to the rows within, mean light; [photos, 3]."""
    outer, inner = (some[:, rows, CORNER:-CORNER].astype(np.float32).mean(1) for rows in (OUTERMOST, WITHIN))
    return np.stack((outer.std(1).mean(1), np.abs(outer - inner).mean((1, 2)), outer.mean((1, 2))), axis=1)
