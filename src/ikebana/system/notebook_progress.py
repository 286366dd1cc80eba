"""Progress in a notebook: one line below the cell, redrawn in place.

Standard error would be pink, and each bar would stay in the notebook. When the cell ends, the line
says how long it took.
"""

import time
from typing import Any

from ikebana.system.notebook_html import Markup, escape, render_paragraph
from ikebana.system.progress import LoggingReporter
from ikebana.system.progress_bars import Bar, format_scores, format_time_left

# Calls shorter than this show nothing.
MIN_SHOWN_SECONDS = 0.5
# Between two redraws, at least: each is a message to the browser, and notebooks keep them.
MIN_REDRAW_SECONDS = 0.25
AFTER_CELL = "post_run_cell"


class CellLine:
    """The line below the cell that is running."""

    def __init__(self) -> None:
        self.shell = _get_shell()
        self.started_at = time.monotonic()
        self.drawn_at, self.handle = 0.0, None
        # Not `execution_count`, which stays the same for cells that are not stored.
        self.shell.events.register(AFTER_CELL, self.finish)

    def show(self, markup: str, text: str, *, is_final: bool = False) -> None:
        """Draw the line, unless it was drawn just before.

        Args:
            text: what a notebook without HTML shows.
        """
        now = time.monotonic()
        is_early = now - self.started_at < MIN_SHOWN_SECONDS or now - self.drawn_at < MIN_REDRAW_SECONDS
        if is_early and not is_final:
            return
        from IPython.display import display

        content = {"text/html": markup, "text/plain": text}
        if self.handle is None:
            self.handle = display(content, raw=True, display_id=True)
        else:
            self.handle.update(content, raw=True)
        self.drawn_at = now

    def finish(self, outcome: Any = None) -> None:
        """Replace the line by how long the cell took; called when the cell ends."""
        self.shell.events.unregister(AFTER_CELL, self.finish)
        if self.handle is not None:
            word = "done in" if outcome is None or outcome.success else "stopped after"
            text = f"{word} {time.monotonic() - self.started_at:.1f} s"
            self.show(render_paragraph(text, is_quiet=True), text, is_final=True)
        NotebookReporter.line = None


class NotebookBar:
    """A stage, shown in the line of the cell."""

    def __init__(self, line: CellLine, name: str, total: int):
        self.line, self.name, self.total = line, name, total
        self.started_at, self.done, self.scores = time.monotonic(), 0, ""

    def advance(self, done: int, **scores: float | str) -> None:
        self.done += done
        self.scores = format_scores(scores) or self.scores
        self.draw()

    def draw(self) -> None:
        """Draw name, bar, share, time left and scores."""
        share = min(self.done / self.total, 1.0) if self.total else None
        elapsed = time.monotonic() - self.started_at
        facts = (
            f"{share:.0%}" if share is not None else f"{self.done:,}",
            format_time_left(self.done, self.total, elapsed),
            self.scores,
        )
        words = "   ".join(fact for fact in facts if fact)
        value = "" if share is None else f' value="{share:.3f}"'
        bar = f'<progress max="1"{value} aria-label="{escape(self.name)}" style="width:12em"></progress>'
        style = "display:inline-block;min-width:11em"
        head = f'<span style="{style}">{escape(self.name)}</span>'
        tail = f'<span style="white-space:pre;font-variant-numeric:tabular-nums"> {escape(words)}</span>'
        self.line.show(Markup(f'<p style="margin:.3em 0">{head}{bar}{tail}</p>'), f"{self.name}: {words}")


class NotebookReporter(LoggingReporter):
    """A line below the cell for stages; warnings are shown, messages are logged."""

    # One per process, as notebooks run one cell at a time.
    line: CellLine | None = None

    def warning(self, text: str) -> None:
        super().warning(text)
        from IPython.display import display

        display({"text/html": str(render_paragraph(text)), "text/plain": text}, raw=True)

    def open(self, name: str, total: int, unit: str) -> Bar:
        if NotebookReporter.line is None:
            NotebookReporter.line = CellLine()
        bar = NotebookBar(NotebookReporter.line, name, total)
        bar.draw()
        return bar


def _get_shell() -> Any:
    from IPython import get_ipython

    return get_ipython()
