"""Depthwise convolutions whose way back is fast on a processor.

oneDNN has fast kernels for the weights' gradient of a depthwise convolution that is up to three columns wide and none for wider
ones: there a 5 x 5 takes ten times as long in float32, forty times in bfloat16, and half of the time of fine-tuning an
EfficientNet. But the gradient of a 5 x 5 kernel is that of two 5 x 3 kernels that lie over its left and its right. And the
photos' gradient of a convolution with a stride has a fast way in float32 alone. Same function, same gradients.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

COLUMNS = 3  # of the widest kernel that has a fast way back


class Depthwise(nn.Module):
    """Takes the place of a depthwise `nn.Conv2d`: the same weights under the same names, the same function."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, convolution: nn.Conv2d, same: bool):
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.kernel, self.stride = convolution.kernel_size[0], convolution.stride[0]
        self.padding, self.same = convolution.padding, same  # same: as TensorFlow pads, more below and right than above

    def forward(self, features: Tensor) -> Tensor:
        """features  [photos, channels, height, width]"""
        padding: Any = self.padding
        if self.same:
            features, padding = functional.pad(features, borders(features, self.kernel, self.stride)), (0, 0)
        weight = self.weight
        learns = torch.is_grad_enabled() and weight.requires_grad
        if not (learns and features.device.type == "cpu"):
            return functional.conv2d(features, weight, self.bias, self.stride, padding, groups=len(weight))
        kind = torch.bfloat16 if in_bfloat16() else weight.dtype
        found = _FastBack.apply(features.to(kind), weight.to(kind), self.stride, padding)
        assert isinstance(found, Tensor)
        return found if self.bias is None else found + self.bias.to(found.dtype).view(-1, 1, 1)


def in_bfloat16() -> bool:
    """Whether a processor computes in bfloat16 here."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def borders(features: Tensor, kernel: int, stride: int) -> list[int]:
    """Pixels to add left, right, above and below, so that a stride of s gives a side of 1/s, rounded up: TensorFlow's "same"."""
    found: list[int] = []
    for size in (features.shape[-1], features.shape[-2]):
        wanted = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        found += [wanted // 2, wanted - wanted // 2]
    return found


def replaced(network: nn.Module) -> nn.Module:
    """The network with every depthwise convolution larger than 3 x 3, or with a stride, made fast on its way back."""
    for parent in network.modules():
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and _gains(child):
                setattr(parent, name, Depthwise(child, same=type(child) is not nn.Conv2d))
    return network


def _gains(convolution: nn.Conv2d) -> bool:
    channels = convolution.in_channels
    depthwise = convolution.groups == channels == convolution.out_channels > 1
    return depthwise and is_plain(convolution) and is_slow(convolution.kernel_size[0], convolution.stride[0])


def is_slow(kernel: int, stride: int) -> bool:
    """Whether oneDNN has no fast way back through a depthwise convolution of this kind."""
    return kernel >= COLUMNS and (kernel > COLUMNS or stride > 1)


def is_plain(convolution: nn.Conv2d) -> bool:
    """Whether nothing about it is odd: torch's own class or timm's that pads as TensorFlow does, kernel and stride alike both
    ways, no dilation, zeros around."""
    known = type(convolution) is nn.Conv2d or type(convolution).__name__ == "Conv2dSame"  # timm's
    alike = len(set(convolution.kernel_size)) == len(set(convolution.stride)) == 1
    zeros = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return known and alike and zeros and convolution.dilation == (1, 1)


class _FastBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(features, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        features, weight = ctx.saved_tensors
        return *gradients_of(gradients[0], features, weight, ctx.stride, ctx.padding, ctx.needs_input_grad), None, None


def gradients_of(
    gradient: Tensor,
    features: Tensor,
    weight: Tensor,
    stride: int,
    padding: tuple[int, int],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """What a depthwise convolution's features and weights should change by; None for what is not wanted."""
    known = gradient.contiguous(memory_format=torch.channels_last), features, weight, stride, padding
    return (
        _features_gradient(*known) if wanted[0] else None,
        _weight_gradient(*known) if wanted[1] else None,
    )


def _features_gradient(
    gradient: Tensor, features: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]
) -> Tensor:
    """What the features should change by."""
    if stride > 1:  # oneDNN has a fast way for that in float32 alone
        kind = torch.promote_types(features.dtype, torch.float32)
        exact = gradient.to(kind), features.to(kind), weight.to(kind)
        found, _, _ = way_back(*exact, stride, padding, len(weight), [True, False, False])
        assert found is not None
        return found.to(features.dtype)
    down, across = (weight.shape[-1] - 1 - border for border in padding)
    gradient = functional.pad(gradient, (across, across, down, down))
    return functional.conv2d(gradient, weight.flip(2, 3), None, groups=len(weight))


def _weight_gradient(
    gradient: Tensor, features: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]
) -> Tensor:
    """What the kernel should change by, a few of its columns at a time."""
    kernel, found = weight.shape[-1], torch.empty_like(weight)
    down, across = padding
    height, width = features.shape[2:]
    rows = (gradient.shape[2] - 1) * stride + kernel
    columns = (gradient.shape[3] - 1) * stride + COLUMNS
    part = weight[..., :COLUMNS].contiguous()
    for left in sorted({*range(0, kernel - COLUMNS + 1, COLUMNS), kernel - COLUMNS}):
        borders = (across - left, left + columns - across - width, down, rows - down - height)  # less than 0 cuts off
        seen = functional.pad(features, borders).contiguous(memory_format=torch.channels_last)
        _, of_part, _ = way_back(gradient, seen, part, stride, (0, 0), len(weight), [False, True, False])
        assert of_part is not None
        found[..., left : left + COLUMNS] = of_part
    return found


def way_back(
    gradient: Tensor,
    features: Tensor,
    weight: Tensor,
    stride: int,
    padding: tuple[int, int],
    groups: int,
    wanted: list[bool],
) -> tuple[Tensor | None, ...]:
    """torch's own, of any convolution: what features, weight and bias should change by; None for what is not wanted."""
    return torch.ops.aten.convolution_backward(
        gradient, features, weight, [len(weight)], [stride] * 2, padding, [1, 1], False, [0, 0], groups, wanted
    )
