"""Progress bars for people and events for programs.

Besides `cli` the only module that writes to the terminal. A long task opens a `stage` and advances
its bar. This module decides the output:

    Python                nothing; messages go to the logger `ikebana`
    a terminal            a moving bar on standard error
    a log file            a line on standard error every ten seconds and at the end of the stage
    a program (`--json`)  one JSON object per line on standard output

The command line chooses one of the last three. In Python, `ikebana.progress` does.
Otherwise standard output contains only the result, so that a script can read it.
"""

import json
import logging
import math
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, Protocol

from ikebana.errors import RecipeError
from ikebana.system.terminal_size import MIN_COLUMNS

LOADING_TEXT = "loading PyTorch ..."
# All control characters except tab and newline.
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Units that have a rate, such as photos/s; a rate of 2 steps says nothing.
RATE_UNITS = frozenset(("photos", "files", "kB"))
# A narrower terminal has no room for the rate.
WIDE_COLUMNS = 100
SHORT_NAMES = {"accuracy": "acc", "val_accuracy": "val"}
# Interval between the lines of a bar in a log file.
LINE_SECONDS = 10.0

logger = logging.getLogger("ikebana")
# Without a handler of the user's, Python would print warnings on standard error.
logger.addHandler(logging.NullHandler())


class Bar(Protocol):
    """The progress of one stage."""

    def advance(self, done: int, **scores: float | str) -> None: ...


class Reporter(Protocol):
    """An output format for messages, warnings, events, results and bars."""

    def message(self, text: str) -> None: ...
    def warning(self, text: str) -> None: ...
    def error(self, text: str) -> None: ...
    def event(self, name: str, **values: Any) -> None: ...
    def result(self, text: str) -> None: ...
    def open(self, name: str, total: int, unit: str) -> Bar: ...
    def close(self, bar: Bar) -> None: ...


class MovingBar:
    """A bar that rich redraws in a terminal."""

    def __init__(self, name: str, total: int, unit: str):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.table import Column

        self.unit = unit
        self.started = time.monotonic()
        self.done, self.scores = 0, ""
        console = Console(stderr=True)
        # Python programs may have a COLUMNS that the command line would correct.
        if console.width < MIN_COLUMNS:  # noqa: PLR1730 -- a width that was set no longer follows the window
            console.width = MIN_COLUMNS
        self.is_wide = console.width >= WIDE_COLUMNS
        # The time left is never shortened: a narrow terminal has no speed, and scores with short names.
        time_column = Column(no_wrap=True, min_width=len("0:00:00"))
        columns = [
            TextColumn("{task.description:<18}" if self.is_wide else "{task.description:<16}", markup=False),
            BarColumn(bar_width=24 if self.is_wide else 10),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=time_column),
            *([TextColumn("{task.fields[speed]}")] if self.is_wide else []),
            TextColumn("{task.fields[scores]}", table_column=Column(no_wrap=True, overflow="crop")),
        ]
        self.progress = Progress(*columns, console=console, refresh_per_second=5)
        self.task = self.progress.add_task(name, total=total or None, speed="", scores="")
        self.progress.start()

    def advance(self, done: int, **scores: float | str) -> None:
        self.done += done
        speed = _format_speed(self.done, time.monotonic() - self.started, self.unit)
        self.scores = _format_scores(scores, short=not self.is_wide) or self.scores
        self.progress.update(self.task, advance=done, speed=speed, scores=self.scores)

    def close(self) -> None:
        self.progress.stop()


