"""Candidate pairs for near-duplicates: photos whose short descriptions are close.

A description holds a photo's lowest spatial frequencies: the mean of brightness and of two colour
differences, and their cosine coefficients of frequency one to three. Mirroring flips signs, and a
quarter turn swaps horizontal and vertical coefficients. So their absolute values, sorted per swapped
pair, are invariant under all eight symmetries. Neither step increases a distance, so no copy is lost.

Cropping does change a description. So a photo is also described without some of its edges, in 81
windows: three crop shares per side. For any crop up to a tenth per side, one window is accurate
to 0.025, and exact on an uncropped side. The distances between windows bound a copy's distance from
the nearest one.

To save comparisons, all windows of a photo are covered by one large ball and by sixteen smaller ones.
Photos inside the large ball are compared with the small balls, those inside one with the windows,
and the nearest by their signs, which reveal the symmetry.
"""

import itertools
from typing import NamedTuple

import numpy as np

from ikebana.data.duplicates.similarity import SYMMETRIES

# Pixels of a side of the described squares.
IMAGE_SIZE = 64
# Shares that may be missing on a side.
CROP_SHARES = (0.0, 0.05, 0.1)
# Missing shares at the two ends of an axis.
AXIS_CROPS = tuple(itertools.product(CROP_SHARES, CROP_SHARES))
# [windows, 4]: left, right, top, bottom.
WINDOW_CROPS = np.array([(*across, *down) for across in AXIS_CROPS for down in AXIS_CROPS])
# The window in which nothing is missing.
UNCROPPED_WINDOW = 0
# [cells, 16]: the windows at a cell's corners.
CELLS = np.array(
    [
        np.flatnonzero(
            [all(share in ends for share, ends in zip(window, cell, strict=True)) for window in WINDOW_CROPS]
        )
        for cell in itertools.product(itertools.pairwise(CROP_SHARES), repeat=4)
    ]
)

# Brightness and two colour differences.
COLOUR_BANDS = np.array([(0.299, 0.587, 0.114), (0.5, -0.5, 0.0), (0.25, 0.25, -0.5)], np.float32)
# Highest frequency of each band, horizontal and vertical added.
MAX_FREQUENCIES = (3, 1, 1)
# Median error of each coefficient of a copy against the nearest window, over 2,000 cropped copies
# of flowers, in levels; per band and by the two frequencies, the lower first.
NOISE_LEVELS = (
    {(0, 0): 0.44, (0, 1): 0.36, (0, 2): 0.33, (0, 3): 0.27, (1, 1): 0.25, (1, 2): 0.29},
    {(0, 0): 0.11, (0, 1): 0.09},
    {(0, 0): 0.20, (0, 1): 0.12},
)
# (band, vertical frequency, horizontal frequency) of each coefficient, in order.
COEFFICIENTS = tuple(
    (band, down, across)
    for band, highest in enumerate(MAX_FREQUENCIES)
    for down in range(highest + 1)
    for across in range(highest + 1 - down)
)
NOISE = np.array([NOISE_LEVELS[band][min(waves), max(waves)] for band, *waves in COEFFICIENTS], np.float32)
# The search radius: a factor on half a step between windows, plus a margin for changed colours in
# units of noise. The farthest copy lay at 0.6 of it for 2,000 copies of flowers, most of them with
# 0, 0.05 or 0.1 cropped; at 0.4 for 2,000 copies of drawings; at 0.9 for the flowers' real
# near-duplicates, some of them recoloured.
RADIUS_FACTOR, RADIUS_MARGIN = 1.2, 25.0
# Photos per photo whose signs are compared, and the candidates among them. Both bound the time per
# photo where all photos are similar.
MAX_SIGN_COMPARISONS = 256
MAX_CANDIDATES_PER_PHOTO = 8
# Photos compared at a time.
BLOCK_PHOTOS = 4096
# Up to this many photos are compared with all windows directly; small balls would save little.
MAX_DIRECT_PHOTOS = 256
# Photos between two reductions to the nearest, so that memory does not grow with their number.
MAX_PENDING_PHOTOS = 8 * BLOCK_PHOTOS


class Candidates(NamedTuple):
    """Pairs of photos to compare pixel by pixel."""

    # int64 [pairs].
    first: np.ndarray
    second: np.ndarray
    # int64 [pairs]: the row of WINDOW_CROPS whose window of the first may be the second.
    window: np.ndarray
    # int64 [pairs]: which of SYMMETRIES turns the second into the first.
    symmetry: np.ndarray


