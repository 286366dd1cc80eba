"""RMSprop as in Keras 3, for the tutorial; AdamW, schedule and EMA, for fine-tuning.

Both optimisers keep their state as a plain list of tensors, which a checkpoint stores. Weights are
updated by torch's `_foreach_` operators: a few GPU kernels in all, instead of a few per weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ikebana import recipe
from ikebana.learning.training.schedule import compute_learning_rate_factor

# Keras 3's defaults for RMSprop.
RMSPROP_RHO, RMSPROP_EPSILON = 0.9, 1e-7
# The second beta is below the usual 0.999: fine-tuning has hundreds of steps, not many thousands.
ADAM_BETAS = (0.9, 0.99)
ADAM_EPSILON = 1e-8

# The `_foreach_` operators are documented as public but have no type stubs.
untyped_torch: Any = torch


@dataclass(frozen=True)
class ParameterGroup:
    """Weights with one learning rate."""

    weights: list[nn.Parameter]
    learning_rate: float
    # Not for biases and BatchNorm.
    has_weight_decay: bool = False


class RMSprop:
    """The tutorial's optimiser: one learning rate, no schedule."""

    def __init__(self, groups: Sequence[ParameterGroup]):
        self.groups = groups
        self.state = [torch.zeros_like(weight) for group in groups for weight in group.weights]

    @torch.no_grad()
    def step(self) -> None:
        """Update every weight that has a gradient."""
        velocities = iter(self.state)
        for group in self.groups:
            update_rmsprop_([(weight, next(velocities)) for weight in group.weights], group.learning_rate)


@torch.no_grad()
def update_rmsprop_(
    weights_and_velocities: Sequence[tuple[nn.Parameter, Tensor]],
    learning_rate: float,
    rho: float = RMSPROP_RHO,
    epsilon: float = RMSPROP_EPSILON,
) -> None:
    """Apply RMSprop as Keras 3 defines it, in place: epsilon is inside the square root.

    torch adds it outside. At a learning rate of 1e-5 the results differ, since most velocities are
    small then.

    Source: keras/src/optimizers/rmsprop.py, update_step.
    """
    updates = [
        (weight, weight.grad, velocity) for weight, velocity in weights_and_velocities if weight.grad is not None
    ]
    if not updates:
        return
    weights, gradients, velocities = zip(*updates, strict=True)
    untyped_torch._foreach_mul_(velocities, rho)
    untyped_torch._foreach_addcmul_(velocities, gradients, gradients, value=1 - rho)
    roots = untyped_torch._foreach_add(velocities, epsilon)
    untyped_torch._foreach_sqrt_(roots)
    untyped_torch._foreach_addcdiv_(weights, gradients, roots, value=-learning_rate)


class AdamW:
    """AdamW with linear warm-up of the learning rates, then cosine decay to 0.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """

    def __init__(self, groups: Sequence[ParameterGroup], adamw: recipe.AdamW, total_steps: int):
        self.groups, self.options, self.total_steps = groups, adamw, total_steps
        # Completed steps; a tensor since it belongs to the state.
        self.step_count = torch.zeros((), dtype=torch.int64)
        self.state = [self.step_count]
        self.state += [torch.zeros_like(weight) for group in groups for weight in group.weights for _ in range(2)]

    @torch.no_grad()
    def step(self) -> None:
        """Update every weight that has a gradient."""
        self.step_count += 1
        step = int(self.step_count)
        factor = compute_learning_rate_factor(step, self.total_steps, self.options.warmup_fraction)
        moments = iter(self.state[1:])
        updates = []
        for group in self.groups:
            learning_rate = group.learning_rate * factor
            decay_factor = 1 - learning_rate * (self.options.weight_decay if group.has_weight_decay else 0.0)
            for weight in group.weights:
                mean, square = next(moments), next(moments)
                if weight.grad is not None:
                    updates.append((weight, weight.grad, mean, square, learning_rate, decay_factor))
        if updates:
            _update_adamw_(updates, step)


def _update_adamw_(updates: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, float, float]], step: int) -> None:
    """Apply one step in place.

    Args:
        updates: weight, gradient, first and second moment, learning rate, weight decay factor.
        step: from 1.
    """
    weights, gradients, means, squares, learning_rates, decay_factors = zip(*updates, strict=True)
    beta1, beta2 = ADAM_BETAS
    untyped_torch._foreach_mul_(weights, decay_factors)
    untyped_torch._foreach_lerp_(means, gradients, 1 - beta1)
    untyped_torch._foreach_mul_(squares, beta2)
    untyped_torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
    denominators = untyped_torch._foreach_div(squares, 1 - beta2**step)
    untyped_torch._foreach_sqrt_(denominators)
    untyped_torch._foreach_add_(denominators, ADAM_EPSILON)
    factors = [-learning_rate / (1 - beta1**step) for learning_rate in learning_rates]
    untyped_torch._foreach_addcdiv_(weights, means, denominators, factors)
