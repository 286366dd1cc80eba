"""A second look at two photos that may be one: laid over each other, how alike are they?

Photos are squares here, whatever their shape was. So mirroring and quarter turns are the eight symmetries of the square, and
what is left when sides are cut off is a window with edges parallel to the axes. All of it in small, many pairs at once.

source  Baker and Matthews 2004, Lucas-Kanade 20 Years On, 10.1023/B:VISI.0000011205.11775.fd: Gauss-Newton on a window's edges
"""

from typing import NamedTuple

import numpy as np

SIDE = 64  # pixels of the grey squares that are compared
COARSE = 16  # of the coloured ones
BLOCKS = 8  # a side, whose mean colours are compared
STEPS = ((32, 5), (SIDE, 4))  # of Gauss-Newton: pixels of a side, steps
FLOOR = 0.1  # squared grey levels: less variance than this counts as none

# The least and the most that lets two photos pass for one. Of 1,800 copies of flowers (resized, recompressed, cropped by up
# to a tenth a side, mirrored, turned, and all of it) the worst had 0.72, 0.86 and 12 levels; see docs/decisions.md.
HOPEFUL = 0.6  # correlation of 16 x 16 pixels before the window is fitted
ALIKE = 0.8  # correlation of fine detail when it is
COLOURS = 48.0  # levels between the mean colours of any of 8 x 8 blocks

# Where nearly all detail is one figure on an even ground, as in logos and drawings, any other of its shape and size looks like a
# copy that was cropped: such photos must be more alike. A tenth of the flowers are so. Of 164 planted pairs of that kind the
# least had 0.90 and 7.1 levels; of 551 false ones nine in ten were less alike or further apart.
BUSY = 0.38  # share of the blocks that detail is spread over
ALIKE_ALONE, APART_ALONE = 0.92, 7.0

# What turns the second photo into the first: transposed, then mirrored left to right, then top to bottom.
SYMMETRIES = tuple((transposed, across, down) for transposed in (0, 1) for across in (0, 1) for down in (0, 1))
NAMES = (
    "",
    "mirrored and turned by a half",
    "mirrored",
    "turned by a half",
    "mirrored and turned by a quarter",
    "turned by a quarter",
    "turned by a quarter",
    "mirrored and turned by a quarter",
)


class Small(NamedTuple):
    """Photos in small."""

    grey: np.ndarray  # uint8 [photos, SIDE, SIDE]
    colour: np.ndarray  # uint8 [photos, COARSE, COARSE, 3]

    def of(self, chosen: np.ndarray) -> "Small":
        """Some of them."""
        return Small(self.grey[chosen], self.colour[chosen])


class Likeness(NamedTuple):
    """How pairs of photos lie on each other; an entry a pair."""

    twins: np.ndarray  # bool: whether they pass for one photo
    symmetry: np.ndarray  # int: which of SYMMETRIES turns the second into the first
    window: np.ndarray  # float [pairs, 4]: shares of the first's left, right, top and bottom that the second lacks
    alike: np.ndarray  # correlation of their fine detail, -1 to 1
    apart: np.ndarray  # the mean difference between the colours of blocks, in levels


def compared(first: Small, second: Small, window: np.ndarray, symmetry: np.ndarray) -> Likeness:
    """Find the window by which the second photo comes from the first, and say whether they are twins.

    window    float [pairs, 4], where to begin: the shares that the second lacks left, right, top and bottom, to within 0.03
    symmetry  int [pairs]: which of SYMMETRIES turns the second into the first
    """
    hope = _alike_in_small(first.colour, second.colour, window, symmetry)
    result = Likeness(np.zeros(len(hope), bool), symmetry, window.astype(np.float64), *np.zeros((2, len(hope))))
    rows = np.flatnonzero(hope > HOPEFUL)
    if len(rows):
        first, second = first.of(rows), second.of(rows)
        fitted, alike, busy = _fitted(first.grey, _turned(second.grey, symmetry[rows]), window[rows])
        most, apart = _colours_apart(first.colour, _turned(second.colour, symmetry[rows]), fitted)
        result.window[rows], result.alike[rows], result.apart[rows] = fitted, alike, apart
        sure = (busy >= BUSY) | ((alike >= ALIKE_ALONE) & (apart <= APART_ALONE))
        result.twins[rows] = (alike >= ALIKE) & (most <= COLOURS) & sure
    return result


