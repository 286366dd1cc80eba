"""Figures of a run's photos and errors, readable for 2 or 200 classes.

Each is a `sheet`, which can be written as a PNG or as SVG. The same numbers give the same bytes.
Positions are in inches.
"""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from ikebana.reports import matplotlib_import  # noqa: F401 -- before anything of matplotlib

# isort: split
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Wedge
from PIL import Image

from ikebana.reports.palette import (
    CARD,
    CORRECT_COLOUR,
    GREY,
    GRID,
    SERIES_COLOURS,
    SILVER,
    SPLIT_COLOURS,
    WRONG_COLOUR,
)
from ikebana.reports.sheet import (
    DPI,
    MARGIN,
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
)
from ikebana.system.percentages import format_confidence

# With more classes, slices are thin and the bars say the same.
MAX_PIE_CLASSES = 8
MAX_BARS = 150
# Opacity of a cell: up to the highest, its number has a contrast of at least 4.5 to 1, light or dark.
MIN_CELL_ALPHA, MAX_CELL_ALPHA = 0.07, 0.55
# Bars of the chart of confusions, and pairs in the subtitle of the matrix.
MAX_WORST_PAIRS, MAX_NAMED_PAIRS = 15, 3
Counts = Mapping[str, Mapping[str, int]]
Photos = Sequence[np.ndarray]


def make_class_bars(counts: Counts) -> Axes:
    """Make one stacked bar per class: its train, validation and test photos, largest first."""
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
    starts, ys = np.full(len(rows), left), top + pitch * np.arange(len(rows))
    for split, colour in SPLIT_COLOURS.items():
        widths = scale * np.array([row.get(split, 0) for _, _, row in rows])
        fill_boxes(sheet, (starts, ys + pitch * 0.17, widths, pitch * 0.66), colour)
        starts = starts + widths
    ends = []
    for (name, total, _), x, y in zip(rows, starts, ys, strict=True):
        print_text(sheet, (left - 0.14, y + pitch / 2), name, size, ha="right")
        ends.append(print_text(sheet, (x + 0.08, y + pitch / 2), f"{total:,}", size))
    for tick in choose_ticks(0, largest, 5, only_integers=True):
        x = left + tick * scale
        print_text(sheet, (x, top - 0.15), f"{tick:,.0f}", 8, GREY, ha="center")
        is_crossed = (starts < x + 0.02) & (x - 0.06 < np.array(ends))
        _draw_broken_line(sheet, x, (top - 0.04, bottom), ys[is_crossed] + pitch / 2, 0.1)
    return sheet


def _draw_broken_line(sheet: Axes, x: float, ends: tuple[float, float], gaps: np.ndarray, reach: float) -> None:
    """Draw a vertical line with gaps of a half height around texts."""
    edges = [ends[0], *(y + side for y in gaps for side in (-reach, reach)), ends[1]]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        draw_line(sheet, [x, x], [start, end], GRID)


def make_class_pie(counts: Counts) -> Axes:
    """Make the chart of each class's share, for at most 8 classes.

    Raises:
        ValueError: there are more classes, whose shares the bars show better.
    """
    if len(counts) > MAX_PIE_CLASSES:
        raise ValueError(f"{len(counts)} classes are too many for a pie; the limit is {MAX_PIE_CLASSES}")
    names = fit_labels(list(counts), 9.5, 2.2)
    totals = [sum(row.get(split, 0) for split in SPLIT_COLOURS) for row in counts.values()]
    slices = sorted(zip(names, totals, strict=True), key=lambda pair: -pair[1])
    subtitle = "largest first, clockwise" if len(set(totals)) > 1 else "all classes have the same size"
    sheet = make_sheet(9.5, 5.75, "Share of photos per class", subtitle, dict(slices))
    middle, height, radius = 4.75, 3.3, 1.65
    shares = np.array([total for _, total in slices], dtype=float) / max(sum(totals), 1)
    angles, places = _turn_pie(shares, height, radius)
    for (name, total), share, colour, angle, y in zip(slices, shares, SERIES_COLOURS, angles, places, strict=False):
        half, line_width = share * 180, 1.0 if share < 1 else 0.0
        ring = {"width": 0.72, "facecolor": colour, "edgecolor": CARD, "linewidth": line_width}
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


def make_confusion_matrix(confusion: np.ndarray, classes: Sequence[str]) -> Axes:
    """Make a confusion matrix of photos [true, predicted], correct and wrong in two colours.

    The colour of correct cells is scaled to all photos of a class, that of wrong ones to the
    largest error.
    """
    confusion, count = np.asarray(confusion), len(classes)
    if confusion.shape != (count, count):
        raise ValueError(f"{count} classes need a confusion of {count} x {count}, not {confusion.shape}")
    size, digits = 9.5, 11.0
    if count > 12:
        size, digits = (8.0, 7.5) if count <= 40 else (6.5, 0.0)
    names = fit_labels(classes, size, 2.4)
    longest = max((measure_width(name, size) for name in names), default=0)
    footer, left = longest + 0.1 if count > 40 else 0.0, MARGIN + max(longest, 0.98) + 0.1
    cell = _choose_cell_size(confusion, digits, 6.9 - MARGIN - left)
    side, is_upright = cell * count, longest < cell - 0.06
    top = 1.28 + max(0.2 if is_upright else longest, 0.45)
    total, right = confusion.sum(), confusion.trace()
    subtitle = f"{right:,.0f} of {total:,.0f} photos classified correctly ({right / max(total, 1):.1%})"
    width, low = max(left + side + footer + MARGIN, 6.9), top + side + footer + 0.5
    sheet = make_sheet(width, low + 0.55, "Confusion matrix", subtitle, names)
    pairs = find_worst_pairs(confusion, classes)[:MAX_NAMED_PAIRS]
    if pairs:
        named = ", ".join(f"{to_printable(true)} → {to_printable(other)} {photos:,}" for true, other, photos in pairs)
        print_text(sheet, (MARGIN, 0.93), shorten(f"most often confused: {named}", 9, width - 2 * MARGIN), 9, GREY)
    largest = _draw_cells(sheet, confusion, (left, top), cell, digits)
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
    for word, colour, end in (("correct", CORRECT_COLOUR, 1.0), ("wrong", WRONG_COLOUR, largest)):
        x, steps = print_text(sheet, (x, low), f"{word}  0%", 8, GREY) + 0.07, np.linspace(0, 1, 26)
        fill_boxes(sheet, (x + 0.75 * steps, low - 0.06, 0.03, 0.12), _tint(steps, colour))
        x = print_text(sheet, (x + 0.84, low), f"{end:.1%}" if 0 < end < 0.1 else f"{end:.0%}", 8, GREY) + 0.3
    return sheet


def _choose_cell_size(confusion: np.ndarray, digits: float, room: float) -> float:
    """Choose the side of a cell in inches, so that numbers fit."""
    count = len(confusion)
    cell = min(max(room / max(count, 1), 0.34), 1.3) if count <= 40 else 0.125
    if digits:
        cell = max(cell, measure_width(f"{confusion.max(initial=0):,.0f}", digits) + 0.1)
    return cell


def find_worst_pairs(confusion: np.ndarray, classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """List true class, predicted class and photos of every confusion, the most frequent first."""
    confusion = np.asarray(confusion)
    errors = np.where(np.eye(len(classes), dtype=bool), 0, confusion)
    order = np.argsort(-errors, axis=None, kind="stable")[: np.count_nonzero(errors)]
    places = np.stack(np.unravel_index(order, errors.shape), axis=1).tolist()
    return [(classes[int(row)], classes[int(column)], int(errors[row, column])) for row, column in places]


def make_worst_pairs(confusion: np.ndarray, classes: Sequence[str]) -> Axes:
    """Make bars of the 15 most frequent confusions: true class, predicted class, photos."""
    confusion, pairs = np.asarray(confusion), find_worst_pairs(confusion, classes)
    drawn, pitch, top, width = pairs[:MAX_WORST_PAIRS], 0.3, 1.1, 9.0
    supports = dict(zip(classes, confusion.sum(1).tolist(), strict=True))
    labels = fit_labels([f"{true} → {other}" for true, other, _ in drawn], 9.5, 4.2)
    first = f"{len(drawn)} most frequent of {len(pairs):,} pairs" if len(drawn) < len(pairs) else "all pairs"
    subtitle = f"true class → predicted class; {first}" if pairs else "no photo was classified wrongly"
    sheet = make_sheet(width, top + pitch * len(drawn) + MARGIN, "Most frequent confusions", subtitle, labels)
    left = MARGIN + max((measure_width(label, 9.5) for label in labels), default=0) + 0.14
    texts = [
        f"{photos:,} of {supports[true]:,} ({format_confidence(photos / max(supports[true], 1))})"
        for true, _, photos in drawn
    ]
    room = width - MARGIN - left - max((measure_width(text, 9) for text in texts), default=0) - 0.1
    for row, ((_, _, photos), label, text) in enumerate(zip(drawn, labels, texts, strict=True)):
        y, length = top + (row + 0.5) * pitch, room * photos / drawn[0][2]
        print_text(sheet, (left - 0.14, y), label, 9.5, ha="right")
        fill_boxes(sheet, (left, y - pitch * 0.33, length, pitch * 0.66), WRONG_COLOUR)
        print_text(sheet, (left + length + 0.08, y), text, 9, GREY)
    return sheet


def _draw_cells(sheet: Axes, confusion: np.ndarray, corner: tuple[float, float], cell: float, digits: float) -> float:
    """Draw the cells; return the largest error as a share of its true class."""
    (left, top), count = corner, len(confusion)
    shares, is_correct = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1), np.eye(count, dtype=bool)
    largest = float(np.where(is_correct, 0, shares).max(initial=0))
    wrong = _tint(shares / (largest or 1), WRONG_COLOUR)
    colours = np.where(is_correct[..., None], _tint(shares, CORRECT_COLOUR), wrong)
    rows, columns = np.nonzero(confusion)
    fill_boxes(sheet, (left + columns * cell, top + rows * cell, cell, cell), colours[rows, columns])
    ends, side = np.arange(count + 1) * cell, count * cell
    lattice = [[(left, top + end), (left + side, top + end)] for end in ends]
    lattice += [[(left + end, top), (left + end, top + side)] for end in ends]
    sheet.add_collection(LineCollection(lattice, colors=GRID, linewidths=0.6), autolim=False)
    has_share = cell >= 0.6
    for row, column in zip(rows, columns, strict=True) if digits else ():
        x, y, share = left + (column + 0.5) * cell, top + (row + 0.5) * cell, shares[row, column]
        print_text(sheet, (x, y - 0.07 * has_share), f"{confusion[row, column]:,.0f}", digits, ha="center")
        if has_share:
            print_text(sheet, (x, y + 0.13), format_confidence(share), 7.5, ha="center")
    return largest


def _tint(shares: np.ndarray, colour: str) -> np.ndarray:
    """Return the colour with an opacity per share, 0 for 0: float [..., 4]."""
    shares = np.clip(shares, 0, 1)
    alphas = np.where(shares > 0, MIN_CELL_ALPHA + (MAX_CELL_ALPHA - MIN_CELL_ALPHA) * shares, 0.0)
    return np.concatenate([np.broadcast_to(to_rgba(colour)[:3], (*shares.shape, 3)), alphas[..., None]], axis=-1)


def make_photo_rows(photos: Mapping[str, Photos], *, title: str = "", subtitle: str = "") -> Axes:
    """Make a row of equal squares per class, with its name at the left.

    Args:
        photos: uint8 [height, width, 3] of each class; of a photo that is not square, its middle.
    """
    box, gap, names = 1.1, 0.08, fit_labels(list(photos), 10, 1.8)
    columns = max((len(row) for row in photos.values()), default=0)
    sides = [min(photo.shape[:2]) for row in photos.values() for photo in row]
    # Photos are drawn pixel by pixel where they are large enough.
    pixels = int(np.clip(np.median(sides), box * DPI, 2 * box * DPI)) if sides else round(box * DPI)
    dpi = round(pixels / box)
    left = MARGIN + max((measure_width(name, 10) for name in names), default=0) + 0.16
    top = (0.95 if subtitle else 0.7) if title else MARGIN
    width = max(left + columns * (box + gap) - gap + MARGIN, 4.0)
    height = top + len(photos) * (box + gap) - gap + MARGIN
    shown = shorten(to_printable(title), 14, width - 2 * MARGIN)
    sheet = make_sheet(width, height, shown, subtitle, names, dpi=dpi)
    for row, (name, of_class) in enumerate(zip(names, photos.values(), strict=True)):
        y = top + row * (box + gap)
        print_text(sheet, (left - 0.16, y + box / 2), name, 10, ha="right")
        for column, photo in enumerate(of_class):
            _place_photo(sheet, _crop_to_square(photo, pixels), (left + column * (box + gap), y))
    return sheet


def _crop_to_square(photo: np.ndarray, side: int) -> np.ndarray:
    """Cut out the middle of a photo and resize it to uint8 [side, side, 3]."""
    height, width = photo.shape[:2]
    shorter = min(height, width)
    y, x = (height - shorter) // 2, (width - shorter) // 2
    picture = Image.fromarray(photo[y : y + shorter, x : x + shorter])
    return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0))


def _place_photo(sheet: Axes, photo: np.ndarray, corner: tuple[float, float]) -> None:
    """Draw a photo pixel by pixel, from its top left corner in inches."""
    figure, (x, y) = cast(Figure, sheet.figure), corner
    lowest = round(sheet.bbox.height) - round(y * figure.dpi) - len(photo)
    figure.figimage(photo, round(x * figure.dpi), lowest, origin="upper")
