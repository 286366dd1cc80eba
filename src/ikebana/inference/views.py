"""How a notebook shows a prediction and a classifier."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ikebana.inference.prediction import MAX_REPR_CLASSES, NOT_SURE, UNKNOWN, Prediction
from ikebana.system.notebook_html import Markup, render_bar, render_paragraph, render_table, render_view

if TYPE_CHECKING:
    from ikebana.inference.classifier import Classifier

# Class names that the view of a classifier lists.
MAX_LISTED_CLASSES = 100


def render_prediction(prediction: Prediction) -> str:
    """Render the answer, and the probabilities of the most probable classes as bars."""
    path = render_paragraph(prediction.path, is_quiet=True) if prediction.path else Markup()
    if not prediction.is_usable:
        return render_view("not classified", f"the photo cannot be used: {prediction.status}", path)
    top = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
    rows = [(name, render_bar(value, f"{value:.1%}")) for name, value in top[:MAX_REPR_CLASSES]]
    return render_view(describe_answer(prediction), path, render_table(("class", "probability"), rows))


def describe_answer(prediction: Prediction) -> str:
    """Describe the answer in some words, or why there is none."""
    if not prediction.is_usable:
        return f"not classified: {prediction.status}"
    if prediction.label is not None:
        return f"{prediction.label} ({prediction.confidence:.1%})"
    if prediction.status == UNKNOWN:
        return f"{UNKNOWN}: unlike the training photos, closest to {prediction.closest_class}"
    candidates = f": {' or '.join(prediction.candidates)}" if prediction.candidates else ""
    return f"{NOT_SURE}{candidates}"


def render_classifier(classifier: "Classifier") -> str:
    """Render the classes of a classifier, its score and how it answers."""
    scores = classifier.metadata.get("scores") or {}
    count = len(classifier.classes)
    more = f" and {count - MAX_LISTED_CLASSES:,} more" if count > MAX_LISTED_CLASSES else ""
    rows = [
        (f"{count:,} classes", ", ".join(classifier.classes[:MAX_LISTED_CLASSES]) + more),
        ("accuracy", _describe_score(scores)),
        ("note", scores.get("note") or None),
        ("not sure", _describe_threshold("confidence below", classifier.threshold)),
        ("unknown", _describe_threshold("familiarity below", classifier.familiarity_threshold)),
        ("image", f"{classifier.image_size} x {classifier.image_size} pixels, {classifier.resize}"),
    ]
    return render_view("Classifier", render_table((), [row for row in rows if row[1] is not None]))


def _describe_score(scores: Mapping[str, Any]) -> str | None:
    accuracy, interval, count = (scores.get(name) for name in ("accuracy", "accuracy_interval", "n"))
    if not isinstance(accuracy, float):
        return None
    # The metadata come from a file.
    limits = [limit for limit in interval if isinstance(limit, float)] if isinstance(interval, list) else []
    between = " ({:.3f} to {:.3f})".format(*limits) if len(limits) == 2 else ""
    return f"{accuracy:.3f}{between}" + (f" on {count:,} test photos" if isinstance(count, int) else "")


def _describe_threshold(words: str, threshold: float | None) -> str:
    return "never" if threshold is None else f"{words} {threshold:.2f}"
