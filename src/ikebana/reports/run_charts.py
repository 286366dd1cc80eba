"""Charts of a run's scores: reliability, risk and coverage, learning curves, robustness."""

from collections.abc import Sequence

import numpy as np

from ikebana.evaluation.learning_curves import LearningCurve
from ikebana.evaluation.metrics import CONFIDENCE_BINS, calibration_error
from ikebana.evaluation.risk_coverage import RiskCoverage
from ikebana.evaluation.robustness import STRENGTHS, Robustness
from ikebana.evaluation.statistics import wilson_interval
from ikebana.reports import matplotlib_import  # noqa: F401 -- before anything of matplotlib

# isort: split
from matplotlib.axes import Axes

from ikebana.reports.palette import CORRECT_COLOUR, GREY, PALETTE, SERIES_COLOURS, SILVER, WRONG_COLOUR
from ikebana.reports.panel import Panel, format_percent
from ikebana.reports.sheet import (
    MARGIN,
    choose_ticks,
    draw_line,
    fill_boxes,
    fit_labels,
    make_sheet,
    measure_width,
    print_text,
)

TENTHS = [number / 10 for number in range(0, 11, 2)]
# Of the lines of robustness, beside their colours.
MARKERS = ("o", "s", "^", "D", "v", "P")
# Panels of learning curves in a row.
MAX_COLUMNS = 3


