"""Networks optimised for training: same weights, function and gradients in fewer passes.

In most fine-tuning BatchNorm keeps its running statistics, so it is a scale and an offset per
channel. The scale can be applied to the few weights of the convolution before it instead of to its
large output. Layers before the first trainable one are optimised for inference, activations
included (`fused_inference.py`).
"""

import copy
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ikebana.learning.device import DeviceSettings
from ikebana.learning.fast import fused_inference
from ikebana.learning.fast.depthwise import (
    compute_gradients,
    compute_same_padding,
    convolution_backward,
    has_slow_backward,
    is_cpu_bfloat16_autocast,
)

# Activations whose gradient can be computed from their output alone.
GRADIENT_FROM_OUTPUT = (nn.ReLU, nn.ReLU6)
# Of the gradient's norm. A wrong fold changes all of it. Rounding, which moves a few values across
# the threshold of an activation, changed at most 0.016 of it. The limit is far from both, so a
# resumed run decides as before.
MAX_RELATIVE_GRADIENT_DIFFERENCE = 0.3


def optimise_for_training(network: nn.Module, photos: Tensor, settings: DeviceSettings) -> nn.Module:
    """Return a faster equivalent for training that shares every weight with the network.

    It is valid while the same weights are trainable. The order of layers is inferred from their
    order in the module. It is therefore used only if outputs and gradients agree on random photos.

    Args:
        network: in training mode, with `requires_grad` set.
        photos: of the shape of later batches, [photos, 3, image_size, image_size].
    Returns:
        The network itself where nothing is faster or the results do not agree.
    """
    if photos.device.type != "cpu" or photos.ndim < 4 or not fused_inference.has_onednn():
        return network
    norms = [module for module in network.modules() if isinstance(module, fused_inference.Norm)]
    has_fixed_norms = norms and not any(norm.training or norm.running_mean is None for norm in norms)
    if not has_fixed_norms or any(parameter.dtype != torch.float32 for parameter in network.parameters()):
        return network
    sample = torch.randint(
        0, 256, (fused_inference.COMPARED_PHOTOS, *photos.shape[1:]), generator=torch.Generator().manual_seed(0)
    ).float()
    shared = copy.deepcopy(network, {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())})
    with torch.random.fork_rng(devices=[]):  # dropout must not advance the epoch's random generator
        expected = _compute_output_and_gradients(network, network, sample)
        try:
            _fold(shared, sample)
            result = _compute_output_and_gradients(shared, network, sample)
            with settings.autocast():
                shared(sample)
        # A layer modifies in place what the backward pass needs, or torch or the processor differs.
        except RuntimeError:
            return network
    return shared if _agree(result, expected) else network


def _fold(network: nn.Module, sample: Tensor) -> None:
    """Fold every BatchNorm, and optimise for inference the layers without gradients."""
    with_gradient, frozen = _find_convolutions_with_gradient(network, sample), set[nn.Module]()
    for convolution, norm, replace_pair in fused_inference.iterate_convolutions(network):
        if not isinstance(norm, fused_inference.Norm) or not fused_inference.is_fusable(convolution):
            continue
        activation = fused_inference.get_activation(norm)
        if convolution in with_gradient or _is_trainable(convolution) or _is_trainable(norm):
            can_fuse = type(activation) in GRADIENT_FROM_OUTPUT
            replace_pair(
                FoldedConvolution(convolution, norm, activation if can_fuse else nn.Identity()),
                nn.Identity() if can_fuse else activation,
            )
        else:
            folded = fuse_conv_bn_eval(convolution, norm)  # type: ignore[type-var]
            frozen.add(folded)
            replace_pair(folded, activation)
    fused_inference.fuse_activations(network, frozen.__contains__)


def _is_trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _find_convolutions_with_gradient(network: nn.Module, sample: Tensor) -> set[nn.Module]:
    """Find the convolutions whose input depends on trainable weights."""
    convolutions: set[nn.Module] = set()

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if any(tensor.requires_grad for tensor in inputs):
            convolutions.add(layer)

    hooks = [
        module.register_forward_pre_hook(note)
        for module in network.modules()
        if isinstance(module, fused_inference.Convolution)
    ]
    network(sample)
    for hook in hooks:
        hook.remove()
    return convolutions


