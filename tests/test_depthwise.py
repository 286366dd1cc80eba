"""Depthwise convolutions with a way back of their own, against torch's, to the last digit that bfloat16 has."""

import pytest
import torch
from torch import nn

from ikebana.learning.fast import depthwise
from ikebana.learning.fast.depthwise import DepthwiseConv2d

SHAPES = [
    (5, 1, 2),
    (5, 2, 2),
    (5, 2, 0),
    (3, 2, 1),
    (3, 2, 0),
    (7, 1, 3),
    (7, 2, 3),
    (9, 1, 4),
]  # kernel, stride, padding


def whole_numbers(*shape, seed=0):
    """Small whole numbers: their sums of products are exact in bfloat16's arithmetic, in whatever order."""
    numbers = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed))
    return numbers.float().contiguous(memory_format=torch.channels_last)


def outcome(layer, features, half):
    leaf = features.clone(memory_format=torch.preserve_format).requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = layer(leaf)
    (found.float() * whole_numbers(*found.shape, seed=1)).sum().backward()
    return [found.detach().float(), leaf.grad, *(weight.grad.clone() for weight in layer.parameters())]


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("side", [(14, 14), (13, 10)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), SHAPES)
def test_it_is_torchs_convolution_on_the_way_there_and_back(kernel, stride, padding, side, bias, half):
    convolution = nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=bias)
    with torch.no_grad():
        for number, weight in enumerate(convolution.parameters()):
            weight.copy_(whole_numbers(*weight.shape, seed=2 + number) if weight.ndim > 1 else weight.round())
    features = whole_numbers(3, 6, *side)
    expected = outcome(convolution, features, half=False)  # in float32: the numbers are exact either way
    for ours, theirs in zip(
        outcome(DepthwiseConv2d(convolution, same_padding=False), features, half), expected, strict=True
    ):
        # what bfloat16 rounds is the result alone, to 8 bits
        torch.testing.assert_close(ours, theirs, rtol=2**-8 if half else 1e-6, atol=1e-6)


def test_every_network_is_the_same_function_with_them_and_without():
    timm = pytest.importorskip("timm")
    for name in ("tf_efficientnet_lite0", "mobilenetv2_100", "convnext_atto"):
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=5).eval()
        features = torch.randn(2, 3, 65, 65).contiguous(
            memory_format=torch.channels_last
        )  # odd: padding is not the same on each side
        with torch.inference_mode():
            before = network(features)
        names = list(network.state_dict())
        depthwise.replace_depthwise(network)
        assert [each for each in network.modules() if isinstance(each, DepthwiseConv2d)]
        assert list(network.state_dict()) == names
        with torch.inference_mode():
            torch.testing.assert_close(network(features), before, rtol=1e-5, atol=1e-5)


def test_convolutions_that_gain_nothing_are_left_alone():
    kept = [
        nn.Conv2d(8, 8, 3, 1, 1, groups=8),  # has a fast way back already
        nn.Conv2d(8, 8, 5, 1, 2),  # not depthwise
        nn.Conv2d(8, 16, 5, 1, 2, groups=8),  # two outputs a channel
        nn.Conv2d(8, 8, 5, 1, 4, groups=8, dilation=2),
        nn.Conv2d(8, 8, 5, 1, 2, groups=8, padding_mode="reflect"),
        nn.Conv2d(8, 8, (5, 3), 1, (2, 1), groups=8),
        nn.Conv2d(8, 8, 1, 2, groups=8),
    ]
    network = depthwise.replace_depthwise(nn.Sequential(*kept))
    assert list(network) == kept  # type: ignore[call-overload]
