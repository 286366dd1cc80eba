"""A white sheet on which figures are drawn, as PNG or SVG.

Positions are in inches from the top left corner; colours, sizes and fonts are explicit. So figures
grow instead of shrinking their text, matplotlib styles have no effect, and threads may draw.
"""

import io
import math
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from html import escape
from pathlib import Path
from typing import Any, cast

import numpy as np

from ikebana.reports import matplotlib_import  # noqa: F401 -- before anything of matplotlib

# isort: split
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font, get_font_names
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ikebana.reports.palette import GREY, INK
from ikebana.reports.svg import SvgRenderer
from ikebana.system.files import atomic_write

# At this resolution 6.5 points are 13 pixels, the smallest text that reads without effort.
DPI = 150
# A notebook shows figures smaller than their pixels, so that they are sharp on any screen.
NOTEBOOK_DPI = 84
MARGIN = 0.35
# On a narrow screen a figure shrinks to this share of its width, and is scrolled beyond that.
MIN_SVG_SCALE = 0.72
CSS_PIXELS_PER_INCH = 96
# Outline fonts only: matplotlib cannot draw the bitmaps of colour emoji.
FALLBACK_FONTS = (
    "Noto Sans CJK SC,Noto Sans CJK JP,Noto Sans SC,Noto Sans JP,Noto Sans KR,Source Han Sans SC,PingFang SC,"
    "Hiragino Sans,Apple SD Gothic Neo,Arial Unicode MS,Microsoft YaHei,Yu Gothic,Meiryo,SimHei,Malgun Gothic,"
    "WenQuanYi Zen Hei,IPAGothic,Droid Sans Fallback,Noto Sans Arabic,Noto Sans Devanagari,Noto Sans Bengali,"
    "Noto Sans Thai,Nirmala UI,Leelawadee UI,Segoe UI Symbol,Segoe UI Emoji,Noto Emoji,Symbola,Apple Symbols"
)


class SheetFigure(Figure):
    """A figure that notebooks show without pyplot, which would keep it in memory."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        stream = io.BytesIO()
        _to_image(self).save(stream, "PNG")
        width, height = (round(inches * NOTEBOOK_DPI) for inches in self.get_size_inches())
        return stream.getvalue(), {"width": width, "height": height}


def make_sheet(
    width: float, height: float, title: str, subtitle: str = "", names: Iterable[str] = (), *, dpi: int = DPI
) -> Axes:
    """Make a white sheet, in inches from the top left corner, with title and subtitle."""
    width, height = math.ceil(width * dpi) / dpi, math.ceil(height * dpi) / dpi
    figure = SheetFigure(figsize=(width, height), dpi=dpi, facecolor="white", edgecolor="white")
    figure.set_layout_engine("none")
    sheet = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    sheet.set_axis_off()
    print_text(sheet, (MARGIN, 0.42), title, 14)
    if any("□" in name for name in names):
        subtitle += " · □: no installed font has this character; Noto Sans CJK may help"
    print_text(sheet, (MARGIN, 0.71), shorten(subtitle, 9, width - 2 * MARGIN), 9, GREY)
    return sheet


def print_text(
    sheet: Axes, place: tuple[float, float], text: str, size: float, colour: str = INK, **more: Any
) -> float:
    """Print a text literally and return where it ends, in inches, if left-aligned."""
    more = {"va": "center", "fontproperties": _font(size), "parse_math": False, "usetex": False} | more
    sheet.text(*place, text, color=colour, **more)
    return place[0] + measure_width(text, size)


def draw_line(sheet: Axes, x: Sequence[float], y: Sequence[float], colour: str, style: Any = "-") -> None:
    sheet.plot(x, y, color=colour, linewidth=0.8, linestyle=style, marker="none", solid_capstyle="butt", zorder=0.5)


def fill_boxes(sheet: Axes, boxes: tuple[Any, Any, Any, Any], colours: Any) -> None:
    """Fill boxes of x, y, width and height, each a number or an array."""
    x, y, w, h = np.broadcast_arrays(*np.atleast_1d(*boxes))
    corners = np.stack([x, y, x + w, y, x + w, y + h, x, y + h], axis=-1).reshape(-1, 4, 2)
    sheet.add_collection(PolyCollection([*corners], facecolors=colours, edgecolors="none", linewidths=0), autolim=False)


def choose_ticks(
    low: float, high: float, count: int, *, only_integers: bool = False, outside: bool = False
) -> list[float]:
    """Choose round numbers within the range, or also the next ones outside."""
    margin = 0.1 * max(abs(low), 0.1) if high - low <= 1e-6 * abs(low) else 0.0
    ticks = MaxNLocator(count, integer=only_integers, steps=[1, 2, 2.5, 5, 10]).tick_values(low - margin, high + margin)
    return [float(tick) for tick in ticks if outside or low <= tick <= high]


def spread(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Return positions near the wanted ones, in the same order, at least a gap apart."""
    order, steps, places = np.argsort(wanted, kind="stable"), gap * np.arange(len(wanted)), np.empty(len(wanted))
    flat = wanted[order] - steps
    flat = (np.maximum.accumulate(flat) + np.minimum.accumulate(flat[::-1])[::-1]) / 2
    places[order] = np.clip(flat, low, max(low, high - gap * (len(wanted) - 1))) + steps
    return places


