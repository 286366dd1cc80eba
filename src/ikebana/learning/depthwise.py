"""Depthwise convolutions whose way back is fast on a processor in bfloat16.

oneDNN has a fast kernel for the weights' gradient of a 3 x 3 depthwise convolution in bfloat16 and none for larger ones:
there a 5 x 5 takes ten times as long, and half of the time of fine-tuning an EfficientNet. But the gradient of a 5 x 5 kernel
is that of four 3 x 3 kernels that lie over its corners. Likewise the photos' gradient of a convolution with a stride is
a convolution without one, of the gradient with zeros between its entries. Same function, same gradients.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CORNER = 3  # side of the kernel that has a fast way back


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
        if not (learns and in_bfloat16() and features.device.type == "cpu"):
            return functional.conv2d(features, weight, self.bias, self.stride, padding, groups=len(weight))
        features, weight = features.bfloat16(), weight.bfloat16()
        found = _FastBack.apply(features, weight, self.stride, padding)
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
    channels, kernel, stride = convolution.in_channels, convolution.kernel_size[0], convolution.stride[0]
    depthwise = convolution.groups == channels == convolution.out_channels > 1
    return depthwise and is_plain(convolution) and kernel >= CORNER and (kernel > CORNER or stride > 1)


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
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        known = gradient, features, weight, ctx.stride, ctx.padding
        for_features = _features_gradient(*known) if ctx.needs_input_grad[0] else None
        for_weight = _weight_gradient(*known) if ctx.needs_input_grad[1] else None
        return for_features, for_weight, None, None


def _features_gradient(
    gradient: Tensor, features: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]
) -> Tensor:
    """What the features should change by: the gradient, spread out to the features' grid, under the kernel turned round."""
    kernel = weight.shape[-1]
    if stride > 1:
        rows, columns = ((size - 1) * stride + 1 for size in gradient.shape[2:])
        spread = gradient.new_zeros((*gradient.shape[:2], rows, columns)).contiguous(memory_format=torch.channels_last)
        spread[:, :, ::stride, ::stride] = gradient
        gradient = spread
    # Beyond the last window there are features that no output has seen: their gradient is 0.
    borders = []
    for size, had, border in zip(features.shape[2:], gradient.shape[2:], padding, strict=True):
        before = kernel - 1 - border
        borders = [before, size + kernel - 1 - had - before, *borders]
    turned = weight.flip(2, 3)
    return functional.conv2d(functional.pad(gradient, borders), turned, None, groups=len(weight))


def _weight_gradient(
    gradient: Tensor, features: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]
) -> Tensor:
    """What the kernel should change by, a 3 x 3 part of it at a time."""
    kernel, found = weight.shape[-1], torch.empty_like(weight)
    down, across = padding
    if down or across:
        features = functional.pad(features, (across, across, down, down))
    part = weight[:, :, :CORNER, :CORNER].contiguous()
    rows, columns = ((size - 1) * stride + CORNER for size in gradient.shape[2:])
    starts = sorted({*range(0, kernel - CORNER + 1, CORNER), kernel - CORNER})
    for top in starts:
        for left in starts:
            seen = features[:, :, top : top + rows, left : left + columns].contiguous(memory_format=torch.channels_last)
            _, of_part, _ = torch.ops.aten.convolution_backward(
                gradient,
                seen,
                part,
                None,
                [stride] * 2,
                [0, 0],
                [1, 1],
                False,
                [0, 0],
                len(weight),
                [False, True, False],
            )
            found[:, :, top : top + CORNER, left : left + CORNER] = of_part
    return found
