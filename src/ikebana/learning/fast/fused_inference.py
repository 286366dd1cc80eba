"""Networks optimised for inference: the same function in fewer passes over memory.

First, BatchNorm is folded into the convolution before it. That is plain torch and can be exported.
Then, on a CPU, oneDNN computes the activation together with the convolution before it, before the
output leaves the cache. The operator for that is private to torch (`mkldnn._convolution_pointwise`,
made for compiled networks). Where it is missing or gives other results, the network stays as it is.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ikebana.learning.examples import Examples
from ikebana.learning.fast.depthwise import (
    DepthwiseConv2d,
    compute_same_padding,
    is_cpu_bfloat16_autocast,
    is_standard_convolution,
)
from ikebana.learning.models.inception import BatchNorm
from ikebana.learning.models.layers import Normalise

Convolution = nn.Conv2d | DepthwiseConv2d
Norm = nn.BatchNorm2d | BatchNorm
# Private to torch.
ONEDNN_OPERATORS = ("_convolution_pointwise", "_reorder_convolution_weight")
# Between the outputs of the optimised and the original network, over the largest output.
MAX_RELATIVE_DIFFERENCE = 1e-3
# Photos on which the two networks are compared.
COMPARED_PHOTOS = 2
# oneDNN's name and arguments of each activation.
ONEDNN_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}


def has_onednn() -> bool:
    """Check that this torch can fuse convolutions with activations."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in ONEDNN_OPERATORS)


@torch.inference_mode()
def fold_batchnorm(network: nn.Module, photos: Examples) -> nn.Module:
    """Copy the network with BatchNorm folded into the convolutions before it.

    The order of layers is inferred from their order in the module. The copy is therefore used only
    if its outputs agree with the original's on a few photos.

    Returns:
        The original if they do not agree.
    """
    optimised = _fold_copy(network)
    return optimised if _agree(optimised, network, photos) else network


@torch.inference_mode()
def fuse_layers(network: nn.Module, photos: Examples) -> nn.Module:
    """Fold BatchNorm and, on a CPU, fuse activations; the copy cannot be exported."""
    if next(network.parameters()).device.type != "cpu" or not has_onednn():
        return fold_batchnorm(network, photos)
    optimised = _fold_copy(network)
    fuse_activations(optimised, lambda _: True)
    return optimised if _agree(optimised, network, photos) else fold_batchnorm(network, photos)


def _fold_copy(network: nn.Module) -> nn.Module:
    """Copy the network and fold BatchNorm, without comparing outputs."""
    optimised = copy.deepcopy(network).eval()
    for convolution, norm, replace_pair in iterate_convolutions(optimised):
        if isinstance(norm, Norm):
            replace_pair(fuse_conv_bn_eval(convolution, norm), get_activation(norm))  # type: ignore[type-var]
    return optimised.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def optimise_for_inference(network: nn.Module, examples: Examples) -> nn.Module:
    """Return the fastest equivalent for inference; a head without convolutions stays as it is."""
    has_convolutions = any(isinstance(module, Convolution) for module in network.modules())
    return fuse_layers(network, examples) if len(examples) and has_convolutions else network


def fuse_activations(network: nn.Module, is_frozen: Callable[[nn.Module], bool]) -> None:
    """Fuse convolutions with the activations behind them, and normalise photos row by row.

    Args:
        is_frozen: whether neither this convolution nor any layer before it is trainable.
    """
    for convolution, following, replace_pair in iterate_convolutions(network):
        if is_frozen(convolution) and is_fusable(convolution):
            activation = ONEDNN_ACTIVATIONS.get(type(following))
            replace_pair(
                FusedConvolution(convolution, *(activation or ("none", []))),
                nn.Identity() if activation is not None else following,
            )
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Normalise):
                setattr(module, name, RowwiseNormalise(child))


def iterate_convolutions(
    network: nn.Module,
) -> Iterator[tuple[Convolution, nn.Module, Callable[[nn.Module, nn.Module], None]]]:
    """Yield each convolution, the layer behind it, and a function that replaces both."""
    for module in list(network.modules()):
        children = [*module.named_children(), ("", nn.Identity())]
        for index, (name, convolution) in enumerate(children[:-1]):
            next_name = children[index + 1][0]
            following = getattr(module, next_name) if next_name else nn.Identity()
            if isinstance(convolution, Convolution):

                def replace_pair(
                    first: nn.Module, second: nn.Module, module=module, name=name, next_name=next_name
                ) -> None:
                    setattr(module, name, first)
                    if next_name:
                        setattr(module, next_name, second)

                yield convolution, following, replace_pair


def is_fusable(convolution: Convolution) -> bool:
    """Check that the convolution is of a kind that can be fused."""
    return isinstance(convolution, DepthwiseConv2d) or is_standard_convolution(convolution)


