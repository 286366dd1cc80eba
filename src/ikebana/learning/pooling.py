"""Max-pool 2 and ReLU as one layer, on a processor in bfloat16 as one pass over the numbers' bits.

torch's own max-pool writes a 64-bit index beside every 16-bit maximum and reads it again on the way back. Finite bfloat16
values that are not negative are ordered as their bits are when read as 16-bit integers, and after the ReLU only those
matter; so maxima, and the way back to where they came from, are integer arithmetic, done on a few photos at a time so
that it stays in the processor's cache. Same function, same gradients; where values of a window are equal, one of them
gets the gradient, as in any max-pool, though not always the one that torch would choose.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CACHED = 2**21  # elements worked on at a time, 4 MiB: more leave the cache, fewer make many short parallel regions


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
        for some in _chunks(bits):
            _, left, right = _halves(bits[some])
            torch.maximum(left, right, out=pooled[some]).clamp_(min=0)
        result = pooled.view(features.dtype).permute(0, 3, 1, 2)
        ctx.save_for_backward(features, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        features, result = ctx.saved_tensors
        given = _bits(gradients[0].contiguous(memory_format=torch.channels_last))
        bits, pooled = _bits(features), _bits(result)
        height, width = (2 * (size // 2) for size in bits.shape[1:3])
        sent = torch.empty_like(bits)
        sent[:, height:], sent[:, :, width:] = 0, 0
        chunks = _chunks(bits)
        # Made once: fresh memory for every chunk would not be in the cache.
        half = bits.new_zeros((len(bits[chunks[0]]), height // 2, *bits.shape[2:]))
        spare, spare_quarter = torch.empty_like(half), torch.empty_like(pooled[chunks[0]])
        for some in chunks:
            tallest, left, right = _halves(bits[some])
            count = len(tallest)
            best = torch.maximum(left, right)
            passed = pooled[some].clamp(max=1).mul_(given[some])  # by 1, or by 0 where the ReLU is flat
            to_left, to_right = half[:count, :, 0:width:2], half[:count, :, 1:width:2]
            _send(passed, left, best, to_left, to_right, spare_quarter[:count])
            top, bottom = sent[some, 0:height:2], sent[some, 1:height:2]
            _send(half[:count], bits[some, 0:height:2], tallest, top, bottom, spare[:count])
        return sent.view(features.dtype).permute(0, 3, 1, 2)


def _bits(features: Tensor) -> Tensor:
    """int16 [photos, height, width, channels]: the same memory, read as integers."""
    return features.detach().permute(0, 2, 3, 1).view(torch.int16)


def _chunks(bits: Tensor) -> list[slice]:
    photos = max(1, CACHED // bits[0].numel())
    return [slice(start, start + photos) for start in range(0, len(bits), photos)]


def _halves(bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The larger of each two rows; of that the columns that are left in their windows, and those that are right."""
    height, width = (2 * (size // 2) for size in bits.shape[1:3])
    tallest = torch.maximum(bits[:, 0:height:2], bits[:, 1:height:2])
    return tallest, tallest[:, :, 0:width:2], tallest[:, :, 1:width:2]


def _send(gradient: Tensor, one: Tensor, best: Tensor, to_one: Tensor, to_other: Tensor, spare: Tensor) -> None:
    """Each gradient goes to `one` where that was the best, else to the other; the rest becomes 0.

    Comparisons and masks of 16-bit integers are slow in torch, arithmetic is not: equal bits have an exclusive-or of 0.
    """
    torch.bitwise_xor(one, best, out=spare).clamp_(-1, 1)
    torch.mul(spare, spare, out=spare)  # 0 where `one` was the best, else 1
    torch.mul(gradient, spare, out=to_other)
    torch.sub(gradient, to_other, out=to_one)
