"""Errors and Ctrl-C at a chosen training step."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def fail_after_steps(steps: int, error: BaseException) -> Iterator[None]:
    """Raise this error in every training step after so many, within this block."""
    from ikebana.learning.training.trainer import Trainer

    original_step, steps_left = Trainer.step, [steps]

    def step(*arguments):
        if not steps_left[0]:
            raise error
        steps_left[0] -= 1
        return original_step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        yield


@contextmanager
def interrupt_after_steps(steps: int) -> Iterator[None]:
    """Raise KeyboardInterrupt in the training step after so many; the block must not end without it."""
    with fail_after_steps(steps, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        yield
