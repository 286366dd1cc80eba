"""CSV files of any program and encoding are read correctly, or refused."""

import gzip

import pytest
from polars.testing import assert_frame_equal
from support.images import two_classes, write_files
from support.tables import ROWS, get_refusal, list_rows, make_csv, read_table

PLAIN_CSV = make_csv()
QUOTED_CSV = "".join(f'"{path}","{label}"\n' for path, label in [("path", "label"), *ROWS])


@pytest.fixture
def photos(tmp_path):
    write_files(tmp_path / "photos", two_classes())
    return tmp_path


FORMS = {
    "hint": "sep=;\r\n" + make_csv(";").replace("\n", "\r\n"),
    "quoted hint": '"sep=,"\n' + PLAIN_CSV,
    "hint of another separator": "SEP=|\n" + make_csv("|"),
    "pipes": make_csv("|"),
    "carriage returns": PLAIN_CSV.replace("\n", "\r"),
    "quoted values and carriage returns": QUOTED_CSV.replace("\n", "\r"),
    "quoted values": QUOTED_CSV,
    "quoted values after a space": QUOTED_CSV.replace(",", ", "),
    "quoted labels after a space": "path,label\n" + "".join(f'{path}, "{label}"\n' for path, label in ROWS),
    "blank first lines": "\r\n \r\n" + PLAIN_CSV.replace("\n", "\r\n"),
    "first rows of empty cells": ",,\n;;\n" + PLAIN_CSV,
    "comments": "# exported 2026-11-30, by hand\n#\n" + PLAIN_CSV,
    "header as a comment": "# " + PLAIN_CSV,
    "blank lines between and after the rows": PLAIN_CSV.replace("\n", "\n\n") + ",\n\n",
    "empty columns": "".join(f"{line},,\n" for line in PLAIN_CSV.splitlines()),
    "empty values beyond the header": PLAIN_CSV.split("\n")[0] + "\n" + "".join(f"{p},{c},\n" for p, c in ROWS),
    "more separators of another kind": "path;label;a,b,c,d,e\n" + "".join(f"{p};{c};1,2,3\n" for p, c in ROWS),
    "no last line end": PLAIN_CSV.rstrip("\n"),
    "unnamed index of pandas": "Unnamed: 0,path,label\n" + "".join(f"{n},{p},{c}\n" for n, (p, c) in enumerate(ROWS)),
    "index of pandas": ",path,label\n" + "".join(f"{n},{p},{c}\n" for n, (p, c) in enumerate(ROWS)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_is_the_same_table(photos, form):
    dataset = read_table(photos, FORMS[form])
    assert_frame_equal(dataset.photos, read_table(photos, PLAIN_CSV).photos)
    assert list_rows(dataset) == ROWS
    assert dataset.notes == ()


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le-with-mark", "utf-8-two-marks"]
)
def test_every_unicode_encoding_is_read(photos, encoding):
    """As Excel's "Unicode text" and Windows' Notepad save it."""
    (photos / "photos/Blüte 花.jpg").write_bytes((photos / ROWS[0][0]).read_bytes())
    text = make_csv("\t", rows=[*ROWS, ("photos/Blüte 花.jpg", "fleur fanée")])
    data = {
        "utf-32-le-with-mark": ("\ufeff" + text).encode("utf-32-le"),
        "utf-8-two-marks": ("\ufeff\ufeff" + text).encode(),
    }.get(encoding) or text.encode(encoding)
    assert set(list_rows(read_table(photos, data))) == {*ROWS, ("photos/Blüte 花.jpg", "fleur fanée")}


def test_an_encoding_that_cannot_be_known_is_refused_with_two_readings(photos):
    refusal = get_refusal(photos, make_csv(rows=[*ROWS, ("photos/Blüte.jpg", "a")]).encode("cp1252"))
    assert "not UTF-8" in refusal.what
    assert "line 8" in refusal.what
    assert "Blüte" in refusal.what
    assert "Bl¸te" in refusal.what
    assert "UTF-8" in (refusal.advice or "")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PK\x03\x04\x14\0\6\0", "workbook"), (b"PAR1rest", "Parquet"), (gzip.compress(PLAIN_CSV.encode(), mtime=0), "gzip"),
        (b"\xff\xfep\0a", "UTF-16"),
    ],
    ids=["workbook", "Parquet", "gzip", "UTF-16"],
)  # fmt: skip
def test_a_file_of_another_type_is_refused_by_name(photos, data, words):
    assert words in get_refusal(photos, data).what