class FoldedConvolution(nn.Module):
    """A trainable convolution with its BatchNorm, in evaluation mode, and its activation."""

    def __init__(self, convolution: fused_inference.Convolution, norm: fused_inference.Norm, activation: nn.Module):
        super().__init__()
        self.convolution, self.norm = convolution, norm
        self.activation, self.arguments = fused_inference.ONEDNN_ACTIVATIONS.get(type(activation), ("none", []))
        self.stride, self.groups = fused_inference.get_stride(convolution), fused_inference.get_groups(convolution)
        self.same_padding, self.padding = fused_inference.has_same_padding(convolution), tuple(convolution.padding)

    def forward(self, features: Tensor) -> Tensor:
        """Convolve features [photos, channels, height, width]."""
        convolution, norm, padding = self.convolution, self.norm, self.padding
        assert isinstance(norm.running_mean, Tensor)
        assert isinstance(norm.running_var, Tensor)
        scale = (norm.running_var + norm.eps).rsqrt()
        if isinstance(norm.weight, Tensor):
            scale = norm.weight * scale
        offset = -norm.running_mean * scale
        if isinstance(norm.bias, Tensor):
            offset = norm.bias + offset
        if convolution.bias is not None:
            offset = offset + convolution.bias * scale
        weight = convolution.weight * scale.view(-1, 1, 1, 1)
        if self.same_padding:
            features, padding = (
                functional.pad(features, compute_same_padding(features, weight.shape[-1], self.stride)),
                (0, 0),
            )
        dtype = torch.bfloat16 if is_cpu_bfloat16_autocast() else weight.dtype
        tensors = (tensor.to(dtype) for tensor in (features, weight, offset))
        output = _FusedFunction.apply(*tensors, self.stride, padding, self.groups, self.activation, self.arguments)
        assert isinstance(output, Tensor)
        return output


class _FusedFunction(torch.autograd.Function):
    """A convolution with its activation; the backward pass masks the gradient by the output."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        stride: int,
        padding: tuple[int, int],
        groups: int,
        activation: str,
        arguments: list[float],
    ) -> Tensor:
        output = fused_inference.convolve_and_activate(
            features, weight, bias, stride, padding, groups, activation, arguments
        )
        # Without activation the output is not saved, because the next layer may modify it in place.
        ctx.save_for_backward(features, weight, *([] if activation == "none" else [output]))
        ctx.stride, ctx.padding, ctx.groups, ctx.activation, ctx.arguments = (
            stride,
            padding,
            groups,
            activation,
            arguments,
        )
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, *output = ctx.saved_tensors
        gradient, needs_gradient = gradients[0], list(ctx.needs_input_grad[:3])
        if ctx.activation == "hardtanh":
            gradient = torch.ops.aten.hardtanh_backward(gradient, *output, *ctx.arguments)
        elif ctx.activation == "relu":
            gradient = torch.ops.aten.threshold_backward(gradient, *output, 0.0)
        common = gradient, features, weight, ctx.stride, ctx.padding
        if ctx.groups == len(weight) == features.shape[1] and has_slow_backward(weight.shape[-1], ctx.stride):
            bias_gradient = gradient.sum((0, 2, 3)) if needs_gradient[2] else None
            return *compute_gradients(*common, needs_gradient), bias_gradient, None, None, None, None, None
        return *convolution_backward(*common, ctx.groups, needs_gradient), None, None, None, None, None


def _agree(result: "_OutputAndGradients", expected: "_OutputAndGradients") -> bool:
    """Check that two networks agree in output and gradients."""
    (output, gradients), (expected_output, expected_gradients) = result, expected
    if (output - expected_output).abs().max() > fused_inference.MAX_RELATIVE_DIFFERENCE * expected_output.abs().max():
        return False
    return all(
        gradient is not None
        and (gradient - expected_gradient).norm() <= MAX_RELATIVE_GRADIENT_DIFFERENCE * expected_gradient.norm()
        for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True)
        if expected_gradient is not None
    )


# The output for a few photos, and the gradient of each trainable weight.
_OutputAndGradients = tuple[Tensor, Iterable[Tensor | None]]


def _compute_output_and_gradients(view: nn.Module, network: nn.Module, sample: Tensor) -> _OutputAndGradients:
    torch.default_generator.manual_seed(0)
    output = view(sample)
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    output_gradient = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return output.detach(), torch.autograd.grad((output * output_gradient).sum(), trainable, allow_unused=True)
