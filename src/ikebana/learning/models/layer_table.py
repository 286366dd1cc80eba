"""A network's layers, with their output shapes and parameter counts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LayerSummary:
    """A row of the layer table; `output_shape` has no batch dimension."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    trainable_parameters: int


def summarise_layers(network: nn.Module, image_size: int) -> list[LayerSummary]:
    """List the layers in forward order, with output shapes and parameter counts.

    Parameters are counted as Keras does: moving means and variances count, but are not trainable.
    """
    # By name: with flip_tta an image passes a layer twice.
    table: dict[str, LayerSummary] = {}

    def record(name: str, layer: nn.Module, output: Any) -> None:
        # Recurrent and some attention layers return several values.
        outputs = output if isinstance(output, tuple | list) else (output,)
        shape = next((tuple(value.shape[1:]) for value in outputs if isinstance(value, Tensor)), ())
        state = [value for key, value in layer.state_dict().items() if "." not in key and value.is_floating_point()]
        parameters = sum(value.numel() for value in state)
        trainable = sum(weight.numel() for weight in layer.parameters(recurse=False) if weight.requires_grad)
        table[name] = LayerSummary(name, type(layer).__name__, shape, parameters, trainable)

    hooks = [
        layer.register_forward_hook(lambda layer, _, output, name=name: record(name, layer, output))
        for name, layer in network.named_modules()
        # timm's norm layers have weights and an activation as child.
        if not list(layer.children()) or list(layer.parameters(recurse=False))
    ]
    device = next(network.parameters()).device
    training = network.training
    with torch.inference_mode():
        network.eval()(torch.zeros((1, 3, image_size, image_size), dtype=torch.uint8, device=device))
    network.train(training)
    for hook in hooks:
        hook.remove()
    return list(table.values())


def format_layer_table(table: list[LayerSummary], batch_size: int | None, image_size: int) -> str:
    """Format the layers as text, followed by totals and the shapes of one batch.

    Args:
        batch_size: None if the network is not trained in batches.
    """
    width = max(len(layer.name) for layer in table) + 2
    lines = [f"{'layer':<{width}}{'kind':<18}{'output shape':<20}{'parameters':>12}"]
    for layer in table:
        shape = " x ".join(str(size) for size in layer.output_shape)
        lines.append(f"{layer.name:<{width}}{layer.kind:<18}{shape:<20}{layer.parameters:>12,}")
    parameters = sum(layer.parameters for layer in table)
    trainable = sum(layer.trainable_parameters for layer in table)
    lines += [
        "",
        f"parameters       {parameters:,}",
        f"trainable        {trainable:,}",
        f"not trainable    {parameters - trainable:,}",
    ]
    if batch_size is not None:
        lines += [
            f"batch of photos  ({batch_size}, {image_size}, {image_size}, 3) uint8",
            f"batch of labels  ({batch_size},) int64",
        ]
    return "\n".join(lines) + "\n"


def skip_frozen_layers(table: Sequence[LayerSummary]) -> Sequence[LayerSummary]:
    """Return the layers from the first trainable one on: the backward pass needs their outputs."""
    first = next((index for index, layer in enumerate(table) if layer.trainable_parameters), 0)
    return table[first:]


def estimate_activation_bytes(table: Sequence[LayerSummary], batch_size: int, bytes_per_value: int) -> int:
    """Estimate how many bytes one training step holds for the backward pass."""
    return batch_size * bytes_per_value * sum(math.prod(layer.output_shape) for layer in table)
