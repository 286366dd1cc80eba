"""Features on disk as one table, read on demand instead of copied into memory."""

import copy
from collections.abc import Sequence

import numpy as np
import torch


class FeatureRows:
    """Rows of arrays on disk as one table: `table[indices]` is float32 [indices, columns].

    Args:
        arrays: float [rows, ...] each; the axes after the first are flattened.
        rows: int64 [photos] for each array: its rows in the order of the table.
        order: int64 [photos]: a permutation of the table; else the arrays follow one another.
    """

    def __init__(self, arrays: Sequence[np.ndarray], rows: Sequence[np.ndarray], order: np.ndarray | None = None):
        self.arrays = arrays
        self.row_indices = np.concatenate([*rows])
        self.array_indices = np.repeat(np.arange(len(rows), dtype=np.uint8), [len(indices) for indices in rows])
        if order is not None:
            self.row_indices, self.array_indices = self.row_indices[order], self.array_indices[order]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.row_indices), int(np.prod(self.arrays[0].shape[1:]))

    def __len__(self) -> int:
        return len(self.row_indices)

    def select(self, indices: np.ndarray) -> "FeatureRows":
        """Return a table of some rows, in the order of the indices: int64 or bool."""
        selected = copy.copy(self)
        selected.row_indices, selected.array_indices = self.row_indices[indices], self.array_indices[indices]
        return selected

    def __getitem__(self, indices: slice | np.ndarray) -> np.ndarray:
        row_indices, array_indices = self.row_indices[indices], self.array_indices[indices]
        values = np.empty((len(row_indices), self.shape[1]), np.float32)
        for number, array in enumerate(self.arrays):
            is_here = array_indices == number
            values[is_here] = _to_float32(array[row_indices[is_here]]).reshape(-1, self.shape[1])
        return values


def _to_float32(values: np.ndarray) -> np.ndarray:
    """Convert to float32; for half precision torch is seven times as fast as numpy."""
    return torch.from_numpy(values).float().numpy() if values.dtype == np.float16 else values.astype(np.float32)
