"""A network that only looks: the same function in fewer passes over memory, for as long as it learns nothing.

Two steps. BatchNorm becomes part of the convolution before it; that is plain torch and can be exported. Then, on a processor,
the activation behind a convolution is computed with it, by oneDNN, before its output leaves the cache. The operator for that
is torch's own for compiled networks, and private (`mkldnn._convolution_pointwise`): without it, or where it would say something
else, the network stays as it was.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ikebana.learning.depthwise import Depthwise, borders, in_bfloat16, is_plain
from ikebana.learning.inception import BatchNorm
from ikebana.learning.inference import Examples
from ikebana.learning.layers import Normalise

Convolution = nn.Conv2d | Depthwise
Norm = nn.BatchNorm2d | BatchNorm
OPERATORS = ("_convolution_pointwise", "_reorder_convolution_weight")  # torch's own, private
ALIKE = 1e-3  # of the output's size: how far a lean network may be from the one it was made of
FEW = 2  # photos on which that is looked at
ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {  # oneDNN's names of them
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}


def has_onednn() -> bool:
    """Whether this torch can compute convolutions with their activations."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS)


@torch.inference_mode()
def folded(network: nn.Module, photos: Examples) -> nn.Module:
    """A copy with BatchNorm folded into the convolutions before it.

    That two layers follow one another is guessed from their order in the module; the copy is used only if it agrees with
    the original on a few of the photos.
    """
    lean = _folded(network)
    return lean if _agree(lean, network, photos) else network


@torch.inference_mode()
def fused(network: nn.Module, photos: Examples) -> nn.Module:
    """The same, and on a processor with activations computed by the convolutions before them; this copy cannot be exported."""
    if next(network.parameters()).device.type != "cpu" or not has_onednn():
        return folded(network, photos)
    lean = _folded(network)
    fuse(lean, lambda _: True)
    return lean if _agree(lean, network, photos) else folded(network, photos)


def _folded(network: nn.Module) -> nn.Module:
    """A copy of which nobody has seen yet whether it says the same."""
    lean = copy.deepcopy(network).eval()
    for convolution, norm, put in followed(lean):
        if isinstance(norm, Norm):
            put(fuse_conv_bn_eval(convolution, norm), act_of(norm))  # type: ignore[type-var]
    return lean.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def for_looking(network: nn.Module, shown: Examples) -> nn.Module:
    """The network as it is fastest at saying what these show; a head alone has nothing to be folded."""
    convolves = any(isinstance(each, Convolution) for each in network.modules())
    return fused(network, shown) if len(shown) and convolves else network


def fuse(network: nn.Module, looks: Callable[[nn.Module], bool]) -> None:
    """Let convolutions compute the activations behind them, and normalise photos row by row.

    looks  of a convolution: whether neither it nor anything before it learns
    """
    for convolution, then, put in followed(network):
        if looks(convolution) and is_known(convolution):
            known = ACTIVATIONS.get(type(then))
            put(Fused(convolution, *(known or ("none", []))), nn.Identity() if known is not None else then)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Normalise):
                setattr(module, name, Rowwise(child))


def followed(network: nn.Module) -> Iterator[tuple[Convolution, nn.Module, Callable[[nn.Module, nn.Module], None]]]:
    """Every convolution, the layer behind it, and how to put others in the place of both."""
    for module in list(network.modules()):
        named = [*module.named_children(), ("", nn.Identity())]
        for number, (first, convolution) in enumerate(named[:-1]):
            second = named[number + 1][0]
            then = getattr(module, second) if second else nn.Identity()
            if isinstance(convolution, Convolution):

                def put(one: nn.Module, other: nn.Module, module=module, first=first, second=second) -> None:
                    setattr(module, first, one)
                    if second:
                        setattr(module, second, other)

                yield convolution, then, put


def is_known(convolution: Convolution) -> bool:
    """Whether nothing about it is odd."""
    return isinstance(convolution, Depthwise) or is_plain(convolution)


def act_of(norm: Norm) -> nn.Module:
    """The activation behind a norm, where it is a part of it, as in timm's."""
    return getattr(norm, "act", nn.Identity())


def groups_of(convolution: Convolution) -> int:
    """Parts of the channels that are convolved apart."""
    return len(convolution.weight) if isinstance(convolution, Depthwise) else convolution.groups


def stride_of(convolution: Convolution) -> int:
    """The same both ways."""
    return convolution.stride if isinstance(convolution.stride, int) else convolution.stride[0]


def pads_as_tensorflow(convolution: Convolution) -> bool:
    """Whether it adds what a stride of s needs for a side of 1/s, which may be more below and right than above and left."""
    return convolution.same if isinstance(convolution, Depthwise) else type(convolution) is not nn.Conv2d


def convolved(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    groups: int,
    activation: str,
    bounds: list[float],
) -> Tensor:
    """A convolution and its activation, one of ACTIVATIONS or "none", in one pass; no gradient is kept of it."""
    return torch.ops.mkldnn._convolution_pointwise(
        features, weight, bias, padding, [stride] * 2, [1, 1], groups, activation, bounds, ""
    )


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

    def __init__(self, convolution: Convolution, activation: str, bounds: list[float]):
        super().__init__()
        self.kernel, self.stride = convolution.weight.shape[-1], stride_of(convolution)
        self.same = pads_as_tensorflow(convolution)
        self.padding: Any = list(convolution.padding)
        self.groups = groups_of(convolution)
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
        return convolved(
            features, self.ordered, self.added, self.stride, self.borders, self.groups, self.activation, self.bounds
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


def _agree(lean: nn.Module, network: nn.Module, photos: Examples) -> bool:
    """Whether both say the same of a few of the photos."""
    few, _ = photos.batch(np.arange(min(FEW, len(photos))), str(next(network.parameters()).device))
    expected = network.eval()(few)
    try:
        found = lean(few)
    except RuntimeError:  # another torch, whose operators want something else
        return False
    return bool((found - expected).abs().max() <= ALIKE * expected.abs().max())
