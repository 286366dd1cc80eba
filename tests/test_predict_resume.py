"""Resuming a prediction table: which rows are reused, and which are not."""

import json
import os
import shutil
from pathlib import Path

import polars as pl
import pytest

import ikebana
from ikebana.commands import predict as predict_command
from ikebana.errors import PhotosError, UsageError
from ikebana.inference import prediction_table
from ikebana.inference.prediction import to_prediction, unusable_prediction
from ikebana.inference.prediction_table import Table

CLASSES = ["a", "b"]


@pytest.fixture
def photos(good_photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(24):
        shutil.copy(good_photos[number % len(good_photos)], folder / f"{number:02}.jpg")
    return folder


@pytest.fixture
def interrupted_command(paper_model, monkeypatch):
    """The command, interrupted after it has saved its first rows."""

    def command(*photos, **choices):
        real = Table.add

        def last(self, rows):
            real(self, rows)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Table, "add", last)
            with pytest.raises(KeyboardInterrupt):
                predict_command.predict_to_table(paper_model, [str(photo) for photo in photos], **choices)

    return command


def read(out):
    return pl.read_csv(out, infer_schema_length=None)


def make_good(path):
    return to_prediction([0.9, 0.1], CLASSES, None, str(path))


def make_bad(path):
    return unusable_prediction(str(path), "not there")


def run_calls(out, *rows_of_each):
    """Call once per list of rows, and return path and status of the table.

    Each call but the last is interrupted at its end.
    """
    for number, rows in enumerate(rows_of_each, 1):
        with Table(out, CLASSES, "model") as opened:
            opened.add([row for row in rows if opened.find_existing(row.path, Path(row.path)) is None])
            if number == len(rows_of_each):
                opened.finish()
    return [(Path(path).name, status) for path, status in read(out).select("path", "status").iter_rows()]


# --- rows ---


@pytest.mark.parametrize(
    "before",
    [
        [make_bad],
        [make_bad, make_bad],
        [make_bad, make_good],
        [make_bad, make_bad, make_good],
        [make_good, make_good],
        [make_good, make_bad],
    ],
)
def test_a_path_has_one_row_after_any_number_of_interruptions(tmp_path, before):
    x, y = tmp_path / "x", tmp_path / "y"
    x.touch()
    y.touch()
    assert run_calls(tmp_path / "t.csv", *[[make_row(x)] for make_row in before], [make_good(x), make_good(y)]) == [
        ("x", "ok"),
        ("y", "ok"),
    ]


def test_a_photo_that_stays_unusable_has_one_row_with_the_last_reason(tmp_path):
    rows = [
        [make_bad(tmp_path / "x")],
        [unusable_prediction(str(tmp_path / "x"), "empty file"), make_good(tmp_path / "y")],
    ]
    assert run_calls(tmp_path / "t.csv", *rows) == [("x", "empty file"), ("y", "ok")]


def test_rows_are_in_the_order_of_the_last_call(tmp_path):
    paths = [tmp_path / name for name in "abcdef"]
    for path in paths:
        path.touch()
    a, b, c, d, e, f = map(make_good, paths)
    said_of = run_calls(tmp_path / "t.csv", [b, e], [d, b], [f, e, d, c, b, a])
    assert "".join(name for name, _ in said_of) == "fedcba"


def test_a_path_missing_from_the_last_call_has_no_row(paper_model, photos, tmp_path, interrupted_command):
    out = tmp_path / "said.csv"
    interrupted_command(photos, out=out)
    predict_command.predict_to_table(paper_model, [str(photos / "23.jpg"), str(photos / "02.jpg")], out=out)
    assert read(out)["path"].to_list() == [str(photos / "23.jpg"), str(photos / "02.jpg")]


@pytest.mark.usefixtures("terminal")
def test_a_replaced_file_is_predicted_again(paper_model, photos, tmp_path, interrupted_command, capsys):
    out, file = tmp_path / "said.csv", photos / "00.jpg"
    interrupted_command(photos, out=out)
    first = ikebana.load(paper_model).predict(file)
    other = next(file for file in photos.iterdir() if ikebana.load(paper_model).predict(file).label != first.label)
    file.write_bytes(other.read_bytes())
    predict_command.predict_to_table(paper_model, [str(photos)], out=out)
    assert read(out).filter(path=str(file))["label"].to_list() == [ikebana.load(paper_model).predict(other).label]
    assert read(out).height == 24
    assert "15 predicted earlier" in capsys.readouterr().err


def test_the_same_relative_path_in_another_folder_is_another_file(
    paper_model, photos, tmp_path, interrupted_command, monkeypatch
):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, order in ((here, 1), (there, -1)):
        (folder / "p").mkdir(parents=True)
        for number, photo in enumerate(sorted(photos.iterdir())[::order]):
            shutil.copy(photo, folder / "p" / f"{number:02}.jpg")
    monkeypatch.chdir(here)
    interrupted_command("p", out=tmp_path / "said.csv")
    monkeypatch.chdir(there)
    predict_command.predict_to_table(paper_model, ["p"], out=tmp_path / "said.csv")
    predict_command.predict_to_table(paper_model, ["p"], out=tmp_path / "fresh.csv")
    assert read(tmp_path / "said.csv").equals(read(tmp_path / "fresh.csv"))


# --- sorting earlier predictions ---


