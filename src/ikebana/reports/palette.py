"""Colours of figures: the palette that all pages share.

Figures are drawn in its light values. In an SVG these become the page's CSS variables, so a figure
follows light and dark.
"""

import re

from ikebana.inference.page_files import PAGE_FOLDER


def read_palette() -> tuple[dict[str, str], dict[str, str]]:
    """Read the colours of light and dark pages by CSS variable, without dashes."""
    style = (PAGE_FOLDER / "palette.css").read_text("utf-8")
    light, dark = (re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part) for part in style.split("@media"))
    return dict(light), dict(dark)


PALETTE = read_palette()[0]
INK, GREY, SILVER, GRID, CARD = (PALETTE[name] for name in ("ink", "quiet", "border", "line", "card"))
SPLIT_COLOURS = {name: PALETTE[name] for name in ("train", "validation", "test")}
CORRECT_COLOUR, WRONG_COLOUR = PALETTE["correct"], PALETTE["wrong"]
# Of lines and slices that stand for anything else than splits, in the order of their use.
SERIES_COLOURS = tuple(PALETTE[name] for name in ("s0", "wrong", "train", "test", "s7", "s8", "s4", "s3", "s6", "s9"))
# Where two variables have the same light value, figures mean the first of these.
FIGURE_NAMES = ("ink", "quiet", "border", "line", "card", "correct", "wrong", "train", "validation", "test")
CSS_NAMES = {PALETTE[name]: name for name in (*reversed(PALETTE), *reversed(FIGURE_NAMES))}


def to_css(colour: str) -> str:
    """Return the CSS variable of a colour, with the colour as its fallback.

    Args:
        colour: #rrggbb, in small letters.
    """
    name = CSS_NAMES.get(colour)
    return colour if name is None else f"var(--{name},{colour})"
