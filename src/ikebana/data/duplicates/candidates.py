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

Among millions of photos, more lie nearer to a recoloured photo than its copy does. So where many are
near, half of those that are kept are the nearest by shape: a longer description, of frequency up to
five and without the means, divided by its length. Neither brightness nor contrast changes it.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ikebana.data.duplicates.cells import Cells
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
# Highest frequency of each band, horizontal and vertical added: of the search, and of shapes.
MAX_FREQUENCIES, MAX_SHAPE_FREQUENCIES = (3, 1, 1), (5, 2, 2)
# Median error of each coefficient of a copy against the nearest window, over 2,000 cropped copies
# of flowers, in levels; per band and by the two frequencies, the lower first.
NOISE_LEVELS = (
    {(0, 0): 0.44, (0, 1): 0.36, (0, 2): 0.33, (0, 3): 0.27, (1, 1): 0.25, (1, 2): 0.29},
    {(0, 0): 0.11, (0, 1): 0.09},
    {(0, 0): 0.20, (0, 1): 0.12},
)
# Levels of each band that count the same in a shape.
SHAPE_LEVELS = (1.0, 0.4, 0.6)


def _list_coefficients(max_frequencies: tuple[int, ...]) -> list[tuple[int, int, int]]:
    return [
        (band, down, across)
        for band, highest in enumerate(max_frequencies)
        for down in range(highest + 1)
        for across in range(highest + 1 - down)
    ]


_SEARCHED = _list_coefficients(MAX_FREQUENCIES)
# (band, vertical frequency, horizontal frequency) of each coefficient; those of the search come first.
COEFFICIENTS = (*_SEARCHED, *(waves for waves in _list_coefficients(MAX_SHAPE_FREQUENCIES) if waves not in _SEARCHED))
SEARCHED_COUNT = len(_SEARCHED)
# Levels of one unit of each coefficient.
NOISE = np.array(
    [NOISE_LEVELS[band].get((min(waves), max(waves)), SHAPE_LEVELS[band]) for band, *waves in COEFFICIENTS], np.float32
)
# All coefficients but the means, and the factors that make them equal in a shape.
SHAPE_POSITIONS = [position for position, (_, *waves) in enumerate(COEFFICIENTS) if any(waves)]
SHAPE_FACTORS = (NOISE / np.array([SHAPE_LEVELS[band] for band, *_ in COEFFICIENTS], np.float32))[SHAPE_POSITIONS]
# Of a photo without content. Infinity would become NaN in some matrix products.
EXCLUDED_HALF_NORM = np.float32(1e30)
# A shape of a smaller length is that of a photo without content.
MIN_SHAPE_LENGTH = 1e-6
# The search radius: a factor on half a step between windows, plus a margin for changed colours in
# units of noise. The farthest copy lay at 0.6 of it for 2,000 copies of flowers, most of them with
# 0, 0.05 or 0.1 cropped; at 0.4 for 2,000 copies of drawings; at 0.9 for the flowers' real
# near-duplicates, some of them recoloured.
RADIUS_FACTOR, RADIUS_MARGIN = 1.2, 25.0
# Photos per photo whose signs are compared, half of them by shape, and the candidates among them. Both bound the time per
# photo where all photos are similar.
MAX_SIGN_COMPARISONS = 256
MAX_CANDIDATES_PER_PHOTO = 8
# Further candidates of similar shape. The scalar product of two shapes was 0.98 for copies of flowers
# and drawings, and above 0.93 for recoloured ones.
MAX_SHAPE_CANDIDATES, MIN_SHAPE_SIMILARITY = 2, 0.93
# From this many photos on, only those in cells of a similar shape are compared (`duplicates/cells`).
MIN_DIVIDED_PHOTOS = 50_000
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
    n_waves, n_crops = max(MAX_SHAPE_FREQUENCIES) + 1, len(axis_crops)
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
        np.sqrt(2) * np.diff(np.sin(wave * phases)) / (np.pi * wave)
        for wave in range(1, max(MAX_SHAPE_FREQUENCIES) + 1)
    ]
    return np.stack(rows).astype(np.float32)


