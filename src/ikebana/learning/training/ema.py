"""An exponential moving average (EMA) of the weights."""

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3

# The decay after n steps is n / (n + 9), until it reaches the recipe's.
WARMUP_STEPS = 9


def make_ema(network: nn.Module, decay: float) -> "ModelEmaV3":
    """Start an EMA from the network's current weights and buffers; integers are copied.

    timm counts the initial copy as an update: after n steps, call `update(network, step=n + 1)`.

    Args:
        decay: fraction of the average kept at each step; less in the first steps.
    """
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(network, decay, use_warmup=True, warmup_gamma=WARMUP_STEPS, warmup_power=1)
