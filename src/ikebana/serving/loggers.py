"""The loggers of uvicorn and of the form parser while a server runs."""

import logging
from typing import Any

from ikebana.system.shared_state import SharedState

# The parser of forms logs a warning for each malformed one, which any client can send.
FORM_LOGGER = "python_multipart"
# uvicorn sets levels and handlers of its own.
LOGGERS = ("uvicorn.error", "uvicorn.access", "uvicorn.asgi", FORM_LOGGER)


class SharedLoggers(SharedState):
    """Loggers of the whole process, which all running servers share."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[tuple[logging.Logger, int, bool, list[Any], list[Any]]] = []

    def set_up(self) -> None:
        """Save levels, handlers and filters, and silence the parser."""
        loggers = [logging.getLogger(name) for name in LOGGERS]
        self.states = [
            (logger, logger.level, logger.propagate, list(logger.handlers), list(logger.filters)) for logger in loggers
        ]
        logging.getLogger(FORM_LOGGER).setLevel(logging.CRITICAL + 1)

    def restore(self) -> None:
        """Restore levels, handlers and filters."""
        for logger, level, propagate, handlers, filters in self.states:
            logger.setLevel(level)
            logger.propagate, logger.handlers, logger.filters = propagate, handlers, filters


shared_loggers = SharedLoggers()
