"""Events: what programs read instead of progress bars and messages."""

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ikebana.system.progress_bars import Bar


class Reporter(Protocol):
    """An output format for messages, warnings, events, results and bars."""

    def message(self, text: str) -> None: ...
    def warning(self, text: str) -> None: ...
    def error(self, text: str) -> None: ...
    def event(self, name: str, **values: Any) -> None: ...
    def result(self, text: str) -> None: ...
    def open(self, name: str, total: int, unit: str) -> Bar: ...
    def close(self, bar: Bar) -> None: ...


class EventBar:
    """A bar that emits events, at most two per second."""

    def __init__(self, reporter: "EventReporter", name: str, total: int, unit: str):
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


class EventReporter:
    """Calls a function with each event, a dictionary of values that JSON has."""

    def __init__(self, on_event: Callable[[dict[str, Any]], object]):
        self.on_event = on_event

    def message(self, text: str) -> None:
        self.event("message", text=text)

    def warning(self, text: str) -> None:
        self.message(text)

    def error(self, text: str) -> None:
        self.message(text)

    def event(self, name: str, **values: Any) -> None:
        self.on_event(replace_nan({"event": name, **values}))

    def result(self, text: str) -> None:
        """Report nothing: the last event, `done`, contains the result."""

    def open(self, name: str, total: int, unit: str) -> Bar:
        self.event("stage", stage=name, total=total, unit=unit)
        return EventBar(self, name, total, unit)

    def close(self, bar: Bar) -> None:
        if isinstance(bar, EventBar):
            self.event("stage_end", stage=bar.name, done=bar.done)


class JsonReporter(EventReporter):
    """One JSON object per line on standard output."""

    def __init__(self) -> None:
        super().__init__(_print_event)


def _print_event(event: dict[str, Any]) -> None:
    # One write per line: Ctrl-C between a line and its newline would merge two events.
    line = json.dumps(event, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class CombinedBar:
    """The bars of several reporters for one stage."""

    def __init__(self, bars: Sequence[Bar]):
        self.bars = bars

    def advance(self, done: int, **scores: float | str) -> None:
        for bar in self.bars:
            bar.advance(done, **scores)


class CombinedReporter:
    """Reports everything to several reporters."""

    def __init__(self, reporters: Sequence[Reporter]):
        self.reporters = reporters

    def message(self, text: str) -> None:
        for reporter in self.reporters:
            reporter.message(text)

    def warning(self, text: str) -> None:
        for reporter in self.reporters:
            reporter.warning(text)

    def error(self, text: str) -> None:
        for reporter in self.reporters:
            reporter.error(text)

    def event(self, name: str, **values: Any) -> None:
        for reporter in self.reporters:
            reporter.event(name, **values)

    def result(self, text: str) -> None:
        for reporter in self.reporters:
            reporter.result(text)

    def open(self, name: str, total: int, unit: str) -> Bar:
        return CombinedBar([reporter.open(name, total, unit) for reporter in self.reporters])

    def close(self, bar: Bar) -> None:
        if isinstance(bar, CombinedBar):
            for reporter, of_reporter in zip(self.reporters, bar.bars, strict=True):
                reporter.close(of_reporter)


def replace_nan(value: Any) -> Any:
    """Replace NaN and infinity by None, as JSON has neither."""
    if isinstance(value, dict):
        return {key: replace_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
