"""Fast equivalents of torch's own layers and steps, and the only way to them.

Other packages call the functions of this module and import nothing else of this package. Each
returns its argument unchanged where nothing is faster, where the fast path gives another result, or
where `IKEBANA_FAST=off` disables it. The plain network of torch then runs. Fast paths are imported
only when they are used.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ikebana.learning.fast.switch import VARIABLE, is_enabled

if TYPE_CHECKING:
    from ikebana.learning.device import DeviceSettings
    from ikebana.learning.examples import Examples

__all__ = [
    "VARIABLE",
    "build_training_forward",
    "can_pool",
    "fold_batchnorm",
    "fuse_layers",
    "is_enabled",
    "max_pool_relu",
    "optimise_for_inference",
    "replace_depthwise",
]


def fold_batchnorm(network: nn.Module, photos: "Examples") -> nn.Module:
    """Fold BatchNorm into convolutions, in a copy that can be exported."""
    if not is_enabled():
        return network
    from ikebana.learning.fast import fused_inference

    return fused_inference.fold_batchnorm(network, photos)


def fuse_layers(network: nn.Module, photos: "Examples") -> nn.Module:
    """Copy a network for inference, with layers fused; the copy cannot be exported."""
    if not is_enabled():
        return network
    from ikebana.learning.fast import fused_inference

    return fused_inference.fuse_layers(network, photos)


def optimise_for_inference(network: nn.Module, examples: "Examples") -> nn.Module:
    """Return the fastest equivalent for inference; a head without convolutions stays as it is."""
    if not is_enabled():
        return network
    from ikebana.learning.fast import fused_inference

    return fused_inference.optimise_for_inference(network, examples)


def build_training_forward(
    network: nn.Module, inputs: Tensor, batch_size: int, settings: "DeviceSettings"
) -> Callable[[Tensor], Tensor]:
    """Return the fastest equivalent for training, valid while the same weights are trainable.

    Args:
        network: on its device, in training mode, with `requires_grad` set.
        inputs: the first batch.
        batch_size: photos in most batches.
    """
    if not is_enabled():
        return network
    if settings.device == "cuda":
        from ikebana.learning.fast.cuda_graphs import GraphedNetwork

        return GraphedNetwork(network, batch_size, settings)
    from ikebana.learning.fast import fused_training

    return fused_training.optimise_for_training(network, inputs, settings)


def replace_depthwise(network: nn.Module) -> nn.Module:
    """Replace, in place, depthwise convolutions whose backward pass is slow."""
    if not is_enabled():
        return network
    from ikebana.learning.fast import depthwise

    return depthwise.replace_depthwise(network)


def can_pool(features: Tensor) -> bool:
    """Return whether `max_pool_relu` takes these features: channels-last bfloat16 on a CPU."""
    is_cpu_bfloat16 = features.device.type == "cpu" and features.dtype == torch.bfloat16
    return is_cpu_bfloat16 and features.is_contiguous(memory_format=torch.channels_last) and is_enabled()


def max_pool_relu(features: Tensor) -> Tensor:
    """Pool features that `can_pool` takes by 2 x 2, with ReLU."""
    from ikebana.learning.fast import pooling

    return pooling.max_pool_relu(features)
