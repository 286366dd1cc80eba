"""Fusing layers for training does not change outputs and gradients."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ikebana import recipes
from ikebana.learning import device
from ikebana.learning.fast import fused_inference, fused_training
from ikebana.learning.models import networks, parameter_groups
from ikebana.recipe import MIDDLE_STAGE, FineTune, FrozenBackbone, Trainable

pytestmark = pytest.mark.slow

needs_onednn = pytest.mark.skipif(not fused_inference.has_onednn(), reason="this torch has no oneDNN")
needs_bfloat16 = pytest.mark.skipif(
    not device.can_convolve_bfloat16(), reason="oneDNN has no bfloat16 convolution on this processor"
)
EXACT = device.DeviceSettings("cpu", "float32", 2, "system default")
NETWORKS = {
    "tf_efficientnet_lite0": "blocks.4",
    "resnet18": "layer3",
    "mobilenetv3_small_050": "blocks.3",
    "regnetx_002": "s3",  # has grouped convolutions
    "selecsls42b": "features.9",  # one of its layers gets a list
}


def photos(count=4, side=64):
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def build_training_network(name="tf_efficientnet_lite0", trained: Trainable = "last_stages", **choices):
    """Build a network in training, with BatchNorms that are not the identity."""
    first_stages = {"head": "", "last_stages": NETWORKS.get(name, MIDDLE_STAGE), "all": ""}
    kind = FrozenBackbone if trained == "head" else partial(FineTune, train_from=first_stages[trained])
    recipe = recipes.get_recipe("quick", network=name, image_size=64, method=kind(**choices))
    network = networks.build_network(recipe, 5)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, fused_inference.Norm):
                for attribute in ("running_mean", "running_var", "weight", "bias"):
                    value = getattr(module, attribute)
                    if value is not None:
                        value.copy_(0.5 + torch.rand(value.shape, generator=rng))
    parameter_groups.set_training_mode(network, recipe, trained)
    return network


def compute_gradients(network, view, shown, half=False):
    """Return the output, and the gradients of the weights."""
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = view(shown).float()
    (output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum().backward()
    return output.detach(), [weight.grad.clone() for weight in network.parameters() if weight.requires_grad]


def compute_distance(actual, expected):
    return float((actual.detach() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.slow
@needs_onednn
@pytest.mark.parametrize("trained", ["head", "last_stages", "all"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_the_fused_network_equal_those_of_the_original(name, trained):
    network, shown = build_training_network(name, trained), photos()
    view = fused_training.optimise_for_training(network, shown, EXACT)
    assert view is not network
    (output, learned), (expected, to_learn) = (compute_gradients(network, module, shown) for module in (view, network))
    assert compute_distance(output, expected) < 1e-4
    assert max(compute_distance(*pair) for pair in zip(learned, to_learn, strict=True)) < 1e-2


@pytest.mark.slow
@needs_onednn
@needs_bfloat16
def test_in_half_precision_gradient_errors_are_no_larger_than_those_of_torch():
    network, shown = build_training_network(), photos(8)
    view = fused_training.optimise_for_training(network, shown, EXACT)
    _, truth = compute_gradients(network, network, shown)
    errors = []
    for module in (view, network):
        _, learned = compute_gradients(network, module, shown, half=True)
        errors.append(np.mean([compute_distance(*pair) for pair in zip(learned, truth, strict=True)]))
    assert errors[0] < 1.2 * errors[1]


@needs_onednn
def test_the_fused_network_follows_weight_updates():
    network, shown = build_training_network(), photos()
    view = fused_training.optimise_for_training(network, shown, EXACT)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.requires_grad:
                weight.mul_(1.1)
    assert compute_distance(view(shown), network(shown)) < 1e-4


@needs_onednn
def test_frozen_layers_are_fused_and_trainable_ones_are_folded():
    view = fused_training.optimise_for_training(build_training_network(), photos(), EXACT)
    looks = {name for name, module in view.named_modules() if isinstance(module, fused_inference.FusedConvolution)}
    learns = {name for name, module in view.named_modules() if isinstance(module, fused_training.FoldedConvolution)}
    assert {name.split(".blocks.")[1][0] for name in looks if ".blocks." in name} == set("0123")
    assert {name.split(".blocks.")[1][0] for name in learns if ".blocks." in name} == set("456")


@needs_onednn
def test_a_network_with_trainable_batchnorm_statistics_is_not_fused():
    network = build_training_network()
    network.get_submodule("backbone.network").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert fused_training.optimise_for_training(network, photos(), EXACT) is network
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class NormFirst(nn.Module):
    """Its norm is defined after its convolution and used before it."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.norm.register_buffer("running_mean", torch.full((3,), 5.0))

    def forward(self, photos):
        return self.convolution(torch.relu(self.norm(photos.float()))).mean((2, 3))


@needs_onednn
def test_a_network_with_another_forward_order_is_not_fused():
    crooked = NormFirst().eval()
    assert fused_training.optimise_for_training(crooked, photos(), EXACT) is crooked


@needs_onednn
def test_the_comparison_does_not_change_the_random_numbers_of_dropout():
    network = build_training_network(dropout=0.5)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert fused_training.optimise_for_training(network, photos(), EXACT) is not network
    assert torch.equal(torch.rand(3), expected)


@needs_onednn
def test_keras_inception_is_frozen_below_the_head():
    recipe = recipes.get_recipe("frozen", truncate_at="mixed2")
    network = networks.build_network(recipe, 5)
    parameter_groups.set_training_mode(network, recipe, "head")
    view = fused_training.optimise_for_training(network, photos(side=150), EXACT)
    assert view is not network
    assert not [module for module in view.modules() if isinstance(module, fused_inference.Norm)]
