"""Properties that divide the test photos into groups to compare."""

import numpy as np
import polars as pl

from ikebana.auditing import image_quality
from ikebana.auditing.file_facts import read_header
from ikebana.data.dataset import EXTRA_PREFIX, Dataset
from ikebana.data.pixel_cache import make_chunks
from ikebana.data.verified_array import Pixels
from ikebana.evaluation.slices import Properties
from ikebana.system.threads import map_in_threads

# Photos per task that reads headers.
CHUNK_PHOTOS = 128


def collect_properties(dataset: Dataset, pixels: Pixels, rows: np.ndarray) -> Properties:
    """Collect the measured properties of photos, and the columns of their table.

    Measured are brightness, sharpness, size, aspect ratio and file type.

    Args:
        dataset: opened.
        pixels: uint8 [rows of the dataset, image_size, image_size, 3].
        rows: int64 [photos]: rows of the dataset.
    """
    photos = dataset.photos[rows]
    width, height = (photos[name].to_numpy().astype(float) for name in ("width", "height"))
    statistics = image_quality.correct_enlargement(image_quality.measure(pixels, rows), width, height, pixels.shape[1])
    properties = {
        "brightness": (statistics.darkest + statistics.lightest) / 2,
        "sharpness": statistics.sharpness,
        "shorter side": np.minimum(width, height),
        "aspect ratio": width / height,
        "file type": _read_file_types(dataset, photos["path"].to_list()),
    }
    for column in (column for column in photos.columns if column.startswith(EXTRA_PREFIX)):
        name = column.removeprefix(EXTRA_PREFIX)
        properties[name if name not in properties else column] = _to_array(photos[column])
    return properties


def _read_file_types(dataset: Dataset, paths: list[str]) -> np.ndarray:
    """Read each file's type: str [photos], empty if the file is gone."""

    def read(chunk: range) -> list[str]:
        return [read_header(dataset, paths[place]).format for place in chunk]

    chunks = make_chunks(len(paths), CHUNK_PHOTOS)
    return np.array([file_type for part in map_in_threads(read, chunks) for file_type in part], str)


def _to_array(column: pl.Series) -> np.ndarray:
    """Convert a column to float or str; missing values become NaN or an empty text."""
    if column.dtype == pl.String:
        return np.array(column.fill_null("").to_list(), str)
    return column.cast(pl.Float64).fill_null(np.nan).to_numpy()
