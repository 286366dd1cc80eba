"""An exponential moving average of the weights."""

import copy

import torch
from torch import nn

from ikebana.learning.training.optimisers import untyped_torch


class ExponentialMovingAverage:
    """The exponential moving average (EMA) of a network's weights, as a network of its own."""

    def __init__(self, network: nn.Module, decay: float):
        """Start from the network's current weights.

        Args:
            network: must stay on its device, and its tensors must stay the same objects.
            decay: fraction of the average kept at each step; less in the first steps.
        """
        self.network, self.decay = copy.deepcopy(network), decay
        # Frozen weights are constant, and so is their average.
        changing = {name for name, weight in network.named_parameters() if weight.requires_grad}
        changing |= {name for name, _ in network.named_buffers()}
        source = network.state_dict()
        pairs = [(average, source[name]) for name, average in self.network.state_dict().items() if name in changing]
        self.averaged_pairs = [pair for pair in pairs if pair[0].is_floating_point()]
        self.copied_pairs = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step_count: int) -> None:
        """Move the average towards the network's weights after `step_count` steps in all."""
        decay = min(self.decay, step_count / (step_count + 9))
        if self.averaged_pairs:
            untyped_torch._foreach_lerp_(*zip(*self.averaged_pairs, strict=True), 1 - decay)
        if self.copied_pairs:
            untyped_torch._foreach_copy_(*zip(*self.copied_pairs, strict=True))
