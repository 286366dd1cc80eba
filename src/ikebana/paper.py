"""Photos of paper flowers, drawn in code: what the demo and the tests look at, since neither may need outside photos.

A flower is folded before it is painted: a list of sheets, each a grid of points in space, bent, creased and turned, whose
facets are lit by one lamp and shade what lies beneath. Light and dark halves, drop shadows and foreshortening so agree,
and the kinds differ in form alone, since each of them comes in every colour.

Lengths are flower radii until a camera turns them into pixels: x right, y up, z towards the viewer. Angles are radians,
colours are red, green, blue from 0 to 1.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Floats = NDArray[np.float64]
Rng = np.random.Generator
Piece = tuple[Image.Image, tuple[int, int], float]  # a sheet as seen, cut out; its corner in the photo; how near it is

COLOURS = ["d7402b", "e8735a", "f2a49b", "f4c7c3", "c8376b", "a03a6e", "e58fb4", "7b4b94", "b59ad0", "4a4f9c", "2f6fb0", "7fb4dc", "bfe0ee", "2a8c8c", "7cc4b4", "3f8f55", "93bf5a", "d9cf58", "f0b93a", "e8902e", "c46a2c", "f6e7c8", "fbf7ee", "d9cbb4", "8c5a44", "5b6470"]
LARGER = 2  # facets are painted so much larger, then reduced; 3 looks no better and costs a third more
AMBIENT, LAMP = 0.58, 0.58  # brightness of a facet the lamp misses, and what it adds to one it hits squarely
GROUND = (28, 20, 34)  # 8-bit colour of a full shadow: never quite black, a little violet, as in a room by day
SIZES = ((320, 240), (240, 320), (280, 280))


class Paper(NamedTuple):
    """The colours of one flower: the petals' face from base to tip, their reverse, the heart."""

    base: Floats
    tip: Floats
    back: Floats
    heart: Floats


class Sheet(NamedTuple):
    """One piece of bent paper: a grid of points (along, across, 3) and each facet's colour on its two sides."""

    points: Floats
    front: Floats
    back: Floats


class Camera(NamedTuple):
    """How something lies in the frame: its turn in space, its centre in pixels, pixels to a radius, the lamp."""

    turn: Floats
    centre: tuple[float, float]
    scale: float
    lamp: Floats


def _colour(rng: Rng, unlike: Floats | None = None) -> Floats:
    """Some paper's colour; one that can be told from another if that is given."""
    choice = rng.choice(COLOURS, 1 if unlike is None else 6)
    found = np.array([[int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)] for code in choice])
    rgb = found[0 if unlike is None else np.argmax(np.minimum(0.7, np.abs(found - unlike).sum(1)))]
    return np.clip(rgb * rng.uniform(0.92, 1.08) + rng.normal(0, 0.02, 3), 0, 1)


def _paper(rng: Rng, backdrop: Floats) -> Paper:
    base = 0.8 * _colour(rng, backdrop) + 0.2
    tip = base + rng.uniform(0, 0.5) * ((1 if rng.random() < 0.6 else _colour(rng)) - base)
    heart = _colour(rng, base)
    return Paper(base, tip, base + 0.75 * (1 - base) if rng.random() < 0.5 else _colour(rng, base), heart)


def _spin(angle: float) -> Floats:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def _lean(angle: float) -> Floats:
    """Leans what faces the viewer back, so that it faces up."""
    return _spin(-angle)[[2, 0, 1]][:, [2, 0, 1]]


