"""Deferral of Ctrl-C and SIGTERM until the current training step is done and saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

DEFERRED_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DeferredSignals:
    """Signal handlers that record the first signal instead of acting on it."""

    def __init__(self) -> None:
        self.pending_signal: int | None = None
        self._previous_handlers: dict[int, Any] = {}

    def install(self) -> None:
        """Replace the handlers of SIGINT and SIGTERM.

        Outside the main thread this does nothing, since Python delivers no signals there.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in DEFERRED_SIGNALS:
            handler = signal.getsignal(number)
            # None was installed by other code than Python: it cannot be restored, so it stays.
            if handler not in (None, signal.SIG_IGN):
                self._previous_handlers[number] = handler
                signal.signal(number, self._record)

    def restore(self) -> None:
        """Put the previous handlers back."""
        while self._previous_handlers:
            number, handler = self._previous_handlers.popitem()
            signal.signal(number, handler)

    def deliver(self) -> None:
        """Pass a pending signal to its previous handler, which usually raises KeyboardInterrupt."""
        if self.pending_signal is not None:
            number, self.pending_signal = self.pending_signal, None
            self.restore()
            signal.raise_signal(number)
            self.install()  # the previous handler returned: training goes on

    def _record(self, number: int, _: FrameType | None) -> None:
        """Record the first signal; deliver a second one at once."""
        if self.pending_signal is not None:
            self.restore()
            signal.raise_signal(number)
        self.pending_signal = number


@contextmanager
def defer_signals() -> Iterator[DeferredSignals]:
    """Defer the first Ctrl-C or SIGTERM to the end of the block, or to `deliver`.

    A second one ends the block at once.
    """
    signals = DeferredSignals()
    try:
        signals.install()
        yield signals
    finally:
        signals.restore()
    signals.deliver()
    signals.restore()
