"""Max-pool 2 and ReLU as one layer, on a processor in bfloat16 as one pass over the numbers' bits.

torch's own max-pool writes a 64-bit index beside every 16-bit maximum and reads it again on the way back. Finite bfloat16
values that are not negative are ordered as their bits are when read as 16-bit integers, and after the ReLU only those
matter; so maxima, and the way back to where they came from, are integer arithmetic, done on a few photos at a time so
that it stays in the processor's cache. Same function, same gradients; where values of a window are equal, one of them
gets the gradient, as in any max-pool, though not always the one that torch would choose.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CACHED = 2**20  # elements worked on at a time, 2 MiB: more leave the cache, fewer make many short parallel regions


class MaxPoolReLU(nn.Module):
    """The maximum of every 2 x 2 pixels, or 0 if that is larger. A last odd row or column is left out.

    The maximum before the ReLU: the same function as after it (both are monotone) with a quarter of the ReLUs.
    """

    def forward(self, features: Tensor) -> Tensor:
        """features  [photos, channels, height, width]; returns [photos, channels, height // 2, width // 2]"""
        on_processor = features.device.type == "cpu" and features.dtype == torch.bfloat16
        if on_processor and features.is_contiguous(memory_format=torch.channels_last):
            return _OnBits.apply(features)  # pyright: ignore[reportReturnType]  (apply has no types)
        return functional.relu(functional.max_pool2d(features, 2))


class _OnBits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        bits = _bits(features)
        photos, height, width, channels = bits.shape
        pooled = bits.new_empty((photos, height // 2, width // 2, channels))
        room = _Room(bits)
        for top, bottom, maxima in zip(*room.pieces(*_rows(bits), pooled), strict=True):
            _, left, right = room.of_rows(top, bottom)
            torch.maximum(left, right, out=maxima).clamp_(min=0)
        result = pooled.view(features.dtype).permute(0, 3, 1, 2)
        ctx.save_for_backward(features, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        features, result = ctx.saved_tensors
        given = _bits(gradients[0].contiguous(memory_format=torch.channels_last))
        bits, pooled = _bits(features), _bits(result)
        sent = torch.empty_like(bits)
        height, width = (2 * (size // 2) for size in bits.shape[1:3])
        sent[:, height:], sent[:, :, width:] = 0, 0
        room = _Room(bits)
        # What no window sees of the last column gets no gradient.
        half, spare = torch.zeros_like(room.tallest), torch.empty_like(room.tallest)
        best, passed, quarter = (torch.empty_like(room.left) for _ in range(3))
        for top, bottom, maxima, gradient, to_top, to_bottom in zip(
            *room.pieces(*_rows(bits), pooled, given, *_rows(sent)), strict=True
        ):
            tallest, left, right = room.of_rows(top, bottom)
            if len(top) < room.count:
                half, spare, best, passed, quarter = (each[: len(top)] for each in (half, spare, best, passed, quarter))
            torch.maximum(left, right, out=best)
            torch.clamp(maxima, max=1, out=passed).mul_(gradient)  # by 1, or by 0 where the ReLU is flat
            _send(passed, left, best, *_columns(half), quarter)
            _send(half, top, tallest, to_top, to_bottom, spare)
        return sent.view(features.dtype).permute(0, 3, 1, 2)


def _bits(features: Tensor) -> Tensor:
    """int16 [photos, height, width, channels]: the same memory, read as integers."""
    return features.detach().permute(0, 2, 3, 1).view(torch.int16)


def _rows(bits: Tensor) -> tuple[Tensor, Tensor]:
    """The upper and the lower row of each window."""
    height = 2 * (bits.shape[1] // 2)
    return bits[:, 0:height:2], bits[:, 1:height:2]


class _Room:
    """Where the larger rows of a few photos at a time lie, made once: fresh memory for each few would not be in the cache."""

    def __init__(self, bits: Tensor):
        photos, height, width, channels = bits.shape
        self.count = max(1, min(photos, CACHED // bits[0].numel()))
        self.tallest = bits.new_empty((self.count, height // 2, width, channels))
        self.left, self.right = _columns(self.tallest)

    def pieces(self, *tensors: Tensor) -> Iterator[Sequence[Tensor]]:
        """Each tensor, a few photos at a time."""
        return (each.split(self.count) for each in tensors)

    def of_rows(self, top: Tensor, bottom: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The larger of each two rows; of that the columns that are left in their windows, and those that are right."""
        count = len(top)
        torch.maximum(top, bottom, out=self.tallest[:count])
        return self.tallest[:count], self.left[:count], self.right[:count]


def _columns(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The left and the right column of each window."""
    width = 2 * (rows.shape[2] // 2)
    return rows[:, :, 0:width:2], rows[:, :, 1:width:2]


def _send(gradient: Tensor, one: Tensor, best: Tensor, to_one: Tensor, to_other: Tensor, spare: Tensor) -> None:
    """Each gradient goes to `one` where that was the best, else to the other; the rest becomes 0.

    Comparisons and masks of 16-bit integers are slow in torch, arithmetic is not: equal bits have an exclusive-or of 0.
    """
    torch.bitwise_xor(one, best, out=spare).clamp_(-1, 1)
    torch.mul(spare, spare, out=spare)  # 0 where `one` was the best, else 1
    torch.mul(gradient, spare, out=to_other)
    torch.sub(gradient, to_other, out=to_one)
