"""InceptionV3 without its top, as Keras builds it: a stem, then eleven blocks of branches, mixed0 to mixed10.

For the same weights it is the same function as `keras.applications.InceptionV3(include_top=False)`: convolutions without
a bias, BatchNorm without a gamma, average pools that leave the padding out. Keras' order of layers comes with it, since
recipes speak in it ("the last 50 of 311 layers").

source   Szegedy et al. 2015, arXiv:1512.00567; keras/src/applications/inception_v3.py
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from ikebana.errors import RecipeError

EPSILON = 1e-3  # Keras' own, added to every variance; torch would take 1e-5


class BatchNorm(nn.Module):
    """Keras' BatchNormalization with scale=False: a beta (here `bias`), moving statistics, and no gamma at all.

    torch's own layer has no beta without a gamma, and moves the variance towards the unbiased one, n / (n - 1) times the
    batch's; Keras moves it towards the batch's as it is.

    momentum  the batch's share in the moving statistics: torch's convention, 1 less Keras' momentum
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.eps = EPSILON
        self.register_parameter("weight", None)  # no gamma, said as torch says it: fuse_conv_bn_eval looks for it
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        """features  [photos, channels, height, width]; the statistics are float32 also where these are bfloat16"""
        # A GPU's kernels give beta a gradient only beside a gamma; on a processor its absence is worth a product.
        gamma = None if self.bias.device.type == "cpu" else torch.ones_like(self.bias)
        if not self.training:
            mean, variance = self.running_mean, self.running_var
            return functional.batch_norm(features, mean, variance, gamma, self.bias, eps=self.eps)
        # With momentum 1 these become the batch's own. Autograd keeps them until the backward pass, so they must not be
        # the moving ones, which change before it.
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        normal = functional.batch_norm(
            features, mean, variance, gamma, self.bias, training=True, momentum=1.0, eps=self.eps
        )
        count = features.numel() // features.shape[1]
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (1 - 1 / count), self.momentum)
        return normal


class Block(nn.ModuleDict):
    """Branches side by side; what they give is put one after another along the channels."""

    def forward(self, features: Tensor) -> Tensor:
        """features  [photos, channels, height, width], which every branch gets"""
        return torch.cat([branch(features) for branch in self.values()], 1)


class _Conv(NamedTuple):
    """A convolution, BatchNorm and ReLU."""

    filters: int
    rows: int = 1
    columns: int = 1
    stride: int = 1
    same: bool = True  # padded so that as many pixels leave as enter; False: not padded, Keras' "valid"
    averaged: bool = False  # an average pool of 3 x 3 goes before


_MAX_POOL = "max pool"  # of 3 x 3, every second pixel, not padded
# What a network is made of: a list is one layer after another, a dict is branches side by side.
_Plan: TypeAlias = "_Conv | str | list[_Plan] | dict[str, _Plan]"


def _fives(pooled: int) -> _Plan:
    return {
        "branch1x1": _Conv(64),
        "branch5x5": [_Conv(48), _Conv(64, 5, 5)],
        "branch3x3dbl": [_Conv(64), _Conv(96, 3, 3), _Conv(96, 3, 3)],
        "branch_pool": _Conv(pooled, averaged=True),
    }


def _sevens(width: int) -> _Plan:
    """7 x 7 in two steps, a row and a column, which cost 14 multiplications in place of 49."""
    row, column = _Conv(width, 1, 7), _Conv(width, 7, 1)
    return {
        "branch1x1": _Conv(192),
        "branch7x7": [_Conv(width), row, _Conv(192, 7, 1)],
        "branch7x7dbl": [_Conv(width), column, row, column, _Conv(192, 1, 7)],
        "branch_pool": _Conv(192, averaged=True),
    }


def _threes() -> _Plan:
    split: _Plan = {"a": _Conv(384, 1, 3), "b": _Conv(384, 3, 1)}
    return {
        "branch1x1": _Conv(320),
        "branch3x3": [_Conv(384), split],
        "branch3x3dbl": [_Conv(448), _Conv(384, 3, 3), split],
        "branch_pool": _Conv(192, averaged=True),
    }


# Our name of a stage: timm's name of it, and what is in it, in the order in which a photo passes them.
_STAGES: dict[str, tuple[str, _Plan]] = {
    "stem_1": ("Conv2d_1a_3x3", _Conv(32, 3, 3, stride=2, same=False)),
    "stem_2": ("Conv2d_2a_3x3", _Conv(32, 3, 3, same=False)),
    "stem_3": ("Conv2d_2b_3x3", _Conv(64, 3, 3)),
    "stem_4": ("Pool1", _MAX_POOL),
    "stem_5": ("Conv2d_3b_1x1", _Conv(80)),
    "stem_6": ("Conv2d_4a_3x3", _Conv(192, 3, 3, same=False)),
    "stem_7": ("Pool2", _MAX_POOL),
    "mixed0": ("Mixed_5b", _fives(pooled=32)),
    "mixed1": ("Mixed_5c", _fives(pooled=64)),
    "mixed2": ("Mixed_5d", _fives(pooled=64)),
    "mixed3": (
        "Mixed_6a",
        {
            "branch3x3": _Conv(384, 3, 3, stride=2, same=False),
            "branch3x3dbl": [_Conv(64), _Conv(96, 3, 3), _Conv(96, 3, 3, stride=2, same=False)],
            "branch_pool": _MAX_POOL,
        },
    ),
    "mixed4": ("Mixed_6b", _sevens(128)),
    "mixed5": ("Mixed_6c", _sevens(160)),
    "mixed6": ("Mixed_6d", _sevens(160)),
    "mixed7": ("Mixed_6e", _sevens(192)),
    "mixed8": (
        "Mixed_7a",
        {
            "branch3x3": [_Conv(192), _Conv(320, 3, 3, stride=2, same=False)],
            "branch7x7x3": [_Conv(192), _Conv(192, 1, 7), _Conv(192, 7, 1), _Conv(192, 3, 3, stride=2, same=False)],
            "branch_pool": _MAX_POOL,
        },
    ),
    "mixed9": ("Mixed_7b", _threes()),
    "mixed10": ("Mixed_7c", _threes()),
}


def cuts() -> tuple[str, ...]:
    """The blocks after which the network may end, the whole of it last."""
    return tuple(stage for stage in _STAGES if stage.startswith("mixed"))


def inception(until: str = "mixed10", momentum: float = 0.1) -> nn.Sequential:
    """InceptionV3 from a photo to the feature map that the block `until` gives, with torch's own first weights.

    Takes float [photos, 3, side, side], scaled as its weights were trained, of a side of at least 75 (Keras' limit).
    At 150 pixels mixed10 gives [photos, 2048, 3, 3] and mixed8 [photos, 1280, 3, 3]. Children are named by stage.

    until     one of `cuts()`
    momentum  of every BatchNorm, torch's convention: 0.1 is Keras' 0.9
    raises    RecipeError if it cannot be cut there
    """
    if until not in cuts():
        raise RecipeError(f"InceptionV3 cannot be cut after {until!r}", advice="one of " + ", ".join(cuts()))
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for stage, (_, plan) in _STAGES.items():
        stages[stage], channels = _built(plan, channels, momentum)
        if stage == until:
            break
    return nn.Sequential(stages).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _built(plan: _Plan, channels: int, momentum: float) -> tuple[nn.Module, int]:
    """The layers of a plan that are given so many channels, and the channels that they give."""
    if isinstance(plan, str):
        return nn.MaxPool2d(3, stride=2), channels
    if isinstance(plan, _Conv):
        return _unit(plan, channels, momentum), plan.filters
    if isinstance(plan, dict):
        branches = {name: _built(branch, channels, momentum) for name, branch in plan.items()}
        return Block({name: layers for name, (layers, _) in branches.items()}), sum(
            wide for _, wide in branches.values()
        )
    chain: OrderedDict[str, nn.Module] = OrderedDict()
    for number, step in enumerate(plan, 1):
        chain[str(number)], channels = _built(step, channels, momentum)
    return nn.Sequential(chain), channels


