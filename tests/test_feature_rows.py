"""Features on disk behave as one table, like a numpy copy in memory."""

import numpy as np
import pytest

from ikebana.learning import examples
from ikebana.learning.features.feature_rows import FeatureRows


@pytest.fixture
def table():
    """A table on two unordered arrays of different precision, and its copy."""
    rng = np.random.default_rng(0)
    half, exact = rng.normal(size=(50, 2, 3)).astype(np.float16), rng.normal(size=(50, 2, 3)).astype(np.float32)
    first, second = np.array([4, 7, 30]), np.array([1, 8, 49, 20])
    order = rng.permutation(7)
    copy = np.concatenate((half[first], exact[second])).reshape(7, 6).astype(np.float32)[order]
    return FeatureRows([half, exact], [first, second], order), copy


@pytest.mark.parametrize(
    "chosen", [slice(2, 5), slice(0, 0), slice(5, 99), np.array([6, 0, 0, 3]), np.arange(7) % 2 == 0]
)
def test_any_rows_equal_those_of_a_copy(table, chosen):
    rows, copy = table
    assert (len(rows), rows.shape) == (7, (7, 6))
    np.testing.assert_array_equal(rows[chosen], copy[chosen])
    assert rows[chosen].dtype == np.float32


def test_rows_of_selected_rows_are_rows(table):
    rows, copy = table
    some = np.array([5, 1, 6])
    np.testing.assert_array_equal(rows.select(some)[:], copy[some])
    np.testing.assert_array_equal(rows.select(some)[np.array([2, 2])], copy[some][[2, 2]])


def test_a_batch_is_the_same_from_pixels_on_the_device_and_from_the_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 4, 4, 3), np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    on_device = examples.copy_to_device(mapped, "cpu", free_bytes=10 * mapped.nbytes)
    assert on_device is not None
    rows = np.array([7, 2999, 0, 1024, 1500])
    streamed = examples.PhotoExamples(mapped, rows, rows % 3, rows > 9, rows)
    there = examples.PhotoExamples(mapped, rows, rows % 3, rows > 9, rows, on_device)
    for photos in (
        (streamed, there),
        *((examples.concatenate(photo_set, photo_set) for photo_set in (streamed, there)),),
    ):
        first, second = (photo.get_batch(np.array([4, 0, 2]), "cpu") for photo in photos)
        assert all((a == b).all() and a.shape == b.shape for a, b in zip(first, second, strict=True))


def test_pixels_that_would_fill_the_device_are_not_copied_to_it():
    pixels = np.zeros((10, 4, 4, 3), np.uint8)
    assert examples.copy_to_device(pixels, "cpu", free_bytes=pixels.nbytes) is None
    assert examples.copy_to_device(pixels, "cpu", free_bytes=0) is None
