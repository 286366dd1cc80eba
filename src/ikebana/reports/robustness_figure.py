"""Figure of a run's robustness: accuracy against the strength of each change."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ikebana.evaluation.robustness import STRENGTHS, Robustness
from ikebana.reports.sheet import (
    GREY,
    GRID,
    MARGIN,
    SILVER,
    choose_ticks,
    draw_line,
    make_sheet,
    print_text,
    spread,
    write_sheet,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Distinct with most kinds of colour blindness; markers differ too, and every line has its name.
COLOURS = ("#3F8A8C", "#C96F4B", "#5D3E72", "#2F4F6B", "#A6862B", "#9B3A4D")
MARKERS = ("o", "s", "^", "D", "v", "P")
# Height of a line of text in inches.
LINE_HEIGHT = 0.19


def draw_robustness(robustness: Robustness, file: Path) -> None:
    """Draw one line per change, from the unchanged photos to strength 5."""
    write_sheet(_draw(robustness), file)


def _draw(robustness: Robustness) -> "Axes":
    subtitle = f"changed copies of {robustness.n} test photos; strength 0 is unchanged"
    sheet = make_sheet(7.2, 4.6, "Accuracy on changed photos", subtitle)
    left, right, top, bottom = MARGIN + 0.6, 5.6, 1.1, 3.9
    curves = {name: (robustness.accuracy, *row) for name, row in robustness.accuracies.items()}
    lowest = min(map(min, curves.values()))
    ticks = [tick for tick in choose_ticks(min(lowest, 0.9), 1.0, 6, outside=True) if 0 <= tick <= 1 + 1e-9]
    scale = [ticks[0], 1.0], [bottom, top]
    for tick in ticks:
        y = float(np.interp(tick, *scale))
        draw_line(sheet, [left, right], [y, y], GRID)
        print_text(sheet, (left - 0.1, y), f"{100 * tick:.6g}%", 8, GREY, ha="right")
    xs = np.linspace(left + 0.1, right - 0.1, len(STRENGTHS) + 1)
    for strength, x in enumerate(xs):
        print_text(sheet, (float(x), bottom + 0.18), f"{strength}", 8, GREY, ha="center")
    print_text(sheet, (right + 0.1, bottom + 0.18), "strength", 8, GREY)
    clean = float(np.interp(robustness.accuracy, *scale))
    draw_line(sheet, [left, right], [clean, clean], SILVER, (0, (2, 2)))
    ys = {name: np.interp(curve, *scale) for name, curve in curves.items()}
    for line, colour, marker in zip(ys.values(), COLOURS, MARKERS, strict=True):
        sheet.plot(xs, line, color=colour, linewidth=1.8, marker=marker, markersize=4, solid_capstyle="round")
    ends = spread(np.array([line[-1] for line in ys.values()]), LINE_HEIGHT, top, bottom)
    for name, colour, y in zip(ys, COLOURS, ends, strict=True):
        print_text(sheet, (right + 0.1, float(y)), name, 9, colour)
    return sheet
