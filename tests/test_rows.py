"""Features on disk, seen as one table: what numpy would say of a copy in memory."""

import numpy as np
import pytest

from ikebana.learning.rows import Rows


@pytest.fixture
def table():
    """The same table twice: on two arrays of different precision and out of order, and as a copy."""
    dice = np.random.default_rng(0)
    half, exact = dice.normal(size=(50, 2, 3)).astype(np.float16), dice.normal(size=(50, 2, 3)).astype(np.float32)
    first, second = np.array([4, 7, 30]), np.array([1, 8, 49, 20])
    order = dice.permutation(7)
    copy = np.concatenate((half[first], exact[second])).reshape(7, 6).astype(np.float32)[order]
    return Rows([half, exact], [first, second], order), copy


@pytest.mark.parametrize("chosen", [slice(2, 5), slice(0, 0), slice(5, 99), np.array([6, 0, 0, 3]), np.arange(7) % 2 == 0])
def test_any_rows_are_those_of_a_copy(table, chosen):
    rows, copy = table
    assert (len(rows), rows.shape) == (7, (7, 6))
    np.testing.assert_array_equal(rows[chosen], copy[chosen])
    assert rows[chosen].dtype == np.float32


def test_rows_of_rows_are_rows(table):
    rows, copy = table
    some = np.array([5, 1, 6])
    np.testing.assert_array_equal(rows.of(some)[:], copy[some])
    np.testing.assert_array_equal(rows.of(some)[np.array([2, 2])], copy[some][[2, 2]])
