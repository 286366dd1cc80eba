"""Draw random pictures that show no flowers."""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageDraw

Rng = np.random.Generator
WIDTH, HEIGHT = 320, 240


def draw_pictures(count: int, seed: int) -> Iterator[Image.Image]:
    """Draw `count` pictures, cycling through the kinds."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        yield DRAWERS[number % len(DRAWERS)](rng)


def _blank(colour: tuple[int, int, int] = (255, 255, 255)) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (WIDTH, HEIGHT), colour)
    return picture, ImageDraw.Draw(picture)


def _colour(rng: Rng, low: int = 0, high: int = 256) -> tuple[int, int, int]:
    red, green, blue = (int(level) for level in rng.integers(low, high, 3))
    return red, green, blue


def _page(rng: Rng) -> Image.Image:
    picture, draw = _blank()
    ink = _colour(rng, 0, 80)
    for top in range(15, HEIGHT - 10, 14):
        left = 20
        while left < WIDTH - 40:
            width = int(rng.integers(8, 40))
            draw.rectangle((left, top, left + width, top + 6), fill=ink)
            left += width + 7
    return picture


def _chart(rng: Rng) -> Image.Image:
    picture, draw = _blank()
    draw.line((30, 10, 30, 210, 310, 210), fill=(0, 0, 0), width=2)
    for column, height in enumerate(rng.integers(20, 190, 6)):
        draw.rectangle((45 + column * 43, 210 - int(height), 75 + column * 43, 210), fill=_colour(rng))
    return picture


def _checks(rng: Rng) -> Image.Image:
    picture, draw = _blank(_colour(rng, 180))
    dark, side = _colour(rng, 0, 80), int(rng.integers(20, 48))
    for column in range(WIDTH // side + 1):
        for row in range(HEIGHT // side + 1):
            if (column + row) % 2:
                draw.rectangle((column * side, row * side, (column + 1) * side, (row + 1) * side), fill=dark)
    return picture


def _plan(rng: Rng) -> Image.Image:
    picture, draw = _blank((238, 234, 224))
    for number in range(14):
        first, second = (int(place) for place in rng.integers(0, HEIGHT, 2))
        line = (first, 0, second, HEIGHT) if number % 2 else (0, first, WIDTH, second)
        draw.line(line, fill=(250, 200, 90) if number % 3 else (255, 255, 255), width=8)
    return picture


def _face(rng: Rng) -> Image.Image:
    picture, draw = _blank(_colour(rng, 100))
    draw.ellipse((80, 30, 240, 210), fill=_colour(rng, 150), outline=(0, 0, 0), width=4)
    for left in (120, 180):
        draw.ellipse((left, 80, left + 20, 105), fill=(0, 0, 0))
    draw.arc((115, 90, 205, 180), 20, 160, fill=(0, 0, 0), width=6)
    return picture


def _house(rng: Rng) -> Image.Image:
    picture, draw = _blank((170, 210, 240))
    draw.rectangle((0, 180, WIDTH, HEIGHT), fill=(110, 160, 80))
    draw.rectangle((90, 100, 230, 200), fill=_colour(rng, 80))
    draw.polygon((80, 100, 160, 40, 240, 100), fill=_colour(rng, 0, 120))
    draw.rectangle((145, 140, 175, 200), fill=(60, 40, 30))
    draw.rectangle((105, 120, 130, 145), fill=(230, 230, 160))
    return picture


def _stripes(rng: Rng) -> Image.Image:
    width = int(rng.integers(6, 20))
    diagonal = np.arange(HEIGHT)[:, None] + np.arange(WIDTH)[None]
    light, dark = np.array(_colour(rng, 180), np.uint8), np.array(_colour(rng, 0, 90), np.uint8)
    return Image.fromarray(np.where((diagonal // width % 2)[..., None], dark, light))


def _noise(rng: Rng) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))


def _keys(rng: Rng) -> Image.Image:
    picture, draw = _blank(_colour(rng, 20, 90))
    for column in range(10):
        for row in range(5):
            corner = (14 + column * 30, 20 + row * 42)
            draw.rounded_rectangle((*corner, corner[0] + 24, corner[1] + 32), 5, fill=(225, 225, 220))
    return picture


def _car(rng: Rng) -> Image.Image:
    picture, draw = _blank(_colour(rng, 160))
    paint = _colour(rng)
    draw.rectangle((0, 170, WIDTH, HEIGHT), fill=(70, 70, 72))
    draw.rounded_rectangle((50, 110, 270, 175), 18, fill=paint)
    draw.polygon((95, 112, 125, 70, 205, 70, 235, 112), fill=paint)
    for window in ((108, 110, 130, 80, 160, 80, 160, 110), (168, 110, 168, 80, 200, 80, 220, 110)):
        draw.polygon(window, fill=(180, 220, 240))
    for wheel in (95, 215):
        draw.ellipse((wheel - 24, 150, wheel + 24, 198), fill=(0, 0, 0))
        draw.ellipse((wheel - 10, 164, wheel + 10, 184), fill=(190, 190, 190))
    return picture


DRAWERS: tuple[Callable[[Rng], Image.Image], ...] = (
    _page, _chart, _checks, _plan, _face, _house, _stripes, _noise, _keys, _car,
)  # fmt: skip
