"""Columns of a table with the names and types of other tools."""

import datetime

import polars as pl
import pytest
from support.images import two_classes, write_files
from support.tables import ROWS, get_refusal, list_rows, make_csv, read_table

from ikebana.data import sources
from ikebana.data.dataset import STATUS_UNOPENED
from ikebana.errors import PhotosError

PATHS = [path for path, _ in ROWS]


@pytest.fixture
def photos(tmp_path):
    write_files(tmp_path / "photos", two_classes())
    return tmp_path


def read_labels(photos, labels, **columns):
    """Read a Parquet table with these labels."""
    pl.DataFrame({"path": PATHS, "label": labels, **columns}, strict=False).write_parquet(photos / "photos.parquet")
    return sources.read(photos / "photos.parquet")


# --- names ---


@pytest.mark.parametrize(
    "path", ["filename", "File Name", "file_name", "Image", "image-path", "IMAGE_PATH", "filepath"]
)
@pytest.mark.parametrize("label", ["label", "Class", "category"])
def test_column_names_of_other_tools_are_recognised_and_reported(photos, path, label):
    dataset = read_table(photos, make_csv(header=(path, label)))
    assert list_rows(dataset) == ROWS
    assert f"the column {path!r} is read as 'path'" in dataset.notes
    assert (f"the column {label!r} is read as 'label'" in dataset.notes) == (label != "label")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (("filename", "image", "label"), "'filename' and 'image'"),
        (("path", "class", "category"), "'class' and 'category'"),
        (("path", "class", "Class"), "'class' and 'Class'"),
    ],
)
def test_two_candidate_columns_are_refused_by_name(photos, header, words):
    refusal = get_refusal(photos, make_csv(header=header, rows=[("x", *row) for row in ROWS]))
    assert words in refusal.what
    assert "rename one of them" in (refusal.advice or "")


def test_a_table_with_one_column_per_class_is_refused_as_such(photos):
    """As Roboflow exports it."""
    rows = [(path, " 1" if label == "a" else " 0", " 0" if label == "a" else " 1") for path, label in ROWS]
    refusal = get_refusal(photos, make_csv(header=("filename", " daisy", " rose"), rows=rows))
    assert refusal.what == "the table has no column 'label' but one column per class: daisy, rose"
    rows = [(path, "1", label) for path, label in ROWS]
    assert (
        "it has filename, daisy, rose"
        in get_refusal(photos, make_csv(header=("filename", "daisy", "rose"), rows=rows)).what
    )


def test_the_standard_column_name_takes_precedence(photos):
    rows = [("0", path, "x", "y", label) for path, label in ROWS]
    dataset = read_table(photos, make_csv(header=("file", "path", "class", "category", "label"), rows=rows))
    assert list_rows(dataset) == ROWS
    assert dataset.notes == ()


def test_a_column_of_splits_under_another_name_is_reported(photos):
    splits = ["train", "Train", "test"] * 2
    rows = [(*row, splits[number]) for number, row in enumerate(ROWS)]
    dataset = read_table(photos, make_csv(header=("path", "label", "subset"), rows=rows))
    assert any("'subset' contains splits but is not used" in note for note in dataset.notes)


def test_a_wide_table_is_not_printed_in_full(photos):
    refusal = get_refusal(photos, ",".join(f"column{number}" for number in range(1000)) + "\n")
    assert "no column 'path'" in refusal.what
    assert len(refusal.what) < 500


# --- labels ---


@pytest.mark.parametrize(
    ("first", "second", "classes"),
    [
        (0, 1, ("0", "1")),
        (0.0, 1.0, ("0", "1")),
        (0.5, 1.0, ("0.5", "1.0")),
        (False, True, ("false", "true")),
        (datetime.date(2026, 5, 1), datetime.date(2026, 6, 1), ("2026-05-01", "2026-06-01")),
    ],
)
def test_labels_of_any_type_are_classes(photos, first, second, classes):
    assert read_labels(photos, [first] * 3 + [second] * 3).classes == classes


