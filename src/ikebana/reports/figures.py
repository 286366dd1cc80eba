"""Figures of a run as PNG files, readable for 2 or 200 classes.

The same numbers give the same bytes. Positions are in inches, as on every `sheet`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from ikebana.reports import matplotlib_import  # noqa: F401 -- before anything of matplotlib

# isort: split
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Wedge
from PIL import Image

from ikebana.reports.sheet import (
    DPI,
    GREY,
    GRID,
    INK,
    MARGIN,
    SILVER,
    choose_ticks,
    draw_line,
    fill_boxes,
    fit_labels,
    make_sheet,
    measure_width,
    print_text,
    shorten,
    spread,
    to_printable,
    write_sheet,
)

# Distinct with every kind of colour blindness: at least 24 in CIELAB (Machado et al. 2009).
SPLIT_COLOURS = {"train": "#3F8A8C", "validation": "#C96F4B", "test": "#5D3E72"}
CORRECT_COLOUR, WRONG_COLOUR = "#2C6E74", "#C2613C"
# From dark to light, so that the order shows without colour.
PIE_COLOURS = ["#2F4F6B", "#4E8488", "#A9BFA4", "#E8DCB8"]
MAX_SLICES, MAX_BARS = 12, 150
Epochs = Sequence[Mapping[str, float | None]]
Photos = Sequence[np.ndarray]


def draw_class_bars(counts: Mapping[str, Mapping[str, int]], file: Path) -> None:
    """Draw one stacked bar per class: its train, validation and test photos, largest first."""
    write_sheet(_draw_bars(counts), file)


def draw_class_pie(counts: Mapping[str, Mapping[str, int]], file: Path) -> None:
    """Draw the share of each class; beyond 12 classes the smallest become "N other classes"."""
    write_sheet(_draw_pie(counts), file)


def draw_confusion_matrix(confusion: np.ndarray, classes: Sequence[str], file: Path) -> None:
    """Draw a confusion matrix of photos [true, predicted], correct and wrong in two colours."""
    write_sheet(_draw_confusion(np.asarray(confusion), classes), file)


def draw_curves(epochs: Epochs, file: Path) -> None:
    """Draw loss and accuracy per epoch; NaN and infinite values leave a gap.

    Marks the epoch with the highest validation accuracy. The val_ values may be missing or None.
    """
    write_sheet(_draw_curves(epochs), file)


def draw_photo_grid(photos: Photos, captions: Sequence[str], file: Path, *, title: str = "", columns: int = 6) -> None:
    """Draw uint8 photos [height, width, 3] in a grid, each under its caption.

    The photos may differ in size.
    """
    write_sheet(_draw_grid(photos, captions, title, columns), file)


def _draw_bars(counts: Mapping[str, Mapping[str, int]]) -> Axes:
    size, pitch = (9.5, 0.34) if len(counts) <= 12 else (9.0, 0.26) if len(counts) <= 40 else (8.5, 0.2)
    totals = {name: sum(row.get(split, 0) for split in SPLIT_COLOURS) for name, row in counts.items()}
    drawn = sorted(counts, key=lambda name: -totals[name])[:MAX_BARS]
    labels, x = fit_labels(drawn, size, 2.7), MARGIN
    rows = [(label, totals[name], counts[name]) for label, name in zip(labels, drawn, strict=True)]
    width, top, largest, bottom = 9.0, 1.6, max(totals.values(), default=0), 1.6 + pitch * len(rows)
    first = "largest first" if len(rows) == len(counts) else f"the {len(rows)} largest are shown"
    subtitle = f"{sum(totals.values()):,} photos in {len(counts):,} classes, {first}"
    sheet = make_sheet(width, bottom + MARGIN, "Photos per class", subtitle, labels)
    for split, colour in SPLIT_COLOURS.items():
        if photos := sum(row.get(split, 0) for row in counts.values()):
            fill_boxes(sheet, (x, 0.99, 0.12, 0.12), colour)
            x = print_text(sheet, (x + 0.19, 1.05), f"{split} {photos:,}", 9) + 0.3
    left = MARGIN + max((measure_width(label, size) for label in labels), default=0) + 0.14
    scale = (width - MARGIN - measure_width(f"{largest:,}", size) - 0.1 - left) / max(largest, 1)
    for tick in choose_ticks(0, largest, 5, only_integers=True):
        draw_line(sheet, [left + tick * scale] * 2, [top - 0.04, bottom], GRID)
        print_text(sheet, (left + tick * scale, top - 0.15), f"{tick:,.0f}", 8, GREY, ha="center")
    starts, ys = np.full(len(rows), left), top + pitch * np.arange(len(rows))
    for split, colour in SPLIT_COLOURS.items():
        widths = scale * np.array([row.get(split, 0) for _, _, row in rows])
        fill_boxes(sheet, (starts, ys + pitch * 0.17, widths, pitch * 0.66), colour)
        starts = starts + widths
    for (name, total, _), x, y in zip(rows, starts, ys, strict=True):
        print_text(sheet, (left - 0.14, y + pitch / 2), name, size, ha="right")
        end = print_text(sheet, (x + 0.08, y + pitch / 2), f"{total:,}", size)
        fill_boxes(sheet, (x, y, end - x + 0.06, pitch), "white")
    return sheet


def _draw_pie(counts: Mapping[str, Mapping[str, int]]) -> Axes:
    names = fit_labels(list(counts), 9.5, 2.2)
    totals = [sum(row.get(split, 0) for split in SPLIT_COLOURS) for row in counts.values()]
    slices = sorted(zip(names, totals, strict=True), key=lambda pair: -pair[1])
    if rest := slices[MAX_SLICES - 1 :] if len(slices) > MAX_SLICES else []:
        slices = [*slices[: MAX_SLICES - 1], (f"{len(rest)} other classes", sum(total for _, total in rest))]
    class_count = len(slices) - bool(rest)
    shades = LinearSegmentedColormap.from_list("", PIE_COLOURS)(np.linspace(0, 1, max(class_count, 2)))
    colours = [*shades[:class_count], "#D9DCDF"]
    subtitle = "the largest class is the darkest" if len(set(totals)) > 1 else "all classes have the same size"
    sheet = make_sheet(9.5, 5.75, "Share of photos per class", subtitle, dict(slices))
    middle, height, radius = 4.75, 3.3, 1.65
    shares = np.array([total for _, total in slices], dtype=float) / max(sum(totals), 1)
    angles, places = _turn_pie(shares, height, radius)
    for (name, total), share, colour, angle, y in zip(slices, shares, colours, angles, places, strict=False):
        half, line_width = share * 180, 1.0 if share < 1 else 0.0
        ring = {"width": 0.72, "facecolor": colour, "edgecolor": "white", "linewidth": line_width}
        sheet.add_patch(Wedge((middle, height), radius, angle - half, angle + half, **ring))
        out, down = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        side, ha = (1, "left") if out >= 0 else (-1, "right")
        xs = [middle + out * radius * 1.02, middle + side * (radius + 0.3), middle + side * (radius + 0.42)]
        draw_line(sheet, xs, [height + down * radius * 1.02, y, y], SILVER)
        print_text(sheet, (xs[2] + side * 0.08, y - 0.085), name, 9.5, ha=ha)
        print_text(sheet, (xs[2] + side * 0.08, y + 0.085), f"{total:,} photos, {share:.1%}", 8, GREY, ha=ha)
    print_text(sheet, (middle, height - 0.1), f"{sum(totals):,}", 15, ha="center")
    print_text(sheet, (middle, height + 0.16), f"photos in {len(counts)} classes", 8, GREY, ha="center")
    return sheet


def _turn_pie(shares: np.ndarray, height: float, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Turn a pie so that labels are near their slices.

    Returns:
        Angle and label height per slice.
    """
    turns = []
    for turn in range(-90, 270, 5):
        degrees = np.cumsum(shares) * 360 - shares * 180 + turn
        wanted, places = height + 1.15 * radius * np.sin(np.radians(degrees)), np.zeros(len(shares))
        for side in (np.cos(np.radians(degrees)) >= 0, np.cos(np.radians(degrees)) < 0):
            places[side] = spread(wanted[side], 0.39, 1.05, 5.4)
        # The largest slice leaves the top only if that gains a third of an inch.
        moved = round(float(np.abs(places - wanted).max(initial=0)) + 0.33 * (turn != -90), 6)
        turns.append((moved, turn, degrees, places))
    return min(turns, key=lambda row: row[:2])[2:]


