"""Photos spoilt on purpose are named, and the others are not."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from support.images import draw_noisy_image

from ikebana.auditing import image_quality
from ikebana.data import pixel_cache, sources

SIDE = 96


def collection(folder, spoilt=None, photos=30, size=(160, 120)):
    """Two classes of sharp photos, of which the first one of class a is changed by `spoilt`."""
    for place in range(photos):
        picture = draw_noisy_image(*size, seed=place)
        if place == 0 and spoilt is not None:
            picture = spoilt(picture)
        file = folder / "ab"[place % 2] / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    dataset, keep = pixel_cache.open_pixel_cache(sources.read(folder), SIDE, "squash")
    return sources.assign_classes(dataset, ()), keep.pixels


def named(folder, spoilt=None, **shape):
    return [(each.kind, each.paths) for each in image_quality.check_image_quality(*collection(folder, spoilt, **shape))]


def blur(radius):
    return lambda picture: picture.filter(ImageFilter.GaussianBlur(radius))


def light(factor):
    return lambda picture: ImageEnhance.Brightness(picture).enhance(factor)


def test_unmodified_photos_give_no_finding(tmp_path):
    assert named(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "spoilt"),
    [
        ("blurry", blur(4)),
        ("dark", light(0.1)),
        ("bright", lambda picture: Image.blend(picture, Image.new("RGB", picture.size, (255, 255, 255)), 0.9)),
        ("blank", lambda picture: Image.new("RGB", picture.size, (90, 120, 40))),
        ("low_resolution", lambda picture: picture.resize((50, 40))),
        ("odd_aspect_ratio", lambda picture: picture.resize((700, 120))),
    ],
)
def test_each_spoilt_photo_is_found_by_its_name(kind, spoilt, tmp_path):
    found = named(tmp_path, spoilt)
    assert (kind, ("a/0.png",)) in found
    assert {paths for _, paths in found} == {("a/0.png",)}


def blurred_by(*radii):
    photos = np.stack(
        [np.asarray(draw_noisy_image(120, 120).filter(ImageFilter.GaussianBlur(radius))) for radius in radii]
    )
    return image_quality.measure(photos, np.arange(len(photos))).sharpness


@pytest.mark.slow
def test_a_photo_that_was_enlarged_is_not_called_blurred_for_that(tmp_path):
    def small(picture):
        return picture.filter(ImageFilter.GaussianBlur(2)).resize((70, 52))

    assert named(tmp_path / "small", small) == []
    as_large = named(tmp_path / "large", lambda picture: small(picture).resize((160, 120)))
    assert [kind for kind, _ in as_large] == ["blurry"]


def test_more_blur_is_less_sharp():
    assert (np.diff(blurred_by(0, 1, 2, 4)) < 0).all()


def test_a_photo_of_which_blur_left_hardly_anything_is_still_blurred():
    assert (blurred_by(4, 8, 16, 32) < image_quality.MAX_BLURRED_SHARPNESS).all()


def test_less_light_and_less_contrast_are_not_less_sharp():
    picture = draw_noisy_image(120, 120)
    photos = np.stack([np.asarray(light(factor)(picture)) for factor in (1.0, 0.7, 0.4)])
    sharpness = image_quality.measure(photos, np.arange(len(photos))).sharpness
    np.testing.assert_allclose(sharpness, sharpness[0], rtol=0.2)


def test_where_all_photos_are_soft_none_is_called_blurred(tmp_path):
    for place in range(30):
        file = tmp_path / "ab"[place % 2] / f"{place}.png"
        file.parent.mkdir(exist_ok=True)
        draw_noisy_image(160, 120, seed=place).filter(ImageFilter.GaussianBlur(4 + place / 10)).save(file)
    dataset, keep = pixel_cache.open_pixel_cache(sources.read(tmp_path), SIDE, "squash")
    found = image_quality.check_image_quality(sources.assign_classes(dataset, ()), keep.pixels)
    assert [each for each in found if each.kind == "blurry"] == []


def test_what_many_photos_share_is_one_finding(tmp_path):
    found = [paths for kind, paths in named(tmp_path, photos=120, size=(40, 30)) if kind == "low_resolution"]
    assert [len(paths) for paths in found] == [120]
