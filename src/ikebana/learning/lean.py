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
from ikebana.learning.layers import Normalise

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
    if (
        device.type != "cpu"
        or not torch.backends.mkldnn.is_available()
        or not all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)
    ):
        return plain
    lean = copy.deepcopy(plain).eval()
    for module in list(lean.modules()):
        named = list(module.named_children())
        for name, child in named:
            if isinstance(child, Normalise):
                setattr(module, name, Rowwise(child))
        for (first, convolution), (second, then) in pairwise([*named, ("", nn.Identity())]):
            if isinstance(convolution, Depthwise) or (isinstance(convolution, nn.Conv2d) and is_plain(convolution)):
                known = ACTIVATIONS.get(type(then))
                setattr(module, first, Fused(convolution, *(known or ("none", []))))
                if known is not None:
                    setattr(module, second, nn.Identity())
    return lean if _agree(lean, network, photos) else plain


_OPERATORS = ("_convolution_pointwise", "_reorder_convolution_weight")


class Rowwise(nn.Module):
    """`Normalise` a row of pixels at a time: three channels are too few for the processor's vectors."""

    def __init__(self, plain: Normalise):
        super().__init__()
        self.scale = plain.scale.flatten()
        self.added = -plain.shift.flatten() * self.scale

    def forward(self, photos: Tensor) -> Tensor:
        """photos  [photos, 3, height, width], uint8 or float from 0 to 255, in the channels-last format, which is kept"""
        pixels = photos.permute(0, 2, 3, 1)
        rows = pixels.flatten(2).float()
        width = photos.shape[-1]
        found = torch.addcmul(self.added.repeat(width), rows, self.scale.repeat(width))
        return found.view(pixels.shape).permute(0, 3, 1, 2)


class Fused(nn.Module):
    """A convolution and the activation behind it, in one pass; its weights in either number format.

    Borders that are wider below and right than above and left, as TensorFlow has them, would need a copy of all features. A
    kernel with zeros added above and left sees the same through borders that are alike on all sides. And oneDNN wants weights in
    an order of its own, which depends on the features' shape: they are brought into it once, not for each batch.
    """

    def __init__(self, convolution: nn.Conv2d | Depthwise, activation: str, bounds: list[float]):
        super().__init__()
        kernel, stride = convolution.weight.shape[-1], convolution.stride
        self.kernel, self.stride = kernel, stride if isinstance(stride, int) else stride[0]
        self.same = convolution.same if isinstance(convolution, Depthwise) else type(convolution) is not nn.Conv2d
        self.padding: Any = list(convolution.padding)
        self.groups = len(convolution.weight) if isinstance(convolution, Depthwise) else convolution.groups
        self.activation, self.bounds = activation, bounds
        bias = convolution.bias
        self.weight, self.bias = convolution.weight.detach(), None if bias is None else bias.detach()
        self.ready: tuple[Any, ...] = ()  # what the values below it were made for
        self.ordered, self.added, self.borders = self.weight, self.bias, self.padding

    def forward(self, features: Tensor) -> Tensor:
        """features  [photos, channels, height, width]"""
        features = features.to(torch.bfloat16 if in_bfloat16() else torch.float32)
        if self.ready != (features.shape, features.dtype):
            self._make_ready(features)
        return torch.ops.mkldnn._convolution_pointwise(
            features,
            self.ordered,
            self.added,
            self.borders,
            [self.stride] * 2,
            [1, 1],
            self.groups,
            self.activation,
            self.bounds,
            "",
        )

    def _make_ready(self, features: Tensor) -> None:
        """Weights, bias and borders for features of this shape and number format."""
        weight = self.weight
        if self.same:
            left, right, above, below = borders(features, self.kernel, self.stride)
            weight = functional.pad(weight, (right - left, 0, below - above, 0))
            self.borders = [below, right]
        weight = weight.to(features.dtype).contiguous(memory_format=torch.channels_last)
        self.ordered = torch.ops.mkldnn._reorder_convolution_weight(
            weight, self.borders, [self.stride] * 2, [1, 1], self.groups, list(features.shape)
        )
        self.added = None if self.bias is None else self.bias.to(features.dtype)
        self.ready = features.shape, features.dtype


def _agree(lean: nn.Module, network: nn.Module, photos: Photos) -> bool:
    """Whether both say the same of a few of the photos."""
    few, _ = photos.batch(np.arange(min(FEW, len(photos))), str(next(network.parameters()).device))
    expected, found = network.eval()(few), lean(few)
    return bool((found - expected).abs().max() <= ALIKE * expected.abs().max())