def _draw_confusion(confusion: np.ndarray, classes: Sequence[str]) -> Axes:
    count = len(classes)
    if confusion.shape != (count, count):
        raise ValueError(f"{count} classes need a confusion of {count} x {count}, not {confusion.shape}")
    cell, size, digits = min(max(4.2 / max(count, 1), 0.72), 1.3), 9.5, 11.0
    if count > 12:
        cell, size, digits = (0.34, 8.0, 7.5) if count <= 40 else (0.125, 6.5, 0.0)
    if digits:
        cell = max(cell, measure_width(f"{confusion.max(initial=0):,.0f}", digits) + 0.1)
    names = fit_labels(classes, size, 2.4)
    longest, side = max((measure_width(name, size) for name in names), default=0), cell * count
    is_upright, footer = longest < cell - 0.06, longest + 0.1 if count > 40 else 0.0
    left, top = MARGIN + max(longest, 0.98) + 0.1, 1.05 + max(0.2 if is_upright else longest, 0.45)
    total, right = confusion.sum(), confusion.trace()
    subtitle = f"{right:,.0f} of {total:,.0f} photos classified correctly ({right / max(total, 1):.1%})"
    width, low = max(left + side + footer + MARGIN, 6.9), top + side + footer + 0.5
    sheet = make_sheet(width, low + 0.55, "Confusion matrix", subtitle, names)
    _draw_cells(sheet, confusion, (left, top), cell, digits)
    for index, name in enumerate(names):
        x, y, turn = left + (index + 0.5) * cell, top + (index + 0.5) * cell, 0 if is_upright else 90
        print_text(sheet, (left - 0.08, y), name, size, ha="right")
        print_text(sheet, (x, top - 0.08), name, size, ha="center", va="bottom", rotation=turn)
        if footer:
            print_text(sheet, (left + side + 0.08, y), name, size)
            print_text(sheet, (x, top + side + 0.08), name, size, ha="center", va="top", rotation=turn)
    print_text(sheet, (left - 0.08, top - 0.32), "predicted class →", 8, GREY, ha="right")
    print_text(sheet, (left - 0.08, top - 0.12), "true class ↓", 8, GREY, ha="right")
    x = print_text(sheet, (MARGIN, low), "share of the true class", 8, GREY) + 0.25
    for word, colour in (("correct", CORRECT_COLOUR), ("wrong", WRONG_COLOUR)):
        x, shares = print_text(sheet, (x, low), f"{word}  0%", 8, GREY) + 0.07, np.linspace(0, 1, 51)
        fill_boxes(sheet, (x + shares, low - 0.06, 0.02, 0.12), _tint(shares, colour))
        x = print_text(sheet, (x + 1.09, low), "100%", 8, GREY) + 0.3
    return sheet


