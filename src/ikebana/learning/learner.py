"""What a step of training does to a network, phase by phase, and all that must be kept to go on later."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ikebana.choices import Trained
from ikebana.learning import networks, optimisers, stepping
from ikebana.learning.captured import Captured
from ikebana.learning.checkpoint import Saved
from ikebana.learning.device import Setting
from ikebana.learning.imbalance import log_shares
from ikebana.learning.layers import last_linear
from ikebana.recipe import Recipe


@dataclass(frozen=True)
class Phase:
    """Some epochs in a row in which the same weights learn in the same way."""

    first: int  # epoch, from 1
    last: int
    trained: Trained
    learning_rate: float


def phases(recipe: Recipe) -> list[Phase]:
    """The head alone first, if the recipe says so; then what the recipe trains."""
    transfer, before = recipe.transfer, 0
    found = []
    if transfer is not None and transfer.head_epochs:
        before = transfer.head_epochs
        found.append(Phase(1, before, "head", transfer.head_learning_rate))
    return [*found, Phase(before + 1, before + recipe.epochs, networks.trained_in(recipe), recipe.learning_rate)]


class Learner:
    """A network on its way through a phase: what moves its weights, and their running mean where the recipe wants one."""

    def __init__(self, network: nn.Module, recipe: Recipe, phase: Phase, labels: np.ndarray):
        """labels: class indices of the photos that an epoch shows"""
        self.network, self.recipe, self.phase = network, recipe, phase
        # Made with the first photos, once the network is set to training.
        self._for_steps: Callable[[Tensor], Tensor] | None = None
        groups = networks.trained_groups(network, recipe, phase.trained, phase.learning_rate)
        self.optimiser: optimisers.RMSprop | optimisers.AdamW
        if recipe.tuning is None:
            self.optimiser, self.averaged = optimisers.RMSprop(groups), None
        else:
            steps = (phase.last - phase.first + 1) * -(-len(labels) // recipe.batch)
            self.optimiser = optimisers.AdamW(groups, recipe.tuning, steps)
            self.averaged = optimisers.RunningMean(network, recipe.tuning.averaging)
            # How frequent a class is, is added here so that the network need not learn it: it then names a rare class as
            # readily as a frequent one.
            shares = log_shares(labels, last_linear(network).out_features)
            self.shares = torch.from_numpy(shares).to(next(network.parameters()))
            # A class without training photos takes no part: smoothing would make it a little true.
            self.present = torch.from_numpy(np.unique(labels)).to(self.shares.device)

    @property
    def scored(self) -> nn.Module:
        """The network that counts."""
        return self.network if self.averaged is None else self.averaged.network

    def step(self, inputs: Tensor, labels: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
        """One step of gradient descent on one batch.

        returns  the batch's mean loss and its logits, both as they were before the step
        """
        if self._for_steps is None:
            self._for_steps = self._made_for_steps(inputs, setting)
        with setting.autocast():
            logits = self._for_steps(inputs)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # no loss is taken in half precision
        loss = self._loss(logits, labels)
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        if isinstance(self.optimiser, optimisers.AdamW) and self.averaged is not None:
            self.averaged.step(int(self.optimiser.count))
        return loss.detach(), logits.detach()

    def _made_for_steps(self, inputs: Tensor, setting: Setting) -> Callable[[Tensor], Tensor]:
        if setting.device == "cuda":
            return Captured(self.network, self.recipe.batch, setting)
        return stepping.for_steps(self.network, inputs, setting)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        tuning = self.recipe.tuning
        if tuning is None:
            return functional.cross_entropy(logits, labels)
        said, labels = (logits + self.shares)[:, self.present], torch.searchsorted(self.present, labels)
        return functional.cross_entropy(said, labels, label_smoothing=tuning.label_smoothing)

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint needs to go on from here."""
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        state |= {f"optimiser.{number:05}": value for number, value in enumerate(self.optimiser.state)}
        if self.averaged is not None:
            state |= {f"averaged.{name}": value for name, value in self.averaged.network.state_dict().items()}
        return state

    @torch.no_grad()
    def restore(self, saved: Saved) -> None:
        """Go on from what `tensors` gave.

        raises  KeyError or RuntimeError if it is of another network
        """
        optimiser = saved.entries("optimiser.")
        if len(optimiser) != len(self.optimiser.state):
            raise KeyError("the optimiser's state is of another network")
        self.network.load_state_dict(saved.entries("network."))
        for number, value in enumerate(self.optimiser.state):
            value.copy_(optimiser[f"{number:05}"])
        if self.averaged is not None:
            self.averaged.network.load_state_dict(saved.entries("averaged."))
