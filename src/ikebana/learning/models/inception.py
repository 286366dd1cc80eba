"""InceptionV3 without its top, as in Keras: a stem, then blocks mixed0 to mixed10.

With the same weights it computes what `keras.applications.InceptionV3(include_top=False)` computes:
convolutions without bias, BatchNorm without gamma, average pools that exclude the padding.
`list_keras_layers` gives Keras' order of layers, in which recipes count ("the last 50 of 311").

Source: Szegedy et al. 2015, arXiv:1512.00567; keras/src/applications/inception_v3.py
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
from ikebana.learning.whole_batch import count_photos

# Keras' default, added to every variance; torch's is 1e-5.
BATCH_NORM_EPSILON = 1e-3


class BatchNorm(nn.Module):
    """Keras' BatchNormalization with scale=False: moving statistics, a beta (`bias`), no gamma.

    torch's layer has no beta without a gamma. It also moves the variance towards the unbiased one,
    n / (n - 1) times the batch's; Keras moves it towards the batch's variance.

    Args:
        momentum: the batch's share in the moving statistics (torch's convention, 1 - Keras').
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.eps = BATCH_NORM_EPSILON
        # No gamma, registered as in torch: fuse_conv_bn_eval looks for it.
        self.register_parameter("weight", None)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features [images, channels, height, width]; statistics stay float32."""
        # GPU kernels give beta a gradient only beside a gamma; CPUs need none and save a product.
        gamma = None if self.bias.device.type == "cpu" else torch.ones_like(self.bias)
        if not self.training:
            mean, variance = self.running_mean, self.running_var
            return functional.batch_norm(features, mean, variance, gamma, self.bias, eps=self.eps)
        # With momentum 1 these become the batch's statistics. Autograd keeps them until the
        # backward pass, so they must not be the moving ones, which change before it.
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        normalised = functional.batch_norm(
            features, mean, variance, gamma, self.bias, training=True, momentum=1.0, eps=self.eps
        )
        count = count_photos(features) * features[0, 0].numel()
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (1 - 1 / count), self.momentum)
        return normalised


class Block(nn.ModuleDict):
    """Parallel branches whose outputs are concatenated along the channels."""

    def forward(self, features: Tensor) -> Tensor:
        """Apply every branch to features [images, channels, height, width]."""
        return torch.cat([branch(features) for branch in self.values()], 1)


class _Conv(NamedTuple):
    """A convolution, BatchNorm and ReLU, after an optional 3 x 3 average pool."""

    filters: int
    rows: int = 1
    columns: int = 1
    stride: int = 1
    # Keras' padding: True is "same", False is "valid".
    same_padding: bool = True
    average_first: bool = False


# Of 3 x 3, with stride 2 and without padding.
_MAX_POOL = "max pool"
# A list is layers in sequence, a dict is parallel branches.
_Plan: TypeAlias = "_Conv | str | list[_Plan] | dict[str, _Plan]"


def _plan_inception_a(pool_filters: int) -> _Plan:
    return {
        "branch1x1": _Conv(64),
        "branch5x5": [_Conv(48), _Conv(64, 5, 5)],
        "branch3x3dbl": [_Conv(64), _Conv(96, 3, 3), _Conv(96, 3, 3)],
        "branch_pool": _Conv(pool_filters, average_first=True),
    }


def _plan_inception_c(filters: int) -> _Plan:
    """Factorise 7 x 7 convolutions into a row and a column.

    That is 14 multiplications instead of 49.
    """
    row, column = _Conv(filters, 1, 7), _Conv(filters, 7, 1)
    return {
        "branch1x1": _Conv(192),
        "branch7x7": [_Conv(filters), row, _Conv(192, 7, 1)],
        "branch7x7dbl": [_Conv(filters), column, row, column, _Conv(192, 1, 7)],
        "branch_pool": _Conv(192, average_first=True),
    }


def _plan_inception_e() -> _Plan:
    split: _Plan = {"a": _Conv(384, 1, 3), "b": _Conv(384, 3, 1)}
    return {
        "branch1x1": _Conv(320),
        "branch3x3": [_Conv(384), split],
        "branch3x3dbl": [_Conv(448), _Conv(384, 3, 3), split],
        "branch_pool": _Conv(192, average_first=True),
    }


# Stage name: timm's name of the stage and its plan, in forward order.
_STAGES: dict[str, tuple[str, _Plan]] = {
    "stem_1": ("Conv2d_1a_3x3", _Conv(32, 3, 3, stride=2, same_padding=False)),
    "stem_2": ("Conv2d_2a_3x3", _Conv(32, 3, 3, same_padding=False)),
    "stem_3": ("Conv2d_2b_3x3", _Conv(64, 3, 3)),
    "stem_4": ("Pool1", _MAX_POOL),
    "stem_5": ("Conv2d_3b_1x1", _Conv(80)),
    "stem_6": ("Conv2d_4a_3x3", _Conv(192, 3, 3, same_padding=False)),
    "stem_7": ("Pool2", _MAX_POOL),
    "mixed0": ("Mixed_5b", _plan_inception_a(pool_filters=32)),
    "mixed1": ("Mixed_5c", _plan_inception_a(pool_filters=64)),
    "mixed2": ("Mixed_5d", _plan_inception_a(pool_filters=64)),
    "mixed3": (
        "Mixed_6a",
        {
            "branch3x3": _Conv(384, 3, 3, stride=2, same_padding=False),
            "branch3x3dbl": [_Conv(64), _Conv(96, 3, 3), _Conv(96, 3, 3, stride=2, same_padding=False)],
            "branch_pool": _MAX_POOL,
        },
    ),
    "mixed4": ("Mixed_6b", _plan_inception_c(128)),
    "mixed5": ("Mixed_6c", _plan_inception_c(160)),
    "mixed6": ("Mixed_6d", _plan_inception_c(160)),
    "mixed7": ("Mixed_6e", _plan_inception_c(192)),
    "mixed8": (
        "Mixed_7a",
        {
            "branch3x3": [_Conv(192), _Conv(320, 3, 3, stride=2, same_padding=False)],
            "branch7x7x3": [
                _Conv(192),
                _Conv(192, 1, 7),
                _Conv(192, 7, 1),
                _Conv(192, 3, 3, stride=2, same_padding=False),
            ],
            "branch_pool": _MAX_POOL,
        },
    ),
    "mixed9": ("Mixed_7b", _plan_inception_e()),
    "mixed10": ("Mixed_7c", _plan_inception_e()),
}


def get_truncation_points() -> tuple[str, ...]:
    """Return the blocks after which the network may be truncated.

    The last one gives the complete network.
    """
    return tuple(stage for stage in _STAGES if stage.startswith("mixed"))


def build_inception(truncate_at: str = "mixed10", momentum: float = 0.1) -> nn.Sequential:
    """Build InceptionV3 up to the block `truncate_at`, with torch's default initial weights.

    The input is float [images, 3, image_size, image_size], scaled as for the pretrained weights, of
    at least 75 pixels (Keras' limit). At 150 pixels the output of mixed10 is [images, 2048, 3, 3],
    that of mixed8 [images, 1280, 3, 3]. Children are named by stage.

    Args:
        truncate_at: one of `get_truncation_points()`.
        momentum: of every BatchNorm, in torch's convention: 0.1 is Keras' 0.9.
    Raises:
        RecipeError: the network cannot be truncated there.
    """
    if truncate_at not in get_truncation_points():
        raise RecipeError(
            f"InceptionV3 cannot be truncated after {truncate_at!r}",
            advice="one of " + ", ".join(get_truncation_points()),
        )
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for stage, (_, plan) in _STAGES.items():
        stages[stage], channels = _build_plan(plan, channels, momentum)
        if stage == truncate_at:
            break
    return nn.Sequential(stages).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _build_plan(plan: _Plan, channels: int, momentum: float) -> tuple[nn.Module, int]:
    """Build a plan's layers for `channels` inputs; also return the number of output channels."""
    if isinstance(plan, str):
        return nn.MaxPool2d(3, stride=2), channels
    if isinstance(plan, _Conv):
        return _build_convolution(plan, channels, momentum), plan.filters
    if isinstance(plan, dict):
        branches = {name: _build_plan(branch, channels, momentum) for name, branch in plan.items()}
        return Block({name: layers for name, (layers, _) in branches.items()}), sum(
            width for _, width in branches.values()
        )
    chain: OrderedDict[str, nn.Module] = OrderedDict()
    for number, step in enumerate(plan, 1):
        chain[str(number)], channels = _build_plan(step, channels, momentum)
    return nn.Sequential(chain), channels


def _build_convolution(conv: _Conv, channels: int, momentum: float) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if conv.average_first:
        layers["pool"] = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    padding = (conv.rows // 2, conv.columns // 2) if conv.same_padding else 0
    layers["conv"] = nn.Conv2d(channels, conv.filters, (conv.rows, conv.columns), conv.stride, padding, bias=False)
    layers["bn"] = BatchNorm(conv.filters, momentum)
    # The backward pass of BatchNorm needs its input, not its output.
    layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


@dataclass(frozen=True)
class KerasLayer:
    """One entry of Keras' `model.layers`.

    `module_name` is the submodule here that has its weights.
    """

    class_name: str
    # None if the layer has no weights.
    module_name: str | None


_KERAS_CLASSES: dict[type[nn.Module], str] = {
    nn.Conv2d: "Conv2D",
    BatchNorm: "BatchNormalization",
    nn.ReLU: "Activation",
    nn.MaxPool2d: "MaxPooling2D",
    nn.AvgPool2d: "AveragePooling2D",
}
# Each layer with the list indices of its inputs.
_Graph: TypeAlias = list[tuple[KerasLayer, list[int]]]


def list_keras_layers(truncate_at: str = "mixed10") -> list[KerasLayer]:
    """List Keras' layers in Keras' order: 311 of the whole network, 249 up to mixed8.

    Raises:
        RecipeError: the network cannot be truncated there.
    """
    # On the meta device weights take no memory.
    with torch.device("meta"):
        network = build_inception(truncate_at)
    graph: _Graph = [(KerasLayer("InputLayer", None), [])]
    _add_layers(network, "", 0, graph)
    return [graph[index][0] for index in _sort_like_keras([inputs for _, inputs in graph])]


def _add_layers(module: nn.Module, name: str, input_index: int, graph: _Graph) -> int:
    """Add a module's layers to the graph; return the index of the last one.

    Args:
        input_index: of the layer that feeds the module.
    """
    children = {f"{name}.{key}".lstrip("."): child for key, child in module.named_children()}
    if isinstance(module, nn.Sequential):
        for key, child in children.items():
            input_index = _add_layers(child, key, input_index, graph)
        return input_index
    if isinstance(module, Block):
        outputs = [_add_layers(child, key, input_index, graph) for key, child in children.items()]
        graph.append((KerasLayer("Concatenate", None), outputs))
    else:
        has_weights = any(True for _ in module.parameters())
        graph.append((KerasLayer(_KERAS_CLASSES[type(module)], name if has_weights else None), [input_index]))
    return len(graph) - 1


def _sort_like_keras(inputs: list[list[int]]) -> list[int]:
    """Sort layers by decreasing distance from the output.

    Ties keep the order of a depth-first search from the output.

    Args:
        inputs: per layer the indices of its inputs, all below its own; the last is the output.
    Source: map_graph in keras/src/ops/function.py
    """
    # Lengths of the longest path to the output.
    distances = [0] * len(inputs)
    for layer in reversed(range(len(inputs))):
        for input_index in inputs[layer]:
            distances[input_index] = max(distances[input_index], distances[layer] + 1)
    visited: dict[int, None] = {}
    stack = [len(inputs) - 1]
    while stack:
        layer = stack.pop()
        if layer not in visited:
            visited[layer] = None
            stack += reversed(inputs[layer])
    # The sort is stable: ties keep their order.
    return sorted(visited, key=lambda layer: -distances[layer])


def load_timm_weights(network: nn.Sequential, tensors: Mapping[str, Tensor]) -> None:
    """Load the weights of timm's `inception_v3`, in any precision, into a network built here.

    timm's BatchNorm has a gamma; the one here has none, so it must be 1. Further tensors are ignored.

    Args:
        tensors: by timm's names; the whole state dict, or one truncated like the network.
    Raises:
        RecipeError: a tensor is missing or has another shape, or a gamma is not 1. The network is
            then unchanged.
    """
    state = {_get_timm_name(name): value for name, value in network.state_dict().items()}
    gammas = {name.removesuffix("bias") + "weight": value for name, value in state.items() if name.endswith("bn.bias")}
    needed = state | gammas
    missing = [name for name in needed if name not in tensors]
    if missing:
        message = f"the weights lack {len(missing)} of the {len(needed)} tensors of this network, such as {missing[0]}"
        raise RecipeError(message, advice="the complete weights of timm's inception_v3, or a lower --truncate-at")
    for name, value in needed.items():
        if tensors[name].shape != value.shape:
            shapes = f"{list(tensors[name].shape)}, in this network {list(value.shape)}"
            raise RecipeError(
                f"the weights belong to another network: {name} is {shapes}",
                advice="the weights of timm's inception_v3",
            )
    for name in gammas:
        if not bool((tensors[name] == 1).all()):
            raise RecipeError(
                f"the BatchNorm gamma {name} is not 1, but Keras' InceptionV3 has no gamma",
                advice="weights trained without gamma, such as Google's",
            )
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(tensors[name])


def _get_timm_name(name: str) -> str:
    """Translate for example mixed9.branch3x3.2.a.bn.bias to Mixed_7b.branch3x3_2a.bn.bias."""
    stage, name_in_stage = name.split(".", 1)
    return f"{_STAGES[stage][0]}." + re.sub(r"\.(\d)(?:\.([ab]))?\.", r"_\1\2.", name_in_stage)