@pytest.mark.parametrize("before", [None, "other"])
def test_photos_predicted_by_an_earlier_call_are_sorted_too(paper_model, photos, tmp_path, interrupted_command, before):
    interrupted_command(photos, out=tmp_path / "said.csv", sort_into=before and tmp_path / before)
    predict_command.predict_to_table(
        paper_model, [str(photos)], out=tmp_path / "said.csv", sort_into=tmp_path / "sorted"
    )
    where = {path.name: path.parent.name for path in (tmp_path / "sorted").rglob("*.jpg")}
    of_table = {Path(row["path"]).name: row["label"] or "not sure" for row in read(tmp_path / "said.csv").to_dicts()}
    assert where == of_table
    assert len(where) == 24


@pytest.mark.parametrize("link", [False, True])
def test_sorted_copies_inside_the_source_folder_are_not_predicted_again(paper_model, photos, tmp_path, link):
    sorted_photos = photos / "a folder" / "sorted"
    tables = []
    for _ in range(3):
        predict_command.predict_to_table(
            paper_model, [str(photos)], out=tmp_path / "a.csv", sort_into=sorted_photos, link=link
        )
        tables.append(read(tmp_path / "a.csv"))
    assert [table.height for table in tables] == [24] * 3
    assert len(list(sorted_photos.rglob("*.jpg"))) == 24
    class_folder, *_ = (path for path in sorted_photos.iterdir() if path.is_dir())
    predict_command.predict_to_table(
        paper_model, [str(class_folder)], out=tmp_path / "b.csv", sort_into=tmp_path / "elsewhere"
    )
    # Sorted photos are predicted if their folder is given.
    predict_command.predict_to_table(paper_model, [str(sorted_photos)], out=tmp_path / "c.csv")
    assert read(tmp_path / "b.csv").height == len(list(class_folder.iterdir()))
    assert read(tmp_path / "c.csv").height == 24


def test_photos_are_not_sorted_into_their_own_folder(paper_model, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    for named, place in [(".", photos), (str(photos), Path()), (f"{photos}/../photos", photos)]:
        with pytest.raises(UsageError, match="mixed with the input photos"):
            predict_command.predict_to_table(paper_model, [named], out=tmp_path / "a.csv", sort_into=place)
    assert len(os.listdir(photos)) == 24
    predict_command.predict_to_table(paper_model, [str(photos / "00.jpg")], out=tmp_path / "a.csv", sort_into=photos)
    assert len(os.listdir(photos)) == 25


# --- the table's own files ---


@pytest.mark.usefixtures("terminal")
def test_the_table_is_not_a_photo_of_its_folder(
    paper_model, photos, tmp_path, interrupted_command, monkeypatch, capsys
):
    monkeypatch.chdir(photos)
    for _ in range(2):
        predict_command.predict_to_table(paper_model, ["."], out=Path("out.csv"))
        interrupted_command(".", out=Path("out.csv"))
        predict_command.predict_to_table(paper_model, ["."], out=Path("out.csv"))
        ikebana.predict(paper_model, ".", "out.csv")
        assert read("out.csv").height == 24
    output = capsys.readouterr().err
    assert output.count("; 0 unusable") == output.count("unusable") == 6
    (photos / "sub").mkdir()
    shutil.copy("out.csv", "sub/out.csv")  # an unrelated file
    predict_command.predict_to_table(paper_model, ["."], out=Path("out.csv"))
    assert read("out.csv").filter(status="ok").height == 24
    assert read("out.csv").height == 25


def test_a_folder_with_only_the_table_has_no_photos(paper_model, tmp_path):
    (tmp_path / "out.csv").touch()
    with pytest.raises(PhotosError, match="no photos found"):
        predict_command.predict_to_table(paper_model, [str(tmp_path)], out=tmp_path / "out.csv")


def test_a_table_given_with_a_tilde_is_in_the_home_folder(paper_model, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    predict_command.predict_to_table(paper_model, [str(photos)], out=Path("~/a.csv"), sort_into=Path("~/sorted"))
    ikebana.predict(paper_model, photos, "~/b.csv")
    assert {"a.csv", "b.csv", "sorted"} == set(os.listdir(tmp_path / "home"))
    assert not (tmp_path / "~").exists()


# --- the partial file ---


def test_a_partial_file_with_a_truncated_header_is_started_again_silently(tmp_path, capsys):
    with Table(tmp_path / "t.csv", CLASSES, "model") as opened:
        pass
    head = opened.part_path.read_text()
    for length in (0, 1, len(head) - 1):
        opened.part_path.write_text(head[:length])
        assert run_calls(tmp_path / "t.csv", [make_good("x")]) == [("x", "ok")]
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("terminal")
def test_a_partial_file_of_an_older_version_is_started_again(tmp_path, capsys):
    head = {"format": 1, "model": "model", "classes": CLASSES}
    part = tmp_path / "t.csv.part"
    part.write_text(json.dumps(head) + "\n" + json.dumps(["x", "a", 0.9, "ok", 0.9, 0.1]) + "\n")
    assert run_calls(tmp_path / "t.csv", [make_good("y")]) == [("y", "ok")]
    assert "starting over" in capsys.readouterr().err


def test_a_table_that_another_process_finishes_meanwhile_is_started_again(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    out, real = tmp_path / "t.csv", prediction_table._lock
    with Table(out, CLASSES, "model") as first:
        first.add([make_good("x")])

        def late(*given):
            monkeypatch.setattr(prediction_table, "_lock", real)
            first.finish()
            first.__exit__()
            real(*given)

        monkeypatch.setattr(prediction_table, "_lock", late)
        with Table(out, CLASSES, "model") as second:
            assert second.part_path.exists()
            second.add([make_good("y")])
            second.finish()
    assert read(out)["path"].to_list() == ["y"]
