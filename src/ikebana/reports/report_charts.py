"""The charts on a run's page, as inline SVG."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ikebana.data.dataset import SPLITS, STATUS_USED
from ikebana.reports.mistakes import HeldOutPhotos
from ikebana.runs.run import Run


@dataclass(frozen=True)
class Chart:
    """A chart on the page.

    Attributes:
        label: what it shows, for screen readers.
        svg: inline SVG, markup that is safe to include as it is.
    """

    label: str
    svg: Any


def draw_all(run: Run, held_out: HeldOutPhotos) -> dict[str, list[Chart]]:
    """Draw the charts of each section of the page; none if matplotlib cannot be loaded."""
    try:
        from ikebana.reports import run_charts  # noqa: F401 -- loads matplotlib
    except ImportError:
        return {}
    return {
        "training": _draw_curves(run),
        "confidence": _draw_confidence(run, held_out),
        "learning": _draw_learning(run),
        "robustness": _draw_robustness(run),
        "classes": _draw_classes(run),
    }


def _draw(make: Callable[..., Any], label: str, *arguments: Any, **options: Any) -> Chart:
    return _to_chart(make(*arguments, **options), label)


def _to_chart(sheet: Any, label: str) -> Chart:
    from markupsafe import Markup

    from ikebana.reports.sheet import to_svg

    return Chart(label, Markup(to_svg(sheet, label)))


def _draw_curves(run: Run) -> list[Chart]:
    from ikebana.reports import run_figures

    epochs, networks = run.history.to_dicts(), run.recipe.networks
    if len(epochs) <= len(networks):
        return []
    validation_count = run.dataset.filter(status=STATUS_USED, split="validation").height
    names = [f" of {network}" if len(networks) > 1 else "" for network in networks]
    sheets = run_figures.make_network_curves(epochs, run.recipe, validation_count)
    return [_to_chart(sheet, f"Loss and accuracy per epoch{name}") for sheet, name in zip(sheets, names, strict=True)]


def _draw_confidence(run: Run, held_out: HeldOutPhotos) -> list[Chart]:
    from ikebana.reports import run_charts

    is_test = held_out.is_test
    charts = []
    if is_test.any():
        probabilities, labels = held_out.probabilities[is_test], held_out.labels[is_test]
        label = "Reliability: share of correct answers by confidence"
        charts.append(_draw(run_charts.make_reliability, label, probabilities, labels))
    curve = run.evaluation.risk_coverage
    if curve is not None and len(curve.answered):
        label = "Share of wrong answers by the share of photos that get an answer"
        charts.append(_draw(run_charts.make_risk_coverage, label, curve, run.evaluation.threshold))
    return charts


def _draw_learning(run: Run) -> list[Chart]:
    from ikebana.reports import run_charts

    curves = run.evaluation.learning_curves
    return [_draw(run_charts.make_learning_curves, "Accuracy by the number of photos", curves)] if curves else []


def _draw_robustness(run: Run) -> list[Chart]:
    from ikebana.reports import run_charts

    robustness = run.evaluation.robustness
    return [_draw(run_charts.make_robustness, "Accuracy on changed test photos", robustness)] if robustness else []


def _draw_classes(run: Run) -> list[Chart]:
    from ikebana.reports import figures

    used = run.dataset.filter(status=STATUS_USED)
    numbers = {(label, split): n for label, split, n in used.group_by("label", "split").len().iter_rows()}
    counts = {name: {split: numbers.get((name, split), 0) for split in SPLITS} for name in run.classes}
    return [_draw(figures.make_class_bars, "Photos per class and split", counts)]