def _petal(
    rng: Rng, paper: Paper, turn: float, outline: tuple[float, float], length: float, width: float, lift: float,
    curl: float = 0, crease: float = 0, cup: float = 0, high: float = 0, start: float = 0.05, grid: tuple[int, int] = (6, 2),
) -> Sheet:  # fmt: skip
    """One petal: cut to an outline, lifted from the ground, curled along and creased across, turned to its place.

    outline  exponents of t and 1 - t, from base to tip: a small second one makes a round end, 1 a pointed one
    lift     slope at the base; curl is what the slope gains on the way to the tip
    crease   how much the two halves rise to a V; cup the same, but round
    """
    p, q = outline
    t = 1 - (1 - np.linspace(0, 1, grid[0] + 1)) ** (1.7 if q < 0.8 else 1.0)  # round ends need short facets
    middle = ((t[1:] + t[:-1]) / 2)[:, None, None]
    slope = (lift + rng.normal(0, 0.05) + curl * t)[:, None]
    step = np.diff(t, prepend=0)[:, None] * length * rng.uniform(0.95, 1.04)
    wide = t**p * (1 - t) ** q / ((p / (p + q)) ** p * (q / (p + q)) ** q) * width
    across = wide[:, None] * np.linspace(-1, 1, grid[1] + 1)
    rise = crease * np.abs(across) + cup * across**2
    x = start + np.cumsum(np.cos(slope) * step, axis=0) - np.sin(slope) * rise
    z = high + np.cumsum(np.sin(slope) * step, axis=0) + np.cos(slope) * rise
    front = paper.base + (paper.tip - paper.base) * middle + np.zeros((1, grid[1], 1))
    if grid[1] > 2:
        front[:, [0, -1]] = 0.7 * front[:, [0, -1]] + 0.3 * paper.back
    depth = 0.7 + 0.3 * np.minimum(1, 2.2 * middle)  # little light falls to the bottom of a flower
    points = np.stack([x, across, z], axis=-1) @ _spin(turn + rng.normal(0, 0.025)).T
    return Sheet(points, front * depth, paper.back * depth + 0 * front)


def _plain(points: Floats, front: Floats, back: Floats) -> Sheet:
    grid = (points.shape[0] - 1, points.shape[1] - 1, 3)
    return Sheet(points, np.broadcast_to(front, grid), np.broadcast_to(back, grid))


def _bead(radius: float, high: float, colour: Floats, angle: float = 0, away: float = 0) -> Sheet:
    round_, reach = np.linspace(0, 2 * math.pi, 11), np.array([[0.0], [0.6], [1.0]]) * radius
    x, y = away * math.cos(angle) + reach * np.cos(round_), away * math.sin(angle) + reach * np.sin(round_)
    dome = high + 0.8 * radius * np.array([[1.0], [0.75], [0.0]])
    return _plain(np.stack([x, y, dome + 0 * x], axis=-1), colour, colour)


def _around(count: int, offset: float = 0.0) -> list[float]:
    return [2 * math.pi * (i + offset) / count for i in range(count)]


def _camellia(rng: Rng, paper: Paper) -> Iterator[Sheet]:
    """Broad round petals, ring within ring like roof tiles, about a tuft or a closed bud."""
    count, rings, offset = int(rng.integers(5, 7)), int(rng.integers(3, 5)), rng.random()
    for ring in range(rings):
        inner = ring / rings
        bend = {"lift": 0.15 + 0.75 * inner, "curl": 0.25 + 0.5 * inner, "cup": 0.5 + inner, "high": 0.1 * ring}
        for angle in _around(count, offset + 0.5 * ring):
            yield _petal(rng, paper, angle, (0.75, 0.42), 0.98 - 0.62 * inner, 0.56 - 0.3 * inner, **bend, grid=(6, 4))
    for angle in _around(int(rng.choice([0, 9]))):
        yield _bead(0.045, 0.58, paper.heart, angle, 0.1)
    yield _bead(0.09, 0.6, paper.heart)


def _iris(rng: Rng, paper: Paper) -> Iterator[Sheet]:
    """Three wide falls that droop, a beard along each; between them three narrow standards that rise."""
    fall, standard, tall = rng.uniform(0.3, 0.42), rng.uniform(0.2, 0.28), rng.uniform(0.75, 0.95)
    beard, turned = Paper(*[paper.heart] * 4), Paper(paper.tip, paper.base, paper.back, paper.heart)
    for angle in _around(3, 0.25):
        yield _petal(rng, paper, angle, (1.5, 0.5), 1.2, fall, lift=0.55, curl=-1.5, crease=-0.25, grid=(8, 4))
        yield _petal(rng, beard, angle, (0.6, 0.9), 0.55, 0.07, lift=0.6, curl=-1, crease=-0.4, high=0.06)
        across = angle + math.pi / 3
        yield _petal(rng, turned, across, (1.0, 0.6), tall, standard, lift=1.1, curl=-0.5, crease=0.5)


