"""Numbers to draw, and what can be read on a figure."""

from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def make_counts(names: list[str], seed: int = 0) -> dict[str, dict[str, int]]:
    sizes = np.random.default_rng(seed).integers(0, 900, len(names)).tolist()
    return {name: {"train": 3 * n, "validation": n, "test": n} for name, n in zip(names, sizes, strict=True)}


def make_confusion(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 3, (count, count)) * (rng.random((count, count)) < 0.1) + np.diag(rng.integers(0, 99, count))


def make_epochs(count: int, **changes: object) -> list[dict]:
    rows = []
    for epoch, loss in enumerate(np.exp(-np.arange(count) / 5), 1):
        row = {"epoch": epoch, "train_loss": loss, "train_accuracy": 1 - loss / 2}
        rows.append(row | {"val_loss": loss + 0.1, "val_accuracy": 0.9 - loss / 2} | changes)
    return rows


def list_texts(sheet: Axes) -> list[tuple[str, np.ndarray]]:
    """List every visible text with its left, bottom, right and top in pixels."""
    renderer = FigureCanvasAgg(cast(Figure, sheet.figure)).get_renderer()
    texts = [text for text in sheet.findobj(Text) if isinstance(text, Text) and text.get_visible() and text.get_text()]
    return [(text.get_text(), np.array(text.get_window_extent(renderer).extents)) for text in texts]


def assert_readable(sheet: Axes) -> None:
    texts, boxes = zip(*list_texts(sheet), strict=True)
    boxes = np.array(boxes)
    width, height = sheet.bbox.width, sheet.bbox.height
    outside = (boxes[:, :2].min(axis=1) < 0) | (boxes[:, 2] > width) | (boxes[:, 3] > height)
    assert not [texts[index] for index in np.flatnonzero(outside)]
    together = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    overlap = (together > 0.5).all(axis=-1)  # half a pixel, because letters are placed on whole pixels
    assert not [(texts[a], texts[b]) for a, b in np.argwhere(np.triu(overlap, 1))]
