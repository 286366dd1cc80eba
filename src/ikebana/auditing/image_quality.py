"""Checks of each image: blurry, dark, bright or blank, low resolution, unusual aspect ratio.

Sharpness and brightness come from the pixel cache, which is what the network sees. A photo is
reported only if it passes a fixed limit and is an outlier in its collection. If all photos are
soft or dark, that is what the collection is like.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from ikebana.auditing.findings import Finding
from ikebana.data.dataset import Dataset
from ikebana.data.pixel_cache import make_chunks
from ikebana.data.verified_array import Pixels
from ikebana.system import progress
from ikebana.system.threads import map_in_threads

CHUNK_PHOTOS = 64
# Only the sharpest 0.5% of the pixels count: one object in focus is enough.
SHARPEST_QUANTILE = 0.995
# Pixels over which the edge of a blurred photo still rises.
EDGE_PIXELS = 8
# Steps per grey level, and units of the weighted RGB sum (256 per level) per step.
STEPS_PER_LEVEL, UNITS_PER_STEP = 16, 16
# Rounding to whole levels leaves this much difference in a surface without an edge.
ROUNDING_NOISE = STEPS_PER_LEVEL
# Blurring by 3 to 6 of 240 pixels gave 0.04 to 0.10; the median of flower photos is 0.77.
MAX_BLURRED_SHARPNESS = 0.17
# Grey levels of the lightest and the darkest pixel, and their difference (5% cut off each).
MAX_DARK_LEVEL, MIN_BRIGHT_LEVEL, MIN_CONTRAST = 48, 208, 8
MIN_OUTLIER_SCORE = 3.0
# Enlargement from the file to the network's input.
MAX_ENLARGEMENT = 2.0
# Longer side divided by shorter side.
MAX_ASPECT_RATIO = 2.5
# More photos of one kind than this become one finding.
MAX_FINDINGS_PER_KIND = 100

REVIEW_ADVICE = "check that its subject is recognisable; keep it only if the photos to classify will be like it"


@dataclass(frozen=True)
class ImageStatistics:
    """Measurements per photo: float64 [photos] each.

    `sharpness` is the steepest edge over one pixel, relative to the steepest over eight: about 1
    if sharp, 0.1 if blurred. `darkest` and `lightest` are the 5th and 95th percentile of the grey
    levels, 0 to 255.
    """

    sharpness: np.ndarray
    darkest: np.ndarray
    lightest: np.ndarray


def check_image_quality(dataset: Dataset, pixels: Pixels) -> list[Finding]:
    """Report photos of poor image quality.

    Args:
        dataset: opened.
        pixels: uint8 [rows of the dataset, image_size, image_size, 3].
    """
    used = dataset.used_photos_with_row
    paths = used["path"]
    statistics = measure(pixels, used["row"].to_numpy().astype(np.int64))
    width, height = (used[name].to_numpy().astype(float) for name in ("width", "height"))
    statistics = correct_enlargement(statistics, width, height, pixels.shape[1])
    return [*_check_brightness(statistics, paths), *_check_size(width, height, pixels.shape[1], paths)]


def _check_brightness(statistics: ImageStatistics, paths: pl.Series) -> Iterator[Finding]:
    sharpness, darkest, lightest = statistics.sharpness, statistics.darkest, statistics.lightest
    blank = lightest - darkest < MIN_CONTRAST
    blurred = _is_low_outlier(np.log(sharpness), np.log(MAX_BLURRED_SHARPNESS)) & ~blank
    dark = _is_low_outlier(np.log1p(lightest), np.log1p(MAX_DARK_LEVEL)) & ~blank
    bright = _is_low_outlier(np.log1p(255 - darkest), np.log1p(255 - MIN_BRIGHT_LEVEL)) & ~blank
    median = np.median(sharpness) if len(paths) else 0.0
    yield from _report(
        "blank", blank, paths, lambda _: "almost the same grey level everywhere", "remove it, or repair the file"
    )
    for kind, is_poor, describe in (
        ("blurry", blurred, lambda row: f"sharpness {sharpness[row]:.2f} (median of all photos {median:.2f})"),
        ("dark", dark, lambda row: f"95% of its pixels are darker than {lightest[row]:.0f} of 255"),
        ("bright", bright, lambda row: f"95% of its pixels are lighter than {darkest[row]:.0f} of 255"),
    ):
        yield from _report(kind, is_poor, paths, describe, REVIEW_ADVICE)


def _check_size(width: np.ndarray, height: np.ndarray, image_size: int, paths: pl.Series) -> Iterator[Finding]:
    shorter, aspect = np.minimum(width, height), np.maximum(width / height, height / width)

    def describe(row: int) -> str:
        return f"{width[row]:.0f} x {height[row]:.0f} pixels"

    advice = f"replace it with a larger version: enlarging it to {image_size} pixels adds no detail"
    yield from _report("low_resolution", shorter * MAX_ENLARGEMENT < image_size, paths, describe, advice)
    stretched = (aspect > MAX_ASPECT_RATIO) & (_outlier_scores(np.log(aspect)) > MIN_OUTLIER_SCORE)
    yield from _report(
        "odd_aspect_ratio",
        stretched,
        paths,
        describe,
        "crop the file to its subject in an image editor: networks take square images",
    )


def correct_enlargement(
    statistics: ImageStatistics, width: np.ndarray, height: np.ndarray, image_size: int
) -> ImageStatistics:
    """Correct the sharpness of photos that were enlarged to the image size.

    Edges of an enlarged photo rise over more pixels than the file has. That is no blur.

    Args:
        width, height: float [photos], of the files in pixels.
    """
    enlargement = np.maximum(image_size / np.minimum(width, height), 1.0)
    return replace(statistics, sharpness=statistics.sharpness * enlargement)


def measure(pixels: Pixels, rows: np.ndarray) -> ImageStatistics:
    """Measure sharpness and brightness of some rows of the pixel cache, chunk by chunk.

    Args:
        pixels: uint8 [all rows, image_size, image_size, 3].
        rows: int64 [photos].
    """

    def measure_chunk(chunk: range) -> np.ndarray:
        return np.array([_measure_photo(pixels[rows[place]]) for place in chunk])

    with progress.stage("check quality", len(rows)) as bar:
        parts = []
        for part in map_in_threads(measure_chunk, make_chunks(len(rows), CHUNK_PHOTOS)):
            parts.append(part)
            bar.advance(len(part))
    values = np.concatenate(parts) if parts else np.zeros((0, 3))
    return ImageStatistics(*values.T)


def _measure_photo(photo: np.ndarray) -> tuple[float, float, float]:
    """Return sharpness, darkest and lightest grey level.

    Integers, because a histogram is faster than sorting.
    """
    rgb = photo.astype(np.uint16)
    grey = ((rgb[..., 0] * 77 + rgb[..., 1] * 150 + rgb[..., 2] * 29) // UNITS_PER_STEP).astype(np.int16)
    neighbours = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    # Every other row is enough to measure large structures.
    sampled = grey[::2]
    darkest, lightest = _quantile(sampled, 0.05), _quantile(sampled, 0.95)
    # Even if nothing rises within eight pixels, a blurred photo rises from darkest to lightest.
    rise = np.abs(sampled[:, EDGE_PIXELS:] - sampled[:, :-EDGE_PIXELS])
    steepest = max(_quantile(rise, SHARPEST_QUANTILE), (lightest - darkest) / 2)
    edge = _quantile(np.abs(4 * grey[1:-1, 1:-1] - neighbours), SHARPEST_QUANTILE)
    sharpness = (edge + ROUNDING_NOISE) / (steepest + EDGE_PIXELS * ROUNDING_NOISE)
    return sharpness, darkest / STEPS_PER_LEVEL, lightest / STEPS_PER_LEVEL


def _quantile(values: np.ndarray, share: float) -> float:
    """Return the integer that this share of the values does not exceed."""
    cumulative = np.cumsum(np.bincount(values.ravel()))
    return float(np.searchsorted(cumulative, share * values.size))


def _is_low_outlier(values: np.ndarray, limit: float) -> np.ndarray:
    """Return which values are below the limit and far below the others: bool [photos]."""
    return (values < limit) & (_outlier_scores(-values) > MIN_OUTLIER_SCORE)


def _outlier_scores(values: np.ndarray) -> np.ndarray:
    """Return robust z-scores; the spread is that of the lower side, which has no outliers."""
    lower, median = np.percentile(values, (15.9, 50)) if len(values) else (0.0, 0.0)
    return (values - median) / max(float(median - lower), 0.02)


def _report(
    kind: str, is_poor: np.ndarray, paths: pl.Series, describe: Callable[[int], str], advice: str
) -> Iterator[Finding]:
    """Yield one finding per photo, or one for all if there are many."""
    rows = np.flatnonzero(is_poor)
    if len(rows) > MAX_FINDINGS_PER_KIND:
        evidence = f"{len(rows)} photos, for example: {describe(int(rows[0]))}"
        yield Finding(kind, "note", tuple(paths[rows]), evidence, advice)
        return
    for row in rows:
        yield Finding(kind, "note", (paths[int(row)],), describe(int(row)), advice)
