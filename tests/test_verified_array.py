"""Rows of a cached array are compared with their checksums before they are returned, once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ikebana.data import verified_array
from ikebana.data.verified_array import VerifiedArray, compute_checksum

ROWS = 300


class Disk:
    """An array, its undamaged copy, and the rows that were restored from it."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.original = rng.integers(0, 256, (ROWS, 8, 8, 3), np.uint8)
        self.array, self.repaired = self.original.copy(), list[int]()
        self.is_checked = np.ones(ROWS, bool)

    def repair(self, rows):
        self.repaired += rows.tolist()
        self.array[rows] = self.original[rows]

    def open(self):
        checksums = np.array([compute_checksum(row) for row in self.original])
        return VerifiedArray(self.array, checksums, self.is_checked, self.repair)


INDICES = {
    "a number": 7,
    "a number from the end": -2,
    "a slice": slice(3, 200, 7),
    "nothing": slice(5, 5),
    "rows, some twice": np.array([250, 3, 3, -1, 0]),
    "a list": [4, 2],
    "a mask": np.arange(ROWS) % 3 == 0,
    "all": slice(None),
}


@pytest.mark.parametrize("threaded_bytes", [0, 2**26])
@pytest.mark.parametrize("name", INDICES)
def test_every_index_returns_undamaged_rows_and_restores_no_others(name, threaded_bytes, monkeypatch):
    monkeypatch.setattr(verified_array, "MIN_THREADED_BYTES", threaded_bytes)
    disk = Disk()
    disk.array[:] += 1
    rows, index = disk.open(), INDICES[name]
    assert np.array_equal(rows[index], disk.original[index])
    assert sorted(disk.repaired) == np.unique(np.arange(ROWS)[index]).tolist()


def test_the_whole_array_is_verified_when_it_becomes_a_plain_array():
    disk = Disk()
    disk.array[123, 4] = 9
    assert np.array_equal(np.asarray(disk.open()), disk.original)
    assert disk.repaired == [123]


def test_a_row_is_compared_once(monkeypatch):
    disk, compared = Disk(), list[int]()
    rows = disk.open()
    monkeypatch.setattr(verified_array, "compute_checksum", lambda row: compared.append(1) or compute_checksum(row))
    for _ in range(3):
        rows[10:20]
    rows[np.arange(5, 15)]
    assert len(compared) == 15


def test_rows_without_a_checksum_are_returned_as_they_are():
    disk = Disk()
    disk.is_checked[5] = False
    disk.array[5] += 1
    assert np.array_equal(disk.open()[5], disk.array[5])
    assert disk.repaired == []


def test_a_row_that_several_threads_read_is_restored_once():
    disk = Disk()
    disk.array[:] += 1
    rows = disk.open()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda start: rows[start % 4 : start % 4 + 200], range(32)))
    assert all(np.array_equal(result, disk.original[start % 4 :][:200]) for start, result in enumerate(results))
    assert sorted(disk.repaired) == list(range(203))


def test_a_row_that_cannot_be_restored_is_never_returned():
    disk = Disk()
    disk.array[9] += 1

    def fail(rows):
        raise OSError("no such photo")

    disk.repair = fail
    rows = disk.open()
    for _ in range(2):
        with pytest.raises(OSError, match="no such photo"):
            rows[8:11]
    assert np.array_equal(rows[8], disk.original[8])
