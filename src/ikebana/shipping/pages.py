"""The page's files, and what the page is told of the classifier: the same for the server and for a folder that stands alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

FOLDER = Path(__file__).with_name("page")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
COMMON = ("page.css", "page.js", "photos.js", "cards.js", "icon.svg")  # of the page, whatever engine is behind it
SERVED = ("engine-server.js", "docs.js")
ALONE = ("engine-browser.js", "engine-worker.js")

# What the browser may do on our pages: nothing comes from elsewhere, nothing goes elsewhere, no script stands in the page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Told(Protocol):
    """The part of a classifier that the page speaks of."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def about(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Facts:
    """What the page says about the classifier before it has seen a photo."""

    classes: list[str]
    threshold: float | None  # the confidence below which the answer is "not sure"
    accuracy: float | None  # of the network that was scored, on photos that it had not seen
    accuracy_interval: list[float] | None  # 95 %
    photos: int | None  # how many these were
    note: str  # what one must know to read the score rightly: another network ships than was scored; "" if nothing


def facts(classifier: Told) -> Facts:
    """Of a file whose metadata may come from anybody: what is not as it should be is left out."""
    scores = classifier.about.get("scores")
    scores = scores if isinstance(scores, Mapping) else {}
    accuracy, photos, interval = (scores.get(name) for name in ("accuracy", "n", "accuracy_interval"))
    whole = _share(accuracy) and type(photos) is int and photos > 0
    note = scores.get("note")
    ends = whole and isinstance(interval, list | tuple) and len(interval) == 2 and all(map(_share, interval))
    return Facts(
        list(classifier.classes),
        classifier.threshold,
        accuracy if whole else None,
        [float(end) for end in interval] if ends and isinstance(interval, list | tuple) else None,
        photos if whole else None,
        note if whole and isinstance(note, str) else "",
    )


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def read(name: str) -> bytes:
    """A file of the page."""
    return (FOLDER / name).read_bytes()


def kind(name: str) -> str:
    """Its content type."""
    return KINDS[Path(name).suffix]