def describe_photos(squares: np.ndarray, axis_crops: tuple[tuple[float, float], ...] = AXIS_CROPS) -> np.ndarray:
    """Describe the windows of photos, signs included.

    Args:
        squares: uint8 [photos, IMAGE_SIZE, IMAGE_SIZE, 3].
        axis_crops: missing shares at the ends of an axis, for both axes.
    Returns:
        float32 [photos, windows, coefficients], in units of noise.
    """
    bands = np.tensordot(squares.astype(np.float32), COLOUR_BANDS, (3, 1)).transpose(0, 3, 1, 2)
    n_waves, n_crops = max(MAX_FREQUENCIES) + 1, len(axis_crops)
    weights = np.concatenate([_compute_cosines(*ends) for ends in axis_crops])
    products = (weights @ bands @ weights.T).reshape(
        len(squares), len(COLOUR_BANDS), n_crops, n_waves, n_crops, n_waves
    )
    # Each is [photos, vertical crops, horizontal crops].
    coefficients = [products[:, band, :, down, :, across] for band, down, across in COEFFICIENTS]
    windows = (np.stack(coefficients, -1) / NOISE).transpose(0, 2, 1, 3)
    return windows.reshape(len(squares), n_crops**2, len(COEFFICIENTS))


def _compute_cosines(before: float, after: float) -> np.ndarray:
    """Compute the cosines of a cropped axis as weights: float32 [frequencies, IMAGE_SIZE].

    Integrated over each pixel's share of the window, so that windows may end inside pixels.
    """
    edges = (np.arange(IMAGE_SIZE + 1) / IMAGE_SIZE).clip(before, 1 - after)
    phases = np.pi * (edges - before) / (1 - before - after)
    rows = [np.diff(phases) / np.pi]
    rows += [
        np.sqrt(2) * np.diff(np.sin(wave * phases)) / (np.pi * wave) for wave in range(1, max(MAX_FREQUENCIES) + 1)
    ]
    return np.stack(rows).astype(np.float32)


def compute_invariants(descriptions: np.ndarray) -> np.ndarray:
    """Compute what all eight symmetries preserve: [..., coefficients] -> [..., coefficients]."""
    invariants = []
    for (band, down, across), position in _POSITIONS.items():
        value, swapped = descriptions[..., position], descriptions[..., _POSITIONS[band, across, down]]
        if down < across:
            invariants.append(np.maximum(np.abs(value), np.abs(swapped)))
        elif down > across:
            invariants.append(np.minimum(np.abs(value), np.abs(swapped)))
        else:
            invariants.append(np.abs(value) if down else value)
    return np.stack(invariants, -1)


_POSITIONS = {coefficient: position for position, coefficient in enumerate(COEFFICIENTS)}


def apply_symmetries(descriptions: np.ndarray) -> np.ndarray:
    """Apply each of SYMMETRIES: [..., coefficients] -> [..., symmetries, coefficients]."""
    variants = []
    for transposed, mirror_across, mirror_down in SYMMETRIES:
        order = [
            _POSITIONS[(band, across, down) if transposed else (band, down, across)]
            for band, down, across in COEFFICIENTS
        ]
        signs = [(-1) ** (mirror_across * across + mirror_down * down) for _, down, across in COEFFICIENTS]
        variants.append(descriptions[..., order] * np.array(signs, np.float32))
    return np.stack(variants, -2)


def lift_descriptions(uncropped: np.ndarray) -> np.ndarray:
    """Append minus half the squared norm to the invariants of uncropped photos.

    The product with (a, 1) is then (|a|^2 - distance^2) / 2: distances by matrix multiplication.
    Photos without content are NaN, and infinitely far from all others.

    Args:
        uncropped: float32 [photos, coefficients].
    Returns:
        float32 [photos, coefficients + 1].
    """
    invariants = compute_invariants(uncropped)
    has_content = np.isfinite(invariants).all(-1, keepdims=True)
    half_norms = np.where(has_content, (invariants**2).sum(-1, keepdims=True) / 2, np.inf)
    return np.concatenate([np.where(has_content, invariants, 0), -half_norms], -1)


