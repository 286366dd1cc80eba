"""Charts of training: loss and accuracy per epoch, of one run or of several."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ikebana.evaluation.statistics import wilson_interval
from ikebana.reports import matplotlib_import  # noqa: F401 -- before anything of matplotlib

# isort: split
from matplotlib.axes import Axes

from ikebana.reports.palette import CARD, GREY, SERIES_COLOURS, SILVER, SPLIT_COLOURS
from ikebana.reports.panel import Panel, format_percent
from ikebana.reports.sheet import MARGIN, choose_ticks, draw_line, fit_labels, make_sheet, print_text, shorten

Epochs = Sequence[Mapping[str, float | None]]
# Width and height of a chart, the left edges of both, and their top, in inches.
CHART_SIZE = 3.55, 2.25
LEFT_EDGES, TOP = (MARGIN + 0.6, 6.4), 1.5
HEADINGS = {"loss": "Loss (lower is better)", "accuracy": "Accuracy (higher is better)"}
# Of a run beside its line, in inches.
MAX_NAME_WIDTH = 1.7
# Of the sheet of several runs, and the top of its chart, in inches.
OVERLAID_WIDTH, OVERLAID_TOP = 6.4, 1.25
# With more validation photos than this, the accuracy's interval is narrower than its changes.
MAX_BAND_PHOTOS = 200
NOTE_HEIGHT = 0.19
# Above the marked epoch, if the exported network is another one.
SCORED_MARK = "this network was scored"
REFIT_NOTE = "The exported network was trained once more, on all photos. These curves are of the one that was scored."
SMOOTHING_NOTE = (
    "The training loss contains label smoothing, so it stays above the validation loss: "
    "a gap between the two curves does not mean overfitting."
)


def make_curves(
    epochs: Epochs, interval: np.ndarray | None = None, *, note: str = "", mark: str = "this network ships"
) -> Axes:
    """Make the chart of loss and accuracy per epoch.

    Marks the epoch whose network the run has. NaN and infinite values leave a gap. The val_ values
    may be missing or None.

    Args:
        interval: of the validation accuracy, float [epochs, 2], see `compute_interval`.
        note: lines below the chart.
        mark: above the epoch whose network the run has.
    """
    shipped = find_final_epoch(epochs)
    losses = [key for key in ("train_loss", "val_loss") if any(row.get(key) is not None for row in epochs)]
    gaps = [row for row in epochs if not all(math.isfinite(_to_float(row.get(key))) for key in losses)]
    if gaps:
        note = "loss is NaN or infinite in epoch " + ", ".join(f"{row['epoch']:.0f}" for row in gaps)
    lines = note.splitlines()
    height = 4.45 + NOTE_HEIGHT * max(len(lines) - 1, 0)
    sheet = make_sheet(11.0, height, "Training curves", _describe_final_epoch(epochs, shipped))
    for left, kind in zip(LEFT_EDGES, HEADINGS, strict=True) if epochs else ():
        _draw_panel(sheet, epochs, shipped, left, kind=kind, interval=interval, mark=mark)
    for number, line in enumerate(lines):
        print_text(sheet, (MARGIN, 4.2 + NOTE_HEIGHT * number), shorten(line, 8, 10.3), 8, GREY)
    return sheet


def make_overlaid_curves(runs: Mapping[str, Epochs], kind: str) -> Axes:
    """Make the chart of several runs: their validation loss or accuracy per epoch.

    Args:
        runs: epochs by the name of the run.
        kind: "loss" or "accuracy". Each has a sheet of its own, so that both fit a narrow screen.
    """
    drawn = {name: epochs for name, epochs in runs.items() if epochs}
    labels = fit_labels(list(drawn), 9, MAX_NAME_WIDTH)
    subtitle = "validation photos, one line per run" if drawn else "no epochs"
    if left_out := len(drawn) - len(SERIES_COLOURS):
        subtitle += f"; {left_out} further runs are left out" if left_out > 0 else ""
    sheet = make_sheet(OVERLAID_WIDTH, 4.2, HEADINGS[kind], subtitle, labels)
    if not drawn:
        return sheet
    lines = {
        label: (_read(epochs, "epoch"), _read(epochs, f"val_{kind}"), colour)
        for label, epochs, colour in zip(labels, drawn.values(), SERIES_COLOURS, strict=False)
    }
    known = [value for _, line, _ in lines.values() for value in line[np.isfinite(line)]]
    numbers = np.concatenate([numbers for numbers, _, _ in lines.values()])
    panel = _make_panel(sheet, (LEFT_EDGES[0], OVERLAID_TOP), kind, numbers, known)
    for of_run, line, colour in lines.values():
        panel.draw_series(of_run, line, colour)
    ends = {label: (line[np.isfinite(line)], colour) for label, (_, line, colour) in lines.items()}
    panel.label_ends({label: (float(line[-1]), colour) for label, (line, colour) in ends.items() if len(line)})
    return sheet


def compute_interval(epochs: Epochs, photo_count: int) -> np.ndarray | None:
    """Compute Wilson's 95% interval of the validation accuracy: float [epochs, 2].

    Returns None where it would say little: with many validation photos, or none.
    """
    accuracies = _read(epochs, "val_accuracy")
    if not 0 < photo_count <= MAX_BAND_PHOTOS or not len(accuracies):
        return None
    shares = np.clip(accuracies, 0, 1)
    return np.array([wilson_interval(share * photo_count, photo_count) for share in shares])


def find_final_epoch(epochs: Epochs) -> int | None:
    """Return the index of the epoch whose weights the run has; None without epochs.

    It has the lowest model-selection loss where the training compares epochs, otherwise it is the
    last.
    """
    losses = np.nan_to_num(_read(epochs, "selection_loss"), nan=np.inf)
    if not len(losses):
        return None
    return int(np.flatnonzero(losses == losses.min())[-1])


def _describe_final_epoch(epochs: Epochs, shipped: int | None) -> str:
    if shipped is None:
        return "no epochs yet"
    accuracy = _to_float(epochs[shipped].get("val_accuracy"))
    score = f", validation accuracy {accuracy:.1%}" if math.isfinite(accuracy) else ", no validation score"
    is_selected = epochs[shipped].get("selection_loss") is not None
    reason = "it has the lowest model-selection loss" if is_selected else "the last"
    return f"the run has the network of epoch {epochs[shipped]['epoch']:.0f} ({reason}){score}"


def _draw_panel(
    sheet: Axes, epochs: Epochs, shipped: int | None, left: float, *, kind: str, interval: np.ndarray | None, mark: str
) -> None:
    lines = {"train": _read(epochs, f"train_{kind}"), "validation": _read(epochs, f"val_{kind}")}
    numbers = _read(epochs, "epoch")
    known = [value for line in lines.values() for value in line[np.isfinite(line)]]
    band = interval if kind == "accuracy" and interval is not None else np.empty((0, 2))
    panel = _make_panel(sheet, (left, TOP), kind, numbers, [*known, *band[np.isfinite(band)]])
    print_text(sheet, (left - 0.6, TOP - 0.38), HEADINGS[kind], 10)
    if len(band):
        panel.fill_band(numbers, band[:, 0], band[:, 1], SPLIT_COLOURS["validation"])
        print_text(sheet, (left + CHART_SIZE[0], TOP - 0.38), "band: 95% interval", 8, GREY, ha="right")
    for split, line in lines.items():
        panel.draw_series(numbers, line, SPLIT_COLOURS[split])
    finite = {split: line[np.isfinite(line)] for split, line in lines.items()}
    panel.label_ends({split: (float(line[-1]), SPLIT_COLOURS[split]) for split, line in finite.items() if len(line)})
    if shipped is None:
        return
    x, right = float(panel.x(numbers[shipped])), left + CHART_SIZE[0]
    draw_line(sheet, [x, x], [TOP - 0.05, TOP + CHART_SIZE[1]], SILVER, (0, (2, 2)))
    side = "right" if x > right - 0.6 else "left" if x < left + 0.6 else "center"
    print_text(sheet, (x, TOP - 0.16), mark, 8, GREY, ha=side)
    ring = {"marker": "o", "markersize": 7.5, "markeredgewidth": 1.8, "markerfacecolor": CARD}
    for split in ("validation", "train"):
        if math.isfinite(value := lines[split][shipped]):
            sheet.plot(x, panel.y(value), **ring, markeredgecolor=SPLIT_COLOURS[split])
            break


def _make_panel(
    sheet: Axes, corner: tuple[float, float], kind: str, numbers: np.ndarray, values: Sequence[float]
) -> Panel:
    """Make the panel of losses or accuracies per epoch, from its top left corner."""
    known = list(values) or [0.0, 1.0]
    ticks = choose_ticks(min(known), max(known), 5, outside=True)
    ticks = [tick for tick in ticks if kind == "loss" or tick < max(1, *known) + 1e-9]
    padding = 0 if numbers.max() > numbers.min() else 1
    (left, top), (width, height) = corner, CHART_SIZE
    panel = Panel(
        sheet,
        (left, left + width, top, top + height),
        (float(numbers.min()) - padding, float(numbers.max()) + padding),
        (min(ticks[0], *known), max(ticks[-1], *known)),
    )
    panel.draw_y_ticks(ticks, format_percent if kind == "accuracy" else "{:.6g}".format)
    x_ticks = choose_ticks(float(numbers.min()), float(numbers.max()), 6, only_integers=True)
    panel.draw_x_ticks(x_ticks, "{:.0f}".format, "epoch")
    return panel


def _read(epochs: Epochs, key: str) -> np.ndarray:
    return np.array([_to_float(row.get(key)) for row in epochs], float)


def _to_float(value: float | None) -> float:
    return float(value) if value is not None and abs(value) < 1e30 else math.nan
