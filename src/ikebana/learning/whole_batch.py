"""Forward passes of a share of a batch that equal those of the whole batch.

Several processes share each batch. Two kinds of layers depend on the other photos of the batch:
dropout draws its mask for all of them, and trained BatchNorm normalises by their statistics. Within
a `WholeBatch` block both functions of torch are computed as one process with all photos computes
them. It is a mode of torch's functions, so layers of timm and of the user take part unchanged.
"""

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from ikebana.learning.training.batch_share import BatchShare

_share: ContextVar["BatchShare | None"] = ContextVar("share", default=None)


def count_photos(features: Tensor) -> int:
    """Count the photos of the whole batch whose share these features [photos, ...] belong to."""
    share = _share.get()
    return len(features) if share is None else share.photos


class WholeBatch(TorchFunctionMode):
    """A block in which dropout and BatchNorm see the whole batch of a share."""

    def __init__(self, share: "BatchShare"):
        super().__init__()
        self.share = share
        self._token: Token[BatchShare | None] | None = None
        self._replacements: dict[Callable[..., Any], Callable[..., Tensor]] = {
            functional.dropout: self._drop,
            functional.batch_norm: self._normalise,
        }

    def __enter__(self) -> "WholeBatch":
        self._token = _share.set(self.share)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        assert self._token is not None
        _share.reset(self._token)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        function: Any = self._replacements.get(func, func)
        return function(*args, **(kwargs or {}))

    def _drop(self, features: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Apply dropout, with the own rows of the mask that one process draws."""
        if not training or not p:
            return functional.dropout(features, p, training, inplace)
        ones = torch.ones((self.share.photos, *features.shape[1:]), dtype=features.dtype, device=features.device)
        mask = functional.dropout(ones, p)[self.share.rows]
        return features.mul_(mask) if inplace else features * mask

    def _normalise(
        self,
        features: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Apply BatchNorm; in training by the statistics of all photos of the batch."""
        if not training:
            return functional.batch_norm(features, running_mean, running_var, weight, bias, training, momentum, eps)
        normalised, mean, variance, count = _SharedBatchNorm.apply(features, self.share, eps)  # type: ignore[misc]
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                unbiased = variance * (count / (count - 1).clamp(min=1))
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        shape = (-1, *[1] * (features.ndim - 2))
        if weight is not None:
            normalised = normalised * weight.view(shape)
        if bias is not None:
            normalised = normalised + bias.view(shape)
        return normalised.to(features.dtype)


class _SharedBatchNorm(torch.autograd.Function):
    """Normalisation per channel by the mean and variance over the photos of all processes."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, share: "BatchShare", eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalise features [photos, channels, ...].

        Returns:
            The normalised features, at least float32, then mean, biased variance and number of values
            per channel, of the whole batch.
        """
        exact = features.to(torch.promote_types(features.dtype, torch.float32))
        axes = [axis for axis in range(exact.ndim) if axis != 1]
        shape = (1, -1, *[1] * (exact.ndim - 2))
        variance, mean = torch.var_mean(exact, axes, correction=0)
        count = torch.full_like(mean[:1], 0 if share.is_empty else exact.numel() // exact.shape[1])
        # Each process gets the statistics of all, which combine without cancellation (Chan et al. 1979).
        counts, means, variances = share.group.gather(torch.cat((count, mean, variance))).split(
            [1, len(mean), len(mean)], 1
        )
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        scale = (variance + eps).rsqrt()
        centred = exact - mean.view(shape)
        ctx.save_for_backward(centred, scale, count)
        ctx.share, ctx.axes, ctx.shape, ctx.dtype = share, axes, shape, features.dtype
        ctx.mark_non_differentiable(mean, variance, count)
        return centred * scale.view(shape), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (centred, scale, count), gradient, shape = ctx.saved_tensors, gradients[0], ctx.shape
        sums = torch.stack((gradient.sum(ctx.axes), (gradient * centred).sum(ctx.axes)))
        if ctx.share.is_empty:
            sums.zero_()
        mean_gradient, mean_product = ctx.share.group.sum_(sums) / count
        result = gradient - mean_gradient.view(shape) - centred * (scale.square() * mean_product).view(shape)
        if ctx.share.is_empty:
            # The photo of an empty share has no part in the batch.
            result = torch.zeros_like(result)
        return (result * scale.view(shape)).to(ctx.dtype), None, None
