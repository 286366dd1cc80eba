import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib import rc_context, rcParams, style
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from PIL import Image
from support.sheets import assert_readable, list_texts, make_confusion, make_counts, make_epochs

from ikebana.errors import MachineError
from ikebana.reports import curves, figures
from ikebana.reports import sheet as reports_sheet
from ikebana.reports.palette import PALETTE, read_palette
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


def make_photos(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (*rng.integers(1, 90, 2), 3), dtype=np.uint8) for _ in range(count)]


def list_figure_functions() -> dict[str, Callable[[], Axes]]:
    names = ["daisy", "dandelion", "rose", "sunflower", "tulip"]
    return {
        "bar": lambda: figures.make_class_bars(make_counts(names)),
        "pie": lambda: figures.make_class_pie(make_counts(names)),
        "confusion": lambda: figures.make_confusion_matrix(make_confusion(5), names),
        "pairs": lambda: figures.make_worst_pairs(make_confusion(5), names),
        "curves": lambda: curves.make_curves(make_epochs(7)),
        "photos": lambda: figures.make_photo_rows({"a rose": make_photos(8), "b": make_photos(3)}, title="Photos"),
    }


def draw(kind: str, file: Path) -> None:
    write_sheet(list_figure_functions()[kind](), file)


KINDS = list(list_figure_functions())


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 5, 13, 37, 200])
def test_no_texts_overlap_or_leave_the_picture_for_any_number_of_classes(count):
    assert_readable(figures.make_class_bars(make_counts(make_names(count))))
    if count <= figures.MAX_PIE_CLASSES:
        assert_readable(figures.make_class_pie(make_counts(make_names(count))))
    assert_readable(figures.make_confusion_matrix(make_confusion(count), make_names(count)))
    assert_readable(figures.make_worst_pairs(make_confusion(count), make_names(count)))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[1] * 8, [1000] + [1] * 7, [1000, 800] + [6] * 6, [0, 0, 0], [7], [5, 0, 0]])
def test_a_pie_chart_is_readable_with_very_uneven_slices(sizes):
    counts = {name: {"train": size} for name, size in zip(make_names(len(sizes)), sizes, strict=True)}
    assert_readable(figures.make_class_pie(counts))
    assert_readable(figures.make_class_bars(counts))


@pytest.mark.slow
def test_unusual_class_names_are_drawn_without_warnings_and_overlap(tmp_path):
    counts, confusion = make_counts(UNUSUAL_NAMES), make_confusion(len(UNUSUAL_NAMES))
    for sheet in (
        figures.make_class_bars(counts),
        figures.make_class_pie(dict(list(counts.items())[:8])),
        figures.make_class_pie(dict(list(counts.items())[8:16])),
        figures.make_confusion_matrix(confusion, UNUSUAL_NAMES),
        figures.make_worst_pairs(confusion, UNUSUAL_NAMES),
        figures.make_photo_rows({name: make_photos(2) for name in UNUSUAL_NAMES}, title="$\\alpha$ 玫瑰 _"),
    ):
        assert_readable(sheet)
        write_sheet(sheet, tmp_path / "odd.png")