def compute_invariants(descriptions: np.ndarray) -> np.ndarray:
    """Compute what all eight symmetries preserve: [..., coefficients] -> [..., coefficients].

    Args:
        descriptions: all coefficients, or those of the search alone.
    """
    invariants = []
    for position, (band, down, across) in enumerate(COEFFICIENTS[: descriptions.shape[-1]]):
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
    """Apply each of SYMMETRIES: [..., coefficients] -> [..., symmetries, coefficients].

    Args:
        descriptions: all coefficients, or those of the search alone.
    """
    count = descriptions.shape[-1]
    return descriptions[..., _ORDERS[:, :count]] * _SIGNS[:, :count]


# [symmetries, coefficients]: from which position each coefficient comes, and its sign.
_ORDERS = np.array(
    [
        [
            _POSITIONS[(band, across, down) if transposed else (band, down, across)]
            for band, down, across in COEFFICIENTS
        ]
        for transposed, _, _ in SYMMETRIES
    ]
)
_SIGNS = np.array(
    [
        [(-1) ** (mirror_across * across + mirror_down * down) for _, down, across in COEFFICIENTS]
        for _, mirror_across, mirror_down in SYMMETRIES
    ],
    np.float32,
)


def describe_shapes(descriptions: np.ndarray) -> np.ndarray:
    """Describe shapes by unit vectors: [..., coefficients] -> [..., len(SHAPE_POSITIONS)].

    Args:
        descriptions: all coefficients, with signs or invariant.
    """
    shapes = descriptions[..., SHAPE_POSITIONS] * SHAPE_FACTORS
    return shapes / np.maximum(np.sqrt((shapes**2).sum(-1, keepdims=True)), MIN_SHAPE_LENGTH)


def lift_descriptions(uncropped: np.ndarray) -> np.ndarray:
    """Append minus half the squared norm to the invariants of uncropped photos.

    The product with (a, 1) is then (|a|^2 - distance^2) / 2: distances by matrix multiplication.
    Photos without content are NaN, and at EXCLUDED_HALF_NORM: far from all others.

    Args:
        uncropped: float32 [photos, coefficients].
    Returns:
        float32 [photos, SEARCHED_COUNT + 1].
    """
    invariants = compute_invariants(uncropped[:, :SEARCHED_COUNT])
    has_content = np.isfinite(invariants).all(-1, keepdims=True)
    half_norms = np.where(has_content, (invariants**2).sum(-1, keepdims=True) / 2, EXCLUDED_HALF_NORM)
    return np.concatenate([np.where(has_content, invariants, 0), -half_norms], -1)


def find_content(lifted: np.ndarray) -> np.ndarray:
    """Return the positions of lifted photos with content."""
    return np.flatnonzero(lifted[:, -1] > -EXCLUDED_HALF_NORM)


