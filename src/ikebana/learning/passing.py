"""One pass over the training photos, on its way: what has been shown, the dice, the running sums."""

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ikebana.learning.augmentation import augmented
from ikebana.learning.inference import Examples
from ikebana.recipe import Recipe


class Pass:
    """An epoch's order and dice, and how far it has come; `tensors` is all that must be kept to go on within it."""

    def __init__(self, recipe: Recipe, number: int, examples: Examples, device: str, together: bool = False):
        """
        number    of the epoch, from 1
        together  no photo may be alone in a batch
        """
        self.recipe, self.number, self.examples, self.device = recipe, number, examples, device
        self.together = together
        seed = recipe.seed * 1_000_003 + number  # each epoch draws from a stream of its own
        self.generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # dropout draws from torch's own generator
        self.order = torch.randperm(len(examples), generator=self.generator).numpy()
        self.seen = 0  # photos that have been shown
        self.loss_sum = self.right = torch.zeros((), device=device)
        self.begun = time.perf_counter()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches that are left: photos, changed if the recipe says so, or features; and their labels."""
        changes = self.recipe.augmentation
        for chosen in self._left():
            inputs, labels = self.examples.batch(chosen, self.device)
            if changes is not None:
                inputs = augmented(inputs, changes, self.generator)
            yield inputs, labels

    def _left(self) -> Iterator[np.ndarray]:
        """The rows of each batch to come; a single last photo joins the batch before it where it must not be alone."""
        start = self.seen
        while start < len(self.order):
            end = start + self.recipe.batch
            if self.together and end == len(self.order) - 1:
                end += 1
            yield self.order[start:end]
            start = end

    def add(self, loss: Tensor, right: Tensor, photos: int) -> None:
        """Count a step that was made: its mean loss, how many photos were named rightly, and of how many."""
        self.loss_sum = self.loss_sum + loss * photos
        self.right = self.right + right
        self.seen += photos

    @property
    def loss(self) -> float:
        """The mean over what has been shown."""
        return float(self.loss_sum) / self.seen

    @property
    def accuracy(self) -> float:
        """The share of what has been shown that was named rightly."""
        return float(self.right) / self.seen

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begun

    def tensors(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        state = {
            "seen": torch.tensor(self.seen),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
            "loss_sum": self.loss_sum,
            "right": self.right,
            "generator": self.generator.get_state(),
            "dice": torch.get_rng_state(),
        }
        if self.device != "cpu":
            state["device_dice"] = torch.get_device_module(self.device).get_rng_state()
        return {f"pass.{name}": value for name, value in state.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `tensors` gave.

        raises  KeyError, RuntimeError or TypeError if it is something else
        """
        self.seen = int(state["seen"])
        self.begun = time.perf_counter() - float(state["seconds"])
        self.loss_sum, self.right = (state[name].to(self.device) for name in ("loss_sum", "right"))
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["dice"])
        if self.device != "cpu":
            torch.get_device_module(self.device).set_rng_state(state["device_dice"])
