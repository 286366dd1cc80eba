"""Errors and Ctrl-C at a chosen training step."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def fail_after_steps(steps: int, error: BaseException) -> Iterator[None]:
    """Raise this error in every training step after so many, within this block.

    The steps of speed measurements do not count: on a busy machine each `fit` measures again.
    """
    from ikebana.learning import precision
    from ikebana.learning.training.trainer import Trainer

    original_step, original_measure, steps_left, measuring = Trainer.step, precision._measure_precisions, [steps], []

    def measure(*arguments):
        measuring.append(True)
        try:
            return original_measure(*arguments)
        finally:
            measuring.pop()

    def step(*arguments):
        if measuring:
            return original_step(*arguments)
        if not steps_left[0]:
            raise error
        steps_left[0] -= 1
        return original_step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        patch.setattr(precision, "_measure_precisions", measure)
        yield


@contextmanager
def interrupt_after_steps(steps: int) -> Iterator[None]:
    """Expect a KeyboardInterrupt, which is raised after this many training steps."""
    with fail_after_steps(steps, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        yield
