"""Photos of paper flowers, drawn in code.

The demo and the tests use them, so neither needs other photos.

A flower is a list of folded sheets, each a grid of points in space. One lamp lights the facets,
and each sheet shades those below. The kinds differ in form only: each of them has every colour.

Lengths are flower radii, later pixels; x points right, y up, z to the viewer; colours are 0 to 1.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw, ImageFilter

Floats = NDArray[np.float64]
Rng = np.random.Generator

COLOURS = bytes.fromhex(
    "d7402b e8735a f2a49b f4c7c3 c8376b a03a6e e58fb4 7b4b94 b59ad0 4a4f9c 2f6fb0 7fb4dc bfe0ee 2a8c8c 7cc4b4 3f8f55"
    "93bf5a d9cf58 f0b93a e8902e c46a2c f6e7c8 fbf7ee d9cbb4 8c5a44 5b6470"
)
# Facets are painted larger, then reduced; 3 looks no better and costs a third more.
OVERSAMPLING = 2
# Brightness without the lamp, and what the lamp adds at a right angle.
AMBIENT, LAMP = 0.58, 0.58
# 8-bit colour of a full shadow: a little violet, as in a room by day.
SHADOW = (28, 20, 34)
SIZES = ((320, 240), (240, 320), (280, 280))
TURNS = ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270))


class Paper(NamedTuple):
    """The colours of one flower.

    The petals' face from base to tip, their reverse, and the heart.
    """

    base: Floats
    tip: Floats
    back: Floats
    heart: Floats


class Sheet(NamedTuple):
    """One piece of bent paper.

    A grid of points (along, across, 3), and the colours of its facets on either side.
    """

    points: Floats
    front: Floats
    back: Floats


class Camera(NamedTuple):
    """Pose in the frame: rotation in space, centre in pixels, pixels per radius, lamp direction."""

    turn: Floats
    centre: tuple[float, float]
    scale: float
    lamp: Floats


def _colour(rng: Rng, unlike: Floats | None = None) -> Floats:
    """Choose a paper colour, distinct from another if that is given."""
    choices = rng.choice(np.frombuffer(COLOURS, np.uint8).reshape(-1, 3) / 255, 1 if unlike is None else 6)
    rgb = choices[0 if unlike is None else np.argmax(np.minimum(0.7, np.abs(choices - unlike).sum(1)))]
    return np.clip(rgb * rng.uniform(0.92, 1.08) + rng.normal(0, 0.02, 3), 0, 1)


def _paper(rng: Rng, backdrop: Floats) -> Paper:
    base = 0.8 * _colour(rng, backdrop) + 0.2
    tip = base + rng.uniform(0, 0.5) * ((1 if rng.random() < 0.6 else _colour(rng)) - base)
    back = base + 0.75 * (1 - base) if rng.random() < 0.5 else _colour(rng, base)
    return Paper(base, tip, back, _colour(rng, base))


def _turn(spin: float, tilt: float = 0) -> Floats:
    """Return the rotation in the image plane, then backwards.

    A front side then faces up.
    """
    (cos, sin), (upright, back) = ((math.cos(angle), math.sin(angle)) for angle in (spin, tilt))
    return np.array([[cos, -sin, 0], [upright * sin, upright * cos, back], [-back * sin, -back * cos, upright]])


def _petal(
    rng: Rng, paper: Paper, turn: float, outline: tuple[float, float], size: tuple[float, float], *,
    lift: float, curl: float = 0, crease: float = 0, cup: float = 0, high: float = 0, grid: tuple[int, int] = (4, 2),
) -> Sheet:  # fmt: skip
    """Fold one petal: cut, lifted, curled, creased and turned to its place.

    Args:
        outline: exponents of t and 1 - t, from base to tip; a small second one makes a round end.
        size: length and greatest half-width.
        lift: slope at the base, which grows by curl up to the tip.
        crease: rise of the two halves to a V.
        cup: the same, but round.
    """
    (p, q), (length, width) = outline, size
    t = 1 - (1 - np.linspace(0, 1, grid[0] + 1)) ** (1.7 if q < 0.8 else 1.0)  # round ends need short facets
    middle = ((t[1:] + t[:-1]) / 2)[:, None, None]
    slope = (lift + rng.normal(0, 0.05) + curl * t)[:, None]
    step = np.diff(t, prepend=0)[:, None] * length * rng.uniform(0.95, 1.04)
    wide = t**p * (1 - t) ** q / ((p / (p + q)) ** p * (q / (p + q)) ** q) * width
    across = wide[:, None] * np.linspace(-1, 1, grid[1] + 1)
    rise = crease * np.abs(across) + cup * across**2
    x = 0.05 + np.cumsum(np.cos(slope) * step, axis=0) - np.sin(slope) * rise
    z = high + np.cumsum(np.sin(slope) * step, axis=0) + np.cos(slope) * rise
    depth = 0.7 + 0.3 * np.minimum(1, 2.2 * middle)  # little light falls to the bottom of a flower
    points = np.stack([x, across, z], axis=-1) @ _turn(turn + rng.normal(0, 0.025)).T
    return Sheet(points, (paper.base + (paper.tip - paper.base) * middle) * depth, paper.back * depth)


def _bead(radius: float, high: float, colour: Floats, angle: float = 0, away: float = 0) -> Sheet:
    round_, reach = np.linspace(0, 2 * math.pi, 11), np.array([[0.0], [0.6], [1.0]]) * radius
    x, y = away * math.cos(angle) + reach * np.cos(round_), away * math.sin(angle) + reach * np.sin(round_)
    dome = high + 0.8 * radius * np.array([[1.0], [0.75], [0.0]])
    return Sheet(np.stack([x, y, dome + 0 * x], axis=-1), colour, colour)


def _around(count: int, offset: float = 0.0) -> list[float]:
    return [2 * math.pi * (i + offset) / count for i in range(count)]


def _camellia(rng: Rng, paper: Paper) -> Iterator[Sheet]:
    """Yield broad round petals about a tuft or a closed bud.

    The rings of petals overlap like roof tiles.
    """
    count, rings, offset = int(rng.integers(5, 7)), int(rng.integers(3, 5)), rng.random()
    for ring, inner in enumerate(np.arange(rings) / rings):
        size, up, high = (0.98 - 0.62 * inner, 0.56 - 0.3 * inner), 0.15 + 0.75 * inner, 0.1 * ring
        for a in _around(count, offset + 0.5 * ring):
            yield _petal(rng, paper, a, (0.75, 0.42), size, lift=up, curl=up, cup=up + 0.4, high=high, grid=(6, 4))
    for bead in range(int(rng.choice([1, 7]))):
        yield _bead(0.07, 0.6, paper.heart, math.pi / 3 * bead, 0.11 * (bead > 0))


def _iris(rng: Rng, paper: Paper) -> Iterator[Sheet]:
    """Yield three wide drooping falls, each with a beard, and three narrow standards.

    The standards rise between the falls.
    """
    fall, petal = rng.uniform(0.3, 0.42), (rng.uniform(0.75, 0.95), rng.uniform(0.2, 0.28))
    beard, turned = Paper(*[paper.heart] * 4), Paper(paper.tip, paper.base, paper.back, paper.heart)
    for a in _around(3, 0.25):
        yield _petal(rng, paper, a, (1.5, 0.5), (1.2, fall), lift=0.55, curl=-1.5, crease=-0.25, grid=(8, 4))
        yield _petal(rng, beard, a, (0.6, 0.9), (0.55, 0.07), lift=0.6, curl=-1, crease=-0.4, high=0.06)
        yield _petal(rng, turned, a + math.pi / 3, (1, 0.6), petal, lift=1.1, curl=-0.5, crease=0.5, grid=(6, 2))


def _kusudama(rng: Rng, paper: Paper) -> Iterator[Sheet]:
    """Yield five squares of paper, each folded to a hollow cone.

    Glued edge to edge, they are a star of five cups.
    """
    inside, lift = Paper(*[paper.back] * 4), rng.uniform(0.3, 0.55)
    for a in _around(5, 0.25):
        yield _petal(rng, paper, a, (1.1, 1), (1.16, 0.37), lift=lift, curl=0.1, crease=0.75)
        yield _petal(rng, inside, a, (1, 1.2), (0.88, 0.29), lift=lift + 0.1, curl=0.15, crease=0.6, high=0.14)
        yield _petal(rng, paper, a, (0.9, 1.3), (0.62, 0.13), lift=lift + 0.2, curl=0.2, crease=-0.9, high=0.24)
    yield _bead(0.07, 0.35, paper.heart)


def _lotus(rng: Rng, paper: Paper) -> Iterator[Sheet]:
    """Yield many pointed petals with a sharp crease, in layers.

    Each layer is steeper than the one outside it.
    """
    count, layers, offset = int(rng.integers(6, 9)), int(rng.integers(3, 5)), rng.random()
    for layer, inner in enumerate(np.arange(layers) / layers):
        size, lift = (1.0 - 0.42 * inner, 0.27 - 0.1 * inner), 0.1 + inner
        for angle in _around(count, offset + 0.5 * layer):
            yield _petal(rng, paper, angle, (0.8, 1), size, lift=lift, curl=0.35, crease=0.55, high=0.05 * layer)
    yield _bead(0.12, 0.35, paper.heart)


def _pinwheel(rng: Rng, paper: Paper) -> Iterator[Sheet]:
    """Yield blades that all roll over to the same side.

    One pin holds their free corners.
    """
    count, loop, hand = int(rng.choice([4, 4, 4, 4, 5, 6])), rng.uniform(0.12, 0.3), rng.choice([-1, 1])
    along = np.linspace(0, 1, 9)[:, None, None]
    across = np.linspace(0, 1, 3)[None, :, None] * (1 - along)
    face = paper.base + (paper.tip - paper.base) * along[1:]
    for angle in _around(count, 0.5):
        rim, next_rim = (_turn(hand * (angle + more))[:, 0] for more in (0, 2 * math.pi / count))
        points = across * rim + 0.56 * np.sin(math.pi * along) * next_rim
        points[..., 2:] += loop / (1 + np.exp(7 - 14 * along))
        yield Sheet(points, *((paper.back, face) if hand > 0 else (face, paper.back)))
    yield _bead(0.09, loop + 0.06, paper.heart)


FOLDS = {fold.__name__[1:]: fold for fold in (_camellia, _iris, _kusudama, _lotus, _pinwheel)}
KINDS: tuple[str, ...] = tuple(FOLDS)


def _band(path: tuple[Floats, Floats, Floats], half: Floats | float, front: Floats, back: Floats) -> Sheet:
    """Make a strip of some half-width along a line.

    It is arched, so that one side catches the light.
    """
    side = np.array([-1.0, -0.45, 0.45, 1.0]) * np.reshape(half, (-1, 1))
    x, y, z = (line[:, None] for line in path)
    return Sheet(np.stack(np.broadcast_arrays(x, y + side, z - 0.8 * np.abs(side)), axis=-1), front, back)


def _clutter(rng: Rng) -> Sheet:
    """Make a ribbon, a pencil, a scrap or a leaf."""
    colour, other, kind, wave = _colour(rng), _colour(rng), rng.integers(5), rng.uniform(1.5, 3)
    if kind == 0:
        t = np.linspace(-2.5, 2.5, 25)
        return _band((t, 0.35 * np.sin(wave * t), 0.3 * np.cos(1.7 * wave * t)), 0.14, colour, other)
    if kind == 1:
        x, parts = np.array([-2.2, 1.5, 1.85, 2]), np.stack([colour, [0.86, 0.7, 0.5], colour * 0.6])[:, None]
        return _band((x, 0 * x, 0 * x), np.array([0.11, 0.11, 0.04, 0]), parts, parts)
    if kind == 2:
        x, y = np.meshgrid([-0.7, 0, 0.7], [-0.5, 0, 0.5], indexing="ij")
        return Sheet(np.stack([x, y, 0.15 * x * x], axis=-1) + rng.normal(0, 0.09, (3, 3, 3)), colour, other)
    green = colour if rng.random() < 0.4 else np.array([0.3, 0.52, 0.27]) * rng.uniform(0.6, 1.4)
    leaf, size = Paper(green, green * 1.15, green, green), (1.6, rng.uniform(0.2, 0.45))
    return _petal(rng, leaf, 0, (0.8, 0.9), size, lift=0.1, curl=0.3, crease=0.4)


def _cut_out(sheet: Sheet, camera: Camera, frame: tuple[int, int]) -> tuple[Image.Image, tuple[int, int], float] | None:
    """Render a sheet.

    Returns:
        Image, corner in the frame and mean z; None if the sheet is outside the frame.
    """
    world = sheet.points @ camera.turn.T
    flat = world[..., :2] * (camera.scale, -camera.scale) / (1 - 0.15 * world[..., 2:]) + camera.centre
    low = np.maximum(np.floor(flat.min((0, 1))) - 1, -8).astype(int)
    high = np.minimum(np.ceil(flat.max((0, 1))) + 2, (frame[0] + 8, frame[1] + 8)).astype(int)
    if (high - low).min() < 2:
        return None
    a, b, c, d = world[:-1, :-1], world[1:, :-1], world[1:, 1:], world[:-1, 1:]
    p, q = c - a, d - b
    normal = p[..., [1, 2, 0]] * q[..., [2, 0, 1]] - p[..., [2, 0, 1]] * q[..., [1, 2, 0]]  # np.cross, in half the time
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9
    facing = np.where(normal[..., 2:] >= 0, 1.0, -1.0)
    lit = ((normal * facing) @ camera.lamp)[..., None]
    lit = AMBIENT + LAMP * np.maximum(lit, -0.35 * lit)  # paper glows a little when lit from behind
    colours = ((np.where(facing > 0, sheet.front, sheet.back) * lit).clip(0, 1) * 255).astype(int).reshape(-1, 3)
    flat = (flat - low) * OVERSAMPLING
    corners = np.stack([flat[:-1, :-1], flat[1:, :-1], flat[1:, 1:], flat[:-1, 1:]], axis=2).reshape(-1, 8).tolist()
    picture = Image.new("RGBa", tuple((high - low) * OVERSAMPLING))
    pen = ImageDraw.Draw(picture)
    for facet in np.argsort((a + b + c + d)[..., 2], axis=None):
        pen.polygon(corners[facet], fill=tuple(colours[facet]))
    rim = np.concatenate([flat[:, 0], flat[-1], flat[::-1, -1]]).ravel().tolist()
    pen.line(rim, fill=tuple(np.minimum(colours.max(0) + 26, 255)), width=1)  # the cut edge catches the light
    return picture.reduce(OVERSAMPLING).convert("RGBA"), (int(low[0]), int(low[1])), float(world[..., 2].mean())


def _shade(photo: Image.Image, mask: Image.Image, corner: tuple[int, int], camera: Camera, high: float) -> None:
    """Paint the soft shadow of something `high` radii above the photo."""
    blur = max(1.0, high * camera.scale)
    room = int(blur) + 2
    soft = Image.new("L", (mask.width + 2 * room, mask.height + 2 * room))
    soft.paste(105, (room, room), mask)
    x, y = (1.2 * high * camera.scale * camera.lamp[:2]).round().astype(int).tolist()
    photo.paste(SHADOW, (corner[0] - room - x, corner[1] - room + y), soft.filter(ImageFilter.BoxBlur(blur)))


def _lay(photo: Image.Image, sheets: list[Sheet], camera: Camera, high: float = 0.16) -> None:
    """Paint sheets, farthest first; each shades those below, and all shade the ground."""
    pieces = [piece for sheet in sheets if (piece := _cut_out(sheet, camera, photo.size))]
    silhouette = Image.new("L", photo.size)
    for picture, corner, _ in pieces:
        silhouette.paste(255, corner, picture)
    if box := silhouette.getbbox():
        _shade(photo, silhouette.crop(box), box[:2], camera, high)
    for picture, corner, _ in sorted(pieces, key=lambda piece: piece[2]):
        _shade(photo, picture.getchannel("A"), corner, camera, 0.07)
        photo.paste(picture, corner, picture)


def _cloud(rng: Rng, size: tuple[int, int], across: int, down: int) -> NDArray[np.float32]:
    """Return smooth noise of unit scale with this many lumps: (height, width, 1)."""
    lumps = Image.fromarray(rng.standard_normal((down, across), np.float32))
    return np.asarray(lumps.resize(size, Image.Resampling.BICUBIC))[..., None]


def _surface(rng: Rng, size: tuple[int, int], colour: Floats, other: Floats) -> Floats:
    """Make boards, patterned cloth, or plaster in one or two colours: (height, width, 3)."""
    y, x = np.mgrid[: size[1], : size[0]][..., None].astype(np.float32) / max(size) - 0.5
    colour, other = np.array([colour, other], np.float32)
    angle, material, order = rng.uniform(0, 2 * math.pi), rng.random(), rng.choice([1, -1])
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    if material < 0.35:
        grain = 0.05 * _cloud(rng, size, *(3, 90)[::order]) + 0.06 * _cloud(rng, size, *(5, 24)[::order])
        board = ((x, y)[order] + 0.5) * rng.integers(1, 6)
        grain += rng.normal(0, 0.06, 8).astype(np.float32)[board.astype(int)] - 0.3 * (board % 1 < 0.015)
        return (0.4 * colour + np.array([0.4, 0.3, 0.2], np.float32)) * (1 + grain)
    part = rng.choice([0, 1]) * (0.5 + u).clip(0, 1)
    if material < 0.6:
        u, v = np.sin(rng.uniform(40, 140) * np.stack([u, v]))
        part = rng.uniform(0.15, 0.4) * ((u > 0), (u > 0) * 0.5 + (v > 0) * 0.5, (u * v > 0.55))[rng.integers(3)]
    return (colour + (other - colour) * part) * (1 + 0.05 * _cloud(rng, size, 5, 4) + 0.03 * _cloud(rng, size, 90, 70))


def _strew(rng: Rng, photo: Image.Image, lamp: Floats, count: int, scale: float, *, high: float) -> None:
    """Paint objects near the edge of the frame, independent of the kind of flower."""
    for angle in rng.uniform(0, 2 * math.pi, count):
        x, y = (0.5 + 0.5 * _turn(angle)[:2, 0]) * photo.size
        turn, pixels = _turn(rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.5)), scale * rng.uniform(0.6, 1.3)
        _lay(photo, [_clutter(rng)], Camera(turn, (x, y), min(photo.size) * pixels, lamp), high)


def _backdrop(rng: Rng, size: tuple[int, int], colour: Floats, lamp: Floats) -> Image.Image:
    """Paint the background of the flower, in focus or not."""
    other = _colour(rng) * colour.mean()
    # The background is often out of focus, so half the resolution suffices at a quarter of the cost.
    half = (size[0] // 2, size[1] // 2)
    pixels, edge = _surface(rng, half, colour, other), int(half[1] * rng.uniform(0.25, 0.75))
    if rng.random() < 0.2:
        pixels[:edge] = _surface(rng, half, other, colour)[:edge]
    photo = Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    lights = int(rng.choice([0, 24], p=[0.83, 0.17]))
    for x, y, radius in rng.uniform((0, 0, 6), (*size, 26), (lights, 3)).tolist():
        fill = (*(255 * (0.4 * colour + 0.6 * _colour(rng))).astype(int).tolist(), 110)
        ImageDraw.Draw(photo, "RGBA").ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    photo = photo.filter(ImageFilter.BoxBlur(lights / 8))
    _strew(rng, photo, lamp, int(rng.integers(4)), 0.14, high=0.08)
    return photo.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 3))) if rng.random() < 0.5 else photo


def _cameras(rng: Rng, size: tuple[int, int], lamp: Floats) -> Iterator[Camera]:
    """Yield the poses of one to three flowers, usually one."""
    count, first = int(rng.choice([1, 2, 3], p=[0.92, 0.05, 0.03])), rng.uniform(0, 1)
    for angle in _around(count, first):
        x, y = (0.5 + 0.28 * (count > 1) * _turn(angle)[:2, 0] + rng.normal(0, 0.035, 2)) * size
        radius = min(size) * (rng.uniform(0.38, 0.48) if count == 1 else rng.uniform(0.22, 0.28))
        turn = _turn(rng.normal(0, 0.12)) @ _turn(rng.normal(0, 0.15), tilt=rng.uniform(0, 0.5))
        yield Camera(turn, (x, y), radius, lamp)


def _develop(rng: Rng, photo: Image.Image, lamp: Floats) -> Image.Image:
    """Add the effects of a camera.

    These are falling light, a colour cast, a vignette, softness and grain.
    """
    photo, (wide, tall) = photo.filter(ImageFilter.BoxBlur(max(0, rng.uniform(-0.6, 0.7)))), photo.size
    y, x = (axis[..., None].astype(np.float32) / max(photo.size) - 0.5 for axis in np.ogrid[:tall, :wide])
    light = 1 + rng.uniform(0, 0.5) * (x * lamp[0] - y * lamp[1]) - rng.uniform(0, 0.7) * (x * x + y * y)
    grain = 3 * rng.random(light.shape, np.float32) - 1.5 + _cloud(rng, photo.size, 160, 120)
    light = (light + rng.uniform(0.006, 0.016) * grain).astype(np.float32)
    cast = rng.uniform(0.95, 1.2) * (1 + rng.uniform(-0.1, 0.1) * np.array([1, 0.15, -1], np.float32))
    pixels = np.asarray(photo) * light * cast.astype(np.float32)
    return Image.fromarray(pixels.clip(0, 255, out=pixels).astype(np.uint8))


def draw(kind: str, seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Draw a paper flower, deterministically from kind, seed (0 or more) and size (width, height)."""
    if kind not in FOLDS:
        raise ValueError(f"no kind of paper flower is called {kind!r}: try one of {', '.join(KINDS)}")
    rng = np.random.default_rng([KINDS.index(kind), seed])
    backdrop, angle, height = _colour(rng) * rng.uniform(0.4, 0.75), rng.uniform(0, 6.28), rng.uniform(0.55, 0.85)
    lamp = _turn(angle) @ (math.sqrt(1 - height**2), 0, height)
    photo, paper = _backdrop(rng, size, backdrop, lamp), _paper(rng, backdrop)
    for camera in _cameras(rng, size, lamp):
        if rng.random() < 0.45:  # a wire or a stick, from behind the flower to beyond the frame
            t, wood = np.linspace(0, 6, 13), np.array([0.35, 0.5, 0.25]) if rng.random() < 0.5 else _colour(rng)
            stick = _band((t, rng.normal(0, 0.04) * t**2, 0 * t - 0.2), rng.uniform(0.03, 0.06), wood, wood)
            _lay(photo, [stick], camera._replace(turn=_turn(-math.pi / 2 + rng.normal(0, 0.5))), 0.08)
        _lay(photo, list(FOLDS[kind](rng, paper)), camera)
    _strew(rng, photo, lamp, int(rng.random() < 0.15), 0.26, high=0.3)  # nearer to the lens than the flower
    return _develop(rng, photo, lamp)