def _kusudama(rng: Rng, paper: Paper) -> Iterator[Sheet]:
    """Five squares of paper, each folded to a hollow cone, glued edge to edge: a star of five cups."""
    inside, lift = Paper(*[paper.back] * 4), rng.uniform(0.3, 0.55)
    for angle in _around(5, 0.25):
        yield _petal(rng, paper, angle, (1.1, 1.0), 1.16, 0.37, lift, curl=0.1, crease=0.75, grid=(4, 2))
        yield _petal(rng, inside, angle, (1.0, 1.2), 0.88, 0.29, lift + 0.1, curl=0.15, crease=0.6, high=0.14, grid=(4, 2))
        yield _petal(rng, paper, angle, (0.9, 1.3), 0.62, 0.13, lift + 0.2, curl=0.2, crease=-0.9, high=0.24, grid=(4, 2))
    yield _bead(0.07, 0.35, paper.heart)


def _lotus(rng: Rng, paper: Paper) -> Iterator[Sheet]:
    """Many pointed petals with a sharp crease, layer above layer, each steeper than the one outside it."""
    count, layers, offset = int(rng.integers(6, 9)), int(rng.integers(3, 5)), rng.random()
    for layer in range(layers):
        inner = layer / layers
        for angle in _around(count, offset + 0.5 * layer):
            size = (1.0 - 0.42 * inner, 0.27 - 0.1 * inner, 0.1 + inner)
            yield _petal(rng, paper, angle, (0.8, 1.0), *size, curl=0.35, crease=0.55, high=0.05 * layer, grid=(5, 2))
    yield _bead(0.12, 0.35, paper.heart)


def _pinwheel(rng: Rng, paper: Paper) -> Iterator[Sheet]:
    """Blades that all roll over to the same side, their free corners held by one pin."""
    count, loop, hand = int(rng.choice([4, 4, 4, 4, 5, 6])), rng.uniform(0.12, 0.3), rng.choice([-1, 1])
    along = np.linspace(0, 1, 9)[:, None, None]
    across = np.linspace(0, 1, 3)[None, :, None] * (1 - along)
    face = paper.base + (paper.tip - paper.base) * along[1:]
    for angle in _around(count, 0.5):
        rim, next_rim = (_spin(hand * (angle + more))[:, 0] for more in (0, 2 * math.pi / count))
        points = across * rim + 0.56 * np.sin(math.pi * along) * next_rim
        points[..., 2:] += loop * (1 - np.cos(math.pi * along)) / 2 + 0.02
        yield _plain(points, *((paper.back, face) if hand > 0 else (face, paper.back)))
    yield _bead(0.09, loop + 0.06, paper.heart)


FOLDS = {fold.__name__[1:]: fold for fold in (_camellia, _iris, _kusudama, _lotus, _pinwheel)}
KINDS: tuple[str, ...] = tuple(FOLDS)


def _leaf(rng: Rng) -> Sheet:
    colour = _colour(rng) if rng.random() < 0.4 else np.array([0.3, 0.52, 0.27]) * rng.uniform(0.6, 1.4)
    leaf = Paper(colour, colour * 1.15, colour, colour)
    return _petal(rng, leaf, 0, (0.8, 0.9), 1.6, rng.uniform(0.2, 0.45), 0.1, curl=0.3, crease=0.4, start=-0.8)


def _scrap(rng: Rng) -> Sheet:
    x, y = np.meshgrid([-0.7, 0, 0.7], [-0.5, 0, 0.5], indexing="ij")
    points = np.stack([x, y, 0.15 * x * x], axis=-1) + rng.normal(0, 0.09, (3, 3, 3))
    return _plain(points, _colour(rng), _colour(rng))


def _ribbon(rng: Rng) -> Sheet:
    t, side, wave = np.linspace(-2.5, 2.5, 25)[:, None], np.array([-0.12, 0.12]), rng.uniform(1.5, 3)
    points = np.stack([t + 0 * side, 0.35 * np.sin(wave * t) + side, 0.3 * np.cos(1.7 * wave * t) + side], axis=-1)
    return _plain(points, _colour(rng), _colour(rng))


def _pencil(rng: Rng) -> Sheet:
    x, wide, deep = np.array([-2.2, 1.5, 1.85, 2.0]), np.array([0.11, 0.11, 0.04, 0.005]), [0.0, 0.09, 0.09, 0.0]
    y = wide[:, None] * [-1.0, -0.45, 0.45, 1.0]
    lead = _colour(rng)
    colours = np.stack([lead, np.array([0.86, 0.7, 0.5]), lead * 0.6])[:, None] + np.zeros((3, 3, 3))
    return Sheet(np.stack([x[:, None] + 0 * y, y, deep + 0 * y], axis=-1), colours, colours)


def _stick(rng: Rng) -> Sheet:
    """A wire or a stick, from behind a flower to beyond the frame."""
    t, side = np.linspace(0, 6, 13)[:, None], np.array([-1.0, 0.0, 1.0]) * rng.uniform(0.03, 0.06)
    colour = np.array([0.35, 0.5, 0.25]) if rng.random() < 0.5 else _colour(rng)
    points = np.stack([t + 0 * side, rng.normal(0, 0.04) * t**2 + side, 0 * t - 0.2 - np.abs(side)], axis=-1)
    return _plain(points, colour, colour)


def _cut_out(sheet: Sheet, camera: Camera, frame: tuple[int, int]) -> Piece | None:
    """The sheet as seen and lit, or None if it lies outside the frame."""
    world = sheet.points @ camera.turn.T
    flat = world[..., :2] * (camera.scale, -camera.scale) / (1 - 0.15 * world[..., 2:]) + camera.centre
    low = np.maximum(np.floor(flat.min((0, 1))) - 1, -8).astype(int)
    high = np.minimum(np.ceil(flat.max((0, 1))) + 2, (frame[0] + 8, frame[1] + 8)).astype(int)
    if (high - low).min() < 2:
        return None
    a, b, c, d = world[:-1, :-1], world[1:, :-1], world[1:, 1:], world[:-1, 1:]
    normal = np.cross(c - a, d - b)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9
    facing = np.where(normal[..., 2:] >= 0, 1.0, -1.0)
    lit = ((normal * facing) @ camera.lamp)[..., None]
    lit = AMBIENT + LAMP * np.maximum(lit, -0.35 * lit)  # paper glows a little when the lamp stands behind it
    colours = ((np.where(facing > 0, sheet.front, sheet.back) * lit).clip(0, 1) * 255).astype(int).reshape(-1, 3)
    flat = (flat - low) * LARGER
    corners = np.stack([flat[:-1, :-1], flat[1:, :-1], flat[1:, 1:], flat[:-1, 1:]], axis=2).reshape(-1, 8).tolist()
    picture = Image.new("RGBA", tuple((high - low) * LARGER))
    pen = ImageDraw.Draw(picture)
    for facet in np.argsort((a + b + c + d)[..., 2], axis=None):
        pen.polygon(corners[facet], fill=tuple(colours[facet]))
    rim = np.concatenate([flat[:, 0], flat[-1], flat[::-1, -1]]).ravel().tolist()
    pen.line(rim, fill=tuple(np.minimum(colours.max(0) + 26, 255)), width=1)  # the cut edge catches the light
    return picture.reduce(LARGER), (int(low[0]), int(low[1])), float(world[..., 2].mean())


def _shade(photo: Image.Image, mask: Image.Image, corner: tuple[int, int], camera: Camera, high: float, dark: float) -> None:
    """Throws the soft shadow of something `high` radii above what is there already."""
    blur = max(1.0, 0.7 * high * camera.scale)
    room = int(2 * blur) + 1
    soft = Image.new("L", (mask.width + 2 * room, mask.height + 2 * room))
    soft.paste(mask.point([int(dark * level) for level in range(256)]), (room, room))
    soft = soft.filter(ImageFilter.BoxBlur(blur)).filter(ImageFilter.BoxBlur(blur / 2))
    x, y = (1.2 * high * camera.scale * camera.lamp[:2]).round().astype(int).tolist()
    photo.paste(GROUND, (corner[0] - room - x, corner[1] - room + y), soft)


def _lay(photo: Image.Image, sheets: list[Sheet], camera: Camera, high: float = 0.16) -> None:
    """Puts sheets into the photo, farthest first, each shading those below, all together shading the ground."""
    pieces = [piece for sheet in sheets if (piece := _cut_out(sheet, camera, photo.size))]
    whole = Image.new("L", photo.size)
    for picture, corner, _ in pieces:
        whole.paste(255, corner, picture)
    if box := whole.getbbox():
        _shade(photo, whole.crop(box), box[:2], camera, high, 0.5)
    for picture, corner, _ in sorted(pieces, key=lambda piece: piece[2]):
        _shade(photo, picture.getchannel("A"), corner, camera, 0.07, 0.38)
        photo.paste(picture, corner, picture)


def _cloud(rng: Rng, size: tuple[int, int], across: int, down: int) -> Floats:
    """Smooth noise of about unit size, so many lumps across and down; (height, width, 1)."""
    lumps = Image.fromarray(rng.normal(size=(down, across)).astype(np.float32))
    return np.asarray(lumps.resize(size, Image.Resampling.BICUBIC), dtype=np.float64)[..., None]


def _wood(rng: Rng, size: tuple[int, int], colour: Floats, other: Floats) -> Floats:
    wide, tall = size if (lying := rng.random() < 0.6) else size[::-1]
    grain = 0.05 * _cloud(rng, (wide, tall), 3, tall // 3) + 0.06 * _cloud(rng, (wide, tall), 5, 24)
    board = np.arange(tall) * rng.integers(1, 6) / tall
    grain += (rng.normal(0, 0.06, 8)[board.astype(int)] - 0.3 * (board % 1 < 0.015))[:, None, None]
    return (0.4 * colour + np.array([0.4, 0.3, 0.2])) * (1 + (grain if lying else grain.transpose(1, 0, 2)))


def _cloth(rng: Rng, size: tuple[int, int], colour: Floats, other: Floats) -> Floats:
    y, x = np.mgrid[: size[1], : size[0]] * (2 * math.pi / rng.uniform(14, 46))
    angle = rng.uniform(0, math.pi)
    u, v = np.sin(x * math.cos(angle) + y * math.sin(angle)), np.sin(y * math.cos(angle) - x * math.sin(angle))
    pattern = ((u > 0) * 1.0, (u > 0) * 0.5 + (v > 0) * 0.5, (u * v > 0.55) * 1.0)[rng.integers(3)][..., None]
    weave = 1 + 0.03 * _cloud(rng, size, size[0] // 2, size[1] // 2) + 0.06 * _cloud(rng, size, 4, 3)
    return (colour + (other - colour) * rng.uniform(0.15, 0.4) * pattern) * weave


def _wall(rng: Rng, size: tuple[int, int], colour: Floats, other: Floats) -> Floats:
    return colour * (1 + 0.05 * _cloud(rng, size, 5, 4) + 0.03 * _cloud(rng, size, 70, 50))


def _sweep(rng: Rng, size: tuple[int, int], colour: Floats, other: Floats) -> Floats:
    y, x = np.mgrid[: size[1], : size[0]] / max(size) - 0.5
    angle = rng.uniform(0, 2 * math.pi)
    return colour + (other - colour) * (0.5 + 0.6 * (x * math.cos(angle) + y * math.sin(angle)))[..., None].clip(0, 1)


def _bokeh(rng: Rng, size: tuple[int, int], colour: Floats, other: Floats) -> Floats:
    lights = Image.fromarray((_sweep(rng, size, colour * 0.6, other * 0.6) * 255).astype(np.uint8))
    for _ in range(rng.integers(10, 30)):
        radius, x, y = rng.uniform(6, 26), rng.uniform(0, size[0]), rng.uniform(0, size[1])
        fill = (*(255 * (0.4 * colour + 0.6 * _colour(rng))).astype(int).tolist(), 110)
        ImageDraw.Draw(lights, "RGBA").ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    return np.asarray(lights.filter(ImageFilter.GaussianBlur(rng.uniform(1.5, 4)))) / 255


def _desk(rng: Rng, size: tuple[int, int], colour: Floats, other: Floats) -> Floats:
    table, edge = _wood(rng, size, other, colour), int(size[1] * rng.uniform(0.25, 0.75))
    table[:edge] = _wall(rng, size, colour, other)[:edge]
    return table


BACKDROPS = (_wood, _cloth, _wall, _sweep, _bokeh, _desk)
CLUTTER = (_leaf, _leaf, _scrap, _ribbon, _pencil)


def _backdrop(rng: Rng, size: tuple[int, int], colour: Floats, lamp: Floats) -> Image.Image:
    """What the flower lies on or stands before; leaves, ribbons and pencils lie about on any, so they tell nothing."""
    pixels = BACKDROPS[rng.integers(len(BACKDROPS))](rng, size, colour, _colour(rng) * colour.mean())
    photo = Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))
    for _ in range(rng.choice([0, 1, 2, 3])):
        turn, angle = _lean(rng.uniform(0, 0.5)) @ _spin(rng.uniform(0, 2 * math.pi)), rng.uniform(0, 2 * math.pi)
        at = (size[0] * (0.5 + 0.48 * math.cos(angle)), size[1] * (0.5 + 0.48 * math.sin(angle)))
        camera = Camera(turn, at, min(size) * rng.uniform(0.08, 0.2), lamp)
        _lay(photo, [CLUTTER[rng.integers(len(CLUTTER))](rng)], camera, 0.08)
    return photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3))) if rng.random() < 0.5 else photo


