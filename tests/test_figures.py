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

UNUSUAL_NAMES = [
    "Gänseblümchen",
    "Μαργαρίτα",
    "玫瑰",
    "郁金香",
    "ひまわり",
    "زهرة الربيع",
    "🌹 rose",
    "cafe\u0301",
    "\udcff raw",
]
UNUSUAL_NAMES += ["$x_1$ and \\alpha", "_hidden", "50 % off_{x}^", "$", "two\nlines"]
UNUSUAL_NAMES += ["w" * 80, "a" * 40 + "b" * 40, "a" * 40 + "c" + "b" * 39]
GENERA = ["Rosa", "Tulipa", "Bellis", "Helianthus", "Taraxacum", "Iris", "Lilium", "Papaver", "Viola", "Primula"]


def make_names(count: int) -> list[str]:
    return [f"{GENERA[index % 10]} no. {index} {'x' * (index % 30)}" for index in range(count)]


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


def make_photos(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (*rng.integers(1, 90, 2), 3), dtype=np.uint8) for _ in range(count)]


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


def list_figure_functions() -> dict[str, Callable[[Path], None]]:
    names = ["daisy", "dandelion", "rose", "sunflower", "tulip"]
    return {
        "bar": lambda file: figures.draw_class_bars(make_counts(names), file),
        "pie": lambda file: figures.draw_class_pie(make_counts(names), file),
        "confusion": lambda file: figures.draw_confusion_matrix(make_confusion(5), names, file),
        "curves": lambda file: figures.draw_curves(make_epochs(7), file),
        "grid": lambda file: figures.draw_photo_grid(make_photos(8), ["a rose"] * 8, file, title="Photos", columns=3),
    }


KINDS = list(list_figure_functions())


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 5, 13, 37, 200])
def test_no_texts_overlap_or_leave_the_picture_for_any_number_of_classes(count):
    assert_readable(figures._draw_bars(make_counts(make_names(count))))
    assert_readable(figures._draw_pie(make_counts(make_names(count))))
    assert_readable(figures._draw_confusion(make_confusion(count), make_names(count)))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[1] * 200, [1000] + [1] * 11, [1000, 800] + [6] * 10, [0, 0, 0], [7], [5, 0, 0]])
def test_a_pie_chart_is_readable_with_very_uneven_slices(sizes):
    counts = {name: {"train": size} for name, size in zip(make_names(len(sizes)), sizes, strict=True)}
    assert_readable(figures._draw_pie(counts))
    assert_readable(figures._draw_bars(counts))


@pytest.mark.slow
def test_unusual_class_names_are_drawn_without_warnings_and_overlap(tmp_path):
    counts, confusion = make_counts(UNUSUAL_NAMES), make_confusion(len(UNUSUAL_NAMES))
    for sheet in (
        figures._draw_bars(counts),
        figures._draw_pie(counts),
        figures._draw_confusion(confusion, UNUSUAL_NAMES),
    ):
        assert_readable(sheet)
        write_sheet(sheet, tmp_path / "odd.png")
    figures.draw_photo_grid(
        make_photos(len(UNUSUAL_NAMES)), UNUSUAL_NAMES, tmp_path / "grid.png", title="$\\alpha$ 玫瑰 _"
    )


def test_a_name_that_looks_like_a_formula_is_printed_literally():
    names = ["$x_1$ and \\alpha", "_hidden", "a\\b", "5^{2}$x$"]
    texts = dict(list_texts(figures._draw_bars(make_counts(names))))
    for name in names:
        assert texts[name][2] - texts[name][0] == pytest.approx(measure_width(name, 9.5) * DPI, abs=1)