def get_activation(norm: Norm) -> nn.Module:
    """Return the activation inside a norm, as in timm's, or an identity."""
    return getattr(norm, "act", nn.Identity())


def get_groups(convolution: Convolution) -> int:
    """Return the number of channel groups."""
    return len(convolution.weight) if isinstance(convolution, DepthwiseConv2d) else convolution.groups


def get_stride(convolution: Convolution) -> int:
    """Return the stride, the same in both directions."""
    return convolution.stride if isinstance(convolution.stride, int) else convolution.stride[0]


def has_same_padding(convolution: Convolution) -> bool:
    """Check for TensorFlow's "same" padding, which may be larger below and right."""
    return convolution.same_padding if isinstance(convolution, DepthwiseConv2d) else type(convolution) is not nn.Conv2d


def convolve_and_activate(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    groups: int,
    activation: str,
    arguments: list[float],
) -> Tensor:
    """Compute a convolution and its activation in one pass, without autograd.

    Args:
        activation: oneDNN's name, or "none".
        arguments: of the activation.
    """
    return torch.ops.mkldnn._convolution_pointwise(
        features, weight, bias, padding, [stride] * 2, [1, 1], groups, activation, arguments, ""
    )


class RowwiseNormalise(nn.Module):
    """`Normalise` per row of pixels: three channels are too few for the processor's vectors."""

    def __init__(self, plain: Normalise):
        super().__init__()
        self.scale = plain.scale.flatten()
        self.offset = -plain.shift.flatten() * self.scale

    def forward(self, photos: Tensor) -> Tensor:
        """Normalise photos [photos, 3, height, width], 0 to 255, in channels-last format."""
        pixels = photos.permute(0, 2, 3, 1)
        rows = pixels.flatten(2).float()
        width = photos.shape[-1]
        normalised = torch.addcmul(self.offset.repeat(width), rows, self.scale.repeat(width))
        return normalised.view(pixels.shape).permute(0, 3, 1, 2)


class FusedConvolution(nn.Module):
    """A convolution with the activation behind it, in one pass and in either precision.

    TensorFlow's "same" padding may be larger below and right, which would need a padded copy of all
    features. Zeros above and left of the kernel give the same result with symmetric padding.
    oneDNN wants the weights in its own layout, which depends on the features' shape. They are
    reordered once per shape, not per batch.
    """

    def __init__(self, convolution: Convolution, activation: str, arguments: list[float]):
        super().__init__()
        self.kernel_size, self.stride = convolution.weight.shape[-1], get_stride(convolution)
        self.same_padding = has_same_padding(convolution)
        self.padding: Any = list(convolution.padding)
        self.groups = get_groups(convolution)
        self.activation, self.arguments = activation, arguments
        bias = convolution.bias
        self.weight, self.bias = convolution.weight.detach(), None if bias is None else bias.detach()
        # Shape and dtype of the features that the three attributes below are valid for.
        self.prepared_for: tuple[Any, ...] = ()
        self.reordered_weight, self.cast_bias, self.symmetric_padding = self.weight, self.bias, self.padding

    def forward(self, features: Tensor) -> Tensor:
        """Convolve features [photos, channels, height, width]."""
        features = features.to(torch.bfloat16 if is_cpu_bfloat16_autocast() else torch.float32)
        if self.prepared_for != (features.shape, features.dtype):
            self._prepare(features)
        return convolve_and_activate(
            features,
            self.reordered_weight,
            self.cast_bias,
            self.stride,
            self.symmetric_padding,
            self.groups,
            self.activation,
            self.arguments,
        )

    def _prepare(self, features: Tensor) -> None:
        """Prepare weight, bias and padding for features of this shape and dtype."""
        weight = self.weight
        if self.same_padding:
            left, right, above, below = compute_same_padding(features, self.kernel_size, self.stride)
            weight = functional.pad(weight, (right - left, 0, below - above, 0))
            self.symmetric_padding = [below, right]
        weight = weight.to(features.dtype).contiguous(memory_format=torch.channels_last)
        self.reordered_weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight, self.symmetric_padding, [self.stride] * 2, [1, 1], self.groups, list(features.shape)
        )
        self.cast_bias = None if self.bias is None else self.bias.to(features.dtype)
        self.prepared_for = features.shape, features.dtype


def _agree(optimised: nn.Module, network: nn.Module, photos: Examples) -> bool:
    """Check that both networks give the same output for a few photos."""
    few, _ = photos.get_batch(np.arange(min(COMPARED_PHOTOS, len(photos))), str(next(network.parameters()).device))
    expected = network.eval()(few)
    try:
        output = optimised(few)
    except RuntimeError:  # the operators of another torch version may take other arguments
        return False
    return bool((output - expected).abs().max() <= MAX_RELATIVE_DIFFERENCE * expected.abs().max())