def make_reliability(probabilities: np.ndarray, labels: np.ndarray) -> Axes:
    """Make the reliability chart: how often answers of a confidence are correct.

    Args:
        probabilities: float [photos, classes], calibrated.
        labels: class indices [photos].
    """
    confidence, is_right = probabilities.max(1), probabilities.argmax(1) == labels
    subtitle = f"{len(labels):,} photos; mean gap {calibration_error(probabilities, labels):.1%}; lines: 95% intervals"
    sheet = make_sheet(6.2, 5.6, "Is the confidence right?", subtitle)
    panel = Panel(sheet, (MARGIN + 0.6, 5.0, 1.25, 4.1), (0.0, 1.0), (0.0, 1.0))
    print_text(sheet, (MARGIN, 1.02), "classified correctly", 8, GREY)
    panel.draw_y_ticks(TENTHS, format_percent)
    sheet.plot(panel.x([0, 1]), panel.y([0, 1]), color=SILVER, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0.6)
    print_text(sheet, (5.1, 1.25), "exactly right", 8, GREY)
    bins = np.minimum((confidence * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    counts = np.bincount(bins, minlength=CONFIDENCE_BINS)
    for index in np.flatnonzero(counts):
        chosen = bins == index
        x, share = float(panel.x(confidence[chosen].mean())), float(is_right[chosen].mean())
        interval = wilson_interval(float(is_right[chosen].sum()), float(counts[index]))
        sheet.plot([x, x], panel.y(interval), color=CORRECT_COLOUR, linewidth=1.2, alpha=0.6, solid_capstyle="butt")
        sheet.plot(x, panel.y(share), marker="o", markersize=6.0, color=CORRECT_COLOUR, markeredgewidth=0.0)
    _draw_counts(panel, counts)
    return sheet


def _draw_counts(panel: Panel, counts: np.ndarray) -> None:
    """Draw the number of photos per confidence below the panel."""
    left, right, _, _ = panel.place
    bottom, height = 5.0, 0.6
    edges = panel.x(np.arange(len(counts) + 1) / len(counts))
    heights = height * counts / counts.max()
    fill_boxes(panel.sheet, (edges[:-1] + 0.01, bottom - heights, np.diff(edges) - 0.02, heights), PALETTE["s9"])
    draw_line(panel.sheet, [left, right], [bottom, bottom], SILVER)
    most = int(counts.argmax())
    middle = float(edges[most] + edges[most + 1]) / 2
    side = "right" if middle > right - 0.5 else "center"
    place = float(edges[most + 1]) if side == "right" else middle
    print_text(panel.sheet, (place, bottom - height - 0.1), f"{counts.max():,} photos", 8, GREY, ha=side)
    for tick in TENTHS:
        print_text(panel.sheet, (float(panel.x(tick)), bottom + 0.18), format_percent(tick), 8, GREY, ha="center")
    print_text(panel.sheet, (right + 0.2, bottom + 0.18), "confidence", 8, GREY)


def make_risk_coverage(curve: RiskCoverage, threshold: float | None = None) -> Axes:
    """Make the chart of wrong answers by the share of photos that get one.

    Args:
        threshold: confidence below which the answer is "not sure"; marks its point.
    """
    answered, wrong = np.array(curve.answered), np.array(curve.wrong)
    guarantee = curve.guarantee
    subtitle = "test photos, the most confident answers first"
    sheet = make_sheet(6.9, 4.5, "Errors among the answers", subtitle)
    limits = [guarantee.at_most_wrong] if guarantee is not None else []
    ticks = choose_ticks(0.0, max(0.01, wrong.max(initial=0), *limits), 5, outside=True)
    ticks = [tick for tick in ticks if 0 <= tick <= 1]
    panel = Panel(sheet, (MARGIN + 0.6, 5.4, 1.35, 3.85), (0.0, 1.0), (0.0, ticks[-1]))
    title_end = print_text(sheet, (MARGIN, 1.08), "wrong answers", 8, GREY)
    panel.draw_y_ticks(ticks, format_percent)
    panel.draw_x_ticks(TENTHS, format_percent, "photos answered")
    left, right, top, bottom = panel.place
    for limit in limits:
        y = float(panel.y(limit))
        draw_line(sheet, [left, right], [y, y], WRONG_COLOUR, (0, (4, 3)))
        print_text(sheet, (right + 0.1, y), f"limit {limit:.3g}", 8, WRONG_COLOUR)
    panel.draw_series(answered, wrong, CORRECT_COLOUR)
    if threshold is not None and len(answered):
        # The thresholds fall, so the last one that is high enough has the most answers.
        count = int((np.array(curve.thresholds) >= threshold).sum())
        share, wrong_share = (answered[count - 1], wrong[count - 1]) if count else (0.0, 0.0)
        x = float(panel.x(share))
        draw_line(sheet, [x, x], [top - 0.05, bottom], SILVER, (0, (2, 2)))
        text = f"this run: answers {share:.0%}, {wrong_share:.1%} of them wrong"
        if not count:  # the first point may stand for 1% of the photos
            text = "this run: answers almost no photo"
        is_right = x > 3
        start = x if is_right else max(x, title_end + 0.15)
        print_text(sheet, (start, top - 0.16), text, 8, GREY, ha="right" if is_right else "left")
    return sheet


def make_learning_curves(curves: Sequence[LearningCurve]) -> Axes:
    """Make one chart per learning curve, with 90% intervals and what more photos would bring."""
    columns = max(1, min(MAX_COLUMNS, len(curves)))
    # A single chart has the whole width.
    width, height, rows = 5.8 if columns == 1 else 3.1, 2.8, -(-len(curves) // columns)
    names = [f"recall of {name}" if name else "accuracy" for name in (curve.name for curve in curves)]
    labels = fit_labels(names, 10, width - 0.4)
    subtitle = "by the number of photos; bars: 90% intervals; dashed: forecast with more photos"
    size = max(2 * MARGIN + columns * width, 6.6), 0.95 + rows * height + 0.2
    sheet = make_sheet(*size, "Would more photos help?" if curves else "No learning curves", subtitle, names)
    for index, (curve, label) in enumerate(zip(curves, labels, strict=True)):
        left, top = MARGIN + index % columns * width, 1.0 + index // columns * height
        print_text(sheet, (left, top + 0.12), label, 10)
        _draw_learning_curve(sheet, curve, (left + 0.5, left + width - 0.3, top + 0.4, top + height - 0.75))
    return sheet


def _draw_learning_curve(sheet: Axes, curve: LearningCurve, place: tuple[float, float, float, float]) -> None:
    target, forecast = curve.photos[-1] + curve.forecast.added, (curve.forecast.low, curve.forecast.high)
    known = [*forecast, *curve.values, *(value for interval in curve.intervals for value in interval)]
    ticks = [tick for tick in choose_ticks(min(known), max(known), 4, outside=True) if -1e-9 <= tick <= 1 + 1e-9]
    low, high = min(ticks[0], *known), max(ticks[-1], *known)
    panel = Panel(sheet, place, (0.0, float(target)), (low, high))
    panel.draw_y_ticks(ticks, format_percent)
    right = float("inf")
    # From the right, as far as there is space.
    for count in (target, *reversed(curve.photos)):
        label, x = f"{count:,}", float(panel.x(count))
        half = measure_width(label, 8) / 2
        if x + half + 0.05 < right:
            print_text(sheet, (x, place[3] + 0.18), label, 8, GREY, ha="center")
            right = x - half
    print_text(sheet, ((place[0] + place[1]) / 2, place[3] + 0.38), "number of photos", 8, GREY, ha="center")
    last = curve.photos[-1], curve.values[-1]
    for count, interval in zip((*curve.photos, target), (*curve.intervals, forecast), strict=True):
        x, is_forecast = float(panel.x(count)), count == target
        look = {"linewidth": 4.0 if is_forecast else 1.2, "alpha": 0.6, "solid_capstyle": "butt"}
        sheet.plot([x, x], panel.y(interval), color=WRONG_COLOUR if is_forecast else CORRECT_COLOUR, **look)
    for value in forecast:
        xs, ys = panel.x([last[0], target]), panel.y([last[1], value])
        sheet.plot(xs, ys, color=WRONG_COLOUR, linewidth=0.9, linestyle=(0, (3, 2)))
    panel.draw_series(curve.photos, curve.values, CORRECT_COLOUR)


def make_robustness(robustness: Robustness) -> Axes:
    """Make the chart with one line per change, from the unchanged photos to strength 5."""
    subtitle = f"changed copies of {robustness.n} test photos; strength 0 is unchanged"
    sheet = make_sheet(7.2, 4.6, "Accuracy on changed photos", subtitle)
    curves = {name: (robustness.accuracy, *row) for name, row in robustness.accuracies.items()}
    lowest = min(map(min, curves.values()))
    ticks = [tick for tick in choose_ticks(min(lowest, 0.9), 1.0, 6, outside=True) if 0 <= tick <= 1 + 1e-9]
    panel = Panel(sheet, (MARGIN + 0.6, 5.6, 1.1, 3.9), (0.0, float(len(STRENGTHS))), (ticks[0], 1.0))
    panel.draw_y_ticks(ticks, format_percent)
    panel.draw_x_ticks((0, *STRENGTHS), "{:.0f}".format, "strength")
    left, right, _, _ = panel.place
    clean = float(panel.y(robustness.accuracy))
    draw_line(sheet, [left, right], [clean, clean], SILVER, (0, (2, 2)))
    for line, colour, marker in zip(curves.values(), SERIES_COLOURS, MARKERS, strict=False):
        panel.draw_series(range(len(line)), line, colour, marker=marker)
    ends = {name: (line[-1], colour) for (name, line), colour in zip(curves.items(), SERIES_COLOURS, strict=False)}
    panel.label_ends(ends)
    return sheet