def _cameras(rng: Rng, size: tuple[int, int], lamp: Floats) -> Iterator[Camera]:
    """The places of a photo's flowers: one as a rule, at times two or three, each leaning and turned its own way."""
    count = int(rng.choice([1, 2, 3], p=[0.92, 0.05, 0.03]))
    first, apart = rng.uniform(0, 2 * math.pi), 0.0 if count == 1 else 0.27
    for angle in _around(count):
        x = size[0] * (0.5 + 1.1 * apart * math.cos(first + angle) + rng.normal(0, 0.04))
        y = size[1] * (0.5 + apart * math.sin(first + angle) + rng.normal(0, 0.04))
        radius = min(size) * (rng.uniform(0.36, 0.48) if count == 1 else rng.uniform(0.22, 0.28))
        turn = _spin(rng.normal(0, 0.12)) @ _lean(rng.uniform(0, 0.6)) @ _spin(rng.normal(0, 0.15))
        yield Camera(turn, (x, y), radius, lamp)


def _peep(rng: Rng, photo: Image.Image, lamp: Floats) -> Image.Image:
    """Something close to the lens, out of focus, over one edge of the frame."""
    angle, blur = rng.uniform(0, 2 * math.pi), ImageFilter.BoxBlur(rng.uniform(2, 5))
    at = (photo.width * (0.5 + 0.62 * math.cos(angle)), photo.height * (0.5 + 0.62 * math.sin(angle)))
    camera = Camera(_spin(rng.uniform(0, 6)), at, min(photo.size) * rng.uniform(0.2, 0.32), lamp)
    over, mask = photo.copy(), Image.new("L", photo.size)
    if piece := _cut_out(_leaf(rng), camera, photo.size):
        over.paste(piece[0], piece[1], piece[0])
        mask.paste(255, piece[1], piece[0])
    return Image.composite(over.filter(blur), photo, mask.filter(blur))


@cache
def _grain() -> Floats:
    """Film grain and paper fibre, drawn once: 512 x 512 x 1 around zero."""
    rng = np.random.default_rng(7)
    return rng.normal(0, 0.6, (512, 512, 1)) + 0.8 * _cloud(rng, (512, 512), 200, 260)


def _develop(rng: Rng, photo: Image.Image, lamp: Floats) -> Image.Image:
    """What the camera adds: light that falls off, a warm or cool cast, a vignette, softness and grain."""
    if rng.random() < 0.5:
        photo = photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    y, x = (np.mgrid[: photo.height, : photo.width] / max(photo.size) - 0.5)[..., None]
    light = 1 + rng.uniform(0, 0.5) * (x * lamp[0] - y * lamp[1]) - rng.uniform(0, 0.7) * (x * x + y * y)
    light += rng.uniform(0.008, 0.024) * np.resize(_grain(), light.shape)
    cast = rng.uniform(0.95, 1.2) * (1 + rng.uniform(-0.1, 0.1) * np.array([1, 0.15, -1]))
    return Image.fromarray((np.asarray(photo) * light * cast).clip(0, 255).astype(np.uint8))


def draw(kind: str, seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """One photo of a paper flower: the same for the same kind, seed (0 or more) and size (width, height)."""
    if kind not in FOLDS:
        raise ValueError(f"no paper flower is called {kind!r}: try one of {', '.join(KINDS)}")
    rng = np.random.default_rng([KINDS.index(kind), seed])
    backdrop, angle, height = _colour(rng) * rng.uniform(0.35, 0.7), rng.uniform(0, 2 * math.pi), rng.uniform(0.55, 0.85)
    flat = math.sqrt(1 - height**2)
    lamp = np.array([flat * math.cos(angle), flat * math.sin(angle), height])
    photo = _backdrop(rng, size, backdrop, lamp)
    paper = _paper(rng, backdrop)
    for camera in _cameras(rng, size, lamp):
        if rng.random() < 0.45:
            _lay(photo, [_stick(rng)], camera._replace(turn=_spin(-math.pi / 2 + rng.normal(0, 0.5))), 0.08)
        _lay(photo, list(FOLDS[kind](rng, paper)), camera)
    return _develop(rng, _peep(rng, photo, lamp) if rng.random() < 0.15 else photo, lamp)