def test_names_that_would_look_the_same_are_replaced_by_numbers(monkeypatch):
    # As with a font of Latin letters only.
    monkeypatch.setattr(reports_sheet, "_letters", lambda: frozenset(range(32, 127)))
    to_printable.cache_clear()
    labels = fit_labels(["玫瑰", "百合", "rose", "x" * 300, "x" * 301], 9, 2.0)
    to_printable.cache_clear()
    assert len(set(labels)) == 5
    assert [label.split(":")[0] for label in labels] == ["1", "2", "rose", "4", "5"]
    assert all(measure_width(label, 9) <= 2.0 for label in labels)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> dict[str, bytes]:
    file = tmp_path_factory.mktemp("drawn") / "figure.png"
    return {kind: (draw(file), file.read_bytes())[1] for kind, draw in list_figure_functions().items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_input_gives_the_same_bytes(kind, drawn, tmp_path):
    list_figure_functions()[kind](tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == drawn[kind]
    with Image.open(tmp_path / "again.png") as picture:
        assert set(picture.info) == {"dpi"}  # no date, no program


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_matplotlib_settings_of_the_caller_change_nothing(kind, drawn, tmp_path):
    with style.context(["fivethirtyeight", "dark_background"]), rc_context({"figure.autolayout": True}):
        before = dict(rcParams)
        list_figure_functions()[kind](tmp_path / "styled.png")
        assert dict(rcParams) == before
    assert (tmp_path / "styled.png").read_bytes() == drawn[kind]


@pytest.mark.slow
def test_threads_can_draw_at_the_same_time(drawn, tmp_path):
    kinds = KINDS * 2
    files = [tmp_path / f"{index}.png" for index in range(len(kinds))]
    jobs = zip(kinds, files, strict=True)
    threads = [threading.Thread(target=list_figure_functions()[kind], args=(file,)) for kind, file in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [file.read_bytes() for file in files] == [drawn[kind] for kind in kinds]


@pytest.mark.slow
def test_drawing_needs_neither_a_window_system_nor_pyplot(tmp_path):
    code = "import sys, json; from ikebana.reports import figures; from pathlib import Path\n"
    code += "figures.draw_class_bars({'a': {'train': 3}}, Path(sys.argv[1])); print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=True)
    assert not {"matplotlib.pyplot", "torch"} & set(json.loads(done.stdout))


def test_a_failed_write_leaves_the_old_picture_and_no_partial_file(tmp_path, monkeypatch):
    file = tmp_path / "figure.png"
    file.write_bytes(b"the old picture")

    def fill_the_disk(self, target, **options):
        Path(target).write_bytes(b"half a pict")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    with pytest.raises(MachineError):
        figures.draw_class_bars(make_counts(["rose"]), file)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("figure.png", b"the old picture")]


HARD_EPOCHS = {
    "one epoch": make_epochs(1),
    "many epochs": make_epochs(300),
    "no epoch": [],
    "no validation photos": make_epochs(5, val_loss=None, val_accuracy=None),
    "no validation keys": [{k: v for k, v in row.items() if not k.startswith("val")} for row in make_epochs(5)],
    "losses that are not numbers": make_epochs(5, train_loss=float("nan"), val_loss=float("inf")),
    "nothing is a number": [{"epoch": 1, "train_loss": float("nan"), "train_accuracy": float("nan")}],
    "one loss is infinite": [*make_epochs(3), make_epochs(4)[3] | {"train_loss": float("inf"), "val_loss": None}],
    "numbers between gaps": [row | ({"val_loss": float("nan")} if row["epoch"] % 2 else {}) for row in make_epochs(60)],
    "enormous losses": make_epochs(4, train_loss=1e308, val_loss=1e29),
    "tiny losses": make_epochs(4, train_loss=1e-12, val_loss=0.0),
    "always right": make_epochs(4, train_accuracy=1.0, val_accuracy=1.0),
    "percent by mistake": make_epochs(4, train_accuracy=93.0, val_accuracy=91.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HARD_EPOCHS)
def test_curves_of_any_training_are_readable(case, tmp_path):
    sheet = figures._draw_curves(HARD_EPOCHS[case])
    assert_readable(sheet)
    write_sheet(sheet, tmp_path / "curves.png")


def test_epochs_with_nan_or_infinite_loss_are_listed():
    epochs = make_epochs(6)
    epochs[2]["train_loss"] = float("nan")
    epochs[4]["val_loss"] = float("inf")
    assert "loss is NaN or infinite in epoch 3, 5" in [text for text, _ in list_texts(figures._draw_curves(epochs))]


def test_the_best_epoch_has_the_highest_accuracy_and_then_the_lowest_loss():
    rows = zip([0.5, 0.9, 0.9, 0.9, None], [0.1, 0.4, 0.2, float("nan"), 0.0], strict=True)
    epochs = [{"epoch": 1 + i, "val_accuracy": accuracy, "val_loss": loss} for i, (accuracy, loss) in enumerate(rows)]
    assert figures._best_epoch(epochs) == 2
    assert figures._best_epoch([{"epoch": 1, "val_accuracy": float("nan"), "val_loss": None}]) is None


def test_labels_that_are_moved_apart_keep_their_order_distance_and_limits():
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
def test_captions_of_any_number_of_photos_do_not_overlap(count):
    captions = [f"{'a rather long name of a class ' * 3}{index}" for index in range(count)]
    assert_readable(figures._draw_grid(make_photos(count), captions, "What the network saw", 6))


def test_inconsistent_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="3 classes"):
        figures.draw_confusion_matrix(np.eye(2), ["a", "b", "c"], tmp_path / "confusion.png")
    with pytest.raises(ValueError, match="shorter"):
        figures.draw_photo_grid(make_photos(2), ["one"], tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())


def test_mistakes_and_correct_cells_have_different_colours_and_empty_cells_none():
    wrong, right = (
        figures._tint(np.array([0.0, 0.03, 1.0]), figures.WRONG_COLOUR),
        figures._tint(np.ones(1), figures.CORRECT_COLOUR),
    )
    assert wrong[0, :3].min() == 1.0
    assert wrong[1, :3].min() < 0.95  # 3% are visible
    assert wrong[2, 0] > wrong[2, 2]  # warm against cold
    assert right[0, 0] < right[0, 2]


@pytest.mark.slow
def test_a_bar_chart_has_a_bounded_height_for_ten_thousand_classes(tmp_path):
    heights = set()
    for count in (figures.MAX_BARS, 10_000):
        counts = {f"class {number}": {"train": 10_000 - number, "validation": 3, "test": 3} for number in range(count)}
        figures.draw_class_bars(counts, tmp_path / "bars.png")
        with Image.open(tmp_path / "bars.png") as sheet:
            heights.add(sheet.height)
    assert len(heights) == 1
