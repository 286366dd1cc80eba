"""Which photos may be copies of one another: those whose short descriptions are near each other.

A photo is described by its lowest spatial frequencies: the mean of its brightness and of two colour differences, and how
strongly light and dark, and colours, change across it once, twice and three times. Mirroring changes the signs of these
numbers, a quarter turn swaps those across with those down; so their amounts, the larger before the smaller, are the same for
all eight symmetries. Neither step makes two descriptions differ more than before, so no copy is lost by it.

Cutting off sides does change them. So a photo is also described as it would be without them, in 81 windows, three shares for
each side: whatever was cut off up to a tenth, one of them is right to 0.025, and to nothing on a side that is whole. How far
a copy can be from the nearest of them is told by how far the windows are from each other.

Not every photo is laid beside every window of every other. All windows of a photo lie in a ball, and in sixteen smaller ones;
only what is as near to the large ball as a copy can be is held against the small ones, what is near to one of these against the
windows, and what is near to a window also by the signs, which tell how the one was turned.
"""

import itertools
from typing import NamedTuple

import numpy as np

from ikebana.photos.likeness import SYMMETRIES

SIDE = 64  # pixels of the squares that are described
CUTS = (0.0, 0.05, 0.1)  # shares that may be missing on a side
LINES = tuple(itertools.product(CUTS, CUTS))  # what is missing at a line's two ends
CUT_OFF = np.array([(*across, *down) for across in LINES for down in LINES])  # [windows, 4]: left, right, top, bottom
WHOLE = 0  # the window in which nothing is missing
CELLS = np.array(
    [
        np.flatnonzero([all(share in ends for share, ends in zip(window, cell, strict=True)) for window in CUT_OFF])
        for cell in itertools.product(itertools.pairwise(CUTS), repeat=4)
    ]
)  # [cells, 16]: windows at its corners

BANDS = np.array(
    [(0.299, 0.587, 0.114), (0.5, -0.5, 0.0), (0.25, 0.25, -0.5)], np.float32
)  # brightness, two differences
HIGHEST = (3, 1, 1)  # frequency of each band, across and down together
# How much each number of a copy misses that of the nearest window, as a median over 2,000 cropped copies of flowers: levels,
# by band and by the two frequencies, the lower first.
NOISE_OF = (
    {(0, 0): 0.44, (0, 1): 0.36, (0, 2): 0.33, (0, 3): 0.27, (1, 1): 0.25, (1, 2): 0.29},
    {(0, 0): 0.11, (0, 1): 0.09},
    {(0, 0): 0.20, (0, 1): 0.12},
)
# (band, changes down, changes across) of each number, in order
NUMBERS = tuple(
    (band, down, across)
    for band, highest in enumerate(HIGHEST)
    for down in range(highest + 1)
    for across in range(highest + 1 - down)
)
NOISE = np.array([NOISE_OF[band][min(waves), max(waves)] for band, *waves in NUMBERS], np.float32)
# A copy is sought as far from a window as half a step between windows goes, and what people do to colours, in units of noise.
# Of 2,000 copies of flowers, most of them with 0, 0.05 or 0.1 cut off, none was further off than 0.6 of that, of 2,000 copies of
# drawings none than 0.4, of the flowers' own twins, some in other colours, none than 0.9.
STEP, FLOOR = 1.2, 25.0
AMONG = 256  # photos, at most, whose signs are looked at for a photo,
NEAREST = 8  # and of these the candidates: bounds on the time a photo where all are alike
BLOCK = 4096  # photos that are compared at a time
FEW = 256  # photos that are held against all windows at once: the small balls would not spare much
HELD = 8 * BLOCK  # photos of which those in a ball are remembered at once: memory does not grow with their number


class Candidates(NamedTuple):
    """Pairs of photos that are worth a second look."""

    first: np.ndarray  # int64 [pairs]
    second: np.ndarray
    window: np.ndarray  # int64 [pairs]: of the first, in which it may be the second: a row of CUT_OFF
    symmetry: np.ndarray  # int64 [pairs]: which of SYMMETRIES turns the second into the first


