"""Features that several processes compute are those of one, bit by bit."""

import numpy as np
import pytest
import torch
from torch import nn

from ikebana.errors import MachineError, RecipeError
from ikebana.learning import device, examples
from ikebana.learning.features import feature_cache, feature_parts
from ikebana.learning.features.feature_cache import FeatureKey

SETTINGS = device.DeviceSettings("cpu", "float32", 1, "system default")
KEY = FeatureKey("some pixels", "a network", "its weights")
# Not all rows, and more than two batches.
ROWS = [row for row in range(60) if row % 3]


class BatchBackbone(nn.Module):
    """A backbone whose features show the batch that a photo was in."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(5))

    def forward(self, photos):
        means = photos.float().mean((1, 2, 3))
        return (means[:, None] + means.sum()) * self.weight


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return BatchBackbone().eval()


@pytest.fixture
def photos():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
    return examples.make_unlabelled(pixels, np.array(ROWS, np.int64))


def compute(prepared, number, backbone, photos, settings=SETTINGS):
    feature_parts.compute_part(prepared, number, backbone, photos.pixels, settings)


def prepare(backbone, photos, part_photos=1):
    prepared = feature_parts.prepare(backbone, KEY, photos, SETTINGS, part_photos)
    assert prepared is not None
    return prepared


@pytest.mark.parametrize("part_photos", [1, 17, 100])
def test_parts_give_the_features_of_one_process(backbone, photos, monkeypatch, tmp_path, part_photos):
    expected = feature_cache.extract_features(backbone, KEY, photos, SETTINGS).array.copy()
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path))
    prepared = prepare(backbone, photos, part_photos)
    for number in prepared.parts.numbers:
        compute(prepared, number, backbone, photos)
    feature_parts.join(prepared)
    assert feature_parts.prepare(backbone, KEY, photos, SETTINGS, part_photos) is None
    monkeypatch.setattr(feature_cache, "compute_features", lambda *_: pytest.fail("computed again"))
    np.testing.assert_array_equal(feature_cache.extract_features(backbone, KEY, photos, SETTINGS).array, expected)
    assert {entry.name for entry in prepared.folder.iterdir()} == {"features.npy", "checks.npy"}


def test_only_missing_rows_and_parts_are_computed(backbone, photos):
    feature_cache.extract_features(backbone, KEY, photos.select(np.arange(10)), SETTINGS)
    first = prepare(backbone, photos)
    assert first.rows.tolist() == ROWS[10:]
    compute(first, 1, backbone, photos)
    again = prepare(backbone, photos, 40)
    assert again.parts == first.parts
    assert again.parts.list_missing() == [0]


def test_a_row_that_another_process_overwrote_is_computed_again(backbone, photos):
    prepared = prepare(backbone, photos)
    for number in prepared.parts.numbers:
        compute(prepared, number, backbone, photos)
    array = np.load(prepared.folder / "features.npy", mmap_mode="r+")
    array[ROWS[7], 2:] = 0
    array.flush()
    feature_parts.join(prepared)
    assert prepare(backbone, photos).rows.tolist() == [ROWS[7]]


def test_parts_that_are_not_complete_are_not_joined(backbone, photos):
    prepared = prepare(backbone, photos)
    compute(prepared, 0, backbone, photos)
    with pytest.raises(MachineError, match="missing or damaged"):
        feature_parts.join(prepared)
    prepared.parts.remove()
    feature_parts.join(prepared)
    assert prepare(backbone, photos).rows.tolist() == ROWS


def test_features_that_are_no_numbers_are_refused(backbone, photos):
    with torch.no_grad():
        backbone.weight[2] = torch.nan
    prepared = prepare(backbone, photos)
    with pytest.raises(RecipeError, match="NaN"):
        compute(prepared, 0, backbone, photos)
    assert 0 in prepared.parts.list_missing()
