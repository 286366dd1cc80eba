"""The network as a step of training sees it: the same weights, the same function, the same gradients, in fewer passes.

Where BatchNorm keeps its means, as in most fine-tuning, it is a factor and a summand for each channel: the factor can be
taken to the weights of the convolution before it, which are few, instead of to its output, which is large. And what
comes before the first layer that learns only looks: it is made lean (`lean.py`), activations and all.
"""

import copy
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ikebana.learning import lean
from ikebana.learning.depthwise import borders, gradients_of, in_bfloat16, is_slow, way_back
from ikebana.learning.device import Setting

THROUGH = (nn.ReLU, nn.ReLU6)  # activations whose results show what they let through
# Of a gradient's size. A fold that is wrong changes all of it; rounding, which moves a few values across the edge of an
# activation, changed 0.016 of it at the most. Far from both, so that a run that is gone on with decides as it did before.
GRADIENTS_ALIKE = 0.3


def for_steps(network: nn.Module, photos: Tensor, setting: Setting) -> nn.Module:
    """The network for the steps to come, as long as the same weights learn; it shares every weight with the network.

    That two layers follow one another is guessed from their order in the module, so it is used only if it agrees with
    the network, gradients included, on a few drawn photos.

    network  told which weights learn, and set to training
    photos   of the shape that they will have: [photos, 3, side, side]
    """
    if photos.device.type != "cpu" or photos.ndim < 4 or not lean.has_onednn():
        return network
    norms = [each for each in network.modules() if isinstance(each, lean.Norm)]
    fixed = norms and not any(each.training or each.running_mean is None for each in norms)
    if not fixed or any(each.dtype != torch.float32 for each in network.parameters()):
        return network
    few = torch.randint(0, 256, (lean.FEW, *photos.shape[1:]), generator=torch.Generator().manual_seed(0)).float()
    shared = copy.deepcopy(network, {id(each): each for each in chain(network.parameters(), network.buffers())})
    with torch.random.fork_rng(devices=[]):  # dropout must not draw from the stream of the epoch
        expected = _said_and_learned(network, network, few)
        try:
            _fold(shared, few)
            found = _said_and_learned(shared, network, few)
            with setting.autocast():
                shared(few)
        except (
            RuntimeError
        ):  # a layer changes in its place what the way back needs, or torch or the processor is another
            return network
    return shared if _agree(found, expected) else network


def _fold(network: nn.Module, few: Tensor) -> None:
    """Fold every BatchNorm, and make lean what no gradient passes."""
    passed, looking = _passed_by_gradients(network, few), set[nn.Module]()
    for convolution, norm, put in lean.followed(network):
        if not isinstance(norm, lean.Norm) or not lean.is_known(convolution):
            continue
        act = lean.act_of(norm)
        if convolution in passed or _learns(convolution) or _learns(norm):
            through = type(act) in THROUGH
            put(Folded(convolution, norm, act if through else nn.Identity()), nn.Identity() if through else act)
        else:
            plain = fuse_conv_bn_eval(convolution, norm)  # type: ignore[type-var]
            looking.add(plain)
            put(plain, act)
    lean.fuse(network, looking.__contains__)


def _learns(module: nn.Module) -> bool:
    return any(each.requires_grad for each in module.parameters())


def _passed_by_gradients(network: nn.Module, few: Tensor) -> set[nn.Module]:
    """The convolutions whose input depends on weights that learn."""
    found: set[nn.Module] = set()

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if any(each.requires_grad for each in inputs):
            found.add(layer)

    hooks = [each.register_forward_pre_hook(note) for each in network.modules() if isinstance(each, lean.Convolution)]
    network(few)
    for hook in hooks:
        hook.remove()
    return found


