"""Cells of photos with similar shapes, of which a search reads a few.

Each cell has a prototype: the shape of a photo of the collection, chosen at random. So where many
photos are similar, there are many cells, and none is large. A photo is in the cell of the prototype
that is most similar to it. A copy has nearly the shape of one window of its original, so its cell is
one of the most similar to that window. Unlike k-means, this needs no training, and rounding changes
it only where two prototypes are equally similar.
"""

import numpy as np

from ikebana.system.threads import map_in_threads

# Cells per square root of the number of photos. More cells are smaller, but take longer to rank.
CELLS_PER_ROOT = 4
# Cells per window of a photo that are searched. With one, 12 of 1,440 copies among 40,000 drawings were
# missed, with two none.
CELLS_PER_WINDOW = 2
# Photos whose cells are found at a time.
BLOCK_PHOTOS = 1024


class Cells:
    """A division of photos into cells.

    Attributes:
        order: the rows of the photos, cell by cell. A place is a position in it.

    Args:
        shapes: float32 [photos, coefficients], unit vectors; may be memory-mapped.
        rows: of the photos with content, in ascending order; the others are in no cell.
    """

    def __init__(self, shapes: np.ndarray, rows: np.ndarray):
        count = min(len(rows), max(1, round(CELLS_PER_ROOT * len(rows) ** 0.5)))
        chosen = np.random.default_rng(0).choice(len(rows), count, replace=False)
        self._prototypes = np.ascontiguousarray(shapes[rows[np.sort(chosen)]].T)

        def find_cells(start: int) -> np.ndarray:
            return (shapes[rows[start : start + BLOCK_PHOTOS]] @ self._prototypes).argmax(1)

        blocks = map_in_threads(find_cells, range(0, len(rows), BLOCK_PHOTOS))
        cells = np.concatenate([np.zeros(0, np.int64), *blocks])
        by_cell = cells.argsort(kind="stable")
        self.order = rows[by_cell]
        # The place at which each cell begins, and the end of the last one.
        self._starts: list[int] = np.searchsorted(cells[by_cell], np.arange(count + 1)).tolist()

    def find_places(self, shapes: np.ndarray) -> np.ndarray:
        """Find the photos in the cells most similar to the windows of a photo.

        Args:
            shapes: float32 [windows, coefficients], unit vectors.
        Returns:
            Their places, in ascending order.
        """
        similarity = shapes @ self._prototypes
        searched = min(CELLS_PER_WINDOW, similarity.shape[1])
        cells = np.unique(np.argpartition(-similarity, searched - 1, axis=1)[:, :searched]).tolist()
        return np.concatenate([np.arange(self._starts[cell], self._starts[cell + 1]) for cell in cells])
