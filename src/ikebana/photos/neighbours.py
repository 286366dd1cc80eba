"""Which photos may be copies of one another, without comparing all pairs: the nearest neighbours of short descriptions.

A photo is described by its lowest spatial frequencies: the mean of its brightness and of two colour differences, and how
strongly light and dark, and colours, change across it once, twice and three times. Mirroring only changes the signs of
these numbers, a quarter turn swaps those across with those down; so their amounts, the larger before the smaller, are the same
for all eight symmetries. Neither step makes two descriptions differ more than before, so no copy is lost by it.

Cutting off sides does change them. So a photo is also described as it would be without them, in 16 windows, two shares for
each side: whatever was cut off up to a tenth, one of them is right to 0.025.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SIDE = 64  # pixels of the squares that are described
CUTS = (0.025, 0.075)  # shares that may be missing on a side
LINES = ((0.0, 0.0), *itertools.product(CUTS, CUTS))  # what is missing at a line's two ends
# (left and right, top and bottom) as places in LINES: the whole photo first, then its windows.
WINDOWS = ((0, 0), *((across, down) for down in range(1, 5) for across in range(1, 5)))
CUT_OFF = np.array(
    [(*LINES[across], *LINES[down]) for across, down in WINDOWS]
)  # [windows, 4]: left, right, top, bottom

BANDS = np.array(
    [(0.299, 0.587, 0.114), (0.5, -0.5, 0.0), (0.25, 0.25, -0.5)], np.float32
)  # brightness, two differences
HIGHEST = (3, 1, 1)  # frequency of each band, across and down together
# How much each number of a copy misses those of the nearest window, as a median over 600 cropped copies of flowers: levels.
NOISE = np.array(
    [1.18, 1.02, 0.77, 0.86, 0.82, 0.70, 0.53, 0.56, 0.62, 0.56, 0.23, 0.21, 0.19, 0.38, 0.29, 0.23], np.float32
)
RADIUS = 22.0  # in units of that noise: held 600 of 600 copies with random sides cut off, 597 with 0 or 0.1
NEAREST = 8  # candidates a window, at most: a bound on the time a photo where all are alike
NUMBERS = len(NOISE)
PIECE = 4096  # descriptions moved at a time


class Candidates(NamedTuple):
    """Pairs of photos that are worth a second look."""

    first: np.ndarray  # int64 [pairs]
    second: np.ndarray
    window: np.ndarray  # int64 [pairs]: of the first, in which it may be the second: a row of CUT_OFF


def described(squares: np.ndarray) -> np.ndarray:
    """Descriptions of whole photos and their windows: float32 [photos, windows, numbers], in units of noise.

    squares  uint8 [photos, SIDE, SIDE, 3]
    """
    bands = np.tensordot(squares.astype(np.float32), BANDS, (3, 1)).transpose(0, 3, 1, 2)
    lines = np.concatenate([_waves(*ends) for ends in LINES])
    waves = HIGHEST[0] + 1
    found = (lines @ bands @ lines.T).reshape(len(squares), 3, len(LINES), waves, len(LINES), waves)
    across, down = np.array(WINDOWS).T
    each = found[:, :, down, :, across, :]  # [windows, photos, band, down, across]
    return (_amounts(each).transpose(1, 0, 2) / NOISE).astype(np.float32)


def _waves(before: float, behind: float) -> np.ndarray:
    """The cosines that fit into a line without its ends, as weights of its pixels: float32 [frequencies, SIDE].

    Integrated over each pixel's share of the window, so that windows need not end between pixels.
    """
    edges = (np.arange(SIDE + 1) / SIDE).clip(before, 1 - behind)
    places = np.pi * (edges - before) / (1 - before - behind)
    rows = [np.diff(places) / np.pi]
    rows += [np.sqrt(2) * np.diff(np.sin(wave * places)) / (np.pi * wave) for wave in range(1, HIGHEST[0] + 1)]
    return np.stack(rows).astype(np.float32)


def _amounts(waves: np.ndarray) -> np.ndarray:
    """What the eight symmetries leave as it is. [..., band, down, across] -> [..., numbers]"""
    numbers = []
    for band, highest in enumerate(HIGHEST):
        for one in range(highest + 1):
            for other in range(one, highest + 1 - one):
                first, second = np.abs(waves[..., band, one, other]), np.abs(waves[..., band, other, one])
                if one == other:
                    numbers.append(waves[..., band, 0, 0] if one == 0 else first)
                else:
                    numbers += [np.maximum(first, second), np.minimum(first, second)]
    return np.stack(numbers, axis=-1)


class Index:
    """The descriptions of whole photos, to find those near a description in about the logarithm of their number."""

    def __init__(self, whole: np.ndarray):
        """whole  float64 [photos, numbers]; photos that show nothing are NaN and never found

        The tree stands on this array, which may lie on disk; those that are never found are taken out of it.
        """
        from scipy.spatial import KDTree

        self.photos = np.flatnonzero(np.isfinite(whole[:, 0]))
        for start in range(0, len(self.photos), PIECE):
            some = self.photos[start : start + PIECE]
            whole[start : start + len(some)] = whole[some]
        self.tree = KDTree(whole[: len(self.photos)], copy_data=False)

    def near(self, photos: range, described: np.ndarray) -> Candidates:
        """The photos that some of them may be copies of, or they of those.

        described  float32 [photos of the range, windows, numbers]
        """
        found: dict[tuple[int, int], tuple[float, int]] = {}
        for first, second, window, distance in self._nearest(photos, described):
            if (window or first < second) and distance < found.get((first, second), (np.inf, 0))[0]:
                found[first, second] = distance, window
        rows = np.array([(*pair, window) for pair, (_, window) in found.items()], np.int64).reshape(-1, 3)
        return Candidates(*rows.T)

    def _nearest(self, photos: range, described: np.ndarray) -> Iterator[tuple[int, int, int, float]]:
        own = np.flatnonzero(np.isfinite(described).all((1, 2)))
        if not len(own) or not len(self.photos):
            return
        nearest = max(2, min(NEAREST + 1, len(self.photos)))  # the photo itself is one of them
        for window in range(described.shape[1]):
            found = self.tree.query(described[own, window], k=nearest, distance_upper_bound=RADIUS)
            distances, places = np.asarray(found[0]), np.asarray(found[1])
            for row, number in zip(*np.nonzero(np.isfinite(distances)), strict=True):
                first, second = photos[int(own[row])], int(self.photos[places[row, number]])
                if first != second:
                    yield first, second, window, float(distances[row, number])
