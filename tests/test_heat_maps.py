"""Heat maps: on networks whose reasons are known, and trusted only where hiding parts confirms them."""

import numpy as np
import pytest
import torch
from torch import nn

from ikebana.explanation import faithfulness, grad_cam, heat_maps, masking, occlusion
from ikebana.explanation.faithfulness import Check
from ikebana.explanation.heat_maps import HeatMap
from ikebana.learning.models.custom import CustomNetwork
from ikebana.learning.models.layers import Ensemble
from ikebana.learning.models.networks import CalibratedNetwork

SIDE = 64


def draw_square(top, left, size=16, background=60, brightness=250):
    """A grey photo with texture and a bright square: uint8 [SIDE, SIDE, 3]."""
    rng = np.random.default_rng(top * SIDE + left)
    photo = rng.integers(background - 10, background + 10, (SIDE, SIDE, 3))
    photo[top : top + size, left : left + size] = brightness
    return photo.astype(np.uint8)


class BrightNetwork(nn.Module):
    """Class 1 is the mean of what is brighter than 150; class 0 is constant."""

    def __init__(self):
        super().__init__()
        self.brightness = nn.Conv2d(3, 1, 4, stride=4)
        assert self.brightness.bias is not None
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.brightness.weight.fill_(1 / 48)
            self.brightness.bias.fill_(-150)
            self.head.weight.copy_(torch.tensor([[0.0], [1.0]]))
            self.head.bias.copy_(torch.tensor([2.0, 0.0]))

    def forward(self, photos):
        return self.head(self.pool(self.relu(self.brightness(photos))).flatten(1))


class LeftNetwork(BrightNetwork):
    """The same, but only the left half of the map has weights, after a flatten."""

    def __init__(self):
        super().__init__()
        self.weighted = nn.Linear(256, 2, bias=False)
        weights = torch.zeros(2, 16, 16)
        weights[1, :, :8] = 1 / 128
        with torch.no_grad():
            self.weighted.weight.copy_(weights.flatten(1))

    def forward(self, photos):
        return self.weighted(self.relu(self.brightness(photos)).flatten(1))


class ConstantNetwork(BrightNetwork):
    """Its class never depends on the photo."""

    def forward(self, photos):
        return super().forward(photos) * 0 + torch.tensor([0.0, 1.0])


