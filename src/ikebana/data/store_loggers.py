"""The logger of gcsfs while a request runs."""

import logging

from ikebana.system.shared_state import SharedState

# gcsfs logs a traceback for each request that fails, which is reported as a StoreError anyway.
LOGGER = "gcsfs"


class SharedLogger(SharedState):
    """The logger of gcsfs, without Python's fallback of printing what no handler receives.

    Handlers of the program that calls ikebana receive all messages as before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.handler = logging.NullHandler()

    def set_up(self) -> None:
        """Add a handler that ignores the messages."""
        logging.getLogger(LOGGER).addHandler(self.handler)

    def restore(self) -> None:
        """Remove the handler."""
        logging.getLogger(LOGGER).removeHandler(self.handler)


shared_logger = SharedLogger()