def described(squares: np.ndarray, lines: tuple[tuple[float, float], ...] = LINES) -> np.ndarray:
    """Descriptions of photos' windows, signs included: float32 [photos, windows, numbers], in units of noise.

    squares  uint8 [photos, SIDE, SIDE, 3]
    lines    what is missing at the ends of a window, across and down; all of CUT_OFF if it is not said
    """
    bands = np.tensordot(squares.astype(np.float32), BANDS, (3, 1)).transpose(0, 3, 1, 2)
    waves, number = max(HIGHEST) + 1, len(lines)
    weights = np.concatenate([_waves(*ends) for ends in lines])
    found = (weights @ bands @ weights.T).reshape(len(squares), len(BANDS), number, waves, number, waves)
    each = [found[:, band, :, down, :, across] for band, down, across in NUMBERS]  # [photos, lines down, lines across]
    return (np.stack(each, -1) / NOISE).transpose(0, 2, 1, 3).reshape(len(squares), number**2, len(NUMBERS))


def _waves(before: float, behind: float) -> np.ndarray:
    """The cosines that fit into a line without its ends, as weights of its pixels: float32 [frequencies, SIDE].

    Integrated over each pixel's share of the window, so that windows need not end between pixels.
    """
    edges = (np.arange(SIDE + 1) / SIDE).clip(before, 1 - behind)
    places = np.pi * (edges - before) / (1 - before - behind)
    rows = [np.diff(places) / np.pi]
    rows += [np.sqrt(2) * np.diff(np.sin(wave * places)) / (np.pi * wave) for wave in range(1, max(HIGHEST) + 1)]
    return np.stack(rows).astype(np.float32)


def amounts(described: np.ndarray) -> np.ndarray:
    """What the eight symmetries leave as it is. [..., numbers] -> [..., numbers]"""
    numbers = []
    for (band, down, across), place in _PLACE.items():
        one, other = described[..., place], described[..., _PLACE[band, across, down]]
        if down < across:
            numbers.append(np.maximum(np.abs(one), np.abs(other)))
        elif down > across:
            numbers.append(np.minimum(np.abs(one), np.abs(other)))
        else:
            numbers.append(np.abs(one) if down else one)
    return np.stack(numbers, -1)


_PLACE = {number: place for place, number in enumerate(NUMBERS)}


def turned(described: np.ndarray) -> np.ndarray:
    """Descriptions of whole photos as each of SYMMETRIES would make them: [..., numbers] -> [..., symmetries, numbers]."""
    every = []
    for transposed, across, down in SYMMETRIES:
        order = [_PLACE[(band, one, other) if transposed else (band, other, one)] for band, other, one in NUMBERS]
        signs = [(-1) ** (across * changes_across + down * changes_down) for _, changes_down, changes_across in NUMBERS]
        every.append(described[..., order] * np.array(signs, np.float32))
    return np.stack(every, -2)


def lifted(whole: np.ndarray) -> np.ndarray:
    """What `Index` wants to know of photos: float32 [photos, numbers + 1], from descriptions of them as a whole.

    A product with (a, 1) is then (|a|^2 - distance^2) / 2, in the one step that processors do best. Photos that show nothing
    are NaN, and infinitely far from everything.
    """
    numbers = amounts(whole)
    shows = np.isfinite(numbers).all(-1, keepdims=True)
    length = np.where(shows, (numbers**2).sum(-1, keepdims=True) / 2, np.inf)
    return np.concatenate([np.where(shows, numbers, 0), -length], -1)


