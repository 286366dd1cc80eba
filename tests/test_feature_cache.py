"""Features are computed once, cached completely, and never used after damage."""

import numpy as np
import pytest
import torch
from torch import nn

from ikebana.learning import device, examples, fast
from ikebana.learning.features import feature_cache
from ikebana.learning.features.feature_cache import FeatureKey
from ikebana.recipes import RECIPES
from ikebana.system.cache_folder import cache_folder

needs_bfloat16 = pytest.mark.skipif(
    not device.can_convolve_bfloat16(), reason="oneDNN has no bfloat16 convolution on this processor"
)
EXACT = device.DeviceSettings("cpu", "float32", 2, "system default")
HALF = device.DeviceSettings("cpu", "bfloat16", 2, "system default")
ORIGIN = FeatureKey("some pixels", "a network", "its weights")


class CountingBackbone(nn.Module):
    """A small backbone that counts the distinct photos in its forward passes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.norm.register_buffer("running_mean", torch.randn(8))
        self.norm.register_buffer("running_var", torch.rand(8) * 3)
        # A list, so that copies of the backbone share the count.
        self.photo_count = [0]

    def forward(self, photos):
        self.photo_count[0] += len(torch.unique(photos.flatten(1), dim=0))  # padding repeats photos of the batch
        return torch.relu(self.norm(self.convolution(photos.float() / 255))).mean((2, 3))

    def __deepcopy__(self, memo):
        copied = CountingBackbone()
        copied.photo_count = self.photo_count
        return copied


@pytest.fixture
def backbone():
    return CountingBackbone().eval()


def photos(rows, count=20, side=16):
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return examples.make_unlabelled(pixels, np.array(rows, np.int64))


def count_and_extract(backbone, shown, setting=EXACT):
    """Return how many photos the backbone computed for these features, and the features."""
    before = backbone.photo_count[0]
    features = feature_cache.extract_features(backbone, ORIGIN, shown, setting)
    asked = backbone.photo_count[0] - before - 1  # one zero photo determines the shape
    return (asked - count_trials(backbone, shown) if asked else 0), features.to_array()


def count_trials(backbone, shown):
    """Return how many photos are used to compare fused copies with the original."""
    before = backbone.photo_count[0]
    fast.fuse_layers(backbone, shown)
    return backbone.photo_count[0] - before


def compute_expected(backbone, shown):
    with torch.inference_mode():
        return backbone(shown.get_batch(np.arange(len(shown)), "cpu")[0]).numpy()


def test_cached_features_equal_the_output_of_the_backbone(backbone):
    shown = photos([3, 1, 19, 1])
    _, features = count_and_extract(backbone, shown)
    np.testing.assert_allclose(features, compute_expected(backbone, shown), rtol=1e-5, atol=1e-6)


def test_each_photo_is_computed_once_and_only_new_photos_later(backbone):
    assert count_and_extract(backbone, photos([0, 1, 2, 3, 4]))[0] == 5
    assert count_and_extract(backbone, photos([4, 3]))[0] == 0
    computed_photos, features = count_and_extract(backbone, photos([3, 4, 5, 6]))
    assert computed_photos == 2
    np.testing.assert_allclose(features, compute_expected(backbone, photos([3, 4, 5, 6])), rtol=1e-5, atol=1e-6)


def test_a_row_that_changed_on_disk_is_computed_again(backbone):
    _, before = count_and_extract(backbone, photos(range(10)))
    (file,) = cache_folder().glob("features/*/features.npy")
    array = np.load(file, mmap_mode="r+")
    array[4, 2] += 1
    array.flush()
    computed_photos, after = count_and_extract(backbone, photos(range(10)))
    assert computed_photos == 1
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)  # the last bit depends on the batch


@pytest.mark.parametrize("damage", [lambda data: data[:40], lambda data: b"", lambda data: data[:-7]])
@pytest.mark.parametrize("name", ["features.npy", "checks.npy"])
def test_damaged_files_are_computed_again(backbone, damage, name):
    _, before = count_and_extract(backbone, photos(range(10)))
    (file,) = cache_folder().glob(f"features/*/{name}")
    file.write_bytes(damage(file.read_bytes()))
    computed_photos, after = count_and_extract(backbone, photos(range(10)))
    assert computed_photos == 10
    np.testing.assert_array_equal(after, before)


@needs_bfloat16
def test_other_pixels_weights_and_precisions_have_separate_features(backbone):
    shown = photos(range(5))
    for origin in (
        ORIGIN,
        FeatureKey("others", "a network", "its weights"),
        FeatureKey("some pixels", "a network", "others"),
    ):
        for setting in (EXACT, HALF):
            feature_cache.extract_features(backbone, origin, shown, setting)
    assert len(list(cache_folder().glob("features/*"))) == 6


@needs_bfloat16
def test_half_precision_is_close_and_needs_half_the_space(backbone):
    shown = photos(range(10))
    exact, half = (feature_cache.extract_features(backbone, ORIGIN, shown, setting) for setting in (EXACT, HALF))
    assert (exact.array.dtype, half.array.dtype) == (np.float32, np.float16)
    assert np.abs(half.to_array() - exact.to_array()).max() < 0.02 * np.abs(exact.to_array()).max()


def test_features_with_flip_tta_are_not_reused_without_it():
    photo_alone, both = (feature_cache.make_feature_key("pixels", RECIPES[name], None) for name in ("quick", "good"))
    assert RECIPES["quick"].network == RECIPES["good"].network
    assert photo_alone != both
