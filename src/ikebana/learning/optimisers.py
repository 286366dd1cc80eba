"""How weights move: RMSprop as Keras 3 defines it, for the tutorial's recipes; AdamW on a schedule, for fine-tuning.

Both keep their state as a plain list of tensors, which is what a checkpoint holds of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ikebana.choices import Tuning

RHO, RMSPROP_EPSILON = 0.9, 1e-7  # Keras 3's defaults for RMSprop
BETAS, ADAM_EPSILON = (
    (0.9, 0.99),
    1e-8,
)  # the second is shorter than usual: a fine-tuning has hundreds of steps, not many thousands


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
    for weight, velocity in trained:
        if weight.grad is not None:
            velocity.mul_(rho).addcmul_(weight.grad, weight.grad, value=1 - rho)
            weight.addcdiv_(weight.grad, (velocity + epsilon).sqrt_(), value=-learning_rate)


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
        for group in self.groups:
            rate = group.learning_rate * factor
            decay = self.tuning.weight_decay if group.decays else 0.0
            for weight in group.weights:
                mean, square = next(moments), next(moments)
                if weight.grad is not None:
                    weight.mul_(1 - rate * decay)
                    _adam_(weight, weight.grad, mean, square, rate, made)


def _adam_(weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, rate: float, made: int) -> None:
    first, second = BETAS
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    spread = (square / (1 - second**made)).sqrt_().add_(ADAM_EPSILON)
    weight.addcdiv_(mean, spread, value=-rate / (1 - first**made))


def schedule(step: int, steps: int, warm_up: float) -> float:
    """The share of the full learning rate at a step, counted from 1: above 0 at each, the last one and an only one included.

    warm_up  share of the steps in which it rises
    """
    share = (step - 0.5) / max(steps, 1)
    if share < warm_up:
        return share / warm_up
    return 0.5 * (1 + math.cos(math.pi * (share - warm_up) / max(1 - warm_up, 1e-9)))


@torch.no_grad()
def average_(averaged: nn.Module, network: nn.Module, stays: float, made: int) -> None:
    """Move a running mean of the weights towards the network's.

    stays  share of the mean that stays at each step; less in the first ones, when there is little to average
    made   steps made so far
    """
    stays = min(stays, made / (made + 9))
    for mean, now in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, 1 - stays)
        else:
            mean.copy_(now)
