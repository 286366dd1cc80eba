"""Photos degraded on purpose are reported, and the others are not."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from support.images import draw_noisy_image

from ikebana.auditing import image_quality
from ikebana.data import pixel_cache, sources

SIDE = 96


def write_collection(folder, spoilt=None, photos=30, size=(160, 120)):
    """Write two classes of sharp photos; `spoilt` changes the first photo of class a."""
    for place in range(photos):
        picture = draw_noisy_image(*size, seed=place)
        if place == 0 and spoilt is not None:
            picture = spoilt(picture)
        file = folder / "ab"[place % 2] / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    dataset, keep = pixel_cache.open_pixel_cache(sources.read(folder), SIDE, "squash")
    return sources.assign_classes(dataset, ()), keep.pixels


def check_folder(folder, spoilt=None, **shape):
    return [
        (finding.kind, finding.paths)
        for finding in image_quality.check_image_quality(*write_collection(folder, spoilt, **shape))
    ]


def blur(radius):
    return lambda picture: picture.filter(ImageFilter.GaussianBlur(radius))


def change_light(factor):
    return lambda picture: ImageEnhance.Brightness(picture).enhance(factor)


def test_unmodified_photos_have_no_findings(tmp_path):
    assert check_folder(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "spoilt"),
    [
        ("blurry", blur(4)),
        ("dark", change_light(0.1)),
        ("bright", lambda picture: Image.blend(picture, Image.new("RGB", picture.size, (255, 255, 255)), 0.9)),
        ("blank", lambda picture: Image.new("RGB", picture.size, (90, 120, 40))),
        ("low_resolution", lambda picture: picture.resize((50, 40))),
        ("odd_aspect_ratio", lambda picture: picture.resize((700, 120))),
    ],
)
def test_each_degraded_photo_is_reported_with_its_kind(kind, spoilt, tmp_path):
    findings = check_folder(tmp_path, spoilt)
    assert (kind, ("a/0.png",)) in findings
    assert {paths for _, paths in findings} == {("a/0.png",)}


def measure_blurred(*radii):
    photos = np.stack(
        [np.asarray(draw_noisy_image(120, 120).filter(ImageFilter.GaussianBlur(radius))) for radius in radii]
    )
    return image_quality.measure(photos, np.arange(len(photos))).sharpness


@pytest.mark.slow
def test_an_enlarged_photo_is_not_called_blurry(tmp_path):
    def shrink(picture):
        return picture.filter(ImageFilter.GaussianBlur(2)).resize((70, 52))

    assert check_folder(tmp_path / "small", shrink) == []
    as_large = check_folder(tmp_path / "large", lambda picture: shrink(picture).resize((160, 120)))
    assert [kind for kind, _ in as_large] == ["blurry"]


def test_more_blur_has_a_lower_sharpness():
    assert (np.diff(measure_blurred(0, 1, 2, 4)) < 0).all()


def test_an_extremely_blurred_photo_is_called_blurry():
    assert (measure_blurred(4, 8, 16, 32) < image_quality.MAX_BLURRED_SHARPNESS).all()


def test_darker_and_flatter_photos_have_the_same_sharpness():
    picture = draw_noisy_image(120, 120)
    photos = np.stack([np.asarray(change_light(factor)(picture)) for factor in (1.0, 0.7, 0.4)])
    sharpness = image_quality.measure(photos, np.arange(len(photos))).sharpness
    np.testing.assert_allclose(sharpness, sharpness[0], rtol=0.2)


def test_if_all_photos_are_soft_none_is_called_blurry(tmp_path):
    for place in range(30):
        file = tmp_path / "ab"[place % 2] / f"{place}.png"
        file.parent.mkdir(exist_ok=True)
        draw_noisy_image(160, 120, seed=place).filter(ImageFilter.GaussianBlur(4 + place / 10)).save(file)
    dataset, keep = pixel_cache.open_pixel_cache(sources.read(tmp_path), SIDE, "squash")
    findings = image_quality.check_image_quality(sources.assign_classes(dataset, ()), keep.pixels)
    assert [finding for finding in findings if finding.kind == "blurry"] == []


def test_a_defect_of_many_photos_is_one_finding(tmp_path):
    findings = [paths for kind, paths in check_folder(tmp_path, photos=120, size=(40, 30)) if kind == "low_resolution"]
    assert [len(paths) for paths in findings] == [120]
