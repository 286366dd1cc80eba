"""Depthwise convolutions with a faster backward pass, compared with torch to the precision of bfloat16."""

import pytest
import torch
from torch import nn

from ikebana.learning.fast import depthwise
from ikebana.learning.fast.depthwise import DepthwiseConv2d

# Kernel, stride, padding, …
SHAPES = [
    (5, 1, 2),
    (5, 2, 2),
    (5, 2, 0),
    (3, 2, 1),
    (3, 2, 0),
    (7, 1, 3),
    (7, 2, 3),
    (9, 1, 4),
]


def draw_integers(*shape, seed=0):
    """Draw small integers, whose sums of products are exact in bfloat16 arithmetic in any order."""
    numbers = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed))
    return numbers.float().contiguous(memory_format=torch.channels_last)


def compute_gradients(layer, features, half):
    leaf = features.clone(memory_format=torch.preserve_format).requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = layer(leaf)
    (output.float() * draw_integers(*output.shape, seed=1)).sum().backward()
    return [output.detach().float(), leaf.grad, *(weight.grad.clone() for weight in layer.parameters())]


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("side", [(14, 14), (13, 10)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), SHAPES)
def test_forward_and_backward_pass_equal_those_of_torch(kernel, stride, padding, side, bias, half):
    convolution = nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=bias)
    with torch.no_grad():
        for number, weight in enumerate(convolution.parameters()):
            weight.copy_(draw_integers(*weight.shape, seed=2 + number) if weight.ndim > 1 else weight.round())
    features = draw_integers(3, 6, *side)
    expected = compute_gradients(convolution, features, half=False)  # the integers are exact in float32 too
    for ours, theirs in zip(
        compute_gradients(DepthwiseConv2d(convolution, same_padding=False), features, half), expected, strict=True
    ):
        # bfloat16 rounds only the result, to 8 bits.
        torch.testing.assert_close(ours, theirs, rtol=2**-8 if half else 1e-6, atol=1e-6)


def test_replacing_the_convolutions_does_not_change_a_network():
    timm = pytest.importorskip("timm")
    for name in ("tf_efficientnet_lite0", "mobilenetv2_100", "convnext_atto"):
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=5).eval()
        # The side is odd, so padding differs on both sides.
        features = torch.randn(2, 3, 65, 65).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            before = network(features)
        names = list(network.state_dict())
        depthwise.replace_depthwise(network)
        assert [module for module in network.modules() if isinstance(module, DepthwiseConv2d)]
        assert list(network.state_dict()) == names
        with torch.inference_mode():
            torch.testing.assert_close(network(features), before, rtol=1e-5, atol=1e-5)


def test_convolutions_that_would_not_be_faster_are_not_replaced():
    layers = [
        nn.Conv2d(8, 8, 3, 1, 1, groups=8),  # has a fast backward pass already
        nn.Conv2d(8, 8, 5, 1, 2),  # not depthwise
        nn.Conv2d(8, 16, 5, 1, 2, groups=8),  # two outputs per channel
        nn.Conv2d(8, 8, 5, 1, 4, groups=8, dilation=2),
        nn.Conv2d(8, 8, 5, 1, 2, groups=8, padding_mode="reflect"),
        nn.Conv2d(8, 8, (5, 3), 1, (2, 1), groups=8),
        nn.Conv2d(8, 8, 1, 2, groups=8),
    ]
    network = depthwise.replace_depthwise(nn.Sequential(*layers))
    assert list(network) == layers  # type: ignore[call-overload]
