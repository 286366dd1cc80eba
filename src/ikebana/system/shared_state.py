"""State of the whole process that several blocks of code share."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager


class SharedState(ABC):
    """State that the first block sets up, and that the last one to end restores."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0

    @contextmanager
    def use(self) -> Iterator[None]:
        """Keep the state set up within this block; blocks may overlap, in any threads."""
        with self._lock:
            if not self._users:
                self.set_up()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self.restore()

    @abstractmethod
    def set_up(self) -> None:
        """Prepare for the first block."""

    @abstractmethod
    def restore(self) -> None:
        """Restore what was there before, after the last block."""
