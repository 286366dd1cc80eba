"""The learning-rate schedule: linear warm-up, then half a cosine."""

import math


def compute_learning_rate_factor(step: int, total_steps: int, warmup_fraction: float) -> float:
    """Return the factor of the learning rate at a step: linear warm-up, then cosine decay.

    It is above 0 at every step, the last one and an only one included.

    Args:
        step: from 1.
        warmup_fraction: of the steps, in which the factor rises.
    """
    position = (step - 0.5) / max(total_steps, 1)
    if position < warmup_fraction:
        return position / warmup_fraction
    return 0.5 * (1 + math.cos(math.pi * (position - warmup_fraction) / max(1 - warmup_fraction, 1e-9)))
