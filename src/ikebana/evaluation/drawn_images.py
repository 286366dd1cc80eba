"""Drawn images that show none of the classes: text, noise, plain colours, drawings, screenshots.

They are a fixed set: the same size and seed give the same pixels. Nothing is fitted to them.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

IMAGES_PER_KIND = 20
SEED = 0
# Drawn at this size in pixels, then scaled: fonts and lines keep their proportions.
DRAWING_SIZE = 320
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PAPER_COLOURS = ((255, 255, 255), (250, 246, 235), (240, 240, 240), (30, 30, 34))


def draw_images(size: int, images_per_kind: int = IMAGES_PER_KIND, seed: int = SEED) -> dict[str, np.ndarray]:
    """Draw images of each kind.

    Args:
        size: pixels per side.
    Returns:
        uint8 [images, size, size, 3] for each kind.
    """
    images = {}
    for number, (kind, draw) in enumerate(KINDS.items()):
        rng = np.random.default_rng((seed, number))
        drawings = [draw(rng).resize((size, size), Image.Resampling.BICUBIC) for _ in range(images_per_kind)]
        images[kind] = np.stack([np.asarray(drawing.convert("RGB")) for drawing in drawings])
    return images


def _draw_colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
    return red, green, blue


def _new_image(colour: tuple[int, int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (DRAWING_SIZE, DRAWING_SIZE), colour)
    return image, ImageDraw.Draw(image)


def _draw_words(rng: np.random.Generator) -> str:
    return " ".join("".join(rng.choice(list(LETTERS), rng.integers(2, 10))) for _ in range(12))


def _get_font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _get_ink(paper: tuple[int, int, int]) -> tuple[int, int, int]:
    return (20, 20, 20) if sum(paper) > 380 else (230, 230, 230)


def _write_lines(
    drawing: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    ink: tuple[int, int, int],
    rng: np.random.Generator,
    font_size: float = 12,
) -> None:
    """Fill a box (left, top, right, bottom) with lines of random words."""
    left, top, right, bottom = box
    font = _get_font(font_size)
    for line_top in range(top, int(bottom - font_size), int(1.5 * font_size)):
        columns = max(2, int((right - left) / (0.6 * font_size)))
        drawing.text((left, line_top), _draw_words(rng)[: int(rng.integers(columns // 2, columns + 1))], ink, font)


def _draw_text(rng: np.random.Generator) -> Image.Image:
    paper = PAPER_COLOURS[rng.integers(len(PAPER_COLOURS))]
    image, drawing = _new_image(paper)
    font_size = float(rng.uniform(9, 30))
    _write_lines(drawing, (12, 12, DRAWING_SIZE - 12, DRAWING_SIZE - 12), _get_ink(paper), rng, font_size)
    return image


def _draw_noise(rng: np.random.Generator) -> Image.Image:
    """Draw noise of a random grain, in colour or grey."""
    grain = int(rng.choice([1, 2, 4, 8, 20]))
    side = DRAWING_SIZE // grain
    channels = 3 if rng.random() < 0.7 else 1
    values = rng.normal(rng.uniform(80, 176), rng.uniform(20, 90), (side, side, channels))
    pixels = np.broadcast_to(np.clip(values, 0, 255).astype(np.uint8), (side, side, 3))
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((DRAWING_SIZE, DRAWING_SIZE), Image.Resampling.BICUBIC)


def _draw_plain(rng: np.random.Generator) -> Image.Image:
    """Draw one colour, or a gradient between two."""
    first, second = np.array(_draw_colour(rng)), np.array(_draw_colour(rng))
    if rng.random() < 0.5:
        second = first
    share = np.linspace(0, 1, DRAWING_SIZE)[:, None, None]
    pixels = np.broadcast_to(first + share * (second - first), (DRAWING_SIZE, DRAWING_SIZE, 3))
    image = Image.fromarray(np.ascontiguousarray(pixels).astype(np.uint8))
    return image.rotate(90) if rng.random() < 0.5 else image


def _draw_shapes(rng: np.random.Generator) -> Image.Image:
    """Draw lines, rectangles, ellipses and polygons, as in a drawing or a diagram."""
    image, drawing = _new_image(PAPER_COLOURS[rng.integers(len(PAPER_COLOURS))])
    is_filled = rng.random() < 0.5
    for _ in range(rng.integers(4, 16)):
        colour, width = _draw_colour(rng), int(rng.integers(1, 7))
        points = [(int(x), int(y)) for x, y in rng.integers(0, DRAWING_SIZE, (4, 2))]
        left, right = sorted((points[0][0], points[1][0]))
        top, bottom = sorted((points[0][1], points[1][1]))
        fill = colour if is_filled else None
        shape = rng.integers(4)
        if shape == 0:
            drawing.line(points, colour, width, joint="curve")
        elif shape == 1:
            drawing.rectangle((left, top, right, bottom), fill, colour, width)
        elif shape == 2:
            drawing.ellipse((left, top, right, bottom), fill, colour, width)
        else:
            drawing.polygon(points, fill, colour, width)
    return image.filter(ImageFilter.GaussianBlur(0.7))


def _draw_screenshot(rng: np.random.Generator) -> Image.Image:
    """Draw windows with a title bar, lines of text and buttons."""
    image, drawing = _new_image(_draw_colour(rng))
    for _ in range(rng.integers(1, 4)):
        left, top = (int(value) for value in rng.integers(0, DRAWING_SIZE // 2, 2))
        right, bottom = (int(value) for value in rng.integers(DRAWING_SIZE // 2 + 40, DRAWING_SIZE, 2))
        paper = PAPER_COLOURS[rng.integers(len(PAPER_COLOURS))]
        ink = _get_ink(paper)
        drawing.rectangle((left, top, right, bottom), paper, (120, 120, 120))
        drawing.rectangle((left, top, right, top + 16), _draw_colour(rng))
        _write_lines(drawing, (left + 8, top + 24, right - 8, bottom - 30), ink, rng, 10)
        for button_left in range(left + 8, right - 60, 70):
            box = (button_left, bottom - 24, button_left + 56, bottom - 8)
            drawing.rounded_rectangle(box, 4, _draw_colour(rng))
    return image


KINDS: Mapping[str, Callable[[np.random.Generator], Image.Image]] = MappingProxyType(
    {
        "text": _draw_text,
        "noise": _draw_noise,
        "plain colours": _draw_plain,
        "drawings": _draw_shapes,
        "screenshots": _draw_screenshot,
    }
)
