"""Facts that may reveal a class without its subject: image sizes, file properties, borders."""

from collections.abc import Mapping

import numpy as np

from ikebana.data import decoding as photos
from ikebana.data.dataset import Dataset
from ikebana.data.pixel_cache import make_chunks
from ikebana.data.verified_array import Pixels
from ikebana.errors import UnreadablePhoto
from ikebana.system.threads import map_in_threads

CHUNK_PHOTOS = 128
# Rows of cached pixels that count as border, and the inner rows they are compared with.
BORDER_ROWS = slice(0, 2)
INNER_ROWS = slice(8, 10)
# Pixels at both ends of a side that belong to the adjacent side.
CORNER_PIXELS = 8

# Readable name → float [photos, columns].
Facts = Mapping[str, np.ndarray]


def extract_file_facts(dataset: Dataset, pixels: Pixels, selection: np.ndarray | None = None) -> Facts:
    """Extract the facts of usable photos, in the dataset's order; only file headers are read.

    Args:
        dataset: opened.
        pixels: uint8 [rows of the dataset, image_size, image_size, 3].
        selection: int64, positions among the usable photos; None for all.
    """
    used = dataset.used_photos_with_row if selection is None else dataset.used_photos_with_row[selection]
    width, height, size = (used[name].to_numpy().astype(float) for name in ("width", "height", "bytes"))
    return {
        "size in pixels": np.stack((width, height, width * height), axis=1),
        "aspect ratio": (width / height)[:, None],
        "file size": size[:, None],
        "bytes per pixel": (size / (width * height))[:, None],
        **_read_headers(dataset, used["path"].to_list()),
        "border": _measure_borders(pixels, used["row"].to_numpy().astype(np.int64)),
    }


def _read_headers(dataset: Dataset, paths: list[str]) -> Facts:
    def read(chunk: range) -> list[photos.Header]:
        return [read_header(dataset, paths[place]) for place in chunk]

    headers = [header for part in map_in_threads(read, make_chunks(len(paths), CHUNK_PHOTOS)) for header in part]
    kinds = _encode([header.format for header in headers])
    modes = _encode([header.mode for header in headers])
    return {
        "file type": np.stack([kinds, modes], 1),
        "JPEG quality": np.array([[header.mean_quantisation] for header in headers]),
        "metadata markers": _encode([header.markers for header in headers])[:, None],
    }


def read_header(dataset: Dataset, path: str) -> photos.Header:
    """Return a photo's header.

    It is empty if the file has disappeared since it was cached.
    """
    try:
        with dataset.locate(path).open() as stream:
            return photos.read_header(stream)
    except (UnreadablePhoto, OSError):
        return photos.Header("", "", 0.0, "")


def _encode(words: list[str]) -> np.ndarray:
    """Encode each word as its index among the sorted distinct words."""
    indices = {word: index for index, word in enumerate(sorted(set(words)))}
    return np.array([indices[word] for word in words], float)


def _measure_borders(pixels: Pixels, rows: np.ndarray) -> np.ndarray:
    """Measure how uniform each photo's sides are, and how they contrast with the inside.

    A frame is uniform and contrasts; a subject at the edge of a photo does neither. Only the two
    most uniform and the two most contrasting sides count, because a square crop keeps only two
    sides of a frame.

    Returns:
        float [photos, 5]: two spreads, two contrasts, brightness of the most uniform side.
    """

    def measure(chunk: range) -> np.ndarray:
        images = pixels[rows[chunk.start : chunk.stop]]
        turned = [images, images[:, ::-1], images.transpose(0, 2, 1, 3), images[:, :, ::-1].transpose(0, 2, 1, 3)]
        sides = np.stack([_measure_top_side(view) for view in turned], axis=1)
        spread, contrast = np.sort(sides[:, :, 0], axis=1), -np.sort(-sides[:, :, 1], axis=1)
        brightness = np.take_along_axis(sides[:, :, 2], sides[:, :, 0].argmin(1)[:, None], 1)
        return np.concatenate((spread[:, :2], contrast[:, :2], brightness), axis=1)

    parts = list(map_in_threads(measure, make_chunks(len(rows), CHUNK_PHOTOS)))
    return np.concatenate(parts) if parts else np.zeros((0, 5))


def _measure_top_side(images: np.ndarray) -> np.ndarray:
    """Measure the top side of each photo.

    Returns:
        [photos, 3]: spread along the side, mean contrast to the inner rows, mean brightness.
    """
    outer, inner = (
        images[:, rows, CORNER_PIXELS:-CORNER_PIXELS].astype(np.float32).mean(1) for rows in (BORDER_ROWS, INNER_ROWS)
    )
    return np.stack((outer.std(1).mean(1), np.abs(outer - inner).mean((1, 2)), outer.mean((1, 2))), axis=1)