class CandidateIndex:
    """Descriptions of uncropped photos, searched for those near a window of another photo.

    The arrays may be memory-mapped. A photo is found in them at its place, which is its row until they
    are divided into cells.

    Args:
        uncropped: float32 [photos, coefficients].
        lifted: float32 [photos, SEARCHED_COUNT + 1], as `lift_descriptions` returns them.
        shapes: float32 [photos, len(SHAPE_POSITIONS)], `describe_shapes` of the invariants.
    """

    def __init__(self, uncropped: np.ndarray, lifted: np.ndarray, shapes: np.ndarray):
        self.uncropped, self.lifted, self.shapes = uncropped, lifted, shapes
        self.cells: Cells | None = None
        self.rows, self.places = np.arange(len(lifted)), np.arange(len(lifted))

    def divide(self) -> None:
        """Divide many photos into cells, after which only some of them are searched.

        To be called once the arrays are filled in. It sorts them by cell, because photos of one cell are
        read together.
        """
        if len(self.lifted) < MIN_DIVIDED_PHOTOS:
            return
        self.cells = Cells(self.shapes, find_content(self.lifted))
        self.rows = np.concatenate([self.cells.order, np.setdiff1d(self.rows, self.cells.order)])
        self.places[self.rows] = np.arange(len(self.rows))
        for array in (self.uncropped, self.lifted, self.shapes):
            array[:] = array[self.rows]

    def find_candidates(self, photos: range, descriptions: np.ndarray) -> Candidates:
        """Find the photos that may be copies, perhaps cropped, of some photos.

        Args:
            descriptions: float32 [photos of the range, windows, coefficients].
        """
        own_places = self.places[photos.start : photos.stop]
        with_content = find_content(self.lifted[own_places])
        descriptions, own_places = descriptions[with_content], own_places[with_content]
        radii, invariants = compute_search_radius(descriptions), compute_invariants(descriptions[..., :SEARCHED_COUNT])
        nearest = [[] for _ in with_content]
        windows = np.concatenate([invariants, -(invariants**2).sum(2, keepdims=True) / 2], 2)
        for near in self._find_near_places(descriptions, invariants, radii):
            for number, places in enumerate(near):
                if len(places) > MAX_DIRECT_PHOTOS:
                    places = self._find_inside_any(_make_balls(invariants[number, CELLS], radii[number]), places)  # noqa: PLW2901
                nearest[number].append(self._find_nearest(windows[number], descriptions[number], places, radii[number]))
        pairs = [np.zeros((0, 4), np.int64)]
        for number, parts in enumerate(nearest):
            places = parts[0]
            if len(parts) > 1:
                places = self._find_nearest(windows[number], descriptions[number], np.concatenate(parts), radii[number])
            if len(places := places[places != own_places[number]]):
                first = photos[int(with_content[number])]
                pairs.append(self._match_signs(first, descriptions[number], places, radii[number]))
        return Candidates(*np.concatenate(pairs).T)

    def _find_near_places(
        self, descriptions: np.ndarray, invariants: np.ndarray, radii: np.ndarray
    ) -> Iterator[Iterable[np.ndarray]]:
        """Find for each photo the places that may be near, in blocks of all photos."""
        if self.cells is not None:
            yield (self.cells.find_places(describe_shapes(compute_invariants(windows))) for windows in descriptions)
            return
        large_balls = _make_balls(invariants, radii)
        for start in range(0, len(self.lifted), MAX_PENDING_PHOTOS):
            yield self._find_inside_each(large_balls, range(start, min(start + MAX_PENDING_PHOTOS, len(self.lifted))))

    def _find_inside_each(self, balls: tuple[np.ndarray, np.ndarray], among: range) -> list[np.ndarray]:
        """Find for each ball the places of the photos inside."""
        centres, thresholds = balls
        hits = []
        for start in range(among.start, among.stop, BLOCK_PHOTOS):
            ball, place = np.nonzero(
                centres @ self.lifted[start : min(start + BLOCK_PHOTOS, among.stop)].T > thresholds
            )
            hits.append(np.stack([ball, place + start]))
        ball, places = np.concatenate(hits, 1)
        order = ball.argsort(kind="stable")
        return np.split(places[order], np.searchsorted(ball[order], np.arange(len(centres))))[1:]

    def _find_inside_any(self, balls: tuple[np.ndarray, np.ndarray], places: np.ndarray) -> np.ndarray:
        """Find those of the places that at least one ball contains."""
        centres, thresholds = balls
        blocks = [places[start : start + BLOCK_PHOTOS] for start in range(0, len(places), BLOCK_PHOTOS)]
        inside = (block[(centres @ self.lifted[block].T > thresholds).any(0)] for block in blocks)
        return np.concatenate([places[:0], *inside])

    def _find_nearest(
        self, windows: np.ndarray, descriptions: np.ndarray, places: np.ndarray, radius: float
    ) -> np.ndarray:
        """Find those of the places that are nearest to a window, within the radius.

        Where there are too many, half of the result is the nearest by distance, the rest by shape.

        Args:
            windows: float32 [windows, SEARCHED_COUNT + 1], lifted like photos.
            descriptions: float32 [windows, coefficients], of the same windows.
        """
        invariants, lengths = windows[:, :-1], windows[:, -1:]
        blocks = [np.zeros(0, np.float32)]
        for start in range(0, len(places), BLOCK_PHOTOS):
            photos = self.lifted[places[start : start + BLOCK_PHOTOS]]
            # Minus half the squared distance.
            blocks.append((invariants @ photos[:, :-1].T + lengths).max(0) + photos[:, -1])
        closeness = np.concatenate(blocks)
        inside = np.flatnonzero(closeness > -(radius**2) / 2)
        inside = inside[(-closeness[inside]).argsort(kind="stable")]
        if len(inside) <= MAX_SIGN_COMPARISONS:
            return places[inside]
        near, others = np.split(places[inside], [MAX_SIGN_COMPARISONS // 2])
        shapes = describe_shapes(compute_invariants(descriptions))
        similarity = np.concatenate(
            [
                (shapes @ self.shapes[others[start : start + BLOCK_PHOTOS]].T).max(0)
                for start in range(0, len(others), BLOCK_PHOTOS)
            ]
        )
        return np.concatenate([near, _take_highest(others, similarity, MAX_SIGN_COMPARISONS - len(near))])

    def _match_signs(self, first: int, descriptions: np.ndarray, places: np.ndarray, radius: float) -> np.ndarray:
        """Find the nearest photos by signed coefficients: int64 [pairs, 4] in the order of `Candidates`."""
        searched, photos = descriptions[:, :SEARCHED_COUNT], self.uncropped[places]
        variants = apply_symmetries(photos[:, :SEARCHED_COUNT]).reshape(-1, SEARCHED_COUNT)
        squares = (searched**2).sum(1)[:, None] + (variants**2).sum(1) - 2 * searched @ variants.T
        by_row = squares.reshape(len(searched), len(places), len(SYMMETRIES)).swapaxes(0, 1)
        by_row = by_row.reshape(len(places), len(searched) * len(SYMMETRIES))
        best = by_row.argmin(1)
        distances = by_row[np.arange(len(places)), best]
        window, symmetry = np.divmod(best, len(SYMMETRIES))
        inside = np.flatnonzero(distances < radius**2)
        inside = inside[distances[inside].argsort(kind="stable")]
        nearest, others = np.split(inside, [MAX_CANDIDATES_PER_PHOTO])
        if len(others):
            turned = apply_symmetries(photos[others])[np.arange(len(others)), symmetry[others]]
            shapes = describe_shapes(descriptions[window[others]])
            similarity = (describe_shapes(turned) * shapes).sum(1)
            is_similar = similarity >= MIN_SHAPE_SIMILARITY
            similar = _take_highest(others[is_similar], similarity[is_similar], MAX_SHAPE_CANDIDATES)
            nearest = np.concatenate([nearest, similar])
        return np.stack(
            [np.full(len(nearest), first), self.rows[places[nearest]], window[nearest], symmetry[nearest]], 1
        )


def _take_highest(values: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Take the values with the highest scores, of equal scores the first."""
    return values[(-scores).argsort(kind="stable")[:count]]


def compute_search_radius(descriptions: np.ndarray) -> np.ndarray:
    """Bound the distance of a copy from the nearest window, for each photo: [photos]."""
    searched = descriptions[..., :SEARCHED_COUNT]
    grid = searched.reshape(len(searched), *(len(CROP_SHARES),) * 4, SEARCHED_COUNT)
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
