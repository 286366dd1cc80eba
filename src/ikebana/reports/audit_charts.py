"""Geometry of small charts for an HTML page.

The page draws them as SVG, in light or dark colours.
"""

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

# The most frequent sizes are drawn.
MAX_SPOTS = 600
# Width and height inside the axes, in SVG units.
PLOT_SIZE = (320, 220)
SIZE_TICKS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
ASPECT_TICKS = {"1:3": -math.log2(3), "1:2": -1.0, "2:3": -math.log2(1.5), "1:1": 0.0, "3:2": math.log2(1.5), "2:1": 1.0,
                "3:1": math.log2(3)}  # fmt: skip
# Aspect ratios from 1:4 to 4:1.
MAX_LOG_ASPECT, ASPECT_BINS = 2.0, 32


@dataclass(frozen=True)
class Spot:
    """Photos of one size."""

    x: float
    y: float
    radius: float
    tooltip: str


@dataclass(frozen=True)
class Tick:
    """Tick of an axis."""

    position: float
    label: str


@dataclass(frozen=True)
class Sizes:
    """Scatter plot of width against height, on one logarithmic scale.

    `diagonal` is the line of equal width and height: x, y to x, y.
    """

    spots: list[Spot]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    diagonal: tuple[float, float, float, float]
    summary: str


@dataclass(frozen=True)
class Aspects:
    """Histogram of aspect ratios; a bar is x, width, height and tooltip."""

    bars: list[tuple[float, float, float, str]]
    ticks: list[Tick]
    summary: str


def layout_sizes(photos: pl.DataFrame) -> Sizes:
    """Lay out the sizes of photos, each spot by its frequency.

    Args:
        photos: with the columns width and height.
    """
    counted = photos.group_by("width", "height").len().sort("len", "width", "height", descending=True)
    shown = counted.head(MAX_SPOTS)
    sides = np.log2(np.maximum(shown.select("width", "height").to_numpy().astype(float), 1))
    low, high = float(sides.min()) - 0.2, float(sides.max()) + 0.2
    plot_width, plot_height = PLOT_SIZE
    positions = (sides - low) / (high - low) * (plot_width, plot_height)
    most = int(shown["len"].max())  # pyright: ignore[reportArgumentType]
    spots = [
        Spot(
            float(x),
            float(plot_height - y),
            1.8 + 7 * math.sqrt(count / most),
            f"{width} × {height}: {_format_count(count)}",
        )
        for (x, y), (width, height, count) in zip(positions, shown.iter_rows(), strict=True)
    ]
    ticks = [(tick, (math.log2(tick) - low) / (high - low)) for tick in SIZE_TICKS if low <= math.log2(tick) <= high]
    width, height, count = counted.row(0)
    sizes = f"{counted.height:,} size{'s' * (counted.height != 1)}"
    words = f"{sizes}; the most common is {width} × {height} pixels ({_format_count(count)})"
    return Sizes(
        spots,
        [Tick(share * plot_width, f"{tick}") for tick, share in ticks],
        [Tick(plot_height - share * plot_height, f"{tick}") for tick, share in ticks],
        (0.0, float(plot_height), float(plot_width), 0.0),
        words,
    )


def layout_aspects(photos: pl.DataFrame) -> Aspects:
    """Lay out the histogram of aspect ratios, from portrait to landscape.

    Args:
        photos: with the columns width and height.
    """
    width, height = (photos[name].to_numpy().astype(float) for name in ("width", "height"))
    log_aspect = np.clip(np.log2(width / height), -MAX_LOG_ASPECT, MAX_LOG_ASPECT)
    counts, edges = np.histogram(log_aspect, ASPECT_BINS, (-MAX_LOG_ASPECT, MAX_LOG_ASPECT))
    plot_width, plot_height = PLOT_SIZE
    step, most = plot_width / ASPECT_BINS, max(int(counts.max()), 1)
    bars = [
        (
            index * step,
            step,
            plot_height * int(count) / most,
            f"{_describe_bin(edges[index : index + 2])}: {_format_count(int(count))}",
        )
        for index, count in enumerate(counts)
        if count
    ]
    ticks = [
        Tick((value + MAX_LOG_ASPECT) / (2 * MAX_LOG_ASPECT) * plot_width, name) for name, value in ASPECT_TICKS.items()
    ]
    tall, wide = float((log_aspect < -0.05).mean()), float((log_aspect > 0.05).mean())
    return Aspects(bars, ticks, f"{wide:.0%} landscape, {tall:.0%} portrait, {1 - wide - tall:.0%} square")


def _format_count(photos: int) -> str:
    return f"{photos:,} photo{'s' * (photos != 1)}"


def _describe_bin(edges: np.ndarray) -> str:
    return f"width / height {2 ** edges[0]:.2f} to {2 ** edges[1]:.2f}"
