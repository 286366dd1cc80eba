"""Progress bars for people and events for programs.

Besides `cli` and `progress_bars` the only module that writes to the terminal. A long task opens a
`stage` and advances its bar. This module decides the output:

    Python                nothing; messages go to the logger `ikebana`
    a notebook            a line that is redrawn in place; messages go to the logger
    a terminal            a moving bar on standard error
    a log file            a line on standard error every ten seconds and at the end of the stage
    a program (`--json`)  one JSON object per line on standard output

The command line chooses one of the last three. In Python, `ikebana.progress` does. Functions that
were passed to `listen` get all events as well.
Otherwise standard output contains only the result, so that a script can read it.
"""

import functools
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from ikebana.errors import RecipeError
from ikebana.system.progress_bars import Bar, MovingBar, PlainBar
from ikebana.system.progress_events import CombinedReporter, EventReporter, JsonReporter, Reporter

LOADING_TEXT = "loading PyTorch ..."
# All control characters except tab and newline.
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

logger = logging.getLogger("ikebana")
# Without a handler of the user's, Python would print warnings on standard error.
logger.addHandler(logging.NullHandler())


class TerminalReporter:
    """Text and bars on standard error, the result on standard output."""

    def message(self, text: str) -> None:
        print(_clear_line() + _escape(text), file=sys.stderr, flush=True)

    def warning(self, text: str) -> None:
        self.message(text)

    def error(self, text: str) -> None:
        self.message(text)

    def event(self, name: str, **values: Any) -> None:
        """Print nothing: bars and messages contain the same facts."""

    def result(self, text: str) -> None:
        print(text, flush=True)

    def open(self, name: str, total: int, unit: str) -> Bar:
        print(_clear_line(), end="", file=sys.stderr)
        return (MovingBar if sys.stderr.isatty() else PlainBar)(name, total, unit)

    def close(self, bar: Bar) -> None:
        if isinstance(bar, MovingBar | PlainBar):
            bar.close()


class SilentReporter:
    """No output."""

    def message(self, text: str) -> None: ...
    def warning(self, text: str) -> None: ...
    def error(self, text: str) -> None: ...
    def event(self, name: str, **values: Any) -> None: ...
    def result(self, text: str) -> None: ...
    def open(self, name: str, total: int, unit: str) -> Bar:
        return self

    def close(self, bar: Bar) -> None: ...
    def advance(self, done: int, **scores: float | str) -> None: ...


class QuietReporter(SilentReporter):
    """Warnings and errors on standard error, the result on standard output."""

    def warning(self, text: str) -> None:
        TerminalReporter().message(text)

    def error(self, text: str) -> None:
        TerminalReporter().message(text)

    def result(self, text: str) -> None:
        TerminalReporter().result(text)


class WorkerReporter(SilentReporter):
    """Errors alone, under the name of one of several processes; another one reports the rest."""

    def __init__(self, name: str):
        self.name = name

    def error(self, text: str) -> None:
        TerminalReporter().message(f"{self.name}: {text}")


class BriefReporter:
    """All that another reporter reports but messages, for one of many similar tasks.

    Bars disappear from a terminal. In a log file, only those that take long are printed.
    """

    def __init__(self, reporter: Reporter):
        self.reporter = reporter
        self.warning, self.error = reporter.warning, reporter.error
        self.event, self.result, self.open = reporter.event, reporter.result, reporter.open

    def message(self, text: str) -> None:
        """Print nothing: the caller summarises the task."""

    def close(self, bar: Bar) -> None:
        if isinstance(bar, PlainBar):
            return
        if isinstance(bar, MovingBar):
            bar.progress.live.transient = True
        self.reporter.close(bar)


class LoggingReporter(SilentReporter):
    """Messages and results in the log of Python's `logging`; no bars and no events.

    A record names the function that reported the message, not this class.
    """

    def message(self, text: str) -> None:
        logger.info("%s", _escape(text.strip("\n")), stacklevel=3)

    def warning(self, text: str) -> None:
        logger.warning("%s", _escape(text.strip("\n")), stacklevel=3)

    def error(self, text: str) -> None:
        logger.error("%s", _escape(text.strip("\n")), stacklevel=3)

    def result(self, text: str) -> None:
        logger.info("%s", _escape(text), stacklevel=3)


MODES: dict[str, type[Reporter]] = {"bar": TerminalReporter, "json": JsonReporter, "off": LoggingReporter}

# The reporter of all threads; None until one is chosen.
_library_reporter: Reporter | None = None
# The reporter of a `use_reporter` block, which other threads do not see.
_block_reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


