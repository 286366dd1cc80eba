"""Columns of a table beside path, label, split and group: which are kept, and as what."""

import polars as pl
import pytest
from support.images import encode_photo, two_classes, write_files
from support.tables import ROWS, list_rows, make_csv, read_table

from ikebana.data import sources
from ikebana.data.dataset import EXTRA_PREFIX, SCHEMA

PATHS, LABELS = zip(*ROWS, strict=True)


@pytest.fixture
def photos(tmp_path):
    write_files(tmp_path / "photos", two_classes())
    return tmp_path


def read_extras(folder, **columns):
    """Read a Parquet table with these columns; return those that are kept, as lists by name."""
    pl.DataFrame({"path": PATHS, "label": LABELS, **columns}, strict=False).write_parquet(folder / "photos.parquet")
    return list_extras(sources.read(folder / "photos.parquet"))


def list_extras(dataset):
    extras = dataset.photos.drop(SCHEMA.keys())
    assert all(name.startswith(EXTRA_PREFIX) for name in extras.columns)
    return {name.removeprefix(EXTRA_PREFIX): extras[name].to_list() for name in extras.columns}


def test_texts_numbers_and_truth_values_are_kept_for_their_photos(photos):
    sites, wet, depth = ["Lund", "Oslo", None] * 2, [True, False] * 3, [1.5, 2, 2, 3, 1.5, 2]
    extras = read_extras(photos, site=sites, wet=wet, depth=depth)
    assert extras == {"site": sites, "wet": ["true", "false"] * 3, "depth": ["1.5", "2.0", "2.0", "3.0", "1.5", "2.0"]}


def test_a_csv_file_gives_the_same_as_a_data_frame(photos):
    header, rows = ("path", "label", " site "), [(*row, "Lund" if row[1] == "a" else " nan") for row in ROWS]
    text = make_csv(header=header, rows=[*rows[:-1], (*ROWS[-1], "Oslo ")])
    assert list_extras(read_table(photos, text)) == {"site": ["Lund"] * 3 + [None] * 2 + ["Oslo"]}


def test_many_numbers_stay_numbers_and_many_texts_are_left_out(tmp_path):
    paths = [f"{'ab'[number % 2]}/{number:02}.jpg" for number in range(30)]
    write_files(tmp_path, {path: encode_photo(number) for number, path in enumerate(paths)})
    columns = {
        "depth": [None, *(str(number / 4) for number in range(29))],
        "remark": [f"photo {number}" for number in range(30)],
        "mixed": [*(str(number) for number in range(29)), "deep"],
    }
    table = pl.DataFrame({"path": paths, "label": [path[0] for path in paths], **columns})
    table.write_csv(tmp_path / "photos.csv")
    dataset = sources.read(tmp_path / "photos.csv")
    assert dataset.photos.columns[len(SCHEMA) :] == [f"{EXTRA_PREFIX}depth"]
    by_path = dict(dataset.photos.select("path", f"{EXTRA_PREFIX}depth").iter_rows())
    assert by_path == dict(zip(paths, [None, *(number / 4 for number in range(29))], strict=True))


@pytest.mark.parametrize(
    "values",
    [["x"] * 6, [None] * 6, [[1], [2]] * 3, [b"a", b"b"] * 3, [{"a": 1}, {"a": 2}] * 3],
    ids=["constant", "empty", "lists", "bytes", "structs"],
)
def test_a_column_that_does_not_divide_the_photos_is_left_out(photos, values):
    assert read_extras(photos, remark=values) == {}


def test_a_column_of_mixed_python_objects_is_left_out_and_breaks_nothing(photos):
    frame = pl.DataFrame({"path": PATHS, "label": LABELS, "remark": pl.Series([1, "x", None] * 2, dtype=pl.Object)})
    dataset = sources.read(frame.with_columns(path=pl.lit(f"{photos}/") + pl.col("path")))
    assert list_extras(dataset) == {}


def test_columns_without_a_name_and_those_beyond_twenty_are_left_out(photos):
    names = [f"column {number}" for number in range(25)]
    extras = read_extras(photos, **{"": ["x", "y"] * 3}, **{name: ["x", "y"] * 3 for name in names})
    assert list(extras) == names[:20]


def test_a_repeated_row_counts_once_with_its_first_values(photos):
    header, rows = ("path", "label", "site"), [(*row, "Lund" if row[1] == "a" else "Oslo") for row in ROWS]
    dataset = read_table(photos, make_csv(header=header, rows=[*rows, (*ROWS[0], "Bonn")]))
    assert list_rows(dataset) == ROWS
    assert list_extras(dataset) == {"site": ["Lund"] * 3 + ["Oslo"] * 3}


def test_the_rows_of_a_data_frame_are_stored_with_its_columns(photos):
    """A run from a data frame is resumed from them."""
    frame = pl.DataFrame({"path": PATHS, "label": LABELS, "site": ["Lund", "Oslo", None] * 2, "remark": ["x"] * 6})
    dataset = sources.read(frame.with_columns(path=pl.lit(f"{photos}/") + pl.col("path")))
    assert dataset.frame is not None
    assert dataset.frame.columns == ["path", "label", "site"]
    assert list_extras(sources.read(dataset.frame)) == list_extras(dataset)
