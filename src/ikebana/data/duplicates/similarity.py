"""Comparison of photos that may be copies: alignment, then similarity.

Photos are squares here, whatever their shape was. So mirroring and quarter turns are the eight
symmetries of the square, and a crop leaves an axis-parallel window. Many pairs are compared at
once, at thumbnail size.

Source: Baker and Matthews 2004, Lucas-Kanade 20 Years On, 10.1023/B:VISI.0000011205.11775.fd:
Gauss-Newton on a window's edges.
"""

from typing import NamedTuple

import numpy as np

# Pixels of a side of the grey squares.
GREY_SIZE = 64
# Pixels of a side of the coloured squares.
COLOUR_SIZE = 16
# Blocks of a side, whose mean colours are compared.
BLOCKS_PER_SIDE = 8
# Gauss-Newton: (pixels of a side, steps).
GAUSS_NEWTON_SCHEDULE = ((32, 5), (GREY_SIZE, 4))
# Squared grey levels; a smaller variance counts as this.
MIN_VARIANCE = 0.1
# Bounds on one step, in shares of a side, and on the window's edges.
MAX_STEP = 0.03
EDGE_RANGE = (-0.05, 0.2)

# Thresholds for a duplicate. The worst of 1,800 copies of flowers (resized, recompressed, cropped
# by up to a tenth per side, mirrored, turned, and all of it) had 0.72, 0.86 and 12 levels; see
# docs/decisions.md.
# Correlation of 16 x 16 pixels before the window is fitted.
MIN_COARSE_CORRELATION = 0.6
# Correlation of fine detail after the fit.
MIN_DETAIL_CORRELATION = 0.8
# Levels between the mean colours of any of 8 x 8 blocks.
MAX_BLOCK_COLOUR_DISTANCE = 48.0

# In logos and drawings, nearly all detail is one figure on a plain background. Any other figure of
# the same shape and size looks like a cropped copy. Such photos, a tenth of the flowers, must be
# more similar. Of 164 planted pairs of that kind the least similar had 0.90 and 7.1 levels; nine in
# ten of 551 false pairs were less similar or further apart.
# Share of the blocks that detail is spread over.
MIN_DETAIL_SPREAD = 0.38
MIN_SPARSE_CORRELATION, MAX_SPARSE_COLOUR_DISTANCE = 0.92, 7.0

# Different things before the same background correlate by 0.80 to 0.86 as a whole, and hardly where
# the things are. A poor copy correlates a little less everywhere. So below the first number every
# patch with detail must correlate by the second.
MIN_UNIFORM_CORRELATION, MIN_PATCH_CORRELATION = 0.86, 0.5
# Blocks of a side of a patch: one seventh of the photo.
PATCH_BLOCKS = 3
# Detail of a patch relative to the mean of all: less is not compared, and far less counts as this.
MIN_PATCH_DETAIL, PATCH_DETAIL_FLOOR = 0.5, 0.1

# What turns the second photo into the first: transpose, mirror left to right, mirror top to bottom.
SYMMETRIES = tuple((transposed, across, down) for transposed in (0, 1) for across in (0, 1) for down in (0, 1))
SYMMETRY_NAMES = (
    "",
    "mirrored and rotated by 180°",
    "mirrored",
    "rotated by 180°",
    "mirrored and rotated by 90°",
    "rotated by 90°",
    "rotated by 90°",
    "mirrored and rotated by 90°",
)


class ReducedImages(NamedTuple):
    """Photos reduced for comparison."""

    # uint8 [photos, GREY_SIZE, GREY_SIZE].
    grey: np.ndarray
    # uint8 [photos, COLOUR_SIZE, COLOUR_SIZE, 3].
    colour: np.ndarray

    def select(self, rows: np.ndarray) -> "ReducedImages":
        return ReducedImages(self.grey[rows], self.colour[rows])


class Similarity(NamedTuple):
    """The result of a comparison, one entry per pair."""

    # bool: whether they count as duplicates.
    is_duplicate: np.ndarray
    # int: which of SYMMETRIES turns the second into the first.
    symmetry: np.ndarray
    # float [pairs, 4]: shares of the first's left, right, top and bottom that the second lacks.
    window: np.ndarray
    # Correlation of their fine detail, -1 to 1.
    correlation: np.ndarray
    # Lowest correlation of the fine detail of any patch.
    patch_correlation: np.ndarray
    # Mean colour difference of their blocks, in levels.
    colour_distance: np.ndarray


