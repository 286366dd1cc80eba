"""The page's files and its summary of the classifier, served or in a web folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ikebana.evaluation.candidate_sets import CandidateRule
from ikebana.inference.neighbours import NeighbourIndex

PAGE_FOLDER = Path(__file__).with_name("page")
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Files of the page with either engine, with the server's engine only, and with the browser's only.
COMMON_FILES = (
    "palette.css",
    "page.css",
    "page.js",
    "photos.js",
    "cards.js",
    "neighbours.js",
    "results.js",
    "icon.svg",
)
SERVER_FILES = ("engine-server.js", "docs.js")
STANDALONE_FILES = ("engine-browser.js", "engine-worker.js", "file-notice.js")

# The pages load from and connect to their own origin only, and contain no inline scripts.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class ClassifierDescription(Protocol):
    """The part of a classifier that the page describes."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def candidate_rule(self) -> CandidateRule | None: ...
    @property
    def familiarity_threshold(self) -> float | None: ...
    @property
    def neighbour_index(self) -> NeighbourIndex | None: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class ClassifierSummary:
    """The summary of the classifier that the page shows before the first photo."""

    classes: list[str]
    # The confidence below which the prediction is "not sure".
    threshold: float | None
    # The limits of the candidate classes; None if there are none.
    candidates: CandidateRule | None
    # The familiarity below which the prediction is "unknown"; None if none is.
    familiarity_threshold: float | None
    # Test accuracy of the scored network, with its 95 % interval.
    accuracy: float | None
    accuracy_interval: list[float] | None
    # Number of test photos.
    photos: int | None
    # Caveat of the score, for example that the exported network is not the scored one; may be "".
    note: str
    # What the user calls the classifier, for the title; may be "".
    name: str
    # Whether it finds the training photos that a photo resembles.
    has_neighbours: bool


def summarise_classifier(classifier: ClassifierDescription, name: str = "") -> ClassifierSummary:
    """Summarise a classifier; the metadata are untrusted, so malformed values are left out.

    Args:
        name: what the user calls it, such as the name of its file.
    """
    scores = classifier.metadata.get("scores")
    scores = scores if isinstance(scores, Mapping) else {}
    accuracy, photos, interval = (scores.get(name) for name in ("accuracy", "n", "accuracy_interval"))
    has_score = _is_fraction(accuracy) and type(photos) is int and photos > 0
    note = scores.get("note")
    has_interval = (
        has_score and isinstance(interval, list | tuple) and len(interval) == 2 and all(map(_is_fraction, interval))
    )
    return ClassifierSummary(
        list(classifier.classes),
        classifier.threshold,
        classifier.candidate_rule,
        classifier.familiarity_threshold,
        accuracy if has_score else None,
        [float(end) for end in interval] if has_interval and isinstance(interval, list | tuple) else None,
        photos if has_score else None,
        note if has_score and isinstance(note, str) else "",
        name,
        classifier.neighbour_index is not None,
    )


def _is_fraction(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def read(name: str) -> bytes:
    """Read a file of the page."""
    return (PAGE_FOLDER / name).read_bytes()


def get_content_type(name: str) -> str:
    """Get the content type of a file of the page."""
    return CONTENT_TYPES[Path(name).suffix]