def test_a_missing_integer_does_not_rename_the_classes(photos):
    """A data frame with a missing value stores integers as floats."""
    dataset = read_labels(photos, [0.0, 0.0, float("nan"), 1.0, 1.0, None])
    assert dataset.classes == ("0", "1")
    assert dataset.photos["status"].to_list().count("no label in this row") == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_is_not_a_label(photos, value):
    dataset = read_labels(photos, [0.0] * 2 + [1.0] * 2 + [value] * 2)
    assert dataset.classes == ("0", "1")
    assert dataset.photos["status"].to_list().count("no label in this row") == 2


@pytest.mark.parametrize("text", ["nan", "NaN", "<NA>", "NaT", "#N/A", "#REF!", "#NAME?", "#DIV/0!", " ", "\u200b"])
def test_text_for_a_missing_value_is_neither_a_label_nor_a_group(photos, text):
    dataset = read_labels(photos, ["a", "a", text, "b", "b", text], group=["g", text, text, text, "h", text])
    assert dataset.classes == ("a", "b")
    usable = dataset.photos.filter(status=STATUS_UNOPENED)
    assert usable["group"].to_list() == ["g", None, None, "h"]


@pytest.mark.parametrize("text", ["NA", "None", "null", "N/A", "-", "?", "unknown"])
def test_text_that_may_be_a_class_is_kept_and_reported(photos, text):
    dataset = read_table(photos, make_csv(rows=[(path, text if label == "a" else "b") for path, label in ROWS]))
    assert set(dataset.classes) == {text, "b"}
    assert any(repr(text) in note for note in dataset.notes)


def test_labels_that_look_the_same_are_one_class(photos):
    composed, decomposed = "Blüte", "Blu\u0308te"
    labels = [composed, decomposed, f"\ufeff{composed}\u200b", "b", "b", "b"]
    assert read_labels(photos, labels).classes == (composed, "b")


def test_labels_that_are_the_same_number_are_reported(photos):
    dataset = read_table(photos, make_csv(rows=list(zip(PATHS, ["1", "1.0", "1", "2", "2", "02"], strict=True))))
    assert dataset.classes == ("02", "1", "1.0", "2")
    assert [note for note in dataset.notes if "same number" in note] == [
        "the labels '02' and '2' are the same number but different classes",
        "the labels '1' and '1.0' are the same number but different classes",
    ]


def test_groups_that_look_the_same_are_reported(photos):
    dataset = read_labels(photos, list("ababab"), group=["P1", "p1", "2", "2.0", "x", "y"])
    assert [note for note in dataset.notes if "groups" in note] == [
        "the groups '2' and '2.0' are the same number but different groups",
        "the groups 'P1' and 'p1' differ only in case, spaces, punctuation or Unicode form: "
        "if they are one group, give them the same name",
    ]


@pytest.mark.parametrize("name", ["patient", "Patient ID", "subject_id", "groups", "session", "site"])
def test_an_unused_column_that_looks_like_groups_is_reported(photos, name):
    note = f"the column {name!r} is not used for the split; rename it to group to keep its photos in one split"
    assert note in read_labels(photos, list("ababab"), **{name: list("xxyyzz")}).notes
    assert note not in read_labels(photos, list("ababab"), **{name: list("xxyyzz"), "group": list("xxyyzz")}).notes
    assert note not in read_labels(photos, list("ababab"), **{name: list("uvwxyz")}).notes


@pytest.mark.parametrize("separator", [",", "|", "; "])
def test_labels_joined_from_other_labels_are_reported(photos, separator):
    joined = f"cat{separator}dog"
    dataset = read_labels(photos, ["cat", "dog", joined, "cat", "dog", "a,b"])
    assert [note for note in dataset.notes if "multi-label" in note] == [
        f"the label {joined!r} is a class of its own, beside 'cat' and 'dog': "
        "multi-label classification is not supported"
    ]


def test_a_nul_in_a_label_is_stripped(photos):
    assert read_labels(photos, ["a", "a\0", "\0a", "b", "b", "b"]).classes == ("a", "b")


def test_images_in_a_frame_are_refused_with_advice():
    frame = pl.DataFrame({"image": [{"bytes": b"x", "path": "x.jpg"}], "label": [0]})
    with pytest.raises(PhotosError, match="'image' contains Struct") as refusal:
        sources.read(frame)
    assert "save the images as files" in (refusal.value.advice or "")
