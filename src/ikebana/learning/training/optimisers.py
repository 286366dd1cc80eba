"""RMSprop as in Keras 3, for the tutorial; torch's AdamW with a schedule, for fine-tuning.

Both optimisers give their state as named tensors, which a safetensors checkpoint stores.
"""

from collections.abc import Mapping, Sequence
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
# Of torch's AdamW, for each weight: the number of its updates, then both moments.
STATE_NAMES = ("step", "exp_avg", "exp_avg_sq")
# Devices with a fused kernel of AdamW, on which it was tested.
FUSED_DEVICES = ("cpu", "cuda")

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
    """The tutorial's optimiser: one learning rate, no schedule.

    torch's `_foreach_` operators update the weights: a few GPU kernels in all, not a few per weight.
    """

    def __init__(self, groups: Sequence[ParameterGroup]):
        self.groups = groups
        self.state = [torch.zeros_like(weight) for group in groups for weight in group.weights]

    @torch.no_grad()
    def step(self) -> None:
        """Update every weight that has a gradient."""
        velocities = iter(self.state)
        for group in self.groups:
            update_rmsprop_([(weight, next(velocities)) for weight in group.weights], group.learning_rate)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the state under its names in the checkpoint."""
        return {f"{number:05}": velocity for number, velocity in enumerate(self.state)}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Resume from the result of `to_tensors`; KeyError or RuntimeError if it does not fit."""
        if len(tensors) != len(self.state):
            raise KeyError("the optimiser state belongs to another network")
        for name, velocity in self.to_tensors().items():
            velocity.copy_(tensors[name])


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
    """torch's AdamW with linear warm-up of the learning rates, then cosine decay to 0.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """

    def __init__(self, groups: Sequence[ParameterGroup], adamw: recipe.AdamW, total_steps: int):
        self.options, self.total_steps = adamw, total_steps
        # Completed steps.
        self.step_count = 0
        self.weights = [weight for group in groups for weight in group.weights]
        self.torch_optimiser = torch.optim.AdamW(
            [
                {
                    "params": group.weights,
                    "lr": group.learning_rate,
                    "peak_learning_rate": group.learning_rate,
                    "weight_decay": adamw.weight_decay if group.has_weight_decay else 0.0,
                }
                for group in groups
            ],
            betas=ADAM_BETAS,
            eps=ADAM_EPSILON,
            # One pass over each weight instead of nine; elsewhere torch chooses.
            fused=True if self.weights[0].device.type in FUSED_DEVICES else None,
        )

    def step(self) -> None:
        """Update every weight that has a gradient."""
        self.step_count += 1
        factor = compute_learning_rate_factor(self.step_count, self.total_steps, self.options.warmup_fraction)
        for group in self.torch_optimiser.param_groups:
            group["lr"] = factor * group["peak_learning_rate"]
        self.torch_optimiser.step()

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the state under its names in the checkpoint."""
        state = self.torch_optimiser.state_dict()["state"]
        named = {f"{number:05}.{name}": state[number][name] for number in state for name in STATE_NAMES}
        return {"step_count": torch.tensor(self.step_count), **named}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Resume from the result of `to_tensors`; KeyError or RuntimeError if it does not fit."""
        names = {f"{number:05}.{name}" for number in range(len(self.weights)) for name in STATE_NAMES}
        if not tensors.keys() <= {"step_count", *names}:
            raise KeyError("the optimiser state belongs to another network")
        state: dict[int, dict[str, Tensor]] = {}
        for number, weight in enumerate(self.weights):
            # A weight that never had a gradient has no state.
            if f"{number:05}.step" in tensors:
                step, *moments = (tensors[f"{number:05}.{name}"] for name in STATE_NAMES)
                # The fused kernel reads memory in order, so the moments need the layout of the weight.
                values = [step, *(torch.empty_like(weight).copy_(_require_shape(value, weight)) for value in moments)]
                state[number] = dict(zip(STATE_NAMES, values, strict=True))
        self.torch_optimiser.load_state_dict({**self.torch_optimiser.state_dict(), "state": state})
        self.step_count = int(tensors["step_count"])


def _require_shape(value: Tensor, weight: Tensor) -> Tensor:
    """Return the value; RuntimeError if the weight has another shape, since `copy_` would broadcast."""
    if value.shape != weight.shape:
        raise RuntimeError("the optimiser state belongs to another network")
    return value