def compare_pairs(first: ReducedImages, second: ReducedImages, window: np.ndarray, symmetry: np.ndarray) -> Similarity:
    """Fit the window of the first photo that the second shows, and test for duplicates.

    Args:
        window: float [pairs, 4], initial shares that the second lacks left, right, top and bottom,
            accurate to 0.03.
        symmetry: int [pairs]: which of SYMMETRIES turns the second into the first.
    """
    coarse = _correlate_coarsely(first.colour, second.colour, window, symmetry)
    result = Similarity(np.zeros(len(coarse), bool), symmetry, window.astype(np.float64), *np.zeros((3, len(coarse))))
    rows = np.flatnonzero(coarse > MIN_COARSE_CORRELATION)
    if len(rows):
        first, second = first.select(rows), second.select(rows)
        fitted, detail = _fit_window(first.grey, _apply_each(second.grey, symmetry[rows]), window[rows])
        correlation, spread = _correlate(*detail), np.minimum(*map(_measure_spread, detail))
        turned = _apply_each(second.colour, symmetry[rows])
        max_distance, mean_distance = _measure_colour_distance(first.colour, turned, fitted)
        result.window[rows], result.correlation[rows], result.colour_distance[rows] = fitted, correlation, mean_distance
        is_similar = (correlation >= MIN_SPARSE_CORRELATION) & (mean_distance <= MAX_SPARSE_COLOUR_DISTANCE)
        is_certain = (spread >= MIN_DETAIL_SPREAD) | is_similar
        patch_correlation = result.patch_correlation[rows] = _correlate_patches(*detail)
        is_uniform = (correlation >= MIN_UNIFORM_CORRELATION) | (patch_correlation >= MIN_PATCH_CORRELATION)
        is_match = (correlation >= MIN_DETAIL_CORRELATION) & (max_distance <= MAX_BLOCK_COLOUR_DISTANCE)
        result.is_duplicate[rows] = is_match & is_certain & is_uniform
    return result


