"""What the live page shows: the state of a training, built from its events."""

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

from ikebana.reports import pages
from ikebana.system.progress_bars import format_time_left

TEMPLATE, PART_TEMPLATE = "live.html.jinja", "live_part.html.jinja"
# Parts of the page that are redrawn on their own, by the names of their elements.
PARTS: tuple[str, ...] = ("title", "state", "curves", "epochs", "messages")
MAX_MESSAGES = 30
# Epochs in the table, the last ones first.
MAX_SHOWN_EPOCHS = 200
# A redraw of the curves takes about 0.1 s of a processor that the training wants.
MIN_CURVES_INTERVAL_SECONDS = 2.0


class LiveState:
    """The state of a training; one thread reports events, others render parts of the page."""

    def __init__(self) -> None:
        self.lock, self.render_lock = threading.Lock(), threading.Lock()
        self.versions = dict.fromkeys(PARTS, 1)
        self.rendered: dict[str, tuple[int, str]] = {}
        self.curves_drawn_at = -MIN_CURVES_INTERVAL_SECONDS
        self.outcome, self.error = "running", ""
        self.has_report = False
        self.messages: deque[str] = deque(maxlen=MAX_MESSAGES)
        self._start({})

    def _start(self, event: Mapping[str, Any]) -> None:
        self.run = {"folder": "", "photos": "", "classes": [], "recipe": {}} | dict(event)
        self.epochs: list[dict[str, Any]] = []
        self.evaluation: dict[str, Any] = {}
        self.stage: dict[str, Any] = {"stage": ""}
        self.stage_started_at = time.monotonic()

    def on_event(self, event: dict[str, Any]) -> None:
        """Take over what an event reports."""
        name = event["event"]
        with self.lock:
            changed = ["state"]
            # The title changes with the run only.
            if name == "run":
                self._start(event)
                changed = list(PARTS)
            elif name == "stage":
                self.stage, self.stage_started_at = event | {"done": 0}, time.monotonic()
            elif name == "progress":
                self.stage = event
            elif name == "epoch":
                self.epochs.append(event)
                changed = ["epochs", "curves"]
            elif name == "evaluation":
                self.evaluation = event
            elif name == "message":
                self.messages.append(event["text"].strip())
                changed = ["messages"]
            for part in changed:
                self.versions[part] += 1

    def finish(self, outcome: str, error: str = "", *, has_report: bool = False) -> None:
        """Record how the call ended.

        Args:
            outcome: "finished", "stopped" or "failed".
            has_report: whether the run has a report to link to.
        """
        with self.lock:
            self.outcome, self.error, self.has_report = outcome, error, has_report
            for part in PARTS:
                self.versions[part] += 1

    @property
    def is_over(self) -> bool:
        return self.outcome != "running"

    def render_page(self, nonce: str) -> str:
        """Render the whole page.

        Args:
            nonce: allows the page's own script, and no other.
        """
        parts = {name: self.render(name)[1] for name in PARTS}
        return pages.render(TEMPLATE, parts=parts, nonce=nonce, is_over=self.is_over)

    def render(self, part: str) -> tuple[int, str]:
        """Render a part of the page, or return it as it was rendered last.

        Returns:
            Its version and its HTML.
        """
        with self.render_lock:
            version, is_due = self.versions[part], True
            known = self.rendered.get(part)
            if part == "curves" and not self.is_over:
                is_due = time.monotonic() - self.curves_drawn_at > MIN_CURVES_INTERVAL_SECONDS
            if known is None or (known[0] != version and is_due):
                self.rendered[part] = version, self._render(part)
            return self.rendered[part]

    def _render(self, part: str) -> str:
        with self.lock:
            epochs, stage, messages = list(self.epochs), dict(self.stage), list(self.messages)
        if part == "title":
            return str(escape(self._describe_run()))
        context: dict[str, Any] = {"part": part, "outcome": self.outcome, "error": self.error, "run": self.run}
        context |= {"stage": stage, "share": None, "time_left": "", "evaluation": self.evaluation}
        if stage.get("total"):
            elapsed = time.monotonic() - self.stage_started_at
            context["share"] = min(stage["done"] / stage["total"], 1.0)
            context["time_left"] = format_time_left(stage["done"], stage["total"], elapsed)
        context |= {"epochs": epochs[: -MAX_SHOWN_EPOCHS - 1 : -1], "epoch_count": len(epochs)}
        context |= {"messages": messages[::-1], "has_report": self.has_report, "curves": ""}
        if part == "curves" and epochs:
            context["curves"] = self._draw_curves(epochs)
        return pages.render(PART_TEMPLATE, **context)

    def _draw_curves(self, epochs: list[dict[str, Any]]) -> Any:
        """Draw the curves as SVG, which the page may contain as it is."""
        # SVG of our own, whose texts are escaped.
        from ikebana.reports.curves import make_curves
        from ikebana.reports.sheet import to_svg

        numbered = [epoch | {"epoch": number} for number, epoch in enumerate(epochs, 1)]
        self.curves_drawn_at = time.monotonic()
        note = "" if self.is_over else "The training goes on, so another epoch may become the last or the best."
        return Markup(to_svg(make_curves(numbered, note=note), "loss and accuracy per epoch"))

    def _describe_run(self) -> str:
        recipe = self.run["recipe"].get("name")
        return f"{recipe} on {self.run['photos']}" if recipe else "Training"
