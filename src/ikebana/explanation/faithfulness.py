"""Deletion and insertion: does the class depend on what a heat map shows?

Insertion makes only the parts of a photo visible that the map ranks first, deletion hides them. With
a map that shows what matters, the class's log odds are high after insertion and low after deletion.
The difference is compared with that of random cells, and of the same map displaced. The second is
the harder test: scattered cells destroy every shape, whatever they hide.

Source: Petsiuk, Das and Saenko 2018, arXiv:1806.07421; a blurred photo instead of a grey one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ikebana.explanation import masking
from ikebana.explanation.masking import CELLS, Predict

# Shares of the cells that are shown, or hidden.
SHARES = (1 / 8, 1 / 3)
# Cells in random order that a map is compared with.
RANDOM_ORDERS = 2
# The map is also compared with itself, moved by a third and two thirds of the side along either axis
# and both. By chance, it is better than all eight in 11%.
SHIFTS = (0, round(CELLS / 3), round(2 * CELLS / 3))
DISPLACEMENTS = tuple((rows, columns) for rows in SHIFTS for columns in SHIFTS if rows or columns)
# Standard deviation of the smoothing that orders equal cells.
SMOOTHING_CELLS = 2
SEED = 0


@dataclass(frozen=True)
class Check:
    """Mean log odds of the class while parts of the photo are hidden.

    Attributes:
        insertion: only the parts that the map ranks first are visible.
        deletion: these parts are hidden.
        random: insertion minus deletion for cells in random order, one value per order.
        displaced: the same for the map moved elsewhere.
    """

    insertion: float
    deletion: float
    random: tuple[float, ...]
    displaced: tuple[float, ...]

    @property
    def gain(self) -> float:
        """Insertion minus deletion: how much the class depends on what the map shows."""
        return self.insertion - self.deletion

    @property
    def is_passed(self) -> bool:
        """Whether the class depends more on this map than on every random and displaced one."""
        return self.gain > max(*self.random, *self.displaced)


def check_map(predict: Predict, photo: np.ndarray, class_index: int, values: np.ndarray) -> Check:
    """Compare a heat map with random cells and with itself elsewhere.

    Args:
        photo: uint8 [side, side, 3].
        values: float32 [rows, columns], at least 0; higher is more important.
    """
    rng = np.random.default_rng(SEED)
    cells = resize_to_cells(values)
    random = [rng.random((CELLS, CELLS)) for _ in range(RANDOM_ORDERS)]
    displaced = [displace(cells, *displacement) for displacement in DISPLACEMENTS]
    insertion, deletion = measure_orders(predict, photo, class_index, [cells, *random, *displaced])
    gains = (insertion - deletion).tolist()
    return Check(
        float(insertion[0]),
        float(deletion[0]),
        tuple(gains[1 : 1 + RANDOM_ORDERS]),
        tuple(gains[1 + RANDOM_ORDERS :]),
    )


def resize_to_cells(values: np.ndarray) -> np.ndarray:
    """Resize a heat map to a value per cell: float32 [CELLS, CELLS]."""
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((CELLS, CELLS), Image.Resampling.BILINEAR))


def rank_cells(cells: np.ndarray) -> np.ndarray:
    """Order cells by their value, the highest first: int [CELLS * CELLS].

    Equal cells, such as those of value 0, are ordered by what is around them.
    """
    distances = np.subtract.outer(np.arange(CELLS), np.arange(CELLS))
    kernel = np.exp(-(distances**2) / (2 * SMOOTHING_CELLS**2))
    smooth = kernel @ cells @ kernel
    return np.lexsort((-smooth.ravel(), -cells.ravel()))


def displace(cells: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Move a map down and to the right; what leaves one side enters the other."""
    return np.roll(cells, (rows, columns), (0, 1))


def measure_orders(
    predict: Predict, photo: np.ndarray, class_index: int, maps: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Measure the mean log odds with the first cells of each map shown, or hidden.

    Args:
        photo: uint8 [side, side, 3].
        maps: float [CELLS, CELLS] each.
    Returns:
        Insertion and deletion: float64 [maps].
    """
    blurred = masking.blur(photo)
    photos = []
    for cells in maps:
        order = rank_cells(cells)
        for share in SHARES:
            shown = np.zeros(CELLS * CELLS, bool)
            shown[order[: round(share * CELLS * CELLS)]] = True
            shown = shown.reshape(CELLS, CELLS)
            photos += [masking.hide_cells(photo, blurred, shown), masking.hide_cells(photo, blurred, ~shown)]
    log_odds = masking.compute_log_odds(predict, np.stack(photos), class_index)
    insertion, deletion = log_odds.reshape(len(maps), len(SHARES), 2).mean(1).T
    return insertion, deletion
