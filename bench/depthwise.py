"""Compare fine-tuning steps with torch's depthwise convolutions and with ikebana's.

python bench/depthwise.py [--network tf_efficientnet_lite0] [--image-size 224] [--batch-size 32] [--rounds 5]
"""

import argparse
import time

import timm
import torch
from machine import format_header, format_spread
from torch import nn
from torch.nn import functional

from ikebana.learning import device
from ikebana.learning.fast import depthwise
from ikebana.learning.models import parameter_groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="tf_efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device.configure()
    print(format_header("torch", "timm"), flush=True)
    networks = {name: timm.create_model(options.network, num_classes=5).eval() for name in ("torch", "ours")}
    depthwise.replace_depthwise(networks["ours"])
    for network in networks.values():
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    photos = torch.rand(options.batch_size, 3, options.image_size, options.image_size).contiguous(
        memory_format=torch.channels_last
    )
    labels = torch.arange(options.batch_size) % 5
    stages = parameter_groups.list_stages(networks["torch"])
    for first in range(len(stages) - 2):
        speeds: dict[str, list[float]] = {name: [] for name in networks}
        for network in networks.values():
            for number, (_, weights) in enumerate(parameter_groups.list_stages(network)):
                for weight in weights:
                    weight.requires_grad_(number >= first)
            step(network, photos, labels)
        for _ in range(options.rounds):
            for name, network in networks.items():
                start = time.perf_counter()
                step(network, photos, labels)
                speeds[name].append(options.batch_size / (time.perf_counter() - start))
        ratios = [ours / theirs for ours, theirs in zip(speeds["ours"], speeds["torch"], strict=True)]
        print(
            f"  from {stages[first][0]:<12} torch {format_spread(speeds['torch'], 1)} photos/s, "
            f"ours {format_spread(speeds['ours'], 1)}, speed-up {format_spread(ratios, 2)}",
            flush=True,
        )


def step(network: nn.Module, photos: torch.Tensor, labels: torch.Tensor) -> None:
    """Run one forward and backward pass without updating the weights."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(photos)
    functional.cross_entropy(logits.float(), labels).backward()
    network.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