class PatchNetwork(BrightNetwork):
    """Like a transformer: a list of patches after the first convolution."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(1, 1)
        with torch.no_grad():
            self.mix.weight.fill_(1)
            self.mix.bias.fill_(0)

    def forward(self, photos):
        patches = self.relu(self.brightness(photos)).flatten(2).transpose(1, 2)
        return self.head(self.mix(patches).mean(1))


def calibrate(module):
    return CalibratedNetwork(CustomNetwork(module, 2), 1.0).eval()


def make_predict(module):
    """Plain torch as the reference for what hiding parts changes."""
    network = calibrate(module)
    return lambda batch: network(torch.from_numpy(batch).permute(0, 3, 1, 2).float())[0].detach().numpy()


def measure_mass(values, top, left, size):
    """The share of a map that lies within a square of the photo."""
    scale = SIDE // len(values)
    inside = values[top // scale : (top + size) // scale, left // scale : (left + size) // scale]
    return inside.sum() / values.sum()


@pytest.mark.parametrize(("top", "left"), [(0, 0), (16, 40), (48, 48)])
def test_the_map_of_a_convolutional_network_lies_on_the_square_that_decides(top, left):
    photo = draw_square(top, left)
    (heat_map,) = heat_maps.explain_photos(calibrate(BrightNetwork()), photo[None], [1])
    assert heat_map.method == "grad_cam"
    assert heat_map.values.shape == (16, 16)
    assert heat_map.values.dtype == np.float32
    assert (heat_map.values.min(), heat_map.values.max()) == (0, 1)
    assert measure_mass(heat_map.values, top, left, 16) > 0.99
    assert heat_map.is_trusted


def test_a_map_after_a_flatten_shows_only_positions_with_weights():
    photo = np.maximum(draw_square(24, 8), draw_square(24, 40))
    maps = grad_cam.compute_maps(calibrate(LeftNetwork()), photo[None], np.array([1]))
    assert maps is not None
    (values,) = maps
    assert measure_mass(values, 24, 8, 16) > 0.99


def test_the_map_of_a_network_without_feature_maps_is_by_occlusion():
    photo = draw_square(16, 32)
    (heat_map,) = heat_maps.explain_photos(calibrate(PatchNetwork()), photo[None], [1])
    assert heat_map.method == "occlusion"
    # A window of 16 pixels that moves by 8 blurs the border of the square.
    assert measure_mass(heat_map.values, 8, 24, 32) > 0.9
    assert heat_map.is_trusted


def test_both_methods_put_the_maximum_on_the_square():
    photo = draw_square(16, 32)
    (by_occlusion,) = heat_maps.explain_by_occlusion(make_predict(BrightNetwork()), photo[None], [1])
    (by_gradient,) = heat_maps.explain_photos(calibrate(BrightNetwork()), photo[None], [1])
    for heat_map in (by_occlusion, by_gradient):
        row, column = (np.argwhere(heat_map.values == 1).mean(0) + 0.5) * SIDE / len(heat_map.values)
        assert abs(row - 24) <= 8
        assert abs(column - 40) <= 8


def test_the_map_of_an_ensemble_is_the_mean_of_its_networks():
    photo = np.maximum(draw_square(24, 8), draw_square(24, 40))[None]
    left, both = LeftNetwork(), BrightNetwork()
    indices = np.array([1])
    ensemble = CalibratedNetwork(Ensemble([CustomNetwork(left, 2), CustomNetwork(both, 2)]), 1.0).eval()
    left_map, both_map, mean = (
        grad_cam.compute_maps(network, photo, indices) for network in (calibrate(left), calibrate(both), ensemble)
    )
    assert left_map is not None
    assert both_map is not None
    assert mean is not None
    np.testing.assert_allclose(mean, (left_map + both_map) / 2, atol=1e-6)


def test_no_map_of_a_constant_network_is_trusted():
    photos = np.stack([draw_square(16, 16), draw_square(32, 8)])
    for heat_map in heat_maps.explain_photos(calibrate(ConstantNetwork()), photos, [1, 1]):
        assert not heat_map.is_trusted
    for heat_map in heat_maps.explain_by_occlusion(lambda batch: np.full((len(batch), 2), 0.5), photos, [0, 1]):
        assert not heat_map.is_trusted
        assert not heat_map.values.any()


def test_a_map_beside_the_square_is_not_trusted():
    predict, photo = make_predict(BrightNetwork()), draw_square(0, 0)
    right, wrong = np.zeros((2, 8, 8), np.float32)
    right[:2, :2] = wrong[6:, 6:] = 1
    assert faithfulness.check_map(predict, photo, 1, right).is_passed
    assert not faithfulness.check_map(predict, photo, 1, wrong).is_passed


@pytest.mark.slow
def test_displaced_maps_rarely_pass_the_check():
    """Such a map is one of nine that are alike, so by chance it is the best one in nine."""
    predict, photo = make_predict(BrightNetwork()), draw_square(16, 16)
    rng = np.random.default_rng(0)
    values = grad_cam.compute_maps(calibrate(BrightNetwork()), photo[None], np.array([1]))
    assert values is not None
    displaced = [faithfulness.displace(values[0], *rng.integers(16, size=2)) for _ in range(30)]
    assert faithfulness.check_map(predict, photo, 1, values[0]).is_passed
    assert sum(faithfulness.check_map(predict, photo, 1, cells).is_passed for cells in displaced) <= 8


def test_a_check_is_passed_by_a_larger_gain_than_of_every_other_map():
    assert Check(0.5, -0.5, (0.1, -0.2), (0.4, 0.9)).is_passed
    assert not Check(0.5, -0.5, (0.1, -0.2), (0.4, 1.0)).is_passed
    assert not Check(0.5, -0.5, (1.1, -0.2), (0.4, 0.9)).is_passed
    assert not Check(0.5, 0.5, (0.0, 0.0), (0.0, 0.0)).is_passed


def test_a_displaced_map_has_the_same_values_elsewhere():
    cells = np.zeros((masking.CELLS, masking.CELLS))
    cells[2:6, 3:6] = np.arange(1, 13).reshape(4, 3)
    displaced = [faithfulness.displace(cells, *displacement) for displacement in faithfulness.DISPLACEMENTS]
    assert len({moved.tobytes() for moved in displaced} - {cells.tobytes()}) == 8
    for moved in displaced:
        np.testing.assert_array_equal(np.sort(moved, None), np.sort(cells, None))


def test_hidden_cells_are_blurred_and_the_others_untouched():
    photo = draw_square(16, 16)
    visible = np.zeros((masking.CELLS, masking.CELLS), bool)
    visible[4:8, 4:8] = True
    hidden = masking.hide_cells(photo, masking.blur(photo), visible)
    np.testing.assert_array_equal(hidden[16:32, 16:32], photo[16:32, 16:32])
    assert hidden[40:].std() < photo[40:].std() / 2


def test_insertion_shows_the_first_cells_and_deletion_hides_them():
    predict, photo = make_predict(BrightNetwork()), draw_square(16, 16)
    cells = np.zeros((masking.CELLS, masking.CELLS))
    cells[4:8, 4:8] = 1
    (shown, away), (hidden, remains) = faithfulness.measure_orders(predict, photo, 1, [cells, -cells])
    full = masking.compute_log_odds(predict, photo[None], 1)[0]
    assert shown == pytest.approx(full, abs=0.1)
    assert hidden < full - 0.5
    assert away < remains


def test_odd_sides_are_divided_into_cells():
    photo = np.random.default_rng(0).integers(0, 255, (150, 150, 3)).astype(np.uint8)
    values = occlusion.compute_map(lambda batch: np.full((len(batch), 3), 1 / 3), photo, 2)
    assert values.shape == (8, 8)


def test_the_overlay_has_the_size_of_the_photo_and_is_warm_where_the_map_is_high():
    photo = np.full((90, 90, 3), 120, np.uint8)
    values = np.zeros((8, 8), np.float32)
    values[:4, :4] = 1
    drawn = heat_maps.overlay(photo, HeatMap(values, 0, "occlusion", Check(1, 0, (0.5,), (0.5,))))
    assert drawn.shape == photo.shape
    assert drawn.dtype == np.uint8
    warm, cold = drawn[:30, :30].astype(int), drawn[60:, 60:].astype(int)
    assert (warm[..., 0] - warm[..., 2]).mean() > 60
    assert np.abs(cold[..., 0] - cold[..., 2]).max() <= 2
    assert warm.mean() > cold.mean()


def test_no_photos_have_no_maps():
    assert heat_maps.explain_photos(calibrate(BrightNetwork()), np.zeros((0, SIDE, SIDE, 3), np.uint8), []) == []
