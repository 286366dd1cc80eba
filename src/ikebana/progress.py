"""Bars for people, events for programs; besides `cli` the only module that writes to the terminal.

Whoever works through something long opens a `stage` and advances its bar; what that looks like is decided here, once:

    people in a terminal    a moving bar on standard error
    people in a log file    a line on standard error every ten seconds and at the stage's end
    programs (`--json`)     one JSON object a line on standard output

Standard output otherwise carries the result alone, so that a script can read it.
"""

import json
import math
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

LOADING = "loading PyTorch ..."
COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all control letters but the tab and the end of a line
LINE_SECONDS = 10.0  # how often a bar that cannot move prints a line


class Bar(Protocol):
    """A long piece of work, seen from within."""

    def advance(self, done: int, **scores: float | str) -> None: ...


class Audience(Protocol):
    """Who is told, and how."""

    def say(self, text: str) -> None: ...
    def event(self, name: str, **values: Any) -> None: ...
    def result(self, text: str) -> None: ...
    def open(self, name: str, total: int, unit: str) -> Bar: ...
    def close(self, bar: Bar) -> None: ...


class MovingBar:
    """A bar that rich redraws."""

    def __init__(self, name: str, total: int, unit: str):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self.unit = unit
        self.begun = time.monotonic()
        self.done, self.scores = 0, ""
        self.progress = Progress(
            TextColumn("{task.description:<18}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[scores]}"),
            console=Console(stderr=True),
            refresh_per_second=5,
        )
        self.task = self.progress.add_task(name, total=total or None, speed="", scores="")
        self.progress.start()

    def advance(self, done: int, **scores: float | str) -> None:
        self.done += done
        speed = _speed(self.done, time.monotonic() - self.begun, self.unit)
        self.scores = _written(scores) or self.scores
        self.progress.update(self.task, advance=done, speed=speed, scores=self.scores)

    def close(self) -> None:
        self.progress.stop()


