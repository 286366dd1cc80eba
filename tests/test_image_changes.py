"""Changes of photos: stronger ones differ more, none changes size or type, and all can be repeated."""

import numpy as np
import pytest
from scipy import ndimage
from support.images import draw_scene

from ikebana.evaluation import image_changes
from ikebana.evaluation.image_changes import CHANGES
from ikebana.evaluation.robustness import STRENGTHS

by_change = pytest.mark.parametrize("name", CHANGES)


def draw_photo(size=112, seed=0):
    return np.asarray(draw_scene(seed, (size, size)))


def apply(name, photo, strength, number=0):
    return CHANGES[name](photo, strength, number)


def compute_distance(first, second):
    return np.abs(first.astype(float) - second).mean()


@by_change
@pytest.mark.parametrize("size", [8, 45, 112])
def test_a_changed_photo_has_the_size_and_type_of_the_original_which_stays_unchanged(name, size):
    photo = draw_photo(112)[:size, :size]
    before = photo.copy()
    for strength in STRENGTHS:
        changed = apply(name, photo, strength)
        assert (changed.shape, changed.dtype) == (photo.shape, np.uint8)
    assert np.array_equal(photo, before)


@by_change
def test_a_stronger_change_differs_more(name):
    distances = [
        np.mean(
            [compute_distance(apply(name, photo, strength), photo) for photo in map(draw_photo, [112] * 4, range(4))]
        )
        for strength in STRENGTHS
    ]
    assert distances[0] > 0
    assert (np.diff(distances) > 0).all()


@by_change
def test_a_change_can_be_repeated(name):
    photo = draw_photo()
    assert np.array_equal(apply(name, photo, 3, number=5), apply(name, photo, 3, number=5))


def test_noise_differs_between_photos_and_has_the_stated_deviation():
    grey = np.full((224, 224, 3), 128, np.uint8)
    first, second = (apply("noise", grey, 1, number).astype(float) for number in (0, 1))
    assert first.std() == pytest.approx(255 * image_changes.NOISE_SHARES[0], rel=0.02)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02


def test_blur_is_gaussian_and_scaled_to_the_size_of_the_photo():
    point = np.zeros((112, 112, 3), np.uint8)
    point[40:72, 40:72] = 255
    for strength, pixels in zip(STRENGTHS, image_changes.BLUR_PIXELS, strict=True):
        expected = ndimage.gaussian_filter(point[..., 0].astype(float), pixels / 2)
        assert compute_distance(apply("blur", point, strength)[..., 0], expected) < 1.5


def test_rotation_turns_about_the_centre_to_either_side_without_black_corners():
    photo = np.full((101, 101, 3), 200, np.uint8)
    photo[48:53, 30:71] = 0
    for number, sign in ((0, 1), (1, -1)):
        turned = apply("rotation", photo, 5, number)
        ys, xs = np.nonzero(turned[30:71, 30:71, 0] < 100)
        slope = np.polyfit(xs, ys, 1)[0]
        assert slope == pytest.approx(-sign, abs=0.1)
        assert turned[[0, 0, -1, -1], [0, -1, 0, -1]].min() > 150


def test_darker_and_brighter_multiply_grey_levels_up_to_white():
    grey = np.full((8, 8, 3), 100, np.uint8)
    assert [int(apply("darker", grey, strength)[0, 0, 0]) for strength in STRENGTHS] == [80, 60, 45, 30, 20]
    assert [int(apply("brighter", grey, strength)[0, 0, 0]) for strength in STRENGTHS] == [125, 150, 200, 250, 255]