def fit_labels(names: Sequence[str], size: float, room: float) -> list[str]:
    """Shorten names to fit; number those that look alike or contain an undrawable letter."""
    shown = [shorten(to_printable(name), size, room) for name in names]
    unclear = [shown.count(new) > 1 or ("□" in new and "□" not in old) for new, old in zip(shown, names, strict=True)]
    rows = enumerate(zip(names, shown, unclear, strict=True), 1)
    return [shorten(f"{n}: {to_printable(name)}", size, room) if bad else label for n, (name, label, bad) in rows]


@lru_cache(maxsize=4096)
def to_printable(text: str) -> str:
    """Return the text on one line, with □ for letters that no installed font has."""
    letters = []
    for letter in unicodedata.normalize("NFC", text):
        kind = unicodedata.category(letter)
        if kind in ("Cc", "Zl", "Zp"):
            letters.append(" ")
        elif ord(letter) in _letters():
            letters.append(letter)
        elif kind not in ("Cf", "Mn"):
            letters.append("□")
    return "".join(letters)


@lru_cache(maxsize=4096)
def shorten(text: str, size: float, room: float) -> str:
    """Cut out the middle of a text that is wider than `room`, in inches."""
    least, most, short = 0, len(text), text
    while measure_width(text, size) > room and most - least > 1:
        length = (least + most) // 2
        tried = text[: length - length // 2] + "…" + text[len(text) - length // 2 :]
        least, most, short = (length, most, tried) if measure_width(tried, size) <= room else (least, length, short)
    return short


@lru_cache(maxsize=16384)
def measure_width(text: str, size: float) -> float:
    return RendererAgg(1, 1, DPI).get_text_width_height_descent(text, _font(size), ismath=False)[0] / DPI


@cache
def _font(size: float) -> FontProperties:
    installed = set(get_font_names())
    families = ["DejaVu Sans", *(name for name in FALLBACK_FONTS.split(",") if name in installed)]
    return FontProperties(family=families, size=size)


@cache
def _letters() -> frozenset[int]:
    files = [findfont(FontProperties(family=[name])) for name in _font(9).get_family()]
    return frozenset(letter for file in files for letter in get_font(file).get_charmap())


def write_sheet(sheet: Axes, file: Path) -> None:
    """Write the sheet as a PNG without metadata, atomically."""
    figure = cast(Figure, sheet.figure)
    picture = _to_image(figure)
    with atomic_write(file, create_parent=False) as partial_file:
        picture.save(partial_file, format="PNG", dpi=(figure.dpi, figure.dpi))


def _to_image(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def to_svg(sheet: Axes, label: str) -> str:
    """Return the sheet as an SVG element for a page.

    Texts are text, and colours of the palette are the page's CSS variables. There is no background,
    and there are no ids, so a page may have any number of figures. On narrow screens the element is
    wider than its container, which has to scroll.

    Args:
        label: what the figure shows, for those who do not see it.
    """
    width, height = sheet.bbox.width, sheet.bbox.height
    dpi = cast(Figure, sheet.figure).dpi
    renderer = SvgRenderer(width, height, dpi)
    sheet.draw(renderer)
    natural = width / dpi * CSS_PIXELS_PER_INCH
    style = f"width:100%;height:auto;min-width:{natural * MIN_SVG_SCALE:.0f}px;max-width:{natural:.0f}px"
    opening = f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img"'
    return f'{opening} aria-label="{escape(label)}" style="{style}">\n' + "\n".join(renderer.elements) + "\n</svg>"