def test_a_name_that_looks_like_a_formula_is_printed_literally():
    names = ["$x_1$ and \\alpha", "_hidden", "a\\b", "5^{2}$x$"]
    texts = dict(list_texts(figures.make_class_bars(make_counts(names))))
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
    return {kind: (draw(kind, file), file.read_bytes())[1] for kind in KINDS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_input_gives_the_same_bytes(kind, drawn, tmp_path):
    draw(kind, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == drawn[kind]
    with Image.open(tmp_path / "again.png") as picture:
        assert set(picture.info) == {"dpi"}  # no date, no program


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_matplotlib_settings_of_the_caller_change_nothing(kind, drawn, tmp_path):
    with style.context(["fivethirtyeight", "dark_background"]), rc_context({"figure.autolayout": True}):
        before = dict(rcParams)
        draw(kind, tmp_path / "styled.png")
        assert dict(rcParams) == before
    assert (tmp_path / "styled.png").read_bytes() == drawn[kind]


@pytest.mark.slow
def test_threads_can_draw_at_the_same_time(drawn, tmp_path):
    kinds = KINDS * 2
    files = [tmp_path / f"{index}.png" for index in range(len(kinds))]
    threads = [threading.Thread(target=draw, args=job) for job in zip(kinds, files, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [file.read_bytes() for file in files] == [drawn[kind] for kind in kinds]


@pytest.mark.slow
def test_drawing_needs_neither_a_window_system_nor_pyplot(tmp_path):
    code = "import sys, json; from ikebana.reports import figures, sheet; from pathlib import Path\n"
    code += "sheet.write_sheet(figures.make_class_bars({'a': {'train': 3}}), Path(sys.argv[1]))\n"
    code += "print(json.dumps(sorted(sys.modules)))"
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
        write_sheet(figures.make_class_bars(make_counts(["rose"])), file)
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
    sheet = curves.make_curves(HARD_EPOCHS[case])
    assert_readable(sheet)
    write_sheet(sheet, tmp_path / "curves.png")


def test_epochs_with_nan_or_infinite_loss_are_listed():
    epochs = make_epochs(6)
    epochs[2]["train_loss"] = float("nan")
    epochs[4]["val_loss"] = float("inf")
    assert "loss is NaN or infinite in epoch 3, 5" in [text for text, _ in list_texts(curves.make_curves(epochs))]


def test_the_marked_epoch_is_the_one_whose_weights_the_run_has():
    """`learning.training.loop`: the lowest model-selection loss, the later of equal ones, or the last epoch."""
    selected = [row | {"selection_loss": loss} for row, loss in zip(make_epochs(4), [0.3, 0.2, 0.2, 0.4], strict=True)]
    assert curves.find_final_epoch(selected) == 2
    assert curves.find_final_epoch([row | {"selection_loss": None} for row in make_epochs(4)]) == 3
    assert curves.find_final_epoch(make_epochs(4)) == 3
    assert curves.find_final_epoch([]) is None
    texts = [text for text, _ in list_texts(curves.make_curves(selected))]
    assert texts.count("this network ships") == 2
    assert any("epoch 3 (it has the lowest model-selection loss)" in text for text in texts)


def test_a_band_shows_the_interval_of_few_validation_photos():
    epochs = make_epochs(4)
    interval = curves.compute_interval(epochs, 40)
    assert interval is not None
    accuracies = np.array([row["val_accuracy"] for row in epochs])
    assert ((interval[:, 0] < accuracies) & (accuracies < interval[:, 1])).all()
    assert (np.diff(interval) > 2 / 40).all()  # wider than the difference of one photo
    band = curves.make_curves(epochs, interval)
    assert_readable(band)
    assert len(band.findobj(PolyCollection)) == 1
    assert curves.compute_interval(epochs, 4000) is None
    assert curves.compute_interval(make_epochs(3, val_accuracy=None), 0) is None


def test_notes_below_the_curves_are_readable():
    notes = [curves.SMOOTHING_NOTE, curves.REFIT_NOTE]
    sheet = curves.make_curves(make_epochs(4), note="\n".join(notes), mark=curves.SCORED_MARK)
    assert_readable(sheet)
    texts = [text for text, _ in list_texts(sheet)]
    assert {*notes, curves.SCORED_MARK} <= set(texts)
    assert "this network ships" not in texts


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 2, 9, 14])
def test_curves_of_several_runs_are_readable(count):
    runs = {name: make_epochs(3 + index) for index, name in enumerate(make_names(count))}
    for kind in curves.HEADINGS:
        assert_readable(curves.make_overlaid_curves(runs, kind))
        assert_readable(curves.make_overlaid_curves(dict.fromkeys(runs, HARD_EPOCHS["nothing is a number"]), kind))


def test_labels_that_are_moved_apart_keep_their_order_distance_and_limits():
    rng = np.random.default_rng(0)
    for count in (0, 1, 2, 5, 12):
        for _ in range(50):
            wanted = rng.uniform(1, 5, count) ** rng.uniform(0.2, 1)
            places = spread(wanted, 0.3, 1.0, 5.0)
            assert (np.diff(places[np.argsort(wanted)]) >= 0.3 - 1e-9).all()
            assert count == 0 or (places.min() >= 1.0 - 1e-9 and places.max() <= 5.0 + 1e-9)


def test_photos_in_a_row_are_equal_squares_of_their_middle(tmp_path):
    tall, wide = np.full((600, 200, 3), (200, 30, 90), np.uint8), np.full((200, 900, 3), (10, 160, 220), np.uint8)
    wide[:, :350] = wide[:, 550:] = 0  # only the sides, which are cut off
    write_sheet(figures.make_photo_rows({"tall": [tall], "wide": [wide]}), tmp_path / "rows.png")
    with Image.open(tmp_path / "rows.png") as picture:
        pixels = np.asarray(picture)
    # Photos of 200 pixels are drawn pixel by pixel.
    for colour in ((200, 30, 90), (10, 160, 220)):
        rows, columns = np.nonzero((pixels == colour).all(axis=-1))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (200, 200)
        assert len(rows) == 200 * 200


@pytest.mark.parametrize("counts", [[], [0], [1], [7, 1, 3], [2] * 24])
def test_rows_of_any_number_of_photos_are_readable_and_name_each_class_once(counts):
    names = [f"{'a rather long name of a class ' * 3}{index}" for index in range(len(counts))]
    photos = {name: make_photos(count) for name, count in zip(names, counts, strict=True)}
    sheet = figures.make_photo_rows(photos, title="What the network saw")
    assert_readable(sheet)
    assert len(list_texts(sheet)) == len(counts) + 1


def test_inconsistent_arguments_are_refused():
    with pytest.raises(ValueError, match="3 classes"):
        figures.make_confusion_matrix(np.eye(2), ["a", "b", "c"])
    with pytest.raises(ValueError, match="too many for a pie"):
        figures.make_class_pie(make_counts(make_names(9)))


def compute_luminance(colour: np.ndarray) -> float:
    """Compute the relative luminance of sRGB colours (WCAG 2.2)."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_numbers_in_cells_have_a_contrast_of_4_5_in_light_and_dark():
    """Cells have an opacity, so that they become dark on a dark page."""
    for mode in read_palette():
        for name in ("correct", "wrong"):
            colour, card, ink = (np.array(to_rgb(mode[key])) for key in (name, "card", "ink"))
            alpha = figures._tint(np.ones(1), PALETTE[name])[0, 3]
            brighter, darker = sorted(
                (compute_luminance(alpha * colour + (1 - alpha) * card), compute_luminance(ink)), reverse=True
            )
            assert (brighter + 0.05) / (darker + 0.05) >= 4.5


def test_the_largest_error_has_the_strongest_colour_and_an_empty_cell_none():
    confusion = np.array([[97, 3, 0], [1, 98, 1], [0, 0, 100]])
    cells = next(iter(figures.make_confusion_matrix(confusion, ["a", "b", "c"]).collections))
    colours = np.asarray(cells.get_facecolor())
    shown = dict(zip(zip(*np.nonzero(confusion), strict=True), colours, strict=True))
    assert len(shown) == 6
    assert shown[0, 1][3] == pytest.approx(figures.MAX_CELL_ALPHA)
    assert figures.MIN_CELL_ALPHA < shown[1, 0][3] < shown[0, 1][3]
    assert shown[0, 1][0] > shown[0, 1][2]  # warm against cold
    assert shown[0, 0][0] < shown[0, 0][2]


def test_the_most_confused_pairs_are_named_below_the_title():
    confusion = np.array([[90, 3, 0], [14, 80, 1], [0, 9, 100]])
    assert figures.find_worst_pairs(confusion, ["a", "b", "c"]) == [
        ("b", "a", 14),
        ("c", "b", 9),
        ("a", "b", 3),
        ("b", "c", 1),
    ]
    texts = [text for text, _ in list_texts(figures.make_confusion_matrix(confusion, ["a", "b", "c"]))]
    assert "most often confused: b → a 14, c → b 9, a → b 3" in texts
    assert "14.7%" not in texts
    assert "15%" in texts  # the largest error, at the end of the scale
    perfect = [text for text, _ in list_texts(figures.make_confusion_matrix(np.eye(3, dtype=int), ["a", "b", "c"]))]
    assert not [text for text in perfect if "confused" in text]


def test_pairs_are_listed_by_photos_with_their_share_of_the_true_class():
    confusion = np.array([[90, 10, 0], [1, 399, 0], [0, 0, 0]])
    texts = [text for text, _ in list_texts(figures.make_worst_pairs(confusion, ["a", "b", "c"]))]
    assert {"a → b", "10 of 100 (10%)", "b → a", "1 of 400 (<1%)"} <= set(texts)
    many = list_texts(figures.make_worst_pairs(np.ones((37, 37), int), make_names(37)))
    assert len([text for text, _ in many if " of 37 " in text]) == figures.MAX_WORST_PAIRS


def test_a_grid_line_is_broken_at_a_text_and_nowhere_else():
    """The total 984 stands where the line of 1,000 is."""
    sheet = figures.make_class_bars({"a": {"train": 1052}, "b": {"train": 984}, "c": {"train": 300}})
    lines = [np.asarray(line.get_xydata()) for line in sheet.get_lines()]
    thousand = max(float(line[0, 0]) for line in lines)
    pieces = [line[:, 1] for line in lines if line[0, 0] == thousand]
    assert len(pieces) == 2
    assert pieces[1][0] - pieces[0][1] < 0.34  # a line of text, not the whole row


@pytest.mark.slow
def test_a_bar_chart_has_a_bounded_height_for_ten_thousand_classes(tmp_path):
    heights = set()
    for count in (figures.MAX_BARS, 10_000):
        counts = {f"class {number}": {"train": 10_000 - number, "validation": 3, "test": 3} for number in range(count)}
        write_sheet(figures.make_class_bars(counts), tmp_path / "bars.png")
        with Image.open(tmp_path / "bars.png") as sheet:
            heights.add(sheet.height)
    assert len(heights) == 1