class Index:
    """The descriptions of whole photos, to find those that are near to a window of another."""

    def __init__(self, whole: np.ndarray, lifted: np.ndarray):
        """Both may lie on disk.

        whole   float32 [photos, numbers]
        lifted  float32 [photos, numbers + 1]
        """
        self.whole, self.lifted = whole, lifted

    def near(self, photos: range, described: np.ndarray) -> Candidates:
        """The photos that are copies of some of them, without sides perhaps, as far as descriptions tell.

        described  float32 [photos of the range, windows, numbers]
        """
        own = np.flatnonzero(np.isfinite(self.lifted[photos.start : photos.stop, -1]))
        within, numbers = radius(described[own]), amounts(described[own])
        large, near = _balls(numbers, within), [[] for _ in own]
        windows = np.concatenate([numbers, -(numbers**2).sum(2, keepdims=True) / 2], 2)
        for start in range(0, len(self.lifted), HELD):
            for one, rows in enumerate(self._inside_large(large, range(start, min(start + HELD, len(self.lifted))))):
                if len(rows) > FEW:
                    rows = self._inside(_balls(numbers[one, CELLS], within[one]), rows)  # noqa: PLW2901
                near[one].append(self._nearest(windows[one], rows, within[one]))
        found = [np.zeros((0, 4), np.int64)]
        for one, parts in enumerate(near):
            first = photos[int(own[one])]
            rows = parts[0] if len(parts) == 1 else self._nearest(windows[one], np.concatenate(parts), within[one])
            if len(rows := rows[rows != first]):
                found.append(self._alike(first, described[own[one]], rows, within[one]))
        return Candidates(*np.concatenate(found).T)

    def _inside_large(self, balls: tuple[np.ndarray, np.ndarray], among: range) -> list[np.ndarray]:
        """For each ball the rows, of some, of the photos in it."""
        centres, least = balls
        pairs = []
        for start in range(among.start, among.stop, BLOCK):
            ball, row = np.nonzero(centres @ self.lifted[start : min(start + BLOCK, among.stop)].T > least)
            pairs.append(np.stack([ball, row + start]))
        ball, rows = np.concatenate(pairs, 1)
        order = ball.argsort(kind="stable")
        return np.split(rows[order], np.searchsorted(ball[order], np.arange(len(centres))))[1:]

    def _inside(self, balls: tuple[np.ndarray, np.ndarray], rows: np.ndarray) -> np.ndarray:
        """Those of the rows that lie in a ball at least."""
        centres, least = balls
        some = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
        return np.concatenate([rows[:0], *(each[(centres @ self.lifted[each].T > least).any(0)] for each in some)])

    def _nearest(self, windows: np.ndarray, rows: np.ndarray, within: float) -> np.ndarray:
        """Those of the rows that are nearest to a window, and near enough.

        windows  float32 [windows, numbers + 1]: lifted as photos are
        """
        numbers, lengths = windows[:, :-1], windows[:, -1:]
        found = [np.zeros(0, np.float32)]
        for start in range(0, len(rows), BLOCK):
            photos = self.lifted[rows[start : start + BLOCK]]
            found.append(
                (numbers @ photos[:, :-1].T + lengths).max(0) + photos[:, -1]
            )  # minus half the squared distance
        near = np.concatenate(found)
        chosen = np.flatnonzero(near > -(within**2) / 2)
        return rows[chosen[(-near[chosen]).argsort(kind="stable")[:AMONG]]]

    def _alike(self, first: int, described: np.ndarray, rows: np.ndarray, within: float) -> np.ndarray:
        """The nearest of the rows, signs and all: int64 [pairs, 4], as `Candidates` has them."""
        whole = turned(self.whole[rows]).reshape(-1, len(NUMBERS))
        squares = (described**2).sum(1)[:, None] + (whole**2).sum(1) - 2 * described @ whole.T
        every = squares.reshape(len(described), len(rows), len(SYMMETRIES)).swapaxes(0, 1)
        every = every.reshape(len(rows), len(described) * len(SYMMETRIES))
        best = every.argmin(1)
        away = every[np.arange(len(rows)), best]
        nearest = away.argsort(kind="stable")[:NEAREST]
        nearest = nearest[away[nearest] < within**2]
        window, symmetry = np.divmod(best[nearest], len(SYMMETRIES))
        return np.stack([np.full(len(nearest), first), rows[nearest], window, symmetry], 1)


def radius(described: np.ndarray) -> np.ndarray:
    """How far from the nearest window a copy of each photo can be: [photos]."""
    places = described.reshape(len(described), *(len(CUTS),) * 4, len(NUMBERS))
    halves = [np.sqrt((np.diff(places, axis=side) ** 2).sum(-1)).mean((1, 2, 3, 4)) / 2 for side in range(1, 5)]
    return FLOOR + STEP * np.sqrt(np.sum(np.square(halves), 0))


def _balls(windows: np.ndarray, within: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Balls around windows, and what a product of their centres with `lifted` photos must exceed if these lie inside.

    windows  float32 [balls, windows, numbers]
    within   how far from a window a copy can be: [balls], or one number
    returns  float32 [balls, numbers + 1], [balls, 1]
    """
    centres = windows.mean(1)
    reach = np.sqrt(((windows - centres[:, None]) ** 2).sum(2).max(1)) + within
    least = ((centres**2).sum(1) - reach**2) / 2
    return np.concatenate([centres, np.ones((len(centres), 1), np.float32)], 1), least[:, None]
