"""Counts and sizes → the geometry of small charts, for a page that draws them itself, light or dark."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

SLICES = 10  # of a pie; smaller classes are joined
SPOTS = 600  # sizes that are drawn, the most frequent ones
PLOT = (320, 220)  # units of a chart's inside, across and down
TICKS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
SHAPES = {"1:3": -math.log2(3), "1:2": -1.0, "2:3": -math.log2(1.5), "1:1": 0.0, "3:2": math.log2(1.5), "2:1": 1.0,
          "3:1": math.log2(3)}  # fmt: skip
WIDEST, BINS = 2.0, 32  # aspects from 1:4 to 4:1


@dataclass(frozen=True)
class Slice:
    """A piece of a pie."""

    name: str
    photos: int
    share: float
    path: str  # an SVG path around (0, 0) with radius 100


@dataclass(frozen=True)
class Spot:
    """Photos of one size."""

    x: float
    y: float
    radius: float
    words: str


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    place: float
    words: str


@dataclass(frozen=True)
class Sizes:
    """Width across, height upward, on one logarithmic scale."""

    spots: list[Spot]
    across: list[Tick]
    upward: list[Tick]
    diagonal: tuple[float, float, float, float]  # where width and height are equal: x, y to x, y
    words: str


@dataclass(frozen=True)
class Aspects:
    """How many photos are how wide for their height."""

    bars: list[tuple[float, float, float, str]]  # x, width, height, words
    ticks: list[Tick]
    words: str


def pie(counts: Mapping[str, int]) -> list[Slice]:
    """The classes' shares, the largest first; the smallest are joined where there are many."""
    named = sorted(((name, count) for name, count in counts.items() if count), key=lambda each: (-each[1], each[0]))
    if len(named) > SLICES:
        rest = named[SLICES - 1 :]
        named = [*named[: SLICES - 1], (f"{len(rest)} other classes", sum(count for _, count in rest))]
    total, angle, slices = sum(count for _, count in named), 0.0, []
    for name, count in named:
        share = count / total
        slices.append(Slice(name, count, share, _wedge(angle, angle + share)))
        angle += share
    return slices


def _wedge(start: float, end: float) -> str:
    """From one share of the full turn to another, clockwise from the top."""
    if end - start > 0.9999:
        return "M0,-100 A100,100 0 1 1 -0.01,-100 Z"
    (x0, y0), (x1, y1) = (
        (100 * math.sin(2 * math.pi * share), -100 * math.cos(2 * math.pi * share)) for share in (start, end)
    )
    return f"M0,0 L{x0:.2f},{y0:.2f} A100,100 0 {int(end - start > 0.5)} 1 {x1:.2f},{y1:.2f} Z"


def sizes(photos: pl.DataFrame) -> Sizes:
    """The sizes of photos, each as often as it occurs.

    photos  with the columns width and height
    """
    found = photos.group_by("width", "height").len().sort("len", "width", "height", descending=True)
    shown = found.head(SPOTS)
    sides = np.log2(np.maximum(shown.select("width", "height").to_numpy().astype(float), 1))
    low, high = float(sides.min()) - 0.2, float(sides.max()) + 0.2
    across, upward = PLOT
    placed = (sides - low) / (high - low) * (across, upward)
    most = int(shown["len"].max())  # pyright: ignore[reportArgumentType]
    spots = [
        Spot(float(x), float(upward - y), 1.8 + 7 * math.sqrt(count / most), f"{width} × {height}: {count}")
        for (x, y), (width, height, count) in zip(placed, shown.iter_rows(), strict=True)
    ]
    ticks = [(each, (math.log2(each) - low) / (high - low)) for each in TICKS if low <= math.log2(each) <= high]
    width, height, count = found.row(0)
    words = f"{found.height:,} different sizes; the commonest is {width} × {height} pixels ({count:,} photos)"
    return Sizes(
        spots,
        [Tick(share * across, f"{each}") for each, share in ticks],
        [Tick(upward - share * upward, f"{each}") for each, share in ticks],
        (0.0, float(upward), float(across), 0.0),
        words,
    )


def aspects(photos: pl.DataFrame) -> Aspects:
    """Width by height of the photos, from upright to wide.

    photos  with the columns width and height
    """
    width, height = (photos[name].to_numpy().astype(float) for name in ("width", "height"))
    shape = np.clip(np.log2(width / height), -WIDEST, WIDEST)
    counts, edges = np.histogram(shape, BINS, (-WIDEST, WIDEST))
    across, upward = PLOT
    step, most = across / BINS, max(int(counts.max()), 1)
    bars = [
        (place * step, step, upward * int(count) / most, f"{_shape(edges[place : place + 2])}: {count}")
        for place, count in enumerate(counts)
        if count
    ]
    ticks = [Tick((value + WIDEST) / (2 * WIDEST) * across, words) for words, value in SHAPES.items()]
    tall, wide = float((shape < -0.05).mean()), float((shape > 0.05).mean())
    return Aspects(bars, ticks, f"{wide:.0%} are wider than high, {tall:.0%} higher than wide")


def _shape(edges: np.ndarray) -> str:
    return f"width / height {2 ** edges[0]:.2f} to {2 ** edges[1]:.2f}"
