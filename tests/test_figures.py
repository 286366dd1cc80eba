import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from matplotlib import rc_context, rcParams, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from ikebana.errors import MachineError
from ikebana.reports import figures
from ikebana.reports import sheet as reports_sheet
from ikebana.reports.sheet import DPI, fit_labels, measure_width, spread, to_printable, write_sheet

ODD = ["Gänseblümchen", "Μαργαρίτα", "玫瑰", "郁金香", "ひまわり", "زهرة الربيع", "🌹 rose", "cafe\u0301", "\udcff raw"]
ODD += ["$x_1$ and \\alpha", "_hidden", "50 % off_{x}^", "$", "two\nlines"]
ODD += ["w" * 80, "a" * 40 + "b" * 40, "a" * 40 + "c" + "b" * 39]
GENERA = ["Rosa", "Tulipa", "Bellis", "Helianthus", "Taraxacum", "Iris", "Lilium", "Papaver", "Viola", "Primula"]


def names_of(count: int) -> list[str]:
    return [f"{GENERA[index % 10]} no. {index} {'x' * (index % 30)}" for index in range(count)]


def counts_of(names: list[str], seed: int = 0) -> dict[str, dict[str, int]]:
    sizes = np.random.default_rng(seed).integers(0, 900, len(names)).tolist()
    return {name: {"train": 3 * n, "validation": n, "test": n} for name, n in zip(names, sizes, strict=True)}


def confusion_of(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 3, (count, count)) * (rng.random((count, count)) < 0.1) + np.diag(rng.integers(0, 99, count))


def epochs_of(count: int, **changes: object) -> list[dict]:
    rows = []
    for epoch, loss in enumerate(np.exp(-np.arange(count) / 5), 1):
        row = {"epoch": epoch, "train_loss": loss, "train_accuracy": 1 - loss / 2}
        rows.append(row | {"val_loss": loss + 0.1, "val_accuracy": 0.9 - loss / 2} | changes)
    return rows


def photos_of(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (*rng.integers(1, 90, 2), 3), dtype=np.uint8) for _ in range(count)]


def print_on(sheet: Axes) -> list[tuple[str, np.ndarray]]:
    """Every text that can be seen, with its left, bottom, right and top in pixels."""
    renderer = FigureCanvasAgg(cast(Figure, sheet.figure)).get_renderer()
    texts = [text for text in sheet.findobj(Text) if isinstance(text, Text) and text.get_visible() and text.get_text()]
    return [(text.get_text(), np.array(text.get_window_extent(renderer).extents)) for text in texts]


def assert_readable(sheet: Axes) -> None:
    texts, boxes = zip(*print_on(sheet), strict=True)
    boxes = np.array(boxes)
    width, height = sheet.bbox.width, sheet.bbox.height
    outside = (boxes[:, :2].min(axis=1) < 0) | (boxes[:, 2] > width) | (boxes[:, 3] > height)
    assert not [texts[index] for index in np.flatnonzero(outside)]
    together = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    overlap = (together > 0.5).all(axis=-1)  # half a pixel: letters are placed on whole ones
    assert not [(texts[a], texts[b]) for a, b in np.argwhere(np.triu(overlap, 1))]


def all_kinds() -> dict[str, Callable[[Path], None]]:
    names = ["daisy", "dandelion", "rose", "sunflower", "tulip"]
    return {
        "bar": lambda file: figures.draw_class_bars(counts_of(names), file),
        "pie": lambda file: figures.draw_class_pie(counts_of(names), file),
        "confusion": lambda file: figures.draw_confusion_matrix(confusion_of(5), names, file),
        "curves": lambda file: figures.draw_curves(epochs_of(7), file),
        "grid": lambda file: figures.draw_photo_grid(photos_of(8), ["a rose"] * 8, file, title="Photos", columns=3),
    }


KINDS = list(all_kinds())


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 5, 13, 37, 200])
def test_no_two_words_overlap_and_none_leaves_the_picture_for_any_number_of_classes(count):
    assert_readable(figures._draw_bars(counts_of(names_of(count))))
    assert_readable(figures._draw_pie(counts_of(names_of(count))))
    assert_readable(figures._draw_confusion(confusion_of(count), names_of(count)))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[1] * 200, [1000] + [1] * 11, [1000, 800] + [6] * 10, [0, 0, 0], [7], [5, 0, 0]])
def test_a_pie_stays_readable_however_uneven_its_slices_are(sizes):
    counts = {name: {"train": size} for name, size in zip(names_of(len(sizes)), sizes, strict=True)}
    assert_readable(figures._draw_pie(counts))
    assert_readable(figures._draw_bars(counts))