@dataclass(frozen=True)
class PlantedFaults:
    """Faults in a drawn collection, as relative posix paths; no photo has two of them."""

    # Files that are truncated.
    broken: tuple[str, ...]
    # Exact duplicates with the same label.
    duplicates: tuple[tuple[str, str], ...]
    # Photos in the folder of another kind.
    wrong_label: tuple[str, ...]
    # Photos that are stored turned, with an EXIF orientation.
    sideways: tuple[str, ...]


def draw_collection(folder: Path, photos_per_kind: int = 80, seed: int = 0) -> PlantedFaults:
    """Draw JPEGs into one folder per kind, with a known number of planted faults.

    `lotus/lotus_017.jpg` is `draw("lotus", 2_000_000 * seed + 17, size)`. There are 3 broken files,
    4 pairs of duplicates, 6 wrong labels and 5 sideways photos; fewer below 80 photos per kind.

    Raises:
        ValueError: there are fewer than 4 photos per kind.
    """
    if photos_per_kind < 4:
        raise ValueError(f"{photos_per_kind} photos per kind leave no room for the planted faults: use at least 4")
    rng = np.random.default_rng(seed)
    decks = [[(kind, int(n)) for n in rng.permutation(photos_per_kind)] for kind in KINDS]
    names = {card: f"{card[0]}/{card[0]}_{card[1]:03d}.jpg" for deck in decks for card in deck}
    turns = itertools.cycle(decks)  # spreads faults evenly over the kinds
    pairs, *rest = (min(most, max(1, round(most * photos_per_kind / 80))) for most in (4, 3, 6, 5))
    duplicates = {deck.pop(): deck.pop() for _, deck in zip(range(pairs), turns, strict=False)}
    broken, wrong, sideways = ({next(turns).pop(): rng.random() for _ in range(count)} for count in rest)

    def draw_photo(card: tuple[str, int]) -> None:
        kind, path = card[0], folder / names[card]
        if card in wrong:
            kind = [other for other in KINDS if other != kind][int(4 * wrong[card])]
        offset = 500_000 * (card in wrong)  # else it would equal a photo in the right folder
        photo = draw(kind, 2_000_000 * seed + card[1] + offset, SIZES[card[1] % 3])
        exif = Image.Exif()
        if card in sideways:
            exif[ExifTags.Base.Orientation], turn = TURNS[int(3 * sideways[card])]
            photo = photo.transpose(turn)
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.save(path, quality=88, exif=exif)
        if card in broken:
            data = path.read_bytes()
            path.write_bytes(data[: int(len(data) * (0.3 + 0.4 * broken[card]))])

    for card in names:  # sequential: threads were slower because of the global interpreter lock
        if card not in duplicates.values():
            draw_photo(card)
    for first, second in duplicates.items():
        (folder / names[second]).write_bytes((folder / names[first]).read_bytes())
    paths, wrong_paths, sideways_paths = (tuple(names[card] for card in faults) for faults in (broken, wrong, sideways))
    return PlantedFaults(paths, tuple((names[a], names[b]) for a, b in duplicates.items()), wrong_paths, sideways_paths)


def draw_new(folder: Path, photos_per_kind: int = 4, seed: int = 1000) -> dict[str, str]:
    """Draw new photos into one folder under neutral names; return relative path → kind."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(len(KINDS) * photos_per_kind).tolist()
    truth = {f"photo_{place:03d}.jpg": KINDS[n % len(KINDS)] for place, n in enumerate(order, start=1)}
    for n, (name, kind) in zip(order, truth.items(), strict=True):
        draw(kind, 2_000_000 * seed + 1_000_000 + n, SIZES[n % len(SIZES)]).save(folder / name, quality=88)
    return truth
