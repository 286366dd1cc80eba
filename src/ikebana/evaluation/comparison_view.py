"""How a notebook shows a comparison: the verdict, the accuracies and the differences."""

from ikebana.evaluation.comparison import Comparison
from ikebana.evaluation.comparison_text import (
    describe_need,
    describe_photos,
    format_p_value,
    format_points,
    summarise,
)
from ikebana.system.notebook_html import Markup, render_paragraph, render_table, render_view


def render_comparison(comparison: Comparison) -> str:
    """Render the contestants, and one row per pair."""
    notes = [render_paragraph(note, is_quiet=True) for note in comparison.notes]
    return render_view(
        summarise(comparison),
        describe_photos(comparison),
        _render_contestants(comparison),
        _render_pairs(comparison),
        *notes,
    )


def _render_contestants(comparison: Comparison) -> Markup:
    rows = [
        (
            contestant.name,
            f"{contestant.accuracy:.3f}",
            f"{contestant.accuracy_interval[0]:.3f} to {contestant.accuracy_interval[1]:.3f}",
            len(contestant.runs),
        )
        for contestant in comparison.contestants
    ]
    return render_table(("", "accuracy", "95% interval", "runs"), rows)


def _render_pairs(comparison: Comparison) -> Markup:
    rows = [
        (
            f"{pair.second} against {pair.first}",
            pair.verdict,
            format_points(pair.difference),
            format_p_value(pair.p_value),
            describe_need(pair) if pair.verdict == "tie" else "",
        )
        for pair in comparison.pairs
    ]
    return render_table(("", "verdict", "difference", "p-value", "to tell"), rows) if rows else Markup("")