@pytest.mark.slow
def test_odd_class_names_are_drawn_without_a_warning_and_without_overlap(tmp_path):
    counts, confusion = counts_of(ODD), confusion_of(len(ODD))
    for sheet in (figures._draw_bars(counts), figures._draw_pie(counts), figures._draw_confusion(confusion, ODD)):
        assert_readable(sheet)
        write_sheet(sheet, tmp_path / "odd.png")
    figures.draw_photo_grid(photos_of(len(ODD)), ODD, tmp_path / "grid.png", title="$\\alpha$ 玫瑰 _")


def test_a_name_that_looks_like_a_formula_is_printed_as_it_is():
    names = ["$x_1$ and \\alpha", "_hidden", "a\\b", "5^{2}$x$"]
    said = dict(print_on(figures._draw_bars(counts_of(names))))
    for name in names:
        assert said[name][2] - said[name][0] == pytest.approx(measure_width(name, 9.5) * DPI, abs=1)


def test_names_that_would_look_alike_are_told_apart_by_their_number(monkeypatch):
    monkeypatch.setattr(
        reports_sheet, "_letters", lambda: frozenset(range(32, 127))
    )  # a computer with Latin letters alone
    to_printable.cache_clear()
    labels = fit_labels(["玫瑰", "百合", "rose", "x" * 300, "x" * 301], 9, 2.0)
    to_printable.cache_clear()
    assert len(set(labels)) == 5
    assert [label.split(":")[0] for label in labels] == ["1", "2", "rose", "4", "5"]
    assert all(measure_width(label, 9) <= 2.0 for label in labels)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> dict[str, bytes]:
    file = tmp_path_factory.mktemp("drawn") / "figure.png"
    return {kind: (draw(file), file.read_bytes())[1] for kind, draw in all_kinds().items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_input_gives_the_same_bytes(kind, drawn, tmp_path):
    all_kinds()[kind](tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == drawn[kind]
    with Image.open(tmp_path / "again.png") as picture:
        assert set(picture.info) == {"dpi"}  # no date, no program


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_style_of_someones_notebook_changes_nothing(kind, drawn, tmp_path):
    with style.context(["fivethirtyeight", "dark_background"]), rc_context({"figure.autolayout": True}):
        before = dict(rcParams)
        all_kinds()[kind](tmp_path / "styled.png")
        assert dict(rcParams) == before
    assert (tmp_path / "styled.png").read_bytes() == drawn[kind]


@pytest.mark.slow
def test_threads_may_draw_at_the_same_time(drawn, tmp_path):
    kinds = KINDS * 2
    files = [tmp_path / f"{index}.png" for index in range(len(kinds))]
    jobs = zip(kinds, files, strict=True)
    threads = [threading.Thread(target=all_kinds()[kind], args=(file,)) for kind, file in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [file.read_bytes() for file in files] == [drawn[kind] for kind in kinds]


@pytest.mark.slow
def test_drawing_needs_no_window_system_and_not_the_half_of_matplotlib_that_keeps_figures(tmp_path):
    code = "import sys, json; from ikebana.reports import figures; from pathlib import Path\n"
    code += "figures.draw_class_bars({'a': {'train': 3}}, Path(sys.argv[1])); print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=True)
    assert not {"matplotlib.pyplot", "torch"} & set(json.loads(done.stdout))


def test_a_failed_write_leaves_the_old_picture_and_nothing_half_written(tmp_path, monkeypatch):
    file = tmp_path / "figure.png"
    file.write_bytes(b"the old picture")

    def fill_the_disk(self, target, **options):
        Path(target).write_bytes(b"half a pict")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    with pytest.raises(MachineError):
        figures.draw_class_bars(counts_of(["rose"]), file)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("figure.png", b"the old picture")]


HARD_EPOCHS = {
    "one epoch": epochs_of(1),
    "many epochs": epochs_of(300),
    "no epoch": [],
    "no validation photos": epochs_of(5, val_loss=None, val_accuracy=None),
    "no validation keys": [{k: v for k, v in row.items() if not k.startswith("val")} for row in epochs_of(5)],
    "losses that are not numbers": epochs_of(5, train_loss=float("nan"), val_loss=float("inf")),
    "nothing is a number": [{"epoch": 1, "train_loss": float("nan"), "train_accuracy": float("nan")}],
    "one loss is infinite": [*epochs_of(3), epochs_of(4)[3] | {"train_loss": float("inf"), "val_loss": None}],
    "numbers between gaps": [row | ({"val_loss": float("nan")} if row["epoch"] % 2 else {}) for row in epochs_of(60)],
    "enormous losses": epochs_of(4, train_loss=1e308, val_loss=1e29),
    "tiny losses": epochs_of(4, train_loss=1e-12, val_loss=0.0),
    "always right": epochs_of(4, train_accuracy=1.0, val_accuracy=1.0),
    "percent by mistake": epochs_of(4, train_accuracy=93.0, val_accuracy=91.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HARD_EPOCHS)
def test_curves_of_any_training_are_readable(case, tmp_path):
    sheet = figures._draw_curves(HARD_EPOCHS[case])
    assert_readable(sheet)
    write_sheet(sheet, tmp_path / "curves.png")


def test_epochs_with_nan_or_infinite_loss_are_listed():
    epochs = epochs_of(6)
    epochs[2]["train_loss"] = float("nan")
    epochs[4]["val_loss"] = float("inf")
    assert "loss is NaN or infinite in epoch 3, 5" in [text for text, _ in print_on(figures._draw_curves(epochs))]


def test_the_best_epoch_has_the_highest_validation_accuracy_and_of_equals_the_lowest_loss():
    rows = zip([0.5, 0.9, 0.9, 0.9, None], [0.1, 0.4, 0.2, float("nan"), 0.0], strict=True)
    epochs = [{"epoch": 1 + i, "val_accuracy": accuracy, "val_loss": loss} for i, (accuracy, loss) in enumerate(rows)]
    assert figures._best_epoch(epochs) == 2
    assert figures._best_epoch([{"epoch": 1, "val_accuracy": float("nan"), "val_loss": None}]) is None


def test_labels_that_are_moved_apart_keep_their_order_their_distance_and_their_limits():
    rng = np.random.default_rng(0)
    for count in (0, 1, 2, 5, 12):
        for _ in range(50):
            wanted = rng.uniform(1, 5, count) ** rng.uniform(0.2, 1)
            places = spread(wanted, 0.3, 1.0, 5.0)
            assert (np.diff(places[np.argsort(wanted)]) >= 0.3 - 1e-9).all()
            assert count == 0 or (places.min() >= 1.0 - 1e-9 and places.max() <= 5.0 + 1e-9)


def test_a_photo_in_the_grid_keeps_its_colours_and_its_shape(tmp_path):
    tall, wide = np.full((400, 200, 3), (200, 30, 90), np.uint8), np.full((20, 60, 3), (10, 160, 220), np.uint8)
    figures.draw_photo_grid([tall, wide], ["tall", "wide"], tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        pixels = np.asarray(picture)
    for colour, shape in (((200, 30, 90), (225, 112)), ((10, 160, 220), (75, 225))):
        rows, columns = np.nonzero((pixels == colour).all(axis=-1))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == shape
        assert len(rows) == shape[0] * shape[1]


@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_captions_of_any_number_of_photos_stand_apart(count):
    captions = [f"{'a rather long name of a class ' * 3}{index}" for index in range(count)]
    assert_readable(figures._draw_grid(photos_of(count), captions, "What the network saw", 6))


def test_what_does_not_fit_together_is_refused(tmp_path):
    with pytest.raises(ValueError, match="3 classes"):
        figures.draw_confusion_matrix(np.eye(2), ["a", "b", "c"], tmp_path / "confusion.png")
    with pytest.raises(ValueError, match="shorter"):
        figures.draw_photo_grid(photos_of(2), ["one"], tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())


def test_a_mistake_and_a_success_have_different_colours_and_the_empty_cell_has_none():
    wrong, right = (
        figures._tint(np.array([0.0, 0.03, 1.0]), figures.WRONG_COLOUR),
        figures._tint(np.ones(1), figures.CORRECT_COLOUR),
    )
    assert wrong[0, :3].min() == 1.0
    assert wrong[1, :3].min() < 0.95  # three percent are already seen
    assert wrong[2, 0] > wrong[2, 2]  # warm against cold
    assert right[0, 0] < right[0, 2]


@pytest.mark.slow
def test_a_sheet_of_bars_is_no_higher_for_ten_thousand_classes(tmp_path):
    heights = set()
    for count in (figures.MAX_BARS, 10_000):
        counts = {f"class {number}": {"train": 10_000 - number, "validation": 3, "test": 3} for number in range(count)}
        figures.draw_class_bars(counts, tmp_path / "bars.png")
        with Image.open(tmp_path / "bars.png") as sheet:
            heights.add(sheet.height)
    assert len(heights) == 1
