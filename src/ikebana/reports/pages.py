"""HTML pages: one self-contained file each, which loads nothing from elsewhere."""

import base64
import functools
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ikebana.inference.page_files import PAGE_FOLDER
from ikebana.system.files import atomic_write

# Longer side of a thumbnail; with JPEG_QUALITY it takes about 8 kB.
THUMBNAIL_PIXELS = 168
JPEG_QUALITY = 80
LOGO_LABEL = ' role="img" aria-label="ikebana"'


def render(template: str, **context: Any) -> str:
    """Render a template of the folder `templates`.

    Everything in the context is escaped: names of files and classes are untrusted.

    Raises:
        jinja2.UndefinedError: the template names something that the context lacks.
    """
    return _environment().get_template(template).render(**context)


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    # The second folder has the palette and the logo, which the served page loads as files.
    folders = (Path(__file__).with_name("templates"), PAGE_FOLDER)
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Inside HTML, SVG needs no namespace; without it the page contains no address.
    logo = (PAGE_FOLDER / "icon.svg").read_text("utf-8").replace(' xmlns="http://www.w3.org/2000/svg"', LOGO_LABEL)
    environment.globals["logo"] = Markup(logo)
    return environment


def write_page(file: Path, text: str) -> None:
    """Write a page atomically; MachineError if it cannot be written."""
    with atomic_write(file) as partial_file:
        partial_file.write_text(text, "utf-8")


def to_data_uri(photo: np.ndarray, longer_side: int = THUMBNAIL_PIXELS) -> str:
    """Encode a photo as a JPEG in a data URI, no larger than `longer_side`.

    Args:
        photo: uint8 [height, width, 3].
        longer_side: in pixels; smaller photos keep their size.
    """
    picture = Image.fromarray(photo)
    scale = longer_side / max(picture.size)
    if scale < 1:
        size = math.ceil(picture.width * scale), math.ceil(picture.height * scale)
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
