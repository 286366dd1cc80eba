"""Progress within one epoch: order of the photos, random state, running sums."""

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ikebana.learning.augmentation import augment
from ikebana.learning.examples import Examples
from ikebana.learning.processes import ProcessGroup
from ikebana.learning.training.batch_share import BatchShare, make_share
from ikebana.recipe import Recipe


class EpochProgress:
    """One epoch over the training photos, which can be saved and resumed between two steps."""

    def __init__(
        self,
        recipe: Recipe,
        number: int,
        examples: Examples,
        device: str,
        avoid_single_photo_batches: bool = False,
        group: ProcessGroup | None = None,
    ):
        """Seed the random generators and shuffle the photos.

        Args:
            number: of the epoch, from 1.
            avoid_single_photo_batches: avoid batches of a single photo, which BatchNorm cannot normalise.
            group: the processes that share each batch, if there are several.
        """
        self.number, self.examples, self.device = number, examples, device
        self.batch_size, self.augmentation = recipe.gradient_method.batch_size, recipe.augmentation
        self.avoid_single_photo_batches, self.group = avoid_single_photo_batches, group
        seed = recipe.seed * 1_000_003 + number  # a separate random stream per epoch
        self.generator = torch.Generator().manual_seed(seed)
        # Dropout draws from torch's global generator, which `preserve_process_state` restores.
        torch.manual_seed(seed)
        self.order = torch.randperm(len(examples), generator=self.generator).numpy()
        self.photos_seen = 0
        self.loss_sum = self.correct = torch.zeros((), device=device)
        self.started_at = time.perf_counter()

    def iterate_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the remaining batches: photos (augmented) or features, and their labels."""
        return ((inputs, labels) for inputs, labels, _ in self.iterate_shares())

    def iterate_shares(self) -> Iterator[tuple[Tensor, Tensor, BatchShare | None]]:
        """Iterate over this process's shares of the remaining batches; None for whole batches."""
        for indices in self._iterate_indices():
            share = make_share(self.group, len(indices)) if self.group is not None else None
            inputs, labels = self.examples.get_batch(indices if share is None else indices[share.rows], self.device)
            if self.augmentation is not None:
                batch = (share.photos, share.rows) if share is not None else None
                inputs = augment(inputs, self.augmentation, self.generator, batch)
            yield inputs, labels, share

    def _iterate_indices(self) -> Iterator[np.ndarray]:
        """Iterate over the remaining batches' indices; a single last photo joins the batch before."""
        start = self.photos_seen
        while start < len(self.order):
            end = start + self.batch_size
            if self.avoid_single_photo_batches and end == len(self.order) - 1:
                end += 1
            yield self.order[start:end]
            start = end

    def add_step(self, loss: Tensor, correct: Tensor, photos: int) -> None:
        """Add a step: the batch's mean loss, its number of correct predictions and of photos."""
        self.loss_sum = self.loss_sum + loss * photos
        self.correct = self.correct + correct
        self.photos_seen += photos

    @property
    def loss(self) -> float:
        """The mean loss over the photos seen so far."""
        return float(self.loss_sum) / self.photos_seen

    @property
    def accuracy(self) -> float:
        """The accuracy over the photos seen so far."""
        return float(self.correct) / self.photos_seen

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started_at

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the state under its names in the checkpoint."""
        state = {
            "photos_seen": torch.tensor(self.photos_seen),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
            "loss_sum": self.loss_sum,
            "correct": self.correct,
            "rng_state": self.generator.get_state(),
            "global_rng_state": torch.get_rng_state(),
        }
        if self.device != "cpu":
            state["device_rng_state"] = torch.get_device_module(self.device).get_rng_state()
        return {f"epoch_progress.{name}": value for name, value in state.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Resume from the result of `to_tensors`, its prefix removed.

        Raises:
            KeyError, RuntimeError, TypeError: the state is damaged.
        """
        self.photos_seen = int(state["photos_seen"])
        self.started_at = time.perf_counter() - float(state["seconds"])
        self.loss_sum, self.correct = (state[name].to(self.device) for name in ("loss_sum", "correct"))
        self.generator.set_state(state["rng_state"])
        torch.set_rng_state(state["global_rng_state"])
        if self.device != "cpu":
            torch.get_device_module(self.device).set_rng_state(state["device_rng_state"])
