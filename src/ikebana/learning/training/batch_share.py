"""The share of a batch in one of several processes, and their summed gradients."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ikebana.learning.processes import ProcessGroup


@dataclass(frozen=True)
class BatchShare:
    """The photos of one batch that this process computes.

    A process whose share is empty computes one photo that counts for nothing. It thereby takes part
    in all exchanges, and its random generators stay those of the others.

    Attributes:
        photos: of the whole batch.
        rows: of the photos to compute, in the batch.
        is_empty: whether the one photo in `rows` counts for nothing.
    """

    group: ProcessGroup
    photos: int
    rows: slice
    is_empty: bool

    @property
    def weight(self) -> float:
        """The share in the batch's mean loss."""
        return 0.0 if self.is_empty else (self.rows.stop - self.rows.start) / self.photos

    def sum_gradients(self, weights: Sequence[nn.Parameter], loss: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
        """Replace each weight's gradient by the sum over all processes, in one exchange.

        Args:
            loss: of the share, times its weight.
            correct: number of correct predictions.
        Returns:
            Mean loss and number of correct predictions of the whole batch.
        """
        # A weight may have a gradient in some processes only, if the network has branches.
        has_gradient = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.int32)
        has_gradient = self.group.max_(has_gradient).bool().tolist()
        used = [weight for weight, is_used in zip(weights, has_gradient, strict=True) if is_used]
        dtype = functools.reduce(torch.promote_types, (weight.dtype for weight in used), torch.float32)
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in used]
        scores = torch.stack((loss.detach().to(dtype), (correct * (not self.is_empty)).to(dtype)))
        flat = torch.cat([*(gradient.reshape(-1).to(dtype) for gradient in gradients), scores])
        *sums, scores = self.group.sum_(flat).split([*map(torch.numel, gradients), len(scores)])
        for weight, gradient, total in zip(used, gradients, sums, strict=True):
            weight.grad = gradient.copy_(total.view(gradient.shape))
        return scores[0], scores[1]


def make_share(group: ProcessGroup, photos: int) -> BatchShare:
    """Divide a batch into consecutive shares, whose sizes differ by at most one photo."""
    rank, size = group.launch.rank, group.launch.size
    start, stop = photos * rank // size, photos * (rank + 1) // size
    return BatchShare(group, photos, slice(start, max(stop, start + 1)), start == stop)
