"""Photos that show little: blurred, dark, bright or blank, tiny, or of a shape of their own.

Sharpness and light are measured on the kept pixels, on what the network will see. A photo is named if it is both poor by a
fixed limit and far from the others of its collection: in a collection of soft or dark photos, soft or dark is what they are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from ikebana import progress
from ikebana.photos.audit import Finding
from ikebana.photos.dataset import Dataset
from ikebana.photos.kept import chunks, in_threads

CHUNK = 64  # photos a task
EDGE = 0.995  # of the pixels have weaker edges than the sharpest ones, by which a photo is judged: one thing in focus is enough
REACH = 8  # pixels over which a soft edge still rises
GREY, FINE = 16, 16  # a grey level has 16 steps here: 256 parts of a colour, 16 of them a step
GRAIN = GREY  # what rounding to whole levels leaves of a surface without an edge
BLURRED = 0.17  # of sharpness: blurring by 3 to 6 of 240 pixels gave 0.04 to 0.10, flowers have 0.77 in the median
DARK, BRIGHT, BLANK = 48, 208, 8  # grey levels: of the lightest, of the darkest, and between them (5 % left out each)
FAR = 3.0  # spreads from the median of the collection
ENLARGED = 2.0  # times a photo may be enlarged before it is called tiny
STRETCHED = 2.5  # longer by shorter side
MANY = 100  # photos of one kind are one finding

LOOK = "look whether its subject can be made out; keep it only if photos to come are like this"


@dataclass(frozen=True)
class Looks:
    """What was measured of each photo: float64 [photos]."""

    sharpness: (
        np.ndarray
    )  # the steepest edges of a pixel, relative to the steepest over eight: about 1 where sharp, 0.1 where not
    darkest: np.ndarray  # grey level, 0 to 255, that 5 % of the pixels lie below
    lightest: np.ndarray  # that 5 % lie above


def findings(dataset: Dataset, pixels: np.ndarray) -> list[Finding]:
    """The photos that show little, and why.

    pixels  uint8 [rows of the dataset, side, side, 3]
    """
    used = dataset.used_by_row
    paths = used["path"]
    looks = measured(pixels, used["row"].to_numpy().astype(np.int64))
    width, height = (used[name].to_numpy().astype(float) for name in ("width", "height"))
    # Edges of an enlarged photo rise over more pixels than it has itself: that is no blur.
    enlarged = np.maximum(pixels.shape[1] / np.minimum(width, height), 1.0)
    looks = replace(looks, sharpness=looks.sharpness * enlarged)
    return [*_of_light(looks, paths), *_of_shape(width, height, pixels.shape[1], paths)]


def _of_light(looks: Looks, paths: pl.Series) -> Iterator[Finding]:
    blank = looks.lightest - looks.darkest < BLANK
    blurred = _poor(np.log(looks.sharpness), np.log(BLURRED)) & ~blank
    dark = _poor(np.log1p(looks.lightest), np.log1p(DARK)) & ~blank
    bright = _poor(np.log1p(255 - looks.darkest), np.log1p(255 - BRIGHT)) & ~blank
    usual = np.median(looks.sharpness) if len(paths) else 0.0
    sharp, light, dim = looks.sharpness, looks.lightest, looks.darkest
    yield from _named("blank", blank, paths, lambda _: "one shade all over", "remove it, or mend the file")
    yield from _named(
        "blurred", blurred, paths, lambda row: f"sharpness {sharp[row]:.2f}; the median is {usual:.2f}", LOOK
    )
    yield from _named("dark", dark, paths, lambda row: f"95 % of it is darker than {light[row]:.0f} of 255", LOOK)
    yield from _named("bright", bright, paths, lambda row: f"95 % of it is lighter than {dim[row]:.0f} of 255", LOOK)


def _of_shape(width: np.ndarray, height: np.ndarray, side: int, paths: pl.Series) -> Iterator[Finding]:
    shorter, aspect = np.minimum(width, height), np.maximum(width / height, height / width)

    def sizes(row: int) -> str:
        return f"{width[row]:.0f} x {height[row]:.0f} pixels"

    larger = f"find it in its first size: enlarged to {side} pixels it shows no more"
    yield from _named("tiny", shorter * ENLARGED < side, paths, sizes, larger)
    long = (aspect > STRETCHED) & (_spreads(np.log(aspect)) > FAR)
    yield from _named("aspect", long, paths, sizes, "cut out its subject: a network is shown squares")


def measured(pixels: np.ndarray, rows: np.ndarray) -> Looks:
    """Sharpness and light of some rows of the kept pixels, a few photos at a time."""

    def look(chosen: range) -> np.ndarray:
        return np.array([_look(pixels[rows[place]]) for place in chosen])

    with progress.stage("sharpness, light", len(rows)) as bar:
        parts = []
        for part in in_threads(look, chunks(len(rows), CHUNK)):
            parts.append(part)
            bar.advance(len(part))
    found = np.concatenate(parts) if parts else np.zeros((0, 3))
    return Looks(*found.T)


def _look(photo: np.ndarray) -> tuple[float, float, float]:
    """Sharpness, darkest and lightest grey; on whole numbers, since counting them is faster than sorting."""
    wide = photo.astype(np.uint16)
    grey = ((wide[..., 0] * 77 + wide[..., 1] * 150 + wide[..., 2] * 29) // FINE).astype(np.int16)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    some = grey[::2]  # every other row knows as much of what is large
    darkest, lightest = _level(some, 0.05), _level(some, 0.95)
    # A photo blurred so much that nothing rises within eight pixels still rises from its darkest to its lightest part.
    rise = max(_level(np.abs(some[:, REACH:] - some[:, :-REACH]), EDGE), (lightest - darkest) / 2)
    sharpness = (_level(np.abs(4 * grey[1:-1, 1:-1] - around), EDGE) + GRAIN) / (rise + REACH * GRAIN)
    return sharpness, darkest / GREY, lightest / GREY


def _level(values: np.ndarray, share: float) -> float:
    """The whole number that this share of the values does not exceed."""
    counted = np.cumsum(np.bincount(values.ravel()))
    return float(np.searchsorted(counted, share * values.size))


def _poor(values: np.ndarray, limit: float) -> np.ndarray:
    """Which are below the limit and far below the others."""
    return (values < limit) & (_spreads(-values) > FAR)


def _spreads(values: np.ndarray) -> np.ndarray:
    """How many spreads above the median, of that side of the collection that holds no outliers."""
    lower, middle = np.percentile(values, (15.9, 50)) if len(values) else (0.0, 0.0)
    return (values - middle) / max(float(middle - lower), 0.02)


def _named(
    kind: str, chosen: np.ndarray, paths: pl.Series, evidence: Callable[[int], str], advice: str
) -> Iterator[Finding]:
    """A finding for each photo; one for all of them where they are many."""
    rows = np.flatnonzero(chosen)
    if len(rows) > MANY:
        told = f"{len(rows)} photos, {evidence(int(rows[0]))} for one"
        yield Finding(kind, "note", tuple(paths[rows]), told, advice)
        return
    for row in rows:
        yield Finding(kind, "note", (paths[int(row)],), evidence(int(row)), advice)