@pytest.mark.parametrize("text", ["", "\n", "\r\n\r\n", "sep=;\n", "# only a comment\n", " ,;\t\n", "\ufeff"])
def test_a_table_without_any_row_is_called_empty(photos, text):
    assert get_refusal(photos, text).what == "the table is empty"


def test_a_table_without_a_header_is_refused_as_such(photos):
    refusal = get_refusal(photos, "".join(f"{path},{label}\n" for path, label in ROWS))
    assert refusal.what == "the table has no header: its first line is photos/a/0.jpg, a"
    assert "path,label" in (refusal.advice or "")


def test_a_row_with_too_many_values_is_named(photos):
    refusal = get_refusal(photos, PLAIN_CSV + "photos/a/0.jpg,a,b\n")
    assert "line 8 has 3 values" in refusal.what
    assert "2 names" in refusal.what


@pytest.mark.parametrize("column", [0, 1])
def test_a_quotation_mark_that_is_not_closed_is_refused_instead_of_swallowing_rows(photos, column):
    for rows_swallowed in (2, len(ROWS)):
        lines = PLAIN_CSV.splitlines()
        cells = lines[1].split(",")
        cells[column] = f'"{cells[column]}'
        lines[1] = ",".join(cells)
        if rows_swallowed == 2:
            lines[3] += '"'
        refusal = get_refusal(photos, "\n".join(lines) + "\n")
        assert "quotation mark" in (refusal.advice or "")


def test_rows_inside_quotation_marks_of_another_column_are_reported(photos):
    rows = [f"{path},{label},fine" for path, label in ROWS]
    rows[1], rows[2] = rows[1].replace("fine", '"fine'), rows[2] + '"'
    dataset = read_table(photos, "path,label,remark\n" + "\n".join(rows) + "\n")
    assert dataset.photos.height == len(ROWS) - 1
    assert dataset.notes == (
        "a value of the column 'remark' spans lines that look like rows: check its quotation marks",
    )
    remark = '"small, red,\nand late"'
    text = "path,label,remark\n" + "".join(f"{path},{label},{remark}\n" for path, label in ROWS)
    assert read_table(photos, text).notes == ()


def test_a_label_with_a_separator_or_a_line_break_in_quotation_marks_is_one_label(photos):
    labels = {"a": '"red, or pink"', "b": '"two\nlines"'}
    text = "path,label\n" + "".join(f"{path},{labels[label]}\n" for path, label in ROWS)
    assert read_table(photos, text).classes == ("red, or pink", "two\nlines")


@pytest.mark.parametrize("repeated", ["label", "path", "split", "group"])
@pytest.mark.parametrize("spelling", [str, str.upper, " {} ".format])
def test_two_columns_of_the_same_name_are_refused_in_any_spelling(photos, repeated, spelling):
    header = ["path", "label", "split", "group", spelling(repeated)]
    refusal = get_refusal(photos, make_csv(header=header, rows=[(*row, "train", "g", "x") for row in ROWS]))
    assert refusal.what == f"the table has 2 columns named {repeated!r}"


def test_unused_columns_may_have_the_same_name(photos):
    header = ("remark", "path", "label", "remark")
    assert list_rows(read_table(photos, make_csv(header=header, rows=[("x", *row, "y") for row in ROWS]))) == ROWS


def test_a_workbook_is_refused_with_how_to_save_it_as_csv(photos):
    (photos / "photos.xlsx").write_bytes(b"PK\x03\x04")
    refusal = get_refusal(photos, b"PK\x03\x04", "photos.xlsx")
    assert "CSV UTF-8" in (refusal.advice or "")