class CandidateIndex:
    """Descriptions of uncropped photos, searched for those near a window of another photo.

    Both arrays may be memory-mapped.

    Args:
        uncropped: float32 [photos, coefficients].
        lifted: float32 [photos, coefficients + 1], as `lift_descriptions` returns them.
    """

    def __init__(self, uncropped: np.ndarray, lifted: np.ndarray):
        self.uncropped, self.lifted = uncropped, lifted

    def find_candidates(self, photos: range, descriptions: np.ndarray) -> Candidates:
        """Find the photos that may be copies, perhaps cropped, of some photos.

        Args:
            descriptions: float32 [photos of the range, windows, coefficients].
        """
        rows_with_content = np.flatnonzero(np.isfinite(self.lifted[photos.start : photos.stop, -1]))
        descriptions = descriptions[rows_with_content]
        radii, invariants = compute_search_radius(descriptions), compute_invariants(descriptions)
        large_balls, nearest = _make_balls(invariants, radii), [[] for _ in rows_with_content]
        windows = np.concatenate([invariants, -(invariants**2).sum(2, keepdims=True) / 2], 2)
        for start in range(0, len(self.lifted), MAX_PENDING_PHOTOS):
            block = range(start, min(start + MAX_PENDING_PHOTOS, len(self.lifted)))
            for number, rows in enumerate(self._find_inside_each(large_balls, block)):
                if len(rows) > MAX_DIRECT_PHOTOS:
                    rows = self._find_inside_any(_make_balls(invariants[number, CELLS], radii[number]), rows)  # noqa: PLW2901
                nearest[number].append(self._find_nearest(windows[number], rows, radii[number]))
        pairs = [np.zeros((0, 4), np.int64)]
        for number, parts in enumerate(nearest):
            first = photos[int(rows_with_content[number])]
            rows = parts[0]
            if len(parts) > 1:
                rows = self._find_nearest(windows[number], np.concatenate(parts), radii[number])
            if len(rows := rows[rows != first]):
                pairs.append(self._match_signs(first, descriptions[number], rows, radii[number]))
        return Candidates(*np.concatenate(pairs).T)

    def _find_inside_each(self, balls: tuple[np.ndarray, np.ndarray], among: range) -> list[np.ndarray]:
        """Find for each ball the rows of the photos inside."""
        centres, thresholds = balls
        hits = []
        for start in range(among.start, among.stop, BLOCK_PHOTOS):
            ball, row = np.nonzero(centres @ self.lifted[start : min(start + BLOCK_PHOTOS, among.stop)].T > thresholds)
            hits.append(np.stack([ball, row + start]))
        ball, rows = np.concatenate(hits, 1)
        order = ball.argsort(kind="stable")
        return np.split(rows[order], np.searchsorted(ball[order], np.arange(len(centres))))[1:]

    def _find_inside_any(self, balls: tuple[np.ndarray, np.ndarray], rows: np.ndarray) -> np.ndarray:
        """Find those of the rows that at least one ball contains."""
        centres, thresholds = balls
        blocks = [rows[start : start + BLOCK_PHOTOS] for start in range(0, len(rows), BLOCK_PHOTOS)]
        inside = (block[(centres @ self.lifted[block].T > thresholds).any(0)] for block in blocks)
        return np.concatenate([rows[:0], *inside])

    def _find_nearest(self, windows: np.ndarray, rows: np.ndarray, radius: float) -> np.ndarray:
        """Find those of the rows that are nearest to a window, within the radius.

        Args:
            windows: float32 [windows, coefficients + 1], lifted like photos.
        """
        invariants, lengths = windows[:, :-1], windows[:, -1:]
        blocks = [np.zeros(0, np.float32)]
        for start in range(0, len(rows), BLOCK_PHOTOS):
            photos = self.lifted[rows[start : start + BLOCK_PHOTOS]]
            # Minus half the squared distance.
            blocks.append((invariants @ photos[:, :-1].T + lengths).max(0) + photos[:, -1])
        closeness = np.concatenate(blocks)
        inside = np.flatnonzero(closeness > -(radius**2) / 2)
        return rows[inside[(-closeness[inside]).argsort(kind="stable")[:MAX_SIGN_COMPARISONS]]]

    def _match_signs(self, first: int, descriptions: np.ndarray, rows: np.ndarray, radius: float) -> np.ndarray:
        """Find the nearest rows by signed coefficients: int64 [pairs, 4] in the order of `Candidates`."""
        variants = apply_symmetries(self.uncropped[rows]).reshape(-1, len(COEFFICIENTS))
        squares = (descriptions**2).sum(1)[:, None] + (variants**2).sum(1) - 2 * descriptions @ variants.T
        by_row = squares.reshape(len(descriptions), len(rows), len(SYMMETRIES)).swapaxes(0, 1)
        by_row = by_row.reshape(len(rows), len(descriptions) * len(SYMMETRIES))
        best = by_row.argmin(1)
        distances = by_row[np.arange(len(rows)), best]
        nearest = distances.argsort(kind="stable")[:MAX_CANDIDATES_PER_PHOTO]
        nearest = nearest[distances[nearest] < radius**2]
        window, symmetry = np.divmod(best[nearest], len(SYMMETRIES))
        return np.stack([np.full(len(nearest), first), rows[nearest], window, symmetry], 1)


def compute_search_radius(descriptions: np.ndarray) -> np.ndarray:
    """Bound the distance of a copy from the nearest window, for each photo: [photos]."""
    grid = descriptions.reshape(len(descriptions), *(len(CROP_SHARES),) * 4, len(COEFFICIENTS))
    half_steps = [np.sqrt((np.diff(grid, axis=axis) ** 2).sum(-1)).mean((1, 2, 3, 4)) / 2 for axis in range(1, 5)]
    return RADIUS_MARGIN + RADIUS_FACTOR * np.sqrt(np.sum(np.square(half_steps), 0))


def _make_balls(windows: np.ndarray, radii: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Make balls that enclose windows and all copies of them.

    Args:
        windows: float32 [balls, windows, coefficients].
        radii: a copy's greatest distance from a window: [balls], or one number.
    Returns:
        Lifted centres, float32 [balls, coefficients + 1], and thresholds, [balls, 1]. A lifted photo
        is inside if its product with the centre exceeds the threshold.
    """
    centres = windows.mean(1)
    ball_radii = np.sqrt(((windows - centres[:, None]) ** 2).sum(2).max(1)) + radii
    thresholds = ((centres**2).sum(1) - ball_radii**2) / 2
    return np.concatenate([centres, np.ones((len(centres), 1), np.float32)], 1), thresholds[:, None]
