"""The axes of a chart on a sheet: ticks and labelled lines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ikebana.reports import matplotlib_import  # noqa: F401 -- before anything of matplotlib

# isort: split
from matplotlib.axes import Axes

from ikebana.reports.palette import GREY, GRID
from ikebana.reports.sheet import draw_line, print_text, spread

# Between the lines of text beside a chart, in inches.
LINE_HEIGHT = 0.19
# Between the axes and the first and last value.
PADDING = 0.1
# Above this many points a line has no dots.
MAX_DOTS = 30


@dataclass(frozen=True)
class Panel:
    """A chart's area on a sheet.

    Attributes:
        place: left, right, top and bottom in inches.
        x_range, y_range: values at its edges.
    """

    sheet: Axes
    place: tuple[float, float, float, float]
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, values: object) -> np.ndarray:
        """Return where values are, in inches; NaN stays NaN."""
        left, right, _, _ = self.place
        return np.interp(np.asarray(values, float), self.x_range, (left + PADDING, right - PADDING))

    def y(self, values: object) -> np.ndarray:
        """Return where values are, in inches; NaN stays NaN."""
        _, _, top, bottom = self.place
        return np.interp(np.asarray(values, float), self.y_range, (bottom, top))

    def draw_y_ticks(self, ticks: Sequence[float], write: Callable[[float], str]) -> None:
        """Draw a grid line and a label per tick."""
        left, right, _, _ = self.place
        for tick in ticks:
            y = float(self.y(tick))
            draw_line(self.sheet, [left, right], [y, y], GRID)
            print_text(self.sheet, (left - 0.1, y), write(tick), 8, GREY, ha="right")

    def draw_x_ticks(self, ticks: Sequence[float], write: Callable[[float], str], name: str) -> None:
        """Label the ticks below the chart, and the axis at its right end."""
        _, right, _, bottom = self.place
        for tick in ticks:
            print_text(self.sheet, (float(self.x(tick)), bottom + 0.18), write(tick), 8, GREY, ha="center")
        print_text(self.sheet, (right + 0.2, bottom + 0.18), name, 8, GREY)

    def draw_series(self, xs: object, ys: object, colour: str, *, marker: str = "o", style: object = "-") -> None:
        """Draw a line through finite values, with dots where there are few points."""
        places = self.y(ys)
        drawn = np.count_nonzero(np.isfinite(places))
        dots = 6.0 if drawn == 1 else 3.2 if len(places) <= MAX_DOTS or drawn < len(places) else 0.0
        if drawn:
            look = {"color": colour, "linewidth": 1.8, "markeredgewidth": 0.0, "solid_capstyle": "round"}
            self.sheet.plot(self.x(xs), places, **look, linestyle=style, marker=marker, markersize=dots)

    def fill_band(self, xs: object, low: object, high: object, colour: str) -> None:
        """Fill the area between two lines."""
        look = {"facecolor": colour, "alpha": 0.16, "edgecolor": "none", "linewidth": 0, "zorder": 0.7}
        self.sheet.fill_between(self.x(xs), self.y(low), self.y(high), **look)

    def label_ends(self, ends: Mapping[str, tuple[float, str]]) -> None:
        """Print names at the right of their lines, moved apart.

        Args:
            ends: value of the line's last point, and its colour, by name.
        """
        _, right, top, bottom = self.place
        wanted = self.y([value for value, _ in ends.values()])
        places = spread(wanted, LINE_HEIGHT, top, bottom)
        for (name, (_, colour)), y in zip(ends.items(), places, strict=True):
            print_text(self.sheet, (right + 0.1, float(y)), name, 9, colour)


def format_percent(share: float) -> str:
    """Return a tick's label, such as 92.5%."""
    return f"{100 * share:.6g}%"
