"""Figures as SVG: what a browser shows is what the PNG shows."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from support.sheets import assert_readable, list_texts, make_confusion, make_counts, make_epochs

from ikebana.evaluation.learning_curves import make_learning_curve
from ikebana.evaluation.risk_coverage import trace_curve
from ikebana.evaluation.robustness import Robustness
from ikebana.reports import curves, figures, run_charts
from ikebana.reports.palette import PALETTE, read_palette
from ikebana.reports.sheet import to_svg

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>.jpg', "&amp;", "]]>", "rose"]


def make_scores(count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Draw probabilities [photos, 4], and labels that are as uncertain as they say."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(4, 0.3), count)
    return probabilities, np.array([rng.choice(4, p=row) for row in probabilities])


def make_sheets() -> dict[str, Axes]:
    probabilities, labels = make_scores()
    right = (np.random.default_rng(0).random((3, 200)) < [[0.8], [0.85], [0.9]]).astype(float)
    learning = [make_learning_curve(name, (50, 100, 200), right, np.arange(200)) for name in ("", *HOSTILE[:3])]
    robustness = Robustness(90, 0.95, dict.fromkeys(("blur", "noise", "dark"), (0.9, 0.8, 0.7, 0.6, 0.5)))
    return {
        "bars": figures.make_class_bars(make_counts(HOSTILE)),
        "pie": figures.make_class_pie(make_counts(HOSTILE)),
        "confusion": figures.make_confusion_matrix(make_confusion(5), HOSTILE),
        "pairs": figures.make_worst_pairs(np.arange(25).reshape(5, 5), HOSTILE),
        "curves": curves.make_curves(make_epochs(5), curves.compute_interval(make_epochs(5), 40), note="a & b"),
        "overlaid": curves.make_overlaid_curves(dict.fromkeys(HOSTILE, make_epochs(4)), "loss"),
        "reliability": run_charts.make_reliability(probabilities, labels),
        "risk": run_charts.make_risk_coverage(trace_curve(probabilities, labels), 0.6),
        "learning": run_charts.make_learning_curves(learning),
        "robustness": run_charts.make_robustness(robustness),
    }


@pytest.fixture(scope="module")
def sheets() -> dict[str, Axes]:
    return make_sheets()


KINDS = ("bars", "pie", "confusion", "pairs", "curves", "overlaid", "reliability", "risk", "learning", "robustness")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_chart_is_well_formed_with_its_texts_as_text(kind, sheets):
    svg = to_svg(sheets[kind], 'what it "shows" <b>')
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'what it "shows" <b>'
    shown = {text for text, _ in list_texts(sheets[kind])}
    assert {element.text for element in root.iter("text")} == shown
    assert {element.tag for element in root.iter()} <= {"svg", "text", "path", "circle"}
    # No ids that another figure of the page may have, no addresses, no date.
    assert not re.search(r"\bid=|href|http|url\(", svg)
    assert_readable(sheets[kind])


@pytest.mark.slow
def test_the_same_numbers_give_the_same_svg(sheets):
    again = make_sheets()
    assert {kind: to_svg(again[kind], kind) for kind in KINDS} == {kind: to_svg(sheets[kind], kind) for kind in KINDS}


@pytest.mark.slow
def test_every_colour_follows_the_page(sheets):
    light, dark = read_palette()
    assert light.keys() == dark.keys()
    for kind in KINDS:
        svg = to_svg(sheets[kind], kind)
        assert not re.search(r"(fill|stroke):#", svg), kind
        names = set(re.findall(r"var\(--([\w-]+),(#[0-9a-f]{6})\)", svg))
        assert {name for name, _ in names} <= light.keys()
        assert all(light[name] == fallback for name, fallback in names)


def test_shapes_are_where_the_sheet_has_them():
    sheet = figures.make_class_bars({"a": {"train": 100}, "b": {"train": 50, "test": 25}})
    root = ElementTree.fromstring(to_svg(sheet, "bars"))
    _, _, width, height = map(float, str(root.get("viewBox")).split())
    assert (width, height) == (sheet.bbox.width, sheet.bbox.height)
    train = [path for path in root.iter("path") if "--train," in str(path.get("style"))]
    boxes = [np.array(re.findall(r"([\d.]+),([\d.]+)", str(path.get("d"))), float) for path in train]
    (_, first, second), heights = [np.ptp(box[:, 0]) for box in boxes], [np.ptp(box[:, 1]) for box in boxes]
    assert first == pytest.approx(2 * second, abs=0.2)
    assert heights[1] == pytest.approx(heights[2], abs=0.2)
    label = next(text for text in root.iter("text") if text.text == "a")
    assert "text-anchor:end" in str(label.get("style"))
    assert float(str(label.get("x"))) < boxes[1][:, 0].min()
    assert boxes[1][:, 1].min() < float(str(label.get("y"))) < boxes[1][:, 1].max()


def test_the_point_of_the_threshold_is_marked():
    probabilities, labels = make_scores()
    confidence, wrong = probabilities.max(1), probabilities.argmax(1) != labels
    threshold = float(np.quantile(confidence, 0.25))
    answered = confidence >= threshold
    texts = [
        text for text, _ in list_texts(run_charts.make_risk_coverage(trace_curve(probabilities, labels), threshold))
    ]
    assert f"this run: answers {answered.mean():.0%}, {wrong[answered].mean():.1%} of them wrong" in texts


def test_a_run_that_answers_no_photo_is_not_marked_at_the_first_answer():
    probabilities, labels = np.array([[0.4, 0.3, 0.3]] * 40), np.repeat([0, 1], 20)
    texts = [text for text, _ in list_texts(run_charts.make_risk_coverage(trace_curve(probabilities, labels), 0.5))]
    assert "this run: answers almost no photo" in texts


def test_the_reliability_chart_has_a_point_per_occupied_bin_near_the_diagonal():
    """Labels are drawn by the probabilities, so accuracy equals confidence."""
    probabilities, labels = make_scores(5000)
    sheet = run_charts.make_reliability(probabilities, labels)
    points = [line for line in sheet.get_lines() if line.get_marker() == "o"]
    occupied = np.unique((probabilities.max(1) * run_charts.CONFIDENCE_BINS).astype(int))
    assert len(points) == len(occupied)
    diagonal = np.asarray(next(line for line in sheet.get_lines() if line.get_linestyle() == "--").get_xydata())
    for point in points:
        x, y = np.asarray(point.get_xydata())[0]
        assert np.interp(x, diagonal[:, 0], diagonal[:, 1]) == pytest.approx(y, abs=0.25)


def test_a_sheet_with_unknown_colours_keeps_them():
    from ikebana.reports.sheet import make_sheet, print_text

    sheet = make_sheet(3, 2, "title")
    print_text(sheet, (1, 1), "red", 9, "#ff0000")
    assert "fill:#ff0000" in to_svg(sheet, "red")
    assert f"var(--ink,{PALETTE['ink']})" in to_svg(sheet, "red")