class PlainBar:
    """A bar for a log file, where nothing can be redrawn."""

    def __init__(self, name: str, total: int, unit: str):
        self.name, self.total, self.unit = name, total, unit
        self.done, self.printed_done, self.scores = 0, -1, ""
        self.started = self.printed_time = time.monotonic()

    def advance(self, done: int, **scores: float | str) -> None:
        self.done += done
        self.scores = _format_scores(scores) or self.scores
        if time.monotonic() - self.printed_time > LINE_SECONDS:
            self.print()

    def print(self) -> None:
        self.printed_time, self.printed_done = time.monotonic(), self.done
        elapsed = self.printed_time - self.started
        remaining = elapsed * (self.total - self.done) / max(self.done, 1)
        ending = f"{remaining:.0f} s left" if self.done < self.total else f"{elapsed:.1f} s"
        count = f"{self.done}/{self.total}" if self.total else f"{self.done}"
        speed = _format_speed(self.done, elapsed, self.unit)
        columns = [f"{self.name}: {count} {self.unit}", speed, ending, self.scores]
        print("  ".join(column for column in columns if column), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.done != self.printed_done:
            self.print()


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
        return (MovingBar if sys.stderr.isatty() or _in_notebook() else PlainBar)(name, total, unit)

    def close(self, bar: Bar) -> None:
        if isinstance(bar, MovingBar | PlainBar):
            bar.close()


class EventBar:
    """A bar that emits events, at most two per second."""

    def __init__(self, reporter: "JsonReporter", name: str, total: int, unit: str):
        self.reporter, self.name, self.total, self.unit = reporter, name, total, unit
        self.done, self.emitted_time = 0, 0.0
        self.scores: dict[str, float | str] = {}

    def advance(self, done: int, **scores: float | str) -> None:
        self.done += done
        self.scores = scores or self.scores
        if time.monotonic() - self.emitted_time > 0.5 or (self.total and self.done >= self.total):
            self.emitted_time = time.monotonic()
            self.reporter.event(
                "progress", stage=self.name, done=self.done, total=self.total, unit=self.unit, **self.scores
            )


class JsonReporter:
    """One JSON object per line on standard output."""

    def message(self, text: str) -> None:
        self.event("message", text=text)

    def warning(self, text: str) -> None:
        self.message(text)

    def error(self, text: str) -> None:
        self.message(text)

    def event(self, name: str, **values: Any) -> None:
        # One write per line: Ctrl-C between a line and its newline would merge two events.
        line = json.dumps(_replace_nan({"event": name, **values}), ensure_ascii=False, allow_nan=False)
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def result(self, text: str) -> None:
        """Print nothing: the last event, `done`, contains the result."""

    def open(self, name: str, total: int, unit: str) -> Bar:
        self.event("stage", stage=name, total=total, unit=unit)
        return EventBar(self, name, total, unit)

    def close(self, bar: Bar) -> None:
        if isinstance(bar, EventBar):
            self.event("stage_end", stage=bar.name, done=bar.done)


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

# The reporter of all threads.
_library_reporter: Reporter = LoggingReporter()
# The reporter of a `use_reporter` block, which other threads do not see.
_block_reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


def progress(mode: Literal["bar", "json", "off"]) -> None:
    """Choose how all later calls report their progress, in every thread.

    Messages and bars are for people, events for programs. The default in Python is "off".

    Args:
        mode: "bar" writes messages and bars to standard error; "json" writes events to standard
            output, one JSON object per line; "off" writes nothing: messages go to the logger `ikebana`.
    Raises:
        RecipeError: there is no such mode.
    """
    if mode not in MODES:
        raise RecipeError(
            f"there is no progress mode {mode!r}", advice=" or ".join(f'ikebana.progress("{name}")' for name in MODES)
        )
    set_reporter(MODES[mode]())


def set_reporter(reporter: Reporter) -> Reporter:
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


def _get_reporter() -> Reporter:
    return _block_reporter.get() or _library_reporter


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


def _replace_nan(value: Any) -> Any:
    """Replace NaN and infinity by None, as JSON has neither."""
    if isinstance(value, dict):
        return {key: _replace_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _format_speed(done: int, elapsed: float, unit: str) -> str:
    """Format the rate of units that are many and alike; others have none."""
    has_rate = unit in RATE_UNITS and elapsed > 0.2 and done
    return f"{format_rate(done / elapsed)} {unit}/s" if has_rate else ""


def format_rate(per_second: float) -> str:
    """Format a rate, with a decimal below 10."""
    return f"{per_second:,.{1 if per_second < 10 else 0}f}"


def _format_scores(scores: dict[str, float | str], *, short: bool = False) -> str:
    texts = (
        f"{SHORT_NAMES.get(name, name) if short else name.replace('_', ' ')} "
        + (f"{value:.{2 if short else 3}f}" if isinstance(value, float) else f"{value}")
        for name, value in scores.items()
    )
    return "  ".join(texts)


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules
