"""Features that lie on disk, seen as one table without a copy of it in memory."""

import copy
from collections.abc import Sequence

import numpy as np
import torch


class Rows:
    """Some rows of arrays that lie on disk, as a table that is read where it is asked: `table[some]` is float32 [some, columns].

    arrays  float [rows, ...] each; what is behind the rows is laid out in one line
    rows    of the arrays, in the order of the table: int64 [photos] for each array
    order   of the table, if the arrays' rows shall not follow one another: int64 [photos]
    """

    def __init__(self, arrays: Sequence[np.ndarray], rows: Sequence[np.ndarray], order: np.ndarray | None = None):
        self.arrays = arrays
        self.row = np.concatenate([*rows])
        self.source = np.repeat(np.arange(len(rows), dtype=np.uint8), [len(each) for each in rows])
        if order is not None:
            self.row, self.source = self.row[order], self.source[order]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.row), int(np.prod(self.arrays[0].shape[1:]))

    def __len__(self) -> int:
        return len(self.row)

    def of(self, chosen: np.ndarray) -> "Rows":
        """Some of its rows, in the order asked for: int64 or bool."""
        some = copy.copy(self)
        some.row, some.source = self.row[chosen], self.source[chosen]
        return some

    def __getitem__(self, chosen: slice | np.ndarray) -> np.ndarray:
        row, source = self.row[chosen], self.source[chosen]
        found = np.empty((len(row), self.shape[1]), np.float32)
        for number, array in enumerate(self.arrays):
            here = source == number
            found[here] = _floats(array[row[here]]).reshape(-1, self.shape[1])
        return found


def _floats(values: np.ndarray) -> np.ndarray:
    """As float32; torch turns half precision into it seven times as fast as numpy does."""
    return torch.from_numpy(values).float().numpy() if values.dtype == np.float16 else values.astype(np.float32)
