"""Fusing layers for inference does not change the output of a network."""

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


def randomise_norms(network):
    """Randomise BatchNorms: fresh ones do nothing, so a test would not detect a missing one."""
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
    return randomise_norms(nn.Sequential(Float(), timm.create_model(request.param, num_classes=0)).eval())


def list_activations(network):
    return [module.activation for module in network.modules() if isinstance(module, fused_inference.FusedConvolution)]


@torch.inference_mode()
def compute_output(network, shown, setting=EXACT):
    pixels, _ = shown.get_batch(np.arange(len(shown)), "cpu")
    with setting.autocast():
        return network(pixels).float()


@pytest.mark.slow
@pytest.mark.parametrize("fuse", [fused_inference.fold_batchnorm, fused_inference.fuse_layers])
def test_a_fused_network_has_the_same_output(fuse, network):
    shown = photos()
    fused_network = fuse(network, shown)
    assert not [module for module in fused_network.modules() if isinstance(module, nn.BatchNorm2d)]
    torch.testing.assert_close(
        compute_output(fused_network, shown), compute_output(network, shown), rtol=1e-3, atol=1e-4
    )


@pytest.mark.slow
@needs_onednn
@needs_bfloat16
def test_in_half_precision_the_error_is_no_larger_than_that_of_torch(network):
    shown, half = photos(), replace(EXACT, precision="bfloat16")
    truth = compute_output(network, shown)
    fused, plain = (
        compute_output(fuse(network, shown), shown, half)
        for fuse in (fused_inference.fuse_layers, fused_inference.fold_batchnorm)
    )
    assert (fused - truth).abs().mean() < 1.5 * (plain - truth).abs().mean() + 1e-6


@needs_onednn
@pytest.mark.parametrize(
    ("name", "activation"),
    [("tf_efficientnet_lite0", "hardtanh"), ("mobilenetv3_small_050", "hardswish"), ("efficientnet_b0", "swish")],
)
def test_activations_are_fused_into_their_convolutions(name, activation):
    timm = pytest.importorskip("timm")
    network = nn.Sequential(Float(), timm.create_model(name, num_classes=0)).eval()
    assert activation in list_activations(fused_inference.fuse_layers(network, photos()))


def test_the_original_network_is_unchanged():
    network = networks.build_network(recipes.get_recipe("baseline", image_size=64), 3).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fused_inference.fuse_layers(network, photos())
    assert not list_activations(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class NormFirst(nn.Module):
    """Its norm is defined after its convolution and used before it."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.norm.register_buffer("running_mean", torch.full((3,), 5.0))

    def forward(self, photos):
        return self.convolution(torch.relu(self.norm(photos))).mean((2, 3))


class ActivationFirst(nn.Module):
    """Its activation is defined after its convolution and used before it."""

    def __init__(self):
        super().__init__()
        self.convolution, self.activation = nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, photos):
        return self.convolution(self.activation(photos - 0.5)).mean((2, 3))


def test_a_network_with_another_forward_order_is_not_fused():
    crooked = nn.Sequential(Float(), NormFirst()).eval()
    assert fused_inference.fold_batchnorm(crooked, photos()) is crooked
    crooked = nn.Sequential(Float(), ActivationFirst()).eval()
    assert not list_activations(fused_inference.fuse_layers(crooked, photos()))
