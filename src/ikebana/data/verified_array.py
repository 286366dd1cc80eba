"""A memory-mapped array whose rows are checked against their checksums when first read.

Checking a whole array at each start would read it from disk: 200 GB for a million photos.
"""

import threading
import zlib
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ikebana.system.threads import map_in_threads

# Rows of more bytes than this are checked in threads.
MIN_THREADED_BYTES = 2**26
# Rows checked per task.
CHUNK_ROWS = 64

Rows: TypeAlias = int | np.integer | slice | list[int] | np.ndarray


class VerifiedArray:
    """An array [rows, ...] of which no row is returned before its checksum was compared.

    Each row is compared once per process. After that, reading costs the look-up of one flag per row.

    Args:
        array: [rows, ...], read-only.
        checksums: int64 [rows], as `compute_checksum` returns them.
        is_checked: bool [rows]; the other rows are returned as they are.
        repair: restores damaged rows, given as int64, in the file that the array maps. Called by one
            thread at a time.
    """

    def __init__(
        self,
        array: np.ndarray,
        checksums: np.ndarray,
        is_checked: np.ndarray,
        repair: Callable[[np.ndarray], None],
    ):
        self._array, self._checksums, self._repair = array, checksums, repair
        self._is_verified = ~is_checked
        self._repair_lock = threading.Lock()

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    @property
    def nbytes(self) -> int:
        return self._array.nbytes

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, rows: Rows) -> np.ndarray:
        """Return some rows: one by its number, or several by a slice, int64 or bool.

        Raises:
            MachineError: rows are damaged, and cannot be restored.
        """
        self._verify(_list_rows(rows, len(self)))
        return self._array[rows]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """Return all rows, for `np.asarray`."""
        array = self[:]
        if dtype is not None and dtype != array.dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    def _verify(self, rows: np.ndarray) -> None:
        """Check the rows that were not checked yet, and have damaged ones restored."""
        pending = rows[~self._is_verified[rows]]
        if not len(pending):
            return
        damaged = self._find_damaged(pending)
        if len(damaged):
            # Another thread may have found the same rows.
            with self._repair_lock:
                still_damaged = self._find_damaged(damaged)
                if len(still_damaged):
                    self._repair(np.unique(still_damaged))
        self._is_verified[pending] = True

    def _find_damaged(self, rows: np.ndarray) -> np.ndarray:
        """Return those of the rows whose checksum differs."""

        def find(start: int) -> np.ndarray:
            chunk = rows[start : start + CHUNK_ROWS]
            checksums = [compute_checksum(self._array[row]) for row in chunk]
            return chunk[np.array(checksums, np.int64) != self._checksums[chunk]]

        starts, row_bytes = range(0, len(rows), CHUNK_ROWS), self._array[:1].nbytes
        find_all = map_in_threads if len(rows) * row_bytes > MIN_THREADED_BYTES else map
        return np.concatenate([rows[:0], *find_all(find, starts)])


# Rows of an array in memory, or of a cache.
Pixels: TypeAlias = np.ndarray | VerifiedArray


def compute_checksum(row: np.ndarray) -> int:
    """Compute the CRC-32 of a contiguous row."""
    return zlib.crc32(row.data)


def _list_rows(rows: Rows, count: int) -> np.ndarray:
    """List the numbers of the rows that an index selects."""
    if isinstance(rows, slice):
        return np.arange(*rows.indices(count))
    numbers = np.atleast_1d(rows)
    if numbers.dtype == bool:
        return np.flatnonzero(numbers)
    return np.where(numbers < 0, numbers + count, numbers)
