"""A network that only looks: the same function in fewer passes over memory, for as long as it learns nothing.

Two steps. BatchNorm becomes part of the convolution before it; that is plain torch and can be exported. Then, on a processor,
the activation behind a convolution is computed with it, by oneDNN, before its output leaves the cache. The operator for that
is torch's own for compiled networks, and private (`mkldnn._convolution_pointwise`): without it, or where it would say something
else, the network stays as it was.
"""

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ikebana.learning.depthwise import Depthwise, borders, in_bfloat16, is_plain
from ikebana.learning.inception import BatchNorm
from ikebana.learning.inference import Photos

ALIKE = 1e-3  # of the output's size: how far a lean network may be from the one it was made of
FEW = 2  # photos on which that is looked at
ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {  # oneDNN's names of them
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}


@torch.inference_mode()
def folded(network: nn.Module, photos: Photos) -> nn.Module:
    """A copy with BatchNorm folded into the convolutions before it.

    That two layers follow one another is guessed from their order in the module; the copy is used only if it agrees with
    the original on a few of the photos.
    """
    lean = copy.deepcopy(network).eval()
    for module in lean.modules():
        named = list(module.named_children())
        for (first, convolution), (second, norm) in pairwise(named):
            if isinstance(convolution, nn.Conv2d | Depthwise) and isinstance(norm, nn.BatchNorm2d | BatchNorm):
                setattr(module, first, fuse_conv_bn_eval(convolution, norm))  # type: ignore[type-var]
                setattr(module, second, getattr(norm, "act", nn.Identity()))  # timm's norms carry their activation
    lean = lean.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lean if _agree(lean, network, photos) else network


@torch.inference_mode()
def fused(network: nn.Module, photos: Photos) -> nn.Module:
    """The same, and on a processor with activations computed by the convolutions before them; this copy cannot be exported."""
    plain = folded(network, photos)
    device = next(network.parameters()).device
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, _OPERATOR):
        return plain
    lean = copy.deepcopy(plain).eval()
    for module in list(lean.modules()):
        named = list(module.named_children())
        for (first, convolution), (second, then) in pairwise([*named, ("", nn.Identity())]):
            if isinstance(convolution, Depthwise) or (isinstance(convolution, nn.Conv2d) and is_plain(convolution)):
                known = ACTIVATIONS.get(type(then))
                setattr(module, first, Fused(convolution, *(known or ("none", []))))
                if known is not None:
                    setattr(module, second, nn.Identity())
    return lean if _agree(lean, network, photos) else plain


_OPERATOR = "_convolution_pointwise"


class Fused(nn.Module):
    """A convolution and the activation behind it, in one pass; its weights in either number format."""

    def __init__(self, convolution: nn.Conv2d | Depthwise, activation: str, bounds: list[float]):
        super().__init__()
        kernel, stride = convolution.weight.shape[-1], convolution.stride
        self.kernel, self.stride = kernel, stride if isinstance(stride, int) else stride[0]
        self.same = convolution.same if isinstance(convolution, Depthwise) else type(convolution) is not nn.Conv2d
        self.padding: Any = [0, 0] if self.same else list(convolution.padding)
        self.groups = len(convolution.weight) if isinstance(convolution, Depthwise) else convolution.groups
        self.activation, self.bounds = activation, bounds
        weight, bias = convolution.weight.detach(), convolution.bias
        weight = weight.contiguous(memory_format=torch.channels_last)
        self.exact = weight, None if bias is None else bias.detach()
        self.halved = weight.bfloat16(), None if bias is None else bias.detach().bfloat16()

    def forward(self, features: Tensor) -> Tensor:
        """features  [photos, channels, height, width]"""
        weight, bias = self.halved if in_bfloat16() else self.exact
        features = features.to(weight.dtype)
        if self.same:
            features = functional.pad(features, borders(features, self.kernel, self.stride))
        return torch.ops.mkldnn._convolution_pointwise(
            features,
            weight,
            bias,
            self.padding,
            [self.stride] * 2,
            [1, 1],
            self.groups,
            self.activation,
            self.bounds,
            "",
        )


def _agree(lean: nn.Module, network: nn.Module, photos: Photos) -> bool:
    """Whether both say the same of a few of the photos."""
    few, _ = photos.batch(np.arange(min(FEW, len(photos))), str(next(network.parameters()).device))
    expected, found = network.eval()(few), lean(few)
    return bool((found - expected).abs().max() <= ALIKE * expected.abs().max())
