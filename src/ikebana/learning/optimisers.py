"""How weights move: RMSprop as Keras 3 defines it, for the tutorial's recipes; AdamW on a schedule, for fine-tuning.

Both keep their state as a plain list of tensors, which is what a checkpoint holds of them. Weights are moved together, by
torch's operators for lists of tensors: on a GPU those are a few kernels, not a few for each of some hundred weights; a processor
does the same one by one.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ikebana.choices import Tuning

RHO, RMSPROP_EPSILON = 0.9, 1e-7  # Keras 3's defaults for RMSprop
BETAS, ADAM_EPSILON = (
    (0.9, 0.99),
    1e-8,
)  # the second is shorter than usual: a fine-tuning has hundreds of steps, not many thousands


each_of: Any = torch  # its operators for lists are documented, but not typed, as public


@dataclass(frozen=True)
class Group:
    """Weights that learn at one rate."""

    weights: list[nn.Parameter]
    learning_rate: float
    decays: bool = False  # whether weight decay pulls at them: not at biases, nor at what BatchNorm has


class RMSprop:
    """The tutorial's optimiser: one learning rate, no schedule."""

    def __init__(self, groups: Sequence[Group]):
        self.groups = groups
        self.state = [torch.zeros_like(weight) for group in groups for weight in group.weights]

    @torch.no_grad()
    def step(self) -> None:
        """Move every weight that has a gradient."""
        velocities = iter(self.state)
        for group in self.groups:
            rmsprop_([(weight, next(velocities)) for weight in group.weights], group.learning_rate)


@torch.no_grad()
def rmsprop_(
    trained: Sequence[tuple[nn.Parameter, Tensor]],
    learning_rate: float,
    rho: float = RHO,
    epsilon: float = RMSPROP_EPSILON,
) -> None:
    """RMSprop as Keras 3 defines it, in place: the epsilon stands inside the root, where torch's own has it outside.

    At a learning rate of 1e-5 the two differ in what they learn, since most velocities are small then.
    source  keras/src/optimizers/rmsprop.py, update_step
    """
    moved = [(weight, weight.grad, velocity) for weight, velocity in trained if weight.grad is not None]
    if not moved:
        return
    weights, gradients, velocities = zip(*moved, strict=True)
    each_of._foreach_mul_(velocities, rho)
    each_of._foreach_addcmul_(velocities, gradients, gradients, value=1 - rho)
    roots = each_of._foreach_add(velocities, epsilon)
    each_of._foreach_sqrt_(roots)
    each_of._foreach_addcdiv_(weights, gradients, roots, value=-learning_rate)


class AdamW:
    """AdamW whose learning rates rise from 0 in a straight line, then fall to 0 along half a cosine.

    source  Loshchilov and Hutter 2019, arXiv:1711.05101
    """

    def __init__(self, groups: Sequence[Group], tuning: Tuning, steps: int):
        self.groups, self.tuning, self.steps = groups, tuning, steps
        self.count = torch.zeros((), dtype=torch.int64)  # steps made; a tensor since it belongs to the state
        self.state = [self.count]
        self.state += [torch.zeros_like(weight) for group in groups for weight in group.weights for _ in range(2)]

    @torch.no_grad()
    def step(self) -> None:
        """Move every weight that has a gradient."""
        self.count += 1
        made = int(self.count)
        factor = schedule(made, self.steps, self.tuning.warm_up)
        moments = iter(self.state[1:])
        moved = []
        for group in self.groups:
            rate = group.learning_rate * factor
            stays = 1 - rate * (self.tuning.weight_decay if group.decays else 0.0)
            for weight in group.weights:
                mean, square = next(moments), next(moments)
                if weight.grad is not None:
                    moved.append((weight, weight.grad, mean, square, rate, stays))
        if moved:
            _adam_(moved, made)


def _adam_(moved: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, float, float]], made: int) -> None:
    """
    moved  weights, their gradients and moments, their rates in this step, and what weight decay leaves of them
    """
    weights, gradients, means, squares, rates, stays = zip(*moved, strict=True)
    first, second = BETAS
    each_of._foreach_mul_(weights, stays)
    each_of._foreach_lerp_(means, gradients, 1 - first)
    each_of._foreach_mul_(squares, second)
    each_of._foreach_addcmul_(squares, gradients, gradients, value=1 - second)
    spreads = each_of._foreach_div(squares, 1 - second**made)
    each_of._foreach_sqrt_(spreads)
    each_of._foreach_add_(spreads, ADAM_EPSILON)
    each_of._foreach_addcdiv_(weights, means, spreads, [-rate / (1 - first**made) for rate in rates])


def schedule(step: int, steps: int, warm_up: float) -> float:
    """The share of the full learning rate at a step, counted from 1: above 0 at each, the last one and an only one included.

    warm_up  share of the steps in which it rises
    """
    share = (step - 0.5) / max(steps, 1)
    if share < warm_up:
        return share / warm_up
    return 0.5 * (1 + math.cos(math.pi * (share - warm_up) / max(1 - warm_up, 1e-9)))


class RunningMean:
    """The running mean of a network's weights over the steps, as a network of its own."""

    def __init__(self, network: nn.Module, stays: float):
        """
        network  both start from what it is now; it must stay where it is
        stays    share of the mean that stays at each step; less in the first ones, when there is little to average
        """
        self.network, self.stays = copy.deepcopy(network), stays
        # The other weights stay what they are, and so does their mean.
        moving = {name for name, weight in network.named_parameters() if weight.requires_grad}
        moving |= {name for name, _ in network.named_buffers()}
        now = network.state_dict()
        pairs = [(mean, now[name]) for name, mean in self.network.state_dict().items() if name in moving]
        self.means = [pair for pair in pairs if pair[0].is_floating_point()]
        self.copies = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def step(self, made: int) -> None:
        """Move the mean towards the network as it is now, `made` steps after the beginning."""
        stays = min(self.stays, made / (made + 9))
        if self.means:
            each_of._foreach_lerp_(*zip(*self.means, strict=True), 1 - stays)
        if self.copies:
            each_of._foreach_copy_(*zip(*self.copies, strict=True))
