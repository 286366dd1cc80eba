"""Features are computed once, kept whole, and never trusted when they have changed."""

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


class Seer(nn.Module):
    """A small backbone that counts the photos it sees."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.norm.register_buffer("running_mean", torch.randn(8))
        self.norm.register_buffer("running_var", torch.rand(8) * 3)
        self.seen = [0]  # a list: copies of the backbone count in the same one

    def forward(self, photos):
        self.seen[0] += len(torch.unique(photos.flatten(1), dim=0))  # a batch is filled up with photos that are in it
        return torch.relu(self.norm(self.convolution(photos.float() / 255))).mean((2, 3))

    def __deepcopy__(self, memo):
        copied = Seer()
        copied.seen = self.seen
        return copied


@pytest.fixture
def backbone():
    return Seer().eval()


def photos(rows, count=20, side=16):
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return examples.make_unlabelled(pixels, np.array(rows, np.int64))


def computed(backbone, shown, setting=EXACT):
    """How many photos the backbone saw for this, and what came of it."""
    before = backbone.seen[0]
    found = feature_cache.extract_features(backbone, ORIGIN, shown, setting)
    asked = backbone.seen[0] - before - 1  # one zero photo tells the shape
    return (asked - trials(backbone, shown) if asked else 0), found.to_array()


def trials(backbone, shown):
    """How many photos are looked at to compare lean copies with the original."""
    before = backbone.seen[0]
    fast.fuse_layers(backbone, shown)
    return backbone.seen[0] - before


def expected(backbone, shown):
    with torch.inference_mode():
        return backbone(shown.get_batch(np.arange(len(shown)), "cpu")[0]).numpy()


def test_kept_features_are_what_the_backbone_says(backbone):
    shown = photos([3, 1, 19, 1])
    _, found = computed(backbone, shown)
    np.testing.assert_allclose(found, expected(backbone, shown), rtol=1e-5, atol=1e-6)


def test_each_photo_is_seen_once_and_more_photos_cost_only_themselves(backbone):
    assert computed(backbone, photos([0, 1, 2, 3, 4]))[0] == 5
    assert computed(backbone, photos([4, 3]))[0] == 0
    seen, found = computed(backbone, photos([3, 4, 5, 6]))
    assert seen == 2
    np.testing.assert_allclose(found, expected(backbone, photos([3, 4, 5, 6])), rtol=1e-5, atol=1e-6)


def test_a_row_that_has_changed_on_the_disk_is_computed_again(backbone):
    _, before = computed(backbone, photos(range(10)))
    (file,) = cache_folder().glob("features/*/features.npy")
    array = np.load(file, mmap_mode="r+")
    array[4, 2] += 1
    array.flush()
    seen, after = computed(backbone, photos(range(10)))
    assert seen == 1
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)  # the last bit depends on the batch


@pytest.mark.parametrize("damage", [lambda data: data[:40], lambda data: b"", lambda data: data[:-7]])
@pytest.mark.parametrize("name", ["features.npy", "checks.npy"])
def test_files_that_are_no_longer_whole_are_made_again(backbone, damage, name):
    _, before = computed(backbone, photos(range(10)))
    (file,) = cache_folder().glob(f"features/*/{name}")
    file.write_bytes(damage(file.read_bytes()))
    seen, after = computed(backbone, photos(range(10)))
    assert seen == 10
    np.testing.assert_array_equal(after, before)


@needs_bfloat16
def test_other_pixels_other_weights_and_another_format_have_features_of_their_own(backbone):
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
def test_half_precision_is_close_and_takes_half_the_space(backbone):
    shown = photos(range(10))
    exact, half = (feature_cache.extract_features(backbone, ORIGIN, shown, setting) for setting in (EXACT, HALF))
    assert (exact.array.dtype, half.array.dtype) == (np.float32, np.float16)
    assert np.abs(half.to_array() - exact.to_array()).max() < 0.02 * np.abs(exact.to_array()).max()


def test_features_with_flip_tta_are_not_reused_without_it():
    photo_alone, both = (feature_cache.make_feature_key("pixels", RECIPES[name], None) for name in ("quick", "good"))
    assert RECIPES["quick"].network == RECIPES["good"].network
    assert photo_alone != both
