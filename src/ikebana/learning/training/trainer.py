"""Training phases, and the trainer that makes the steps of one phase."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ikebana.learning import fast
from ikebana.learning.device import DeviceSettings
from ikebana.learning.models import parameter_groups
from ikebana.learning.models.networks import count_classes
from ikebana.learning.training import optimisers
from ikebana.learning.training.checkpoint import TrainingState
from ikebana.learning.training.class_priors import compute_log_priors
from ikebana.learning.training.ema import make_ema
from ikebana.recipe import FineTune, Recipe, Trainable


@dataclass(frozen=True)
class Phase:
    """Consecutive epochs in which the same weights train at the same learning rate."""

    # Counted from 1.
    first_epoch: int
    last_epoch: int
    trainable: Trainable
    learning_rate: float


def plan_phases(recipe: Recipe) -> list[Phase]:
    """Plan the head-only phase, if any, then the phase of all trainable weights."""
    method, phases = recipe.gradient_method, []
    head_epochs = method.head_epochs if isinstance(method, FineTune) else 0
    if isinstance(method, FineTune) and head_epochs:
        phases.append(Phase(1, head_epochs, "head", method.head_learning_rate))
    return [*phases, Phase(head_epochs + 1, head_epochs + method.epochs, recipe.trainable, method.learning_rate)]


class Trainer:
    """A network, its optimiser and, in a recipe with `adamw`, the EMA of its weights."""

    def __init__(self, network: nn.Module, recipe: Recipe, phase: Phase, labels: np.ndarray):
        """Build the optimiser of a phase.

        Args:
            labels: int64 [photos], class indices of the photos of one epoch.
        """
        self.network, self.recipe, self.phase = network, recipe, phase
        self.batch_size = recipe.gradient_method.batch_size
        # Built with the first batch, once the network is in training mode.
        self._forward: Callable[[Tensor], Tensor] | None = None
        groups = parameter_groups.make_parameter_groups(network, recipe, phase.trainable, phase.learning_rate)
        self.optimiser: optimisers.RMSprop | optimisers.AdamW
        if recipe.adamw is None:
            self.optimiser, self.ema = optimisers.RMSprop(groups), None
        else:
            steps = (phase.last_epoch - phase.first_epoch + 1) * -(-len(labels) // self.batch_size)
            self.optimiser = optimisers.AdamW(groups, recipe.adamw, steps)
            self.ema = make_ema(network, recipe.adamw.ema_decay)
            # Adding the class priors to the logits of the loss keeps the network from learning
            # them: it then predicts a rare class as readily as a frequent one.
            log_priors = compute_log_priors(labels, count_classes(network))
            self.log_priors = torch.from_numpy(log_priors).to(next(network.parameters()))
            # Label smoothing would give a class without training photos some probability.
            self.present_classes = torch.from_numpy(np.unique(labels)).to(self.log_priors.device)

    @property
    def evaluated_network(self) -> nn.Module:
        """The network to evaluate and export: the EMA, where there is one."""
        return self.network if self.ema is None else self.ema.module

    def step(self, inputs: Tensor, labels: Tensor, settings: DeviceSettings) -> tuple[Tensor, Tensor]:
        """Make one training step on one batch.

        Returns:
            The batch's mean loss and its logits, both from before the update.
        """
        if self._forward is None:
            self._forward = fast.build_training_forward(self.network, inputs, self.batch_size, settings)
        with settings.autocast():
            logits = self._forward(inputs)
        # The loss is never computed in half precision.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = self._compute_loss(logits, labels)
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        if isinstance(self.optimiser, optimisers.AdamW) and self.ema is not None:
            self.ema.update(self.network, step=self.optimiser.step_count + 1)
        return loss.detach(), logits.detach()

    def _compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        adamw = self.recipe.adamw
        if adamw is None:
            return functional.cross_entropy(logits, labels)
        adjusted = (logits + self.log_priors)[:, self.present_classes]
        labels = torch.searchsorted(self.present_classes, labels)
        return functional.cross_entropy(adjusted, labels, label_smoothing=adamw.label_smoothing)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the state of network, optimiser and EMA under their names in the checkpoint."""
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        state |= {f"optimiser.{name}": value for name, value in self.optimiser.to_tensors().items()}
        if self.ema is not None:
            state |= {f"ema.{name}": value for name, value in self.ema.module.state_dict().items()}
        return state

    def restore(self, state: TrainingState) -> None:
        """Resume from the result of `to_tensors`.

        Raises:
            KeyError, RuntimeError: the state is of another network.
        """
        self.network.load_state_dict(state.get_tensors("network."))
        self.optimiser.restore(state.get_tensors("optimiser."))
        if self.ema is not None:
            self.ema.module.load_state_dict(state.get_tensors("ema."))
