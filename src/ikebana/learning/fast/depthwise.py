"""Depthwise convolution with a faster backward pass on CPU.

oneDNN has fast kernels for the weight gradient of a depthwise kernel up to three columns wide. A
5 x 5 kernel takes ten times as long in float32 and forty times in bfloat16: half of the time of
fine-tuning an EfficientNet. But its gradient consists of those of two 5 x 3 kernels, its left and
right columns. The input gradient of a strided convolution is fast in float32 only. The function and
its gradients stay the same.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# Width of the widest kernel with a fast weight gradient.
MAX_FAST_COLUMNS = 3


class DepthwiseConv2d(nn.Module):
    """Replacement of a depthwise `nn.Conv2d` with the same weights, names and function.

    Attributes:
        same_padding: TensorFlow's "same" padding, which may be larger below and right.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, convolution: nn.Conv2d, same_padding: bool):
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.kernel_size, self.stride = convolution.kernel_size[0], convolution.stride[0]
        self.padding, self.same_padding = convolution.padding, same_padding

    def forward(self, features: Tensor) -> Tensor:
        """Convolve features [photos, channels, height, width]."""
        padding: Any = self.padding
        if self.same_padding:
            features, padding = (
                functional.pad(features, compute_same_padding(features, self.kernel_size, self.stride)),
                (0, 0),
            )
        weight = self.weight
        is_trained = torch.is_grad_enabled() and weight.requires_grad
        if not (is_trained and features.device.type == "cpu"):
            return functional.conv2d(features, weight, self.bias, self.stride, padding, groups=len(weight))
        dtype = torch.bfloat16 if is_cpu_bfloat16_autocast() else weight.dtype
        output = _FastBackward.apply(features.to(dtype), weight.to(dtype), self.stride, padding)
        assert isinstance(output, Tensor)
        return output if self.bias is None else output + self.bias.to(output.dtype).view(-1, 1, 1)


def is_cpu_bfloat16_autocast() -> bool:
    """Check whether CPU autocast to bfloat16 is active."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def compute_same_padding(features: Tensor, kernel_size: int, stride: int) -> list[int]:
    """Compute TensorFlow's "same" padding, which gives outputs of size / stride, rounded up.

    Returns:
        Pixels to add left, right, above and below.
    """
    padding: list[int] = []
    for size in (features.shape[-1], features.shape[-2]):
        total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
        padding += [total // 2, total - total // 2]
    return padding


def replace_depthwise(network: nn.Module) -> nn.Module:
    """Replace, in place, every depthwise convolution whose backward pass is slow."""
    for parent in network.modules():
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and _has_slow_depthwise_backward(child):
                setattr(parent, name, DepthwiseConv2d(child, same_padding=type(child) is not nn.Conv2d))
    return network


def _has_slow_depthwise_backward(convolution: nn.Conv2d) -> bool:
    channels = convolution.in_channels
    is_depthwise = convolution.groups == channels == convolution.out_channels > 1
    return (
        is_depthwise
        and is_standard_convolution(convolution)
        and has_slow_backward(convolution.kernel_size[0], convolution.stride[0])
    )


def has_slow_backward(kernel_size: int, stride: int) -> bool:
    """Check whether oneDNN lacks a fast backward pass for this depthwise convolution."""
    return kernel_size >= MAX_FAST_COLUMNS and (kernel_size > MAX_FAST_COLUMNS or stride > 1)


def is_standard_convolution(convolution: nn.Conv2d) -> bool:
    """Check for torch's class or timm's "same" one, square, without dilation, zero-padded."""
    is_known_class = type(convolution) is nn.Conv2d or type(convolution).__name__ == "Conv2dSame"
    is_square = len(set(convolution.kernel_size)) == len(set(convolution.stride)) == 1
    has_zero_padding = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return is_known_class and is_square and has_zero_padding and convolution.dilation == (1, 1)


class _FastBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(features, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        features, weight = ctx.saved_tensors
        return (
            *compute_gradients(gradients[0], features, weight, ctx.stride, ctx.padding, ctx.needs_input_grad),
            None,
            None,
        )


def compute_gradients(
    gradient: Tensor,
    features: Tensor,
    weight: Tensor,
    stride: int,
    padding: tuple[int, int],
    needs_gradient: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients of features and weight, None where not needed."""
    common = gradient.contiguous(memory_format=torch.channels_last), features, weight, stride, padding
    return (
        _compute_features_gradient(*common) if needs_gradient[0] else None,
        _compute_weight_gradient(*common) if needs_gradient[1] else None,
    )


def _compute_features_gradient(
    gradient: Tensor, features: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]
) -> Tensor:
    if stride > 1:  # oneDNN is fast here in float32 only
        dtype = torch.promote_types(features.dtype, torch.float32)
        exact = gradient.to(dtype), features.to(dtype), weight.to(dtype)
        features_gradient, _, _ = convolution_backward(*exact, stride, padding, len(weight), [True, False, False])
        assert features_gradient is not None
        return features_gradient.to(features.dtype)
    vertical, horizontal = (weight.shape[-1] - 1 - border for border in padding)
    gradient = functional.pad(gradient, (horizontal, horizontal, vertical, vertical))
    return functional.conv2d(gradient, weight.flip(2, 3), None, groups=len(weight))


def _compute_weight_gradient(
    gradient: Tensor, features: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]
) -> Tensor:
    """Compute the weight gradient in slices of MAX_FAST_COLUMNS columns."""
    kernel_size, weight_gradient = weight.shape[-1], torch.empty_like(weight)
    vertical, horizontal = padding
    height, width = features.shape[2:]
    rows = (gradient.shape[2] - 1) * stride + kernel_size
    columns = (gradient.shape[3] - 1) * stride + MAX_FAST_COLUMNS
    weight_slice = weight[..., :MAX_FAST_COLUMNS].contiguous()
    for left in sorted(
        {*range(0, kernel_size - MAX_FAST_COLUMNS + 1, MAX_FAST_COLUMNS), kernel_size - MAX_FAST_COLUMNS}
    ):
        # Negative values crop.
        borders = (horizontal - left, left + columns - horizontal - width, vertical, rows - vertical - height)
        window = functional.pad(features, borders).contiguous(memory_format=torch.channels_last)
        _, slice_gradient, _ = convolution_backward(
            gradient, window, weight_slice, stride, (0, 0), len(weight), [False, True, False]
        )
        assert slice_gradient is not None
        weight_gradient[..., left : left + MAX_FAST_COLUMNS] = slice_gradient
    return weight_gradient


def convolution_backward(
    gradient: Tensor,
    features: Tensor,
    weight: Tensor,
    stride: int,
    padding: tuple[int, int],
    groups: int,
    needs_gradient: list[bool],
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of features, weight and bias with torch, None where not needed."""
    return torch.ops.aten.convolution_backward(
        gradient, features, weight, [len(weight)], [stride] * 2, padding, [1, 1], False, [0, 0], groups, needs_gradient
    )
