"""Progress bars of the command line, for a terminal and for a log file."""

import sys
import time
from typing import Protocol

from ikebana.system.terminal_size import MIN_COLUMNS

# Units that have a rate, such as photos/s; a rate of 2 steps says nothing.
RATE_UNITS = frozenset(("photos", "files", "kB"))
# A narrower terminal has no room for the rate.
WIDE_COLUMNS = 100
SHORT_NAMES = {"accuracy": "acc", "val_accuracy": "val"}
# Interval between the lines of a bar in a log file.
LINE_SECONDS = 10.0


class Bar(Protocol):
    """The progress of one stage."""

    def advance(self, done: int, **scores: float | str) -> None: ...


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
        speed = format_speed(self.done, time.monotonic() - self.started, self.unit)
        self.scores = format_scores(scores, short=not self.is_wide) or self.scores
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
        self.scores = format_scores(scores) or self.scores
        if self.done != self.printed_done and time.monotonic() - self.printed_time > LINE_SECONDS:
            self.print()

    def print(self) -> None:
        self.printed_time, self.printed_done = time.monotonic(), self.done
        elapsed = self.printed_time - self.started
        ending = f"{elapsed:.1f} s"
        if self.done < self.total:
            # Before the first result, the time left is not known.
            ending = f"{elapsed * (self.total - self.done) / self.done:.0f} s left" if self.done else ""
        count = f"{self.done}/{self.total}" if self.total else f"{self.done}"
        speed = format_speed(self.done, elapsed, self.unit)
        unit = self.unit.removesuffix("s") if (self.total or self.done) == 1 else self.unit
        columns = [f"{self.name}: {count} {unit}", speed, ending, self.scores]
        print("  ".join(column for column in columns if column), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.done != self.printed_done:
            self.print()


def format_speed(done: int, elapsed: float, unit: str) -> str:
    """Format the rate of units that are many and alike; others have none."""
    has_rate = unit in RATE_UNITS and elapsed > 0.2 and done
    return f"{format_rate(done / elapsed)} {unit}/s" if has_rate else ""


def format_rate(per_second: float) -> str:
    """Format a rate, with a decimal below 10."""
    return f"{per_second:,.{1 if per_second < 10 else 0}f}"


def format_scores(scores: dict[str, float | str], *, short: bool = False) -> str:
    texts = (
        f"{SHORT_NAMES.get(name, name) if short else name.replace('_', ' ')} "
        + (f"{value:.{2 if short else 3}f}" if isinstance(value, float) else f"{value}")
        for name, value in scores.items()
    )
    return "  ".join(texts)


def format_time_left(done: int, total: int, elapsed: float) -> str:
    """Format the time that the rest will take; "" if that is not known yet."""
    if not 0 < done < total or elapsed < 1:
        return ""
    left = round(elapsed * (total - done) / done)
    return f"{left // 60}:{left % 60:02d} left" if left < 3600 else f"{left // 3600}:{left // 60 % 60:02d} h left"
