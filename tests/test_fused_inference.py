"""A network that only looks may be made lean in any way, as long as it says the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ikebana import recipes
from ikebana.learning import device, examples
from ikebana.learning.fast import fused_inference
from ikebana.learning.models import networks

EXACT = device.DeviceSettings("cpu", "float32", 2, "system default")
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
needs_onednn = pytest.mark.skipif(not ONEDNN, reason="this torch has no oneDNN")
needs_bfloat16 = pytest.mark.skipif(
    not device.can_convolve_bfloat16(), reason="oneDNN has no bfloat16 convolution on this processor"
)
NAMES = ("tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_050", "efficientnet_b0", "convnext_atto")


class Float(nn.Module):
    def forward(self, photos):
        return photos.float() / 255


def photos(count=4, side=64):
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return examples.make_unlabelled(pixels, np.arange(count))


def with_lively_norms(network):
    """Fresh BatchNorms do nothing: a test with them would not see that one was lost."""
    rng = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_buffer("running_mean", 0.1 * torch.randn(module.num_features, generator=rng))
            module.register_buffer("running_var", 0.5 + torch.rand(module.num_features, generator=rng))
    return network


@pytest.fixture(params=NAMES)
def network(request):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return with_lively_norms(nn.Sequential(Float(), timm.create_model(request.param, num_classes=0)).eval())


def activations(network):
    return [each.activation for each in network.modules() if isinstance(each, fused_inference.FusedConvolution)]


@torch.inference_mode()
def said(network, shown, setting=EXACT):
    pixels, _ = shown.get_batch(np.arange(len(shown)), "cpu")
    with setting.autocast():
        return network(pixels).float()


@pytest.mark.slow
@pytest.mark.parametrize("made", [fused_inference.fold_batchnorm, fused_inference.fuse_layers])
def test_a_lean_network_says_the_same(made, network):
    shown = photos()
    found = made(network, shown)
    assert not [each for each in found.modules() if isinstance(each, nn.BatchNorm2d)]
    torch.testing.assert_close(said(found, shown), said(network, shown), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@needs_onednn
@needs_bfloat16
def test_in_half_precision_it_is_no_further_from_the_truth_than_torch_itself(network):
    shown, half = photos(), replace(EXACT, precision="bfloat16")
    truth = said(network, shown)
    fused, plain = (
        said(made(network, shown), shown, half)
        for made in (fused_inference.fuse_layers, fused_inference.fold_batchnorm)
    )
    assert (fused - truth).abs().mean() < 1.5 * (plain - truth).abs().mean() + 1e-6


@needs_onednn
@pytest.mark.parametrize(
    ("name", "activation"),
    [("tf_efficientnet_lite0", "hardtanh"), ("mobilenetv3_small_050", "hardswish"), ("efficientnet_b0", "swish")],
)
def test_activations_are_computed_with_their_convolutions(name, activation):
    timm = pytest.importorskip("timm")
    network = nn.Sequential(Float(), timm.create_model(name, num_classes=0)).eval()
    assert activation in activations(fused_inference.fuse_layers(network, photos()))


def test_the_original_is_left_as_it_was():
    network = networks.build_network(recipes.get_recipe("baseline", image_size=64), 3).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fused_inference.fuse_layers(network, photos())
    assert not activations(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class NormFirst(nn.Module):
    """Its norm stands after its convolution and is used before it."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.norm.register_buffer("running_mean", torch.full((3,), 5.0))

    def forward(self, photos):
        return self.convolution(torch.relu(self.norm(photos))).mean((2, 3))


class ActivationFirst(nn.Module):
    """Its activation stands after its convolution and is used before it."""

    def __init__(self):
        super().__init__()
        self.convolution, self.activation = nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, photos):
        return self.convolution(self.activation(photos - 0.5)).mean((2, 3))


def test_a_network_that_is_not_what_its_order_says_is_left_as_it_is():
    crooked = nn.Sequential(Float(), NormFirst()).eval()
    assert fused_inference.fold_batchnorm(crooked, photos()) is crooked
    crooked = nn.Sequential(Float(), ActivationFirst()).eval()
    assert not activations(fused_inference.fuse_layers(crooked, photos()))