class PlainBar:
    """The same for a log file, where nothing can be redrawn."""

    def __init__(self, name: str, total: int, unit: str):
        self.name, self.total, self.unit = name, total, unit
        self.done, self.told, self.scores = 0, -1, ""
        self.begun = self.printed = time.monotonic()

    def advance(self, done: int, **scores: float | str) -> None:
        self.done += done
        self.scores = _written(scores) or self.scores
        if time.monotonic() - self.printed > LINE_SECONDS:
            self.print()

    def print(self) -> None:
        self.printed, self.told = time.monotonic(), self.done
        elapsed = self.printed - self.begun
        left = elapsed * (self.total - self.done) / max(self.done, 1)
        ending = f"{left:.0f} s left" if self.done < self.total else f"{elapsed:.1f} s"
        counted = f"{self.done}/{self.total}" if self.total else f"{self.done}"
        parts = [f"{self.name}: {counted} {self.unit}", _speed(self.done, elapsed, self.unit), ending, self.scores]
        print("  ".join(part for part in parts if part), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.done != self.told:
            self.print()


class People:
    """Words and bars on standard error, the result on standard output."""

    def say(self, text: str) -> None:
        print(_line() + COMMANDS.sub(spelled, text), file=sys.stderr, flush=True)

    def event(self, name: str, **values: Any) -> None:
        """People read the bar and the words; the events repeat them for programs."""

    def result(self, text: str) -> None:
        print(text, flush=True)

    def open(self, name: str, total: int, unit: str) -> Bar:
        print(_line(), end="", file=sys.stderr)
        return (MovingBar if sys.stderr.isatty() or _in_notebook() else PlainBar)(name, total, unit)

    def close(self, bar: Bar) -> None:
        if isinstance(bar, MovingBar | PlainBar):
            bar.close()


class EventBar:
    """The progress of a stage as events, at most two a second."""

    def __init__(self, tell: "Programs", name: str, total: int, unit: str):
        self.tell, self.name, self.total, self.unit = tell, name, total, unit
        self.done, self.told = 0, 0.0
        self.scores: dict[str, float | str] = {}

    def advance(self, done: int, **scores: float | str) -> None:
        self.done += done
        self.scores = scores or self.scores
        if time.monotonic() - self.told > 0.5 or (self.total and self.done >= self.total):
            self.told = time.monotonic()
            self.tell.event(
                "progress", stage=self.name, done=self.done, total=self.total, unit=self.unit, **self.scores
            )


class Programs:
    """One JSON object a line on standard output."""

    def say(self, text: str) -> None:
        self.event("message", text=text)

    def event(self, name: str, **values: Any) -> None:
        # In one piece: Ctrl-C between a line and its end would run two events together.
        sys.stdout.write(json.dumps(_plain({"event": name, **values}), ensure_ascii=False, allow_nan=False) + "\n")
        sys.stdout.flush()

    def result(self, text: str) -> None:
        """The last event, `done`, carries the result."""

    def open(self, name: str, total: int, unit: str) -> Bar:
        self.event("stage", stage=name, total=total, unit=unit)
        return EventBar(self, name, total, unit)

    def close(self, bar: Bar) -> None:
        if isinstance(bar, EventBar):
            self.event("stage_end", stage=bar.name, done=bar.done)


class Silence:
    """For whoever wants neither."""

    def say(self, text: str) -> None: ...
    def event(self, name: str, **values: Any) -> None: ...
    def result(self, text: str) -> None: ...
    def open(self, name: str, total: int, unit: str) -> Bar:
        return self

    def close(self, bar: Bar) -> None: ...
    def advance(self, done: int, **scores: float | str) -> None: ...


_audience: ContextVar[Audience] = ContextVar("audience", default=People())  # noqa: B039  (it holds no state)


@contextmanager
def audience(listening: Audience) -> Iterator[None]:
    """Within this block, tell these instead."""
    token = _audience.set(listening)
    try:
        yield
    finally:
        _audience.reset(token)


def listen(listening: Audience) -> None:
    """From now on, tell these."""
    _audience.set(listening)


def say(text: str) -> None:
    """A sentence for the user."""
    _audience.get().say(text)


def event(name: str, **values: Any) -> None:
    """A fact for programs."""
    _audience.get().event(name, **values)


def result(text: str) -> None:
    """What a script reads: the last line of standard output."""
    _audience.get().result(text)


def loading() -> None:
    """Tell people in a terminal that libraries load, for some seconds; what is said next takes the place of these words."""
    if isinstance(_audience.get(), People) and sys.stderr.isatty():
        print(LOADING, end="", file=sys.stderr, flush=True)


def _line() -> str:
    """The beginning of a line of the terminal that says nothing yet."""
    return f"\r{'':{len(LOADING)}}\r" if sys.stderr.isatty() else ""


@contextmanager
def stage(name: str, total: int, unit: str = "photos") -> Iterator[Bar]:
    """A long piece of work with a bar; the bar is left in a sane state if the work is cut short.

    total  how many units there are to do; 0 if nobody knows
    """
    listening = _audience.get()
    bar = listening.open(name, total, unit)
    try:
        yield bar
    finally:
        listening.close(bar)


class Stopwatch:
    """How long each stage of a run took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.since = time.perf_counter()

    def lap(self, name: str, at_least: float = 0.0) -> None:
        """The time since the last lap belongs to this stage.

        at_least  seconds that it is known to have taken, part of them perhaps in a process that was stopped
        """
        now = time.perf_counter()
        self.seconds[name] = round(max(self.seconds.get(name, 0.0) + now - self.since, at_least), 3)
        self.since = now


def spelled(command: re.Match[str]) -> str:
    """A letter that a terminal would obey, as \\x1b say: names of files and classes may come from anybody."""
    return f"\\x{ord(command[0]):02x}"


def _plain(value: Any) -> Any:
    """The same with null for what is no number: no JSON reader takes NaN."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _speed(done: int, elapsed: float, unit: str) -> str:
    return f"{done / elapsed:,.0f} {unit}/s" if elapsed > 0.2 and done else ""


def _written(scores: dict[str, float | str]) -> str:
    return "  ".join(
        f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in scores.items()
    )


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules
