"""Photos listed in a table: CSV as spreadsheets write it, or Parquet."""

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from support.images import encode_photo, two_classes, write_files
from support.tables import ROWS, get_refusal, list_rows, make_csv, read_table

from ikebana.data import pixel_cache, sources, split, table
from ikebana.data.dataset import EXTRA_PREFIX, SCHEMA, STATUS_UNOPENED
from ikebana.errors import PhotosError
from ikebana.recipe import Recipe


@pytest.fixture
def photos(tmp_path):
    write_files(tmp_path / "photos", two_classes())
    return tmp_path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_csv_dialects_of_spreadsheets_are_read(photos, separator, start, end):
    dataset = read_table(photos, start + make_csv(separator).replace("\n", end))
    assert list_rows(dataset) == ROWS
    assert set(dataset.photos["status"]) == {STATUS_UNOPENED}
    assert dataset.classes == ("a", "b")
    assert dataset.photos.schema == pl.Schema(SCHEMA)


def test_columns_may_come_in_any_order_in_capitals_and_among_others(photos):
    rows = [(label, "x", f" {path} ", "g1") for path, label in ROWS]
    dataset = read_table(photos, make_csv(header=(" Label", "remark", "PATH", "Group "), rows=rows))
    assert list_rows(dataset) == ROWS
    assert set(dataset.photos["group"]) == {"g1"}


def test_names_with_commas_quotes_and_line_breaks_are_one_name(photos):
    names = ["a, b.jpg", 'the "best".jpg', "two\nlines.jpg", "Blüte 花.jpg"]
    write_files(photos, {name: encode_photo(row) for row, name in enumerate(names)})
    table = pl.DataFrame({"path": names, "label": ["x", "x", "y, z", "y, z"]})
    dataset = read_table(photos, table.write_csv())
    assert dict(dataset.photos.select("path", "label").iter_rows()) == dict(table.iter_rows())
    assert dataset.classes == ("x", "y, z")
    assert pixel_cache.open_pixel_cache(dataset, 8, "squash")[0].used_photos.height == 4


def test_spaces_around_a_path_are_kept_only_if_the_file_has_them(photos):
    write_files(photos / "photos", {"a/trail.jpg ": encode_photo(7), " lead.jpg": encode_photo(8)})
    dataset = read_table(
        photos, make_csv(rows=[("photos/a/trail.jpg ", "a"), (" photos/a/1.jpg ", "a"), ("photos/ lead.jpg", "b")])
    )
    assert dataset.photos["path"].to_list() == ["photos/ lead.jpg", "photos/a/1.jpg", "photos/a/trail.jpg "]
    assert set(dataset.photos["status"]) == {STATUS_UNOPENED}


def test_a_table_without_existing_photos_is_refused_with_resolved_paths(photos):
    refusal = get_refusal(photos, make_csv(rows=[("elsewhere/1.jpg", "a"), ("elsewhere/2.jpg", "b")]))
    assert str(photos / "elsewhere/1.jpg") in (refusal.advice or "")
    assert "one photo per row" in (get_refusal(photos, "path,label\n").advice or "")


def test_a_table_without_labels_is_refused_for_the_labels_and_not_the_paths(photos):
    refusal = get_refusal(photos, make_csv(rows=[(path, "") for path, _ in ROWS]))
    assert "6 of 6 paths were skipped (no label in this row)" in refusal.what
    assert "fill the columns" in (refusal.advice or "")


def test_a_table_of_one_class_is_refused(photos):
    refusal = get_refusal(photos, make_csv(rows=[(path, "a") for path, _ in ROWS]))
    assert refusal.what == "only one class has photos: a"
    assert refusal.advice == "label photos of at least two classes"


def test_labels_that_look_like_numbers_are_kept_as_written(photos):
    rows = [(path, "007" if label == "a" else "1e3") for path, label in ROWS]
    assert read_table(photos, make_csv(rows=rows)).classes == ("007", "1e3")


def test_absolute_paths_and_paths_relative_to_the_table_are_the_same_photos(photos, tmp_path_factory):
    absolute = [(str(photos / path), label) for path, label in ROWS]
    here = pixel_cache.open_pixel_cache(read_table(photos, make_csv()), 8, "squash")[0]
    there = pixel_cache.open_pixel_cache(
        read_table(tmp_path_factory.mktemp("elsewhere"), make_csv(rows=absolute)), 8, "squash"
    )[0]
    assert here.used_photos["sha256"].to_list() == there.used_photos["sha256"].to_list()
    assert there.used_photos.height == 6


def test_missing_files_and_folders_are_set_aside_with_the_reason(photos):
    rows = [*ROWS, ("photos/gone.jpg", "a"), ("photos", "b"), ("", "b"), ("photos/new.jpg", "")]
    dataset = read_table(photos, make_csv(rows=rows))
    statuses = dict(dataset.photos.select("path", "status").iter_rows())
    assert statuses["photos/gone.jpg"] == "there is no such file"
    assert statuses["photos"] == "not a regular file"
    assert statuses[""] == "no path in this row"
    assert statuses["photos/new.jpg"] == "no label in this row"
    assert dataset.photos.height == 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"), ("\n", "empty"), ("name,label\nx,y\n", "no column 'path'"), ("path\nx\n", "no column 'label'"),
        ("path,label\n", "no photos found"), ("path,label,Path\nx,y,z\n", "2 columns named 'path'"),
        ("path,label\nx,y,z,too many\n", "cannot be read"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used_is_refused_with_the_reason(photos, text, words):
    refusal = get_refusal(photos, text)
    assert words in refusal.what


# Splits and groups


def add_column(name, value):
    """Add a column, filled by a function of the row number."""
    return make_csv(header=("path", "label", name), rows=[(*row, value(number)) for number, row in enumerate(ROWS)])


def test_given_splits_are_kept_in_every_spelling(photos):
    names = ("train", "Training", "VAL", "valid ", "validation", "Test")
    dataset = read_table(photos, add_column("split", lambda number: names[number]))
    assert dataset.photos["split"].to_list() == ["train", "train", "validation", "validation", "validation", "test"]


def test_an_empty_split_column_is_ignored_and_a_partial_or_unknown_one_refused(photos):
    assert read_table(photos, add_column("split", lambda number: "")).photos["split"].is_null().all()
    assert (
        "5 rows have no split"
        in get_refusal(photos, add_column("split", lambda number: "" if number else "train")).what
    )
    refusal = get_refusal(photos, add_column("split", lambda number: "holdout" if number else "train"))
    assert "unknown split 'holdout'" in refusal.what
    assert "validation" in str(refusal)


def test_a_group_is_never_separated(tmp_path):
    names = [f"{label}{number}.jpg" for label in "ab" for number in range(20)]
    write_files(tmp_path, {name: encode_photo(row) for row, name in enumerate(names)})
    rows = [(name, name[0], f"plant {int(name[1:-4]) // 4}") for name in names]
    dataset = read_table(tmp_path, make_csv(header=("path", "label", "group"), rows=rows))
    parted = split.split_photos(pixel_cache.open_pixel_cache(dataset, 8, "squash")[0], Recipe()).used_photos
    assert parted.group_by("group").agg(pl.col("split").n_unique())["split"].to_list() == [1] * 5


# One photo, one label


def test_two_labels_for_one_photo_are_refused_however_its_path_is_written(photos):
    for again in (ROWS[0][0], f"./{ROWS[0][0]}", "photos/b/../a/0.jpg", str(photos / ROWS[0][0])):
        refusal = get_refusal(photos, make_csv(rows=[*ROWS, (again, "b")]))
        assert "more than one label" in refusal.what
        assert "a, b" in refusal.what


def test_a_repeated_row_counts_once(photos):
    assert read_table(photos, make_csv(rows=[*ROWS, ROWS[0], (f"./{ROWS[1][0]}", "a")])).photos.height == 6


def test_one_photo_in_two_splits_is_refused(photos):
    rows = [(*row, "train") for row in ROWS]
    refusal = get_refusal(photos, make_csv(header=("path", "label", "split"), rows=[*rows, (*ROWS[0], "test")]))
    assert "two splits" in refusal.what


def test_a_photo_with_and_without_a_label_keeps_its_label(photos):
    dataset = read_table(photos, make_csv(rows=[(ROWS[0][0], ""), *ROWS]))
    assert dataset.photos.filter(pl.col("status") == STATUS_UNOPENED)["label"].to_list() == ["a"] * 3 + ["b"] * 3
    parted = split.split_photos(pixel_cache.open_pixel_cache(dataset, 8, "squash")[0], Recipe())
    assert parted.set_aside_photos["split"].to_list() == [None]
    assert parted.used_photos["split"].null_count() == 0


# Parquet, and any text at all


def test_parquet_is_read_like_csv(photos):
    frame = pl.DataFrame(ROWS, schema=["path", "label"], orient="row").with_columns(
        split=pl.lit("train"), group=pl.lit(7)
    )
    for labels in (pl.String, pl.Categorical, pl.Enum(["a", "b"])):
        frame.with_columns(pl.col("label").cast(labels)).write_parquet(photos / "photos.parquet")
        assert_frame_equal(sources.read(photos / "photos.parquet").photos, read_table(photos, frame.write_csv()).photos)


def test_parquet_with_lists_of_labels_or_no_parquet_is_refused(photos):
    frame = pl.DataFrame({"path": ["photos/a/0.jpg"], "label": [["a", "b"]]})
    frame.write_parquet(photos / "many.parquet")
    for name, words in (("many.parquet", "multi-label"), ("fake.parquet", "cannot be read")):
        (photos / "fake.parquet").write_bytes(b"PAR1 not really")
        with pytest.raises(PhotosError, match=words):
            sources.read(photos / name)


@pytest.mark.slow
@given(st.text(max_size=60) | st.text("path,label;\t\n\r\"' x", max_size=60).map(lambda rest: "path,label\n" + rest))
@example('path,label\n"open,quote\n')
@example("path,label\na\0b,c\n")
@example("path,label\n" + "x" * 5000 + ",y\n")
@example("path,label,site,\na,b,Lund,1\nc,d,Oslo,2\n")
@settings(max_examples=200)
def test_any_text_is_read_as_a_table_or_refused(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("table") / "photos.csv"
    file.write_bytes(text.encode("utf-8", "replace"))
    try:
        dataset = table.read(file)
    except PhotosError:
        return
    assert dataset.photos.select(list(SCHEMA)).schema == pl.Schema(SCHEMA)
    assert all(name.startswith(EXTRA_PREFIX) for name in dataset.photos.columns[len(SCHEMA) :])
    assert dataset.photos["status"].null_count() == 0