def _draw_cells(sheet: Axes, confusion: np.ndarray, corner: tuple[float, float], cell: float, digits: float) -> None:
    (left, top), count = corner, len(confusion)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    colours = np.where(np.eye(count, dtype=bool)[..., None], _tint(shares, CORRECT_COLOUR), _tint(shares, WRONG_COLOUR))
    rows, columns = np.nonzero(confusion)
    fill_boxes(sheet, (left + columns * cell, top + rows * cell, cell, cell), colours[rows, columns])
    ends, side = np.arange(count + 1) * cell, count * cell
    lattice = [[(left, top + end), (left + side, top + end)] for end in ends]
    lattice += [[(left + end, top), (left + end, top + side)] for end in ends]
    sheet.add_collection(LineCollection(lattice, colors=GRID, linewidths=0.6), autolim=False)
    has_share = cell >= 0.7
    for row, column in zip(rows, columns, strict=True) if digits else ():
        x, y, share = left + (column + 0.5) * cell, top + (row + 0.5) * cell, shares[row, column]
        colour = "white" if share > 0.43 else INK
        print_text(sheet, (x, y - 0.07 * has_share), f"{confusion[row, column]:,.0f}", digits, colour, ha="center")
        if has_share:
            print_text(sheet, (x, y + 0.13), f"{share:.0%}", 7.5, colour, ha="center")


def _tint(shares: np.ndarray, colour: str) -> np.ndarray:
    return LinearSegmentedColormap.from_list("", ["white", colour])(shares**0.6)


def _draw_curves(epochs: Epochs) -> Axes:
    best, subtitle = _best_epoch(epochs), "no validation score"
    if best is not None:
        accuracy = _to_float(epochs[best].get("val_accuracy"))
        score = f"{accuracy:.1%} " if math.isfinite(accuracy) else ""
        subtitle = f"highest validation accuracy: {score}in epoch {epochs[best]['epoch']:.0f}"
    sheet = make_sheet(11.0, 4.45, "Training curves", subtitle if epochs else "no epochs yet")
    panels = ((MARGIN, "Loss (lower is better)", "loss"), (5.8, "Accuracy (higher is better)", "accuracy"))
    for left, heading, kind in panels if epochs else ():
        print_text(sheet, (left, 1.12), heading, 10)
        _draw_panel(sheet, epochs, best, left + 0.6, kind)
    losses = [key for key in ("train_loss", "val_loss") if any(row.get(key) is not None for row in epochs)]
    gaps = [row for row in epochs if not all(math.isfinite(_to_float(row.get(key))) for key in losses)]
    if gaps:
        text = "loss is NaN or infinite in epoch " + ", ".join(f"{row['epoch']:.0f}" for row in gaps)
        print_text(sheet, (MARGIN, 4.2), shorten(text, 8, 10.0), 8, GREY)
    return sheet


def _draw_panel(sheet: Axes, epochs: Epochs, best: int | None, left: float, kind: str) -> None:
    right, top, bottom = left + 3.55, 1.5, 3.75
    keys = {"train": f"train_{kind}", "validation": f"val_{kind}"}
    lines = {split: np.array([_to_float(row.get(key)) for row in epochs]) for split, key in keys.items()}
    known = [value for line in lines.values() for value in line[np.isfinite(line)]] or [0.0, 1.0]
    ticks = choose_ticks(min(known), max(known), 5, outside=True)
    ticks = [tick for tick in ticks if kind == "loss" or tick < max(1, *known) + 1e-9]
    scale = [ticks[0], max(ticks[-1], *known)], [bottom, top]
    for tick, y in zip(ticks, np.interp(ticks, *scale), strict=True):
        draw_line(sheet, [left, right], [y, y], GRID)
        text = f"{tick:.6g}" if kind == "loss" else f"{100 * tick:.6g}%"
        print_text(sheet, (left - 0.1, y), text, 8, GREY, ha="right")
    numbers = np.array([_to_float(row["epoch"]) for row in epochs])
    padding = 0 if numbers.max() > numbers.min() else 1
    span = [numbers.min() - padding, numbers.max() + padding], [left + 0.1, right - 0.1]
    for tick in choose_ticks(numbers.min(), numbers.max(), 6, only_integers=True):
        print_text(sheet, (float(np.interp(tick, *span)), bottom + 0.18), f"{tick:.0f}", 8, GREY, ha="center")
    print_text(sheet, (right + 0.1, bottom + 0.18), "epoch", 8, GREY)
    xs, ends = np.interp(numbers, *span), []
    for split, line in lines.items():
        ys, style = np.interp(line, *scale), {"color": SPLIT_COLOURS[split], "linewidth": 1.8, "markeredgewidth": 0.0}
        if len(drawn := np.flatnonzero(np.isfinite(ys))):
            dots = 6.0 if len(drawn) == 1 else 3.2 if len(epochs) <= 30 or len(drawn) < len(epochs) else 0.0
            sheet.plot(xs, ys, **style, linestyle="-", marker="o", markersize=dots, solid_capstyle="round")
            ends.append((float(ys[drawn[-1]]), split))
    for y, (_, split) in zip(spread(np.array([y for y, _ in ends]), 0.19, top, bottom), ends, strict=True):
        print_text(sheet, (right + 0.1, float(y)), split, 9, SPLIT_COLOURS[split])
    if best is not None:
        draw_line(sheet, [xs[best]] * 2, [top - 0.05, bottom], SILVER, (0, (2, 2)))
        print_text(sheet, (xs[best], top - 0.16), "highest accuracy", 8, GREY, ha="center")
        ring = {"marker": "o", "markersize": 7.5, "markeredgewidth": 1.8, "markerfacecolor": "white"}
        sheet.plot(
            xs[best], np.interp(lines["validation"][best], *scale), **ring, markeredgecolor=SPLIT_COLOURS["validation"]
        )


def _best_epoch(epochs: Epochs) -> int | None:
    """Return the index of the epoch with the highest validation accuracy, then the lowest loss."""
    scores = [(-_to_float(row.get("val_accuracy")), _to_float(row.get("val_loss"))) for row in epochs]
    ranks = [(*np.nan_to_num(pair, nan=np.inf), index) for index, pair in enumerate(scores)]
    return min(ranks)[2] if np.isfinite(scores).any() else None


def _draw_grid(photos: Photos, captions: Sequence[str], title: str, columns: int) -> Axes:
    box, gap, caption_height = 1.5, 0.16, 0.24
    columns = max(1, min(columns, len(photos)))
    width, y = max(MARGIN * 2 + columns * box + (columns - 1) * gap, 4.0), 0.75 if title else MARGIN - 0.1
    scaled, tops = [], []
    for photo in photos:
        size = [max(1, round(side * box * DPI / max(photo.shape[:2]))) for side in (photo.shape[1], photo.shape[0])]
        image = Image.fromarray(photo).resize((size[0], size[1]), Image.Resampling.LANCZOS, reducing_gap=3.0)
        scaled.append(np.asarray(image))
    for start in range(0, len(scaled), columns):
        tops.append(y)
        y += caption_height + max(len(photo) for photo in scaled[start : start + columns]) / DPI + gap
    sheet = make_sheet(width, y - gap + MARGIN, shorten(to_printable(title), 14, width - 2 * MARGIN))
    for index, (photo, caption) in enumerate(zip(scaled, captions, strict=True)):
        x, y = MARGIN + index % columns * (box + gap), tops[index // columns]
        print_text(sheet, (x, y + caption_height / 2), shorten(to_printable(caption), 8, box), 8)
        lowest = round(sheet.bbox.height) - round((y + caption_height) * DPI) - len(photo)
        cast(Figure, sheet.figure).figimage(photo, round(x * DPI), lowest, origin="upper")
    return sheet


def _to_float(value: float | None) -> float:
    return float(value) if value is not None and abs(value) < 1e30 else math.nan
