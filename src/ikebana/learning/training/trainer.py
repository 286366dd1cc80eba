"""Training phases, and the trainer that makes the steps of one phase."""

from collections.abc import Callable
from contextlib import nullcontext
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
from ikebana.learning.training.batch_share import BatchShare
from ikebana.learning.training.checkpoint import TrainingState
from ikebana.learning.training.class_priors import compute_log_priors
from ikebana.learning.training.ema import make_ema
from ikebana.learning.whole_batch import WholeBatch
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

    def step(
        self, inputs: Tensor, labels: Tensor, settings: DeviceSettings, share: BatchShare | None = None
    ) -> tuple[Tensor, Tensor]:
        """Make one training step on one batch.

        Args:
            inputs, labels: of the share of the batch, if several processes share it.
        Returns:
            The whole batch's mean loss and its number of correct predictions, from before the update.
        """
        forward = self._get_forward(inputs, settings, share)
        with settings.autocast(), WholeBatch(share) if share is not None else nullcontext():
            logits = forward(inputs)
        # The loss is never computed in half precision.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = self._compute_loss(logits, labels)
        correct = (logits.detach().argmax(1) == labels).sum()
        if share is not None:
            loss = loss * share.weight
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        if share is not None:
            weights = [weight for weight in self.network.parameters() if weight.requires_grad]
            loss, correct = share.sum_gradients(weights, loss, correct)
        self.optimiser.step()
        if isinstance(self.optimiser, optimisers.AdamW) and self.ema is not None:
            self.ema.update(self.network, step=self.optimiser.step_count + 1)
        return loss.detach(), correct

    def _get_forward(
        self, inputs: Tensor, settings: DeviceSettings, share: BatchShare | None
    ) -> Callable[[Tensor], Tensor]:
        """Return the fastest forward pass for this batch."""
        if share is not None and settings.device == "cuda":
            # A CUDA graph repeats the exchange and the dropout of the batch that it captured.
            has_exchange = parameter_groups.uses_batch_statistics(self.recipe, self.phase.trainable)
            if has_exchange or share.photos != self.batch_size:
                return self.network
        if self._forward is None:
            batch_size = self.batch_size if share is None else len(inputs)
            self._forward = fast.build_training_forward(self.network, inputs, batch_size, settings)
        return self._forward

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