def average_blocks(images: np.ndarray, side: int) -> np.ndarray:
    """Average blocks: [images, height, width, ...] -> float32 [images, side, side, ...]."""
    count, height, width, *bands = images.shape
    # Summing along the long axis first is faster.
    rows = images.reshape(count, side, height // side, -1).sum(2, dtype=np.float32)
    return rows.reshape(count, side, side, width // side, *bands).sum(3) / (height // side * (width // side))


def _correlate_coarsely(first: np.ndarray, second: np.ndarray, window: np.ndarray, symmetry: np.ndarray) -> np.ndarray:
    """Correlate the small images before the window is fitted."""
    return _correlate(_cut_window(first.mean(3), window), _apply_each(second.mean(3), symmetry))


def _fit_window(
    first: np.ndarray, second: np.ndarray, window: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Fit the window.

    Returns:
        The window, and the fine detail of the first inside it and of the second.
    """
    for side, steps in GAUSS_NEWTON_SCHEDULE:
        left, right = average_blocks(first, side), average_blocks(second, side)
        for _ in range(steps):
            window = _take_step(left, right, window)
    left = _extract_detail(_cut_window(first.astype(np.float32), window))
    return window, (left, _extract_detail(second.astype(np.float32)))


def _measure_spread(detail: np.ndarray) -> np.ndarray:
    """Compute the participation ratio of blocks: the share that would hold evenly spread detail."""
    power = _average_detail(detail, detail).reshape(len(detail), -1)
    return power.sum(1) ** 2 / np.maximum(power.shape[1] * np.square(power).sum(1), MIN_VARIANCE)


def _average_detail(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Average the product of two details over blocks: float32 [pairs, BLOCKS_PER_SIDE, BLOCKS_PER_SIDE]."""
    margin = first.shape[1] % BLOCKS_PER_SIDE
    before, after = margin // 2, margin - margin // 2
    inner = slice(before, first.shape[1] - after)
    return average_blocks(first[:, inner, inner] * second[:, inner, inner], BLOCKS_PER_SIDE)


def _correlate_patches(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlate the detail of each patch, and return the lowest correlation of each pair.

    Patches without detail in either photo are left out.
    """
    from numpy.lib.stride_tricks import sliding_window_view

    def sum_patches(blocks: np.ndarray) -> np.ndarray:
        return sliding_window_view(blocks, (PATCH_BLOCKS, PATCH_BLOCKS), (1, 2)).sum((3, 4))

    left, right = sum_patches(_average_detail(first, first)), sum_patches(_average_detail(second, second))
    left_mean, right_mean = (np.maximum(power.mean((1, 2), keepdims=True), MIN_VARIANCE) for power in (left, right))
    left, right = left / left_mean, right / right_mean
    product = sum_patches(_average_detail(first, second)) / np.sqrt(left_mean * right_mean)
    correlation = product / np.sqrt(np.maximum(left, PATCH_DETAIL_FLOOR) * np.maximum(right, PATCH_DETAIL_FLOOR))
    return np.where(np.maximum(left, right) >= MIN_PATCH_DETAIL, correlation, 1.0).min((1, 2))


def _measure_colour_distance(
    first: np.ndarray, second: np.ndarray, window: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Measure the maximum and mean colour distance of blocks, in levels of the worst band."""
    bands = []
    for band in range(3):
        cut = average_blocks(_cut_window(first[..., band].astype(np.float32), window), BLOCKS_PER_SIDE)
        bands.append(np.abs(cut - average_blocks(second[..., band], BLOCKS_PER_SIDE)))
    distance = np.max(bands, axis=0)
    return distance.max((1, 2)), distance.mean((1, 2))


def _apply_each(images: np.ndarray, symmetry: np.ndarray) -> np.ndarray:
    """Apply to each image its own symmetry."""
    result = np.empty_like(images)
    for number, steps in enumerate(SYMMETRIES):
        result[symmetry == number] = _apply_symmetry(images[symmetry == number], steps)
    return result


def _apply_symmetry(images: np.ndarray, symmetry: tuple[int, int, int]) -> np.ndarray:
    transposed, across, down = symmetry
    turned = images.swapaxes(1, 2) if transposed else images
    return turned[:, :: -1 if down else 1, :: -1 if across else 1]


def _cut_window(images: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Resample the window of each image to the image's size, by linear interpolation."""
    left, right, top, bottom = window.T
    down, across = (_interpolate(images.shape[1], *ends) for ends in ((top, bottom), (left, right)))
    return down @ images @ across.swapaxes(1, 2)


def _interpolate(pixels: int, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Compute weights [pairs, pixels, pixels] that read an axis from `before` to 1 - `after`."""
    share = (np.arange(pixels) + 0.5) / pixels
    position = (before[:, None] + share * (1 - before - after)[:, None]) * pixels - 0.5
    position = position.clip(0, pixels - 1)[:, :, None]
    return np.maximum(0, 1 - np.abs(position - np.arange(pixels))).astype(np.float32)


def _take_step(first: np.ndarray, second: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Take one Gauss-Newton step towards the window in which the first matches the second."""
    side = first.shape[1]
    current = _cut_window(first, window)
    share = ((np.arange(side) + 0.5) / side).astype(np.float32)
    width, height = (1 - window[:, 0] - window[:, 1]), (1 - window[:, 2] - window[:, 3])
    across = np.gradient(current, axis=2) * (side / width).astype(np.float32)[:, None, None]
    down = np.gradient(current, axis=1) * (side / height).astype(np.float32)[:, None, None]
    # Cropping more on the left moves content by (1 - share) of it, on the right by -share; the same
    # holds vertically.
    slopes = (across * (1 - share), -across * share, down * (1 - share)[:, None], -down * share[:, None])
    jacobian = np.stack(slopes, axis=-1).reshape(len(current), -1, 4)
    residual = (second - current).reshape(len(current), -1, 1)
    normal = jacobian.swapaxes(1, 2) @ jacobian
    # The ridge keeps an edge in place where it has no visible effect.
    ridge = 1.0 + 1e-3 * np.trace(normal, axis1=1, axis2=2) / 4
    normal = normal + ridge[:, None, None] * np.eye(4, dtype=np.float32)
    step = np.linalg.solve(normal, jacobian.swapaxes(1, 2) @ residual)[..., 0]
    return (window + step.clip(-MAX_STEP, MAX_STEP)).clip(*EDGE_RANGE)


def _extract_detail(images: np.ndarray) -> np.ndarray:
    """Subtract the mean of each pixel's neighbourhood: edges and texture, without shading."""
    blurred = images
    for axis in (1, 2):
        shifted = [np.roll(blurred, shift, axis) for shift in range(-3, 4)]
        blurred = np.mean(shifted, axis=0)
    return (images - blurred)[:, 3:-3, 3:-3]


def _correlate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    first = first - first.mean((1, 2), keepdims=True)
    second = second - second.mean((1, 2), keepdims=True)
    deviation = np.sqrt((first**2).mean((1, 2)) * (second**2).mean((1, 2)))
    return (first * second).mean((1, 2)) / np.maximum(deviation, MIN_VARIANCE)