def _unit(conv: _Conv, channels: int, momentum: float) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if conv.averaged:
        layers["pool"] = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    padding = (conv.rows // 2, conv.columns // 2) if conv.same else 0
    layers["conv"] = nn.Conv2d(channels, conv.filters, (conv.rows, conv.columns), conv.stride, padding, bias=False)
    layers["bn"] = BatchNorm(conv.filters, momentum)
    layers["relu"] = nn.ReLU(inplace=True)  # the way back through BatchNorm needs what entered it, not what left it
    return nn.Sequential(layers)


@dataclass(frozen=True)
class KerasLayer:
    """One entry of Keras' `model.layers`."""

    kind: str  # Keras' class: "Conv2D", "BatchNormalization", ...
    module: str | None  # our submodule that holds its weights, for `get_submodule`; None if it has none


_KINDS: dict[type[nn.Module], str] = {
    nn.Conv2d: "Conv2D",
    BatchNorm: "BatchNormalization",
    nn.ReLU: "Activation",
    nn.MaxPool2d: "MaxPooling2D",
    nn.AvgPool2d: "AveragePooling2D",
}
_Graph: TypeAlias = list[tuple[KerasLayer, list[int]]]  # a layer, and where in the list the layers are that feed it


def keras_layers(until: str = "mixed10") -> list[KerasLayer]:
    """Keras' layers in Keras' order: 311 of the whole network, 249 until mixed8.

    `[-50:]` are the last 50; the modules of those whose kind is "BatchNormalization" are of our class BatchNorm.

    raises  RecipeError if the network cannot be cut there
    """
    with torch.device("meta"):  # its shape alone: no memory, no weights
        network = inception(until)
    graph: _Graph = [(KerasLayer("InputLayer", None), [])]
    _trace(network, "", 0, graph)
    return [graph[place][0] for place in _keras_order([sources for _, sources in graph])]


def _trace(module: nn.Module, name: str, source: int, graph: _Graph) -> int:
    """Add the layers of a module that is fed by layer `source`; returns the place of its last layer in the graph."""
    children = {f"{name}.{key}".lstrip("."): child for key, child in module.named_children()}
    if isinstance(module, nn.Sequential):
        for key, child in children.items():
            source = _trace(child, key, source, graph)
        return source
    if isinstance(module, Block):
        ends = [_trace(child, key, source, graph) for key, child in children.items()]
        graph.append((KerasLayer("Concatenate", None), ends))
    else:
        has_weights = any(True for _ in module.parameters())
        graph.append((KerasLayer(_KINDS[type(module)], name if has_weights else None), [source]))
    return len(graph) - 1


def _keras_order(sources: list[list[int]]) -> list[int]:
    """Farthest from the output first; those equally far as they are met on a walk back from the output.

    sources  of each layer the layers that feed it, all of them earlier in the list; the last layer is the output
    source   map_graph in keras/src/ops/function.py
    """
    distances = [0] * len(sources)  # of the longest way to the output
    for layer in reversed(range(len(sources))):
        for fed_by in sources[layer]:
            distances[fed_by] = max(distances[fed_by], distances[layer] + 1)
    met: dict[int, None] = {}
    waiting = [len(sources) - 1]
    while waiting:
        layer = waiting.pop()
        if layer not in met:
            met[layer] = None
            waiting += reversed(sources[layer])
    return sorted(met, key=lambda layer: -distances[layer])  # sorting keeps the order of equals


def load_timm(network: nn.Sequential, tensors: Mapping[str, Tensor]) -> None:
    """Fill a network of `inception` with the weights of timm's `inception_v3`, of any number format.

    timm's BatchNorm has a gamma, which ours has not: it must be 1. What the network has no place for is not read.

    tensors  by timm's names; a whole state dict, or one that ends where the network ends
    raises   RecipeError if a tensor is missing or of another shape, or a gamma is not 1; the network is then as before
    """
    ours = {_timm_name(name): value for name, value in network.state_dict().items()}
    gammas = {name.removesuffix("bias") + "weight": value for name, value in ours.items() if name.endswith("bn.bias")}
    needed = ours | gammas
    missing = [name for name in needed if name not in tensors]
    if missing:
        what = (
            f"the weights lack {len(missing)} of the {len(needed)} tensors of this network, the first is {missing[0]}"
        )
        raise RecipeError(what, advice="the whole of timm's inception_v3, or to cut the network where the weights end")
    for name, value in needed.items():
        if tensors[name].shape != value.shape:
            shapes = f"{list(tensors[name].shape)}, in this network {list(value.shape)}"
            raise RecipeError(f"the weights are of another network: {name} is {shapes}", advice="timm's inception_v3")
    for name in gammas:
        if not bool((tensors[name] == 1).all()):
            raise RecipeError(
                f"the weights have a BatchNorm gamma, {name}, that is not 1; InceptionV3 as Keras builds it has none",
                advice="weights that were trained without gamma, as Google's were",
            )
    with torch.no_grad():
        for name, value in ours.items():
            value.copy_(tensors[name])


def _timm_name(name: str) -> str:
    """mixed9.branch3x3.2.a.bn.bias becomes Mixed_7b.branch3x3_2a.bn.bias."""
    stage, inside = name.split(".", 1)
    return f"{_STAGES[stage][0]}." + re.sub(r"\.(\d)(?:\.([ab]))?\.", r"_\1\2.", inside)
