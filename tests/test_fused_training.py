"""What a step of training sees may be made of the network in any way, as long as it says and learns the same."""

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
    "regnetx_002": "s3",  # its convolutions have groups
    "selecsls42b": "features.9",  # a layer of it is given a list
}


def photos(count=4, side=64):
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def learning(name="tf_efficientnet_lite0", trained: Trainable = "last_stages", **choices):
    """A network on its way, with BatchNorms that do something."""
    first_stages = {"head": "", "last_stages": NETWORKS.get(name, MIDDLE_STAGE), "all": ""}
    kind = FrozenBackbone if trained == "head" else partial(FineTune, train_from=first_stages[trained])
    recipe = recipes.get_recipe("quick", network=name, image_size=64, method=kind(**choices))
    network = networks.build_network(recipe, 5)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, fused_inference.Norm):
                for each in ("running_mean", "running_var", "weight", "bias"):
                    value = getattr(module, each)
                    if value is not None:
                        value.copy_(0.5 + torch.rand(value.shape, generator=rng))
    parameter_groups.set_training_mode(network, recipe, trained)
    return network


def outcome(network, view, shown, half=False):
    """What it says, and what its weights would change by."""
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        said = view(shown).float()
    (said * torch.linspace(-1, 1, said.numel()).view(said.shape)).sum().backward()
    return said.detach(), [each.grad.clone() for each in network.parameters() if each.requires_grad]


def apart(found, expected):
    return float((found.detach() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.slow
@needs_onednn
@pytest.mark.parametrize("trained", ["head", "last_stages", "all"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_learns_from_it_what_it_would_learn_from_the_network(name, trained):
    network, shown = learning(name, trained), photos()
    view = fused_training.optimise_for_training(network, shown, EXACT)
    assert view is not network
    (said, learned), (expected, to_learn) = (outcome(network, each, shown) for each in (view, network))
    assert apart(said, expected) < 1e-4
    assert max(apart(*pair) for pair in zip(learned, to_learn, strict=True)) < 1e-2


@pytest.mark.slow
@needs_onednn
@needs_bfloat16
def test_in_half_precision_its_gradients_are_no_further_from_the_truth_than_torchs_own():
    network, shown = learning(), photos(8)
    view = fused_training.optimise_for_training(network, shown, EXACT)
    _, truth = outcome(network, network, shown)
    errors = []
    for each in (view, network):
        _, learned = outcome(network, each, shown, half=True)
        errors.append(np.mean([apart(*pair) for pair in zip(learned, truth, strict=True)]))
    assert errors[0] < 1.2 * errors[1]


@needs_onednn
def test_it_follows_the_weights_as_they_learn():
    network, shown = learning(), photos()
    view = fused_training.optimise_for_training(network, shown, EXACT)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.requires_grad:
                weight.mul_(1.1)
    assert apart(view(shown), network(shown)) < 1e-4


@needs_onednn
def test_what_only_looks_has_its_activations_in_its_convolutions_and_what_learns_is_folded():
    view = fused_training.optimise_for_training(learning(), photos(), EXACT)
    looks = {name for name, each in view.named_modules() if isinstance(each, fused_inference.FusedConvolution)}
    learns = {name for name, each in view.named_modules() if isinstance(each, fused_training.FoldedConvolution)}
    assert {name.split(".blocks.")[1][0] for name in looks if ".blocks." in name} == set("0123")
    assert {name.split(".blocks.")[1][0] for name in learns if ".blocks." in name} == set("456")


@needs_onednn
def test_a_network_whose_batchnorm_follows_the_photos_is_left_as_it_is():
    network = learning()
    network.get_submodule("backbone.network").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert fused_training.optimise_for_training(network, photos(), EXACT) is network
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class NormFirst(nn.Module):
    """Its norm stands after its convolution and is used before it."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.norm.register_buffer("running_mean", torch.full((3,), 5.0))

    def forward(self, photos):
        return self.convolution(torch.relu(self.norm(photos.float()))).mean((2, 3))


@needs_onednn
def test_a_network_that_is_not_what_its_order_says_is_left_as_it_is():
    crooked = NormFirst().eval()
    assert fused_training.optimise_for_training(crooked, photos(), EXACT) is crooked


@needs_onednn
def test_dropout_draws_what_it_would_have_drawn_without_the_comparison():
    network = learning(dropout=0.5)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert fused_training.optimise_for_training(network, photos(), EXACT) is not network
    assert torch.equal(torch.rand(3), expected)


@needs_onednn
def test_keras_inception_only_looks_below_the_head():
    recipe = recipes.get_recipe("frozen", truncate_at="mixed2")
    network = networks.build_network(recipe, 5)
    parameter_groups.set_training_mode(network, recipe, "head")
    view = fused_training.optimise_for_training(network, photos(side=150), EXACT)
    assert view is not network
    assert not [each for each in view.modules() if isinstance(each, fused_inference.Norm)]