def reduced(pictures: np.ndarray, side: int) -> np.ndarray:
    """Means of blocks: [pictures, height, width, ...] becomes float32 [pictures, side, side, ...]."""
    count, height, width, *bands = pictures.shape
    rows = pictures.reshape(count, side, height // side, -1).sum(
        2, dtype=np.float32
    )  # first the long way, which is quick
    return rows.reshape(count, side, side, width // side, *bands).sum(3) / (height // side * (width // side))


def _alike_in_small(first: np.ndarray, second: np.ndarray, window: np.ndarray, symmetry: np.ndarray) -> np.ndarray:
    """How well they correlate before the window is fitted."""
    return _correlation(_windowed(first.mean(3), window), _turned(second.mean(3), symmetry))


def _fitted(first: np.ndarray, second: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The window in which the first looks most like the second, how alike their fine detail is then, and the share of the blocks
    that it is spread over."""
    for side, steps in STEPS:
        one, other = reduced(first, side), reduced(second, side)
        for _ in range(steps):
            window = _stepped(one, other, window)
    one, other = _detail(_windowed(first.astype(np.float32), window)), _detail(second.astype(np.float32))
    return window, _correlation(one, other), np.minimum(_busy(one), _busy(other))


def _busy(detail: np.ndarray) -> np.ndarray:
    """The share of 8 x 8 blocks that would hold it all if it were evenly spread over them, as a participation ratio counts."""
    rest = detail.shape[1] % BLOCKS
    inner = detail[
        :, rest // 2 : detail.shape[1] - (rest - rest // 2), rest // 2 : detail.shape[2] - (rest - rest // 2)
    ]
    power = reduced(np.square(inner), BLOCKS).reshape(len(inner), -1)
    return power.sum(1) ** 2 / np.maximum(power.shape[1] * np.square(power).sum(1), FLOOR)


def _colours_apart(first: np.ndarray, second: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far blocks' colours differ, most and on average, in levels of the band that differs most."""
    bands = []
    for band in range(3):
        seen = reduced(_windowed(first[..., band].astype(np.float32), window), BLOCKS)
        bands.append(np.abs(seen - reduced(second[..., band], BLOCKS)))
    apart = np.max(bands, axis=0)
    return apart.max((1, 2)), apart.mean((1, 2))


def _turned(pictures: np.ndarray, symmetry: np.ndarray) -> np.ndarray:
    result = np.empty_like(pictures)
    for number, each in enumerate(SYMMETRIES):
        result[symmetry == number] = _applied(pictures[symmetry == number], each)
    return result


def _applied(pictures: np.ndarray, symmetry: tuple[int, int, int]) -> np.ndarray:
    transposed, across, down = symmetry
    turned = pictures.swapaxes(1, 2) if transposed else pictures
    return turned[:, :: -1 if down else 1, :: -1 if across else 1]


def _windowed(pictures: np.ndarray, window: np.ndarray) -> np.ndarray:
    """The window of each picture as a square of as many pixels, between the pixels by straight lines."""
    left, right, top, bottom = window.T
    down, across = (_between(pictures.shape[1], *ends) for ends in ((top, bottom), (left, right)))
    return down @ pictures @ across.swapaxes(1, 2)


def _between(pixels: int, before: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Weights [pairs, pixels, pixels] that read a line of pixels from `before` to 1 - `behind`."""
    share = (np.arange(pixels) + 0.5) / pixels
    place = (before[:, None] + share * (1 - before - behind)[:, None]) * pixels - 0.5
    place = place.clip(0, pixels - 1)[:, :, None]
    return np.maximum(0, 1 - np.abs(place - np.arange(pixels))).astype(np.float32)


def _stepped(first: np.ndarray, second: np.ndarray, window: np.ndarray) -> np.ndarray:
    """One Gauss-Newton step towards the window in which the first looks like the second."""
    side = first.shape[1]
    seen = _windowed(first, window)
    share = ((np.arange(side) + 0.5) / side).astype(np.float32)
    wide, high = (1 - window[:, 0] - window[:, 1]), (1 - window[:, 2] - window[:, 3])
    across = np.gradient(seen, axis=2) * (side / wide).astype(np.float32)[:, None, None]
    down = np.gradient(seen, axis=1) * (side / high).astype(np.float32)[:, None, None]
    # Cutting more off the left moves what is seen at a place by (1 - share) of it, off the right by -share; so up and down.
    slopes = (across * (1 - share), -across * share, down * (1 - share)[:, None], -down * share[:, None])
    slope = np.stack(slopes, axis=-1).reshape(len(seen), -1, 4)
    lacking = (second - seen).reshape(len(seen), -1, 1)
    normal = slope.swapaxes(1, 2) @ slope
    ridge = 1.0 + 1e-3 * np.trace(normal, axis1=1, axis2=2) / 4  # where an edge shows nothing it stays
    normal = normal + ridge[:, None, None] * np.eye(4, dtype=np.float32)
    step = np.linalg.solve(normal, slope.swapaxes(1, 2) @ lacking)[..., 0]
    return (window + step.clip(-0.03, 0.03)).clip(-0.05, 0.2)


def _detail(pictures: np.ndarray) -> np.ndarray:
    """What differs from the mean of the neighbourhood: edges and texture, without light and shade."""
    around = pictures
    for axis in (1, 2):
        steps = [np.roll(around, step, axis) for step in range(-3, 4)]
        around = np.mean(steps, axis=0)
    return (pictures - around)[:, 3:-3, 3:-3]


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    first = first - first.mean((1, 2), keepdims=True)
    second = second - second.mean((1, 2), keepdims=True)
    spread = np.sqrt((first**2).mean((1, 2)) * (second**2).mean((1, 2)))
    return (first * second).mean((1, 2)) / np.maximum(spread, FLOOR)
