"""The loggers of uvicorn and of the form parser while a server runs."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# The parser of forms logs a warning for each malformed one, which any client can send.
FORM_LOGGER = "python_multipart"
# uvicorn sets levels and handlers of its own.
LOGGERS = ("uvicorn.error", "uvicorn.access", "uvicorn.asgi", FORM_LOGGER)


class SharedLoggers:
    """Loggers of the whole process, which all running servers share."""

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.states: list[tuple[logging.Logger, int, bool, list[Any], list[Any]]] = []

    @contextmanager
    def use(self) -> Iterator[None]:
        """Silence the parser; restore levels, handlers and filters when the last block ends."""
        with self.lock:
            if not self.users:
                self._save()
                logging.getLogger(FORM_LOGGER).setLevel(logging.CRITICAL + 1)
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    self._restore()

    def _save(self) -> None:
        loggers = [logging.getLogger(name) for name in LOGGERS]
        self.states = [
            (logger, logger.level, logger.propagate, list(logger.handlers), list(logger.filters)) for logger in loggers
        ]

    def _restore(self) -> None:
        for logger, level, propagate, handlers, filters in self.states:
            logger.setLevel(level)
            logger.propagate, logger.handlers, logger.filters = propagate, handlers, filters


shared_loggers = SharedLoggers()