class Folded(nn.Module):
    """A convolution, the BatchNorm behind it, whose means stay, and the activation behind both, as one layer that learns."""

    def __init__(self, convolution: lean.Convolution, norm: lean.Norm, act: nn.Module):
        super().__init__()
        self.convolution, self.norm = convolution, norm
        self.activation, self.bounds = lean.ACTIVATIONS.get(type(act), ("none", []))
        self.stride, self.groups = lean.stride_of(convolution), lean.groups_of(convolution)
        self.same, self.padding = lean.pads_as_tensorflow(convolution), tuple(convolution.padding)

    def forward(self, features: Tensor) -> Tensor:
        """features  [photos, channels, height, width]"""
        convolution, norm, padding = self.convolution, self.norm, self.padding
        assert isinstance(norm.running_mean, Tensor)
        assert isinstance(norm.running_var, Tensor)
        scale = (norm.running_var + norm.eps).rsqrt()
        if isinstance(norm.weight, Tensor):
            scale = norm.weight * scale
        added = -norm.running_mean * scale
        if isinstance(norm.bias, Tensor):
            added = norm.bias + added
        if convolution.bias is not None:
            added = added + convolution.bias * scale
        weight = convolution.weight * scale.view(-1, 1, 1, 1)
        if self.same:
            features, padding = functional.pad(features, borders(features, weight.shape[-1], self.stride)), (0, 0)
        kind = torch.bfloat16 if in_bfloat16() else weight.dtype
        given = (each.to(kind) for each in (features, weight, added))
        found = _Convolved.apply(*given, self.stride, padding, self.groups, self.activation, self.bounds)
        assert isinstance(found, Tensor)
        return found


class _Convolved(torch.autograd.Function):
    """A convolution with its activation in one pass; what the activation lets through on the way back shows in its result."""

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
        bounds: list[float],
    ) -> Tensor:
        found = lean.convolved(features, weight, bias, stride, padding, groups, activation, bounds)
        # A layer behind may change a result in its place, where nothing asks what it was.
        ctx.save_for_backward(features, weight, *([] if activation == "none" else [found]))
        ctx.stride, ctx.padding, ctx.groups, ctx.activation, ctx.bounds = stride, padding, groups, activation, bounds
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, *found = ctx.saved_tensors
        gradient, wanted = gradients[0], list(ctx.needs_input_grad[:3])
        if ctx.activation == "hardtanh":
            gradient = torch.ops.aten.hardtanh_backward(gradient, *found, *ctx.bounds)
        elif ctx.activation == "relu":
            gradient = torch.ops.aten.threshold_backward(gradient, *found, 0.0)
        known = gradient, features, weight, ctx.stride, ctx.padding
        if ctx.groups == len(weight) == features.shape[1] and is_slow(weight.shape[-1], ctx.stride):
            for_bias = gradient.sum((0, 2, 3)) if wanted[2] else None
            return *gradients_of(*known, wanted), for_bias, None, None, None, None, None
        return *way_back(*known, ctx.groups, wanted), None, None, None, None, None


def _agree(one: "Answer", other: "Answer") -> bool:
    """Whether two networks say the same of a few photos, and would learn the same from it."""
    (found, learned), (expected, to_learn) = one, other
    if (found - expected).abs().max() > lean.ALIKE * expected.abs().max():
        return False
    return all(
        change is not None and (change - wanted).norm() <= GRADIENTS_ALIKE * wanted.norm()
        for change, wanted in zip(learned, to_learn, strict=True)
        if wanted is not None
    )


Answer = tuple[Tensor, Iterable[Tensor | None]]  # what is said, and what each weight would change by


def _said_and_learned(asked: nn.Module, network: nn.Module, few: Tensor) -> Answer:
    torch.manual_seed(0)
    said = asked(few)
    learned = [each for each in network.parameters() if each.requires_grad]
    wanted = torch.linspace(-1, 1, said.numel(), dtype=said.dtype).view(said.shape)
    return said.detach(), torch.autograd.grad((said * wanted).sum(), learned, allow_unused=True)
