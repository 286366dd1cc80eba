"""Ctrl-C and SIGTERM never land in the middle of a step: they wait until the step is made and what was learned is safe."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

HELD = (signal.SIGINT, signal.SIGTERM)


class Held:
    """A signal that waits, if one came."""

    def __init__(self) -> None:
        self.came: int | None = None
        self.before: dict[int, Any] = {}

    def hold(self) -> None:
        """From now on signals wait. Outside of the main thread, where Python gets none, there is nothing to hold."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in HELD:
            found = signal.getsignal(number)
            if found not in (None, signal.SIG_IGN):  # None was set by something else than Python: not ours to move
                self.before[number] = found
                signal.signal(number, self._wait)

    def release(self) -> None:
        """Whoever listened before listens again."""
        while self.before:
            number, handler = self.before.popitem()
            signal.signal(number, handler)

    def let_through(self) -> None:
        """A signal that waits does now what it would have done at once: as a rule it raises KeyboardInterrupt."""
        if self.came is not None:
            number, self.came = self.came, None
            self.release()
            signal.raise_signal(number)
            self.hold()  # whoever listened wants to go on

    def _wait(self, number: int, _: FrameType | None) -> None:
        """The first one waits; the second means at once."""
        if self.came is not None:
            self.release()
            signal.raise_signal(number)
        self.came = number


@contextmanager
def held() -> Iterator[Held]:
    """Within this block the first Ctrl-C or SIGTERM waits for its end, or for `let_through`; a second ends the block at once."""
    signals = Held()
    try:
        signals.hold()
        yield signals
    finally:
        signals.release()
    signals.let_through()
    signals.release()
