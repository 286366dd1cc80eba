"""Small HTML for notebooks: the rich display of records.

Every text is escaped: file and class names are untrusted. Styles are inline and colours relative, so
that a view is readable in light and dark notebooks, and where style sheets are removed.
"""

import html
from collections.abc import Iterable, Sequence

# Readable on white and on black.
GRID = "rgba(127,127,127,.35)"
BAR_COLOUR = "#2a8c82"
VIEW_STYLE = "line-height:1.45;max-width:60em"
CELL_STYLE = f"padding:.2em .8em .2em 0;border:0;border-bottom:1px solid {GRID};background:transparent;color:inherit"
NUMBER_STYLE = ";text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap"
TEXT_STYLE = ";text-align:left;overflow-wrap:anywhere"
QUIET_STYLE = "opacity:.75"


class Markup(str):
    """HTML that is not escaped again."""


def escape(text: object) -> Markup:
    """Escape a text, unless it is Markup already."""
    return text if isinstance(text, Markup) else Markup(html.escape(str(text)))


def render_view(title: object, *parts: str) -> str:
    """Render a bold first line and further parts, Markup or texts; "" is left out."""
    inner = "".join(render_paragraph(part) if not isinstance(part, Markup) else part for part in parts if part)
    return f'<div class="ikebana" style="{VIEW_STYLE}"><p style="margin:.3em 0"><b>{escape(title)}</b></p>{inner}</div>'


def render_paragraph(text: object, *, is_quiet: bool = False) -> Markup:
    """Render a paragraph; a text of several lines keeps them, in a fixed-width font."""
    content = escape(text)
    if "\n" in content:
        return Markup(f'<pre style="margin:.3em 0;white-space:pre;overflow-x:auto">{content}</pre>')
    return Markup(f'<p style="margin:.3em 0;{QUIET_STYLE if is_quiet else ""}">{content}</p>')


def render_table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> Markup:
    """Render a table with right-aligned numbers; the first cell of a row is its heading.

    Floats have two decimals. None is an empty cell.

    Args:
        headers: empty for a table of two columns, names and values.
    """
    body = [[_render_cell(cell, is_heading=place == 0) for place, cell in enumerate(row)] for row in rows]
    columns = list(zip(*body, strict=True)) if body and headers else [()] * len(headers)
    is_number = [bool(column) and all(NUMBER_STYLE in cell for cell in column) for column in columns]
    head = "".join(
        f'<th scope="col" style="{CELL_STYLE}{NUMBER_STYLE if right else TEXT_STYLE}">{escape(name)}</th>'
        for name, right in zip(headers, is_number, strict=True)
    )
    lines = "".join(f"<tr>{''.join(cells)}</tr>" for cells in body)
    note = f'<caption style="text-align:left;{QUIET_STYLE}">{escape(caption)}</caption>' if caption else ""
    top = f"<thead><tr>{head}</tr></thead>" if headers else ""
    return Markup(f'<table style="border-collapse:collapse;margin:.5em 0">{note}{top}<tbody>{lines}</tbody></table>')


def render_bar(share: float, label: str) -> Markup:
    """Render a share from 0 to 1 as a bar with its label."""
    width = 8 * min(max(share, 0.0), 1.0)
    bar = f"display:inline-block;height:.7em;width:{width:.2f}em;background:{BAR_COLOUR};border-radius:2px"
    return Markup(f'<span style="{bar}"></span> {escape(label)}')


def render_picture(data: bytes, description: str, *, height: int = 96) -> Markup:
    """Render a JPEG inside the page itself.

    Args:
        description: what the picture shows, for people who do not see it.
        height: in pixels.
    """
    from base64 import b64encode

    uri = f"data:image/jpeg;base64,{b64encode(data).decode()}"
    style = f"height:{height}px;width:auto;max-width:{2 * height}px;object-fit:contain;margin:0"
    return Markup(f'<img src="{uri}" alt="{escape(description)}" style="{style}"/>')


def _render_cell(cell: object, *, is_heading: bool) -> str:
    is_number = isinstance(cell, int | float) and not isinstance(cell, bool)
    text = f"{cell:.2f}" if isinstance(cell, float) else f"{cell:,}" if is_number else "" if cell is None else cell
    style = CELL_STYLE + (NUMBER_STYLE if is_number else TEXT_STYLE)
    tag, scope = ("th", ' scope="row"') if is_heading else ("td", "")
    return f'<{tag}{scope} style="{style};font-weight:normal">{escape(text)}</{tag}>'