def progress(mode: Literal["bar", "json", "off"]) -> None:
    """Choose how all later calls report their progress, in every thread.

    Messages and bars are for people, events for programs. The default is "off", and "bar" in a
    notebook.

    Args:
        mode: "bar" writes messages and bars to standard error, and in a notebook shows one line
            that is redrawn; "json" writes events to standard output, one JSON object per line;
            "off" writes nothing: messages go to the logger `ikebana`.
    Raises:
        RecipeError: there is no such mode.
    """
    if mode not in MODES:
        raise RecipeError(
            f"there is no progress mode {mode!r}", advice=" or ".join(f'ikebana.progress("{name}")' for name in MODES)
        )
    set_reporter(None if mode == "bar" and _is_notebook() else MODES[mode]())


def set_reporter(reporter: Reporter | None) -> Reporter | None:
    """Use this reporter from now on, in every thread; return the previous one."""
    global _library_reporter
    previous, _library_reporter = _library_reporter, reporter
    return previous


@contextmanager
def use_reporter(reporter: Reporter) -> Iterator[None]:
    """Use another reporter within this block, in this thread only."""
    token = _block_reporter.set(reporter)
    try:
        yield
    finally:
        _block_reporter.reset(token)


@contextmanager
def without_messages() -> Iterator[None]:
    """Report warnings, errors, events and long stages within this block, but no messages."""
    with use_reporter(BriefReporter(_get_reporter())):
        yield


@contextmanager
def listen(on_event: Callable[[dict[str, Any]], object]) -> Iterator[None]:
    """Call a function with each event of ikebana's calls within this block, in this thread.

    The events are those that the command line prints with `--json`: docs/fit.md lists them. What else
    is reported stays as it is. An exception in the function ends the call that reported the event.

    Args:
        on_event: gets a dictionary: the name under "event", and the values of the event.
    """
    with use_reporter(CombinedReporter([_get_reporter(), EventReporter(on_event)])):
        yield


def _get_reporter() -> Reporter:
    return _block_reporter.get() or _library_reporter or _default_reporter()


@functools.cache
def _default_reporter() -> Reporter:
    """Return what reports until the user chooses: the line of a notebook, or the log."""
    if not _is_notebook():
        return LoggingReporter()
    from ikebana.system.notebook_progress import NotebookReporter

    return NotebookReporter()


def _is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook. IPython is not imported."""
    return "ipykernel.kernelapp" in sys.modules


def message(text: str) -> None:
    """Report a message to the user."""
    _get_reporter().message(text)


def warn(text: str) -> None:
    """Report a message about something that the user may have to act on."""
    _get_reporter().warning(text)


def error(text: str) -> None:
    """Report the error that ends a command."""
    _get_reporter().error(text)


def event(name: str, **values: Any) -> None:
    """Report a fact to programs."""
    _get_reporter().event(name, **values)


def result(text: str) -> None:
    """Report the result, the last line of standard output, for scripts."""
    _get_reporter().result(text)


def show_loading() -> None:
    """Show in a terminal that libraries are loading; the next output replaces the text."""
    if isinstance(_get_reporter(), TerminalReporter) and sys.stderr.isatty():
        print(LOADING_TEXT, end="", file=sys.stderr, flush=True)


def _clear_line() -> str:
    """Return what overwrites the loading text in a terminal."""
    return f"\r{'':{len(LOADING_TEXT)}}\r" if sys.stderr.isatty() else ""


@contextmanager
def stage(name: str, total: int, unit: str = "photos") -> Iterator[Bar]:
    """Open a bar for a long task; it is closed if the task is interrupted.

    Args:
        total: number of units; 0 if unknown.
    """
    reporter = _get_reporter()
    bar = reporter.open(name, total, unit)
    try:
        yield bar
    finally:
        reporter.close(bar)


class Stopwatch:
    """Seconds per stage of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.since = time.perf_counter()

    def lap(self, name: str, min_seconds: float = 0.0) -> None:
        """Add the time since the last lap to this stage.

        Args:
            min_seconds: seconds known from epochs, some of them perhaps before a resume.
        """
        now = time.perf_counter()
        self.seconds[name] = round(max(self.seconds.get(name, 0.0) + now - self.since, min_seconds), 3)
        self.since = now


def escape_control_character(character: re.Match[str]) -> str:
    """Escape a control character, as in \\x1b: file and class names are untrusted."""
    return f"\\x{ord(character[0]):02x}"


def _escape(text: str) -> str:
    return CONTROL_CHARACTERS.sub(escape_control_character, text)
