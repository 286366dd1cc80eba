"""A matplotlib renderer that writes small SVG elements for a page.

matplotlib's own SVG backend needs global settings for texts and ids, which threads share, and
writes ids that would occur twice on a page with several figures. Here there are neither.
"""

from html import escape
from typing import Any

import numpy as np

from ikebana.reports import matplotlib_import  # noqa: F401 -- before anything of matplotlib

# isort: split
from matplotlib.backend_bases import GraphicsContextBase, RendererBase
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_hex
from matplotlib.path import Path
from matplotlib.transforms import Transform

from ikebana.reports.palette import to_css

POINTS_PER_INCH = 72.0
COMMANDS = {int(Path.MOVETO): "M", int(Path.LINETO): "L", int(Path.CURVE3): "Q", int(Path.CURVE4): "C"}
ANCHORS = {"center": "middle", "right": "end"}


class SvgRenderer(RendererBase):
    """Collects SVG elements, in pixels of the figure's resolution.

    Attributes:
        elements: the elements, the lowest first.
    """

    def __init__(self, width: float, height: float, dpi: float):
        super().__init__()
        self.width, self.height, self.dpi = width, height, dpi
        self.elements: list[str] = []
        # The sizes of letters are those of the PNG.
        self._measure = RendererAgg(1, 1, dpi)

    def flipy(self) -> bool:
        return True

    def get_canvas_width_height(self) -> tuple[float, float]:
        return self.width, self.height

    def points_to_pixels(self, points: Any) -> Any:
        return points * self.dpi / POINTS_PER_INCH

    def get_text_width_height_descent(self, s: str, prop: Any, ismath: Any) -> tuple[float, float, float]:
        return self._measure.get_text_width_height_descent(s, prop, ismath)

    def draw_path(
        self,
        gc: GraphicsContextBase,
        path: Path,
        transform: Transform,
        rgbFace: Any = None,  # noqa: N803 -- matplotlib's name
    ) -> None:
        """Add a path, with the fill and stroke that are visible."""
        fill = f"fill:{_to_css(rgbFace)}" if rgbFace is not None else "fill:none"
        if rgbFace is not None and (alpha := _get_alpha(gc, rgbFace)) < 1:
            fill += f";fill-opacity:{_format(alpha, 3)}"
        self._add_path(path, transform, fill + self._describe_stroke(gc))

    def draw_markers(
        self,
        gc: GraphicsContextBase,
        marker_path: Path,
        marker_trans: Transform,
        path: Path,
        trans: Transform,
        rgbFace: Any = None,  # noqa: N803 -- matplotlib's name
    ) -> None:
        """Add round markers as circles and others as paths."""
        if marker_path.codes is None or not (np.asarray(marker_path.codes) == Path.CURVE4).any():
            return super().draw_markers(gc, marker_path, marker_trans, path, trans, rgbFace)
        radius = marker_path.get_extents(marker_trans).width / 2
        fill = f"fill:{_to_css(rgbFace)}" if rgbFace is not None else "fill:none"
        style = fill + self._describe_stroke(gc)
        for vertices, _ in path.iter_segments(trans, simplify=False):
            x, y = np.asarray(vertices)[-2:]
            place = f'cx="{_format(x)}" cy="{_format(self.height - y)}" r="{_format(radius)}"'
            self.elements.append(f'<circle {place} style="{style}"/>')
        return None

    def draw_text(
        self,
        gc: GraphicsContextBase,
        x: float,
        y: float,
        s: str,
        prop: Any,
        angle: float,
        ismath: Any = False,
        mtext: Any = None,
    ) -> None:
        """Add a text as text, in the font of the page."""
        anchor = "start"
        if mtext is not None and angle == 0:
            # The page's font has other widths, so the text hangs on the side that it is aligned to.
            anchor = ANCHORS.get(mtext.get_ha(), anchor)
            x = mtext.get_transform().transform(mtext.get_unitless_position())[0]
        turn = f' transform="rotate({_format(-angle)} {_format(x)} {_format(y)})"' if angle else ""
        hang = f";text-anchor:{anchor}" if anchor != "start" else ""
        size = _format(self.points_to_pixels(prop.get_size_in_points()))
        style = f"font-size:{size}px;fill:{_to_css(gc.get_rgb())}{hang}"
        place = f'x="{_format(x)}" y="{_format(y)}"{turn}'
        self.elements.append(f'<text {place} style="{style}">{escape(s, quote=False)}</text>')

    def _add_path(self, path: Path, transform: Transform, style: str) -> None:
        data = []
        for vertices, code in path.iter_segments(transform, simplify=False):
            if code == Path.CLOSEPOLY:
                data.append("Z")
            else:
                points = np.asarray(vertices, float).reshape(-1, 2).tolist()
                places = (f"{_format(x)},{_format(self.height - y)}" for x, y in points)
                data.append(COMMANDS[int(code)] + " ".join(places))
        # A line of a single point shows its marker only.
        if len(data) > 1:
            self.elements.append(f'<path d="{"".join(data)}" style="{style}"/>')

    def _describe_stroke(self, gc: GraphicsContextBase) -> str:
        width, rgba = gc.get_linewidth(), gc.get_rgb()
        if not width or not rgba[3]:
            return ""
        stroke = f";stroke:{_to_css(rgba)};stroke-width:{_format(self.points_to_pixels(width))}"
        if rgba[3] < 1:
            stroke += f";stroke-opacity:{_format(rgba[3], 3)}"
        _, dashes = gc.get_dashes()
        if dashes is not None:
            lengths = (_format(self.points_to_pixels(dash)) for dash in np.ravel(dashes).tolist())
            stroke += f";stroke-dasharray:{','.join(lengths)}"
        return stroke + ("" if gc.get_capstyle() == "butt" else f";stroke-linecap:{gc.get_capstyle()}")


def _to_css(colour: Any) -> str:
    return to_css(to_hex(colour[:3]))


def _get_alpha(gc: GraphicsContextBase, fill: Any) -> float:
    return float(gc.get_alpha()) if gc.get_forced_alpha() or len(fill) < 4 else float(fill[3])


def _format(number: float, digits: int = 1) -> str:
    """Return a number without the zeros that say nothing."""
    text = f"{number:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text
