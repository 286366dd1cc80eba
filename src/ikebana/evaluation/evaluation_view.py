"""How a notebook shows an evaluation."""

from typing import TYPE_CHECKING

import numpy as np

from ikebana.system.notebook_html import Markup, render_paragraph, render_table, render_view

if TYPE_CHECKING:
    from ikebana.evaluation.metrics import Evaluation

# More classes than this are shown from the lowest F1 on.
MAX_SHOWN_CLASSES = 40
# Pairs of confused classes that the view names.
MAX_CONFUSED_PAIRS = 3


def render_evaluation(evaluation: "Evaluation", title: str = "", more: str = "") -> str:
    """Render accuracy, remarks, and a table of the classes.

    Args:
        title: above the accuracy, such as the name of the run.
        more: below the table.
    """
    headline, *notes = evaluation.describe_lines()
    parts = [render_paragraph(note) for note in notes]
    if confused := describe_confusions(evaluation):
        parts.append(render_paragraph(confused))
    parts.append(_render_classes(evaluation))
    if more:
        parts.append(render_paragraph(more, is_quiet=True))
    return render_view(title or headline, *([Markup(render_paragraph(headline))] if title else []), *parts)


def describe_confusions(evaluation: "Evaluation") -> str:
    """Name the pairs of classes that are most often confused; "" if there are none."""
    confusion = np.array(evaluation.confusion)
    np.fill_diagonal(confusion, 0)
    order = np.argsort(-confusion, axis=None, kind="stable")[:MAX_CONFUSED_PAIRS]
    pairs = [
        f"{evaluation.classes[row]} → {evaluation.classes[column]} {confusion[row, column]:,}"
        for row, column in zip(*np.unravel_index(order, confusion.shape), strict=True)
        if confusion[row, column]
    ]
    return f"most often confused (true → predicted): {', '.join(pairs)}" if pairs else ""


def _render_classes(evaluation: "Evaluation") -> Markup:
    rows = [(name, row.precision, row.recall, row.f1, row.support) for name, row in evaluation.per_class.items()]
    caption = ""
    if len(rows) > MAX_SHOWN_CLASSES:
        caption = f"the {MAX_SHOWN_CLASSES} of {len(rows)} classes with the lowest F1"
        rows = sorted(rows, key=lambda row: row[3])[:MAX_SHOWN_CLASSES]
    return render_table(("class", "precision", "recall", "F1", "test photos"), rows, caption=caption)
