"""Max-pooling by 2 and ReLU as one layer, fast in bfloat16 on CPU.

torch's max-pooling writes a 64-bit index for every 16-bit maximum and reads it in the backward
pass. Non-negative finite bfloat16 values sort like their bits read as 16-bit integers, and the ReLU
leaves only those. So maxima and the backward pass are integer arithmetic, on chunks of photos that
fit in the CPU cache. The function and its gradients stay the same. Where values of a window are
equal, one of them gets the gradient, though not always the one that torch would choose.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# Elements per chunk, 2 MiB. More do not fit in the cache; fewer make many short parallel regions.
CHUNK_ELEMENTS = 2**20


def max_pool_relu(features: Tensor) -> Tensor:
    """Pool bfloat16 [photos, channels, height, width] in channels-last format on a CPU."""
    return _IntegerMaxPoolReLU.apply(features)  # pyright: ignore[reportReturnType]  (apply has no types)


class _IntegerMaxPoolReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        bits = _view_bits(features)
        photos, height, width, channels = bits.shape
        pooled = bits.new_empty((photos, height // 2, width // 2, channels))
        buffers = _Buffers(bits)
        for top, bottom, maxima in zip(*buffers.split(*_split_rows(bits), pooled), strict=True):
            _, left, right = buffers.reduce_rows(top, bottom)
            torch.maximum(left, right, out=maxima).clamp_(min=0)
        result = pooled.view(features.dtype).permute(0, 3, 1, 2)
        ctx.save_for_backward(features, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        features, result = ctx.saved_tensors
        pooled_gradient = _view_bits(gradients[0].contiguous(memory_format=torch.channels_last))
        bits, pooled = _view_bits(features), _view_bits(result)
        features_gradient = torch.empty_like(bits)
        height, width = (2 * (size // 2) for size in bits.shape[1:3])
        features_gradient[:, height:], features_gradient[:, :, width:] = 0, 0
        buffers = _Buffers(bits)
        # Zeros, because a last odd column belongs to no window and gets no gradient.
        row_gradient, row_mask = torch.zeros_like(buffers.row_maxima), torch.empty_like(buffers.row_maxima)
        best, passed, mask = (torch.empty_like(buffers.left) for _ in range(3))
        for top, bottom, maxima, gradient, to_top, to_bottom in zip(
            *buffers.split(*_split_rows(bits), pooled, pooled_gradient, *_split_rows(features_gradient)), strict=True
        ):
            row_maxima, left, right = buffers.reduce_rows(top, bottom)
            if len(top) < buffers.count:
                row_gradient, row_mask, best, passed, mask = (
                    buffer[: len(top)] for buffer in (row_gradient, row_mask, best, passed, mask)
                )
            torch.maximum(left, right, out=best)
            # Times 1, or 0 where the ReLU is flat.
            torch.clamp(maxima, max=1, out=passed).mul_(gradient)
            _route_gradient(passed, left, best, *_split_columns(row_gradient), mask)
            _route_gradient(row_gradient, top, row_maxima, to_top, to_bottom, row_mask)
        return features_gradient.view(features.dtype).permute(0, 3, 1, 2)


def _view_bits(features: Tensor) -> Tensor:
    """View the same memory as int16 [photos, height, width, channels]."""
    return features.detach().permute(0, 2, 3, 1).view(torch.int16)


def _split_rows(bits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the upper and the lower row of each window."""
    height = 2 * (bits.shape[1] // 2)
    return bits[:, 0:height:2], bits[:, 1:height:2]


class _Buffers:
    """Memory for the row maxima of a chunk, allocated once to stay in cache."""

    def __init__(self, bits: Tensor):
        photos, height, width, channels = bits.shape
        self.count = max(1, min(photos, CHUNK_ELEMENTS // bits[0].numel()))
        self.row_maxima = bits.new_empty((self.count, height // 2, width, channels))
        self.left, self.right = _split_columns(self.row_maxima)

    def split(self, *tensors: Tensor) -> Iterator[Sequence[Tensor]]:
        """Split each tensor into chunks of photos."""
        return (tensor.split(self.count) for tensor in tensors)

    def reduce_rows(self, top: Tensor, bottom: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the maxima of two rows, and the left and right columns of these."""
        count = len(top)
        torch.maximum(top, bottom, out=self.row_maxima[:count])
        return self.row_maxima[:count], self.left[:count], self.right[:count]


def _split_columns(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the left and the right column of each window."""
    width = 2 * (rows.shape[2] // 2)
    return rows[:, :, 0:width:2], rows[:, :, 1:width:2]


def _route_gradient(
    gradient: Tensor, first: Tensor, best: Tensor, to_first: Tensor, to_second: Tensor, mask: Tensor
) -> None:
    """Write the gradient to `to_first` where `first` is best, else to `to_second`.

    The other gets 0. Comparisons and masks of 16-bit integers are slow in torch, but arithmetic is
    not: equal bits have an exclusive-or of 0.
    """
    torch.bitwise_xor(first, best, out=mask).clamp_(-1, 1)
    torch.mul(mask, mask, out=mask)  # 0 where `first` is the best, else 1
    torch.mul(gradient, mask, out=to_second)
    torch.sub(gradient, to_second, out=to_first)
