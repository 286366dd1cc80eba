"""A table that was begun before: what of it holds today, and what does not."""

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
def cut_short(paper_model, monkeypatch):
    """The command, killed when it has kept its first rows."""

    def command(*photos, **choices):
        real = Table.add

        def last(self, rows):
            real(self, rows)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Table, "add", last)
            with pytest.raises(KeyboardInterrupt):
                predict_command.predict_to_table(paper_model, [str(each) for each in photos], **choices)

    return command


def read(out):
    return pl.read_csv(out, infer_schema_length=None)


def good(path):
    return to_prediction([0.9, 0.1], CLASSES, None, str(path))


def bad(path):
    return unusable_prediction(str(path), "not there")


def calls(out, *rows_of_each):
    """So many calls, all but the last interrupted when they have answered; the paths of the table, and what is said of them."""
    for number, rows in enumerate(rows_of_each, 1):
        with Table(out, CLASSES, "model") as opened:
            opened.add([each for each in rows if opened.find_existing(each.path, Path(each.path)) is None])
            if number == len(rows_of_each):
                opened.finish()
    return [(Path(path).name, status) for path, status in read(out).select("path", "status").iter_rows()]


# --- rows ---


@pytest.mark.parametrize("before", [[bad], [bad, bad], [bad, good], [bad, bad, good], [good, good], [good, bad]])
def test_a_path_has_one_row_however_often_the_call_was_interrupted(tmp_path, before):
    x, y = tmp_path / "x", tmp_path / "y"
    x.touch()
    y.touch()
    assert calls(tmp_path / "t.csv", *[[each(x)] for each in before], [good(x), good(y)]) == [
        ("x", "ok"),
        ("y", "ok"),
    ]


def test_a_photo_that_stays_unusable_has_one_row_with_the_last_reason(tmp_path):
    rows = [[bad(tmp_path / "x")], [unusable_prediction(str(tmp_path / "x"), "empty file"), good(tmp_path / "y")]]
    assert calls(tmp_path / "t.csv", *rows) == [("x", "empty file"), ("y", "ok")]


def test_rows_are_in_the_order_of_the_last_call(tmp_path):
    paths = [tmp_path / name for name in "abcdef"]
    for path in paths:
        path.touch()
    a, b, c, d, e, f = map(good, paths)
    said_of = calls(tmp_path / "t.csv", [b, e], [d, b], [f, e, d, c, b, a])
    assert "".join(name for name, _ in said_of) == "fedcba"


def test_a_path_that_did_not_come_up_this_time_has_no_row(paper_model, photos, tmp_path, cut_short):
    out = tmp_path / "said.csv"
    cut_short(photos, out=out)
    predict_command.predict_to_table(paper_model, [str(photos / "23.jpg"), str(photos / "02.jpg")], out=out)
    assert read(out)["path"].to_list() == [str(photos / "23.jpg"), str(photos / "02.jpg")]


@pytest.mark.usefixtures("terminal")
def test_a_file_that_was_replaced_since_is_looked_at_again(paper_model, photos, tmp_path, cut_short, capsys):
    out, file = tmp_path / "said.csv", photos / "00.jpg"
    cut_short(photos, out=out)
    first = ikebana.load(paper_model).predict(file)
    other = next(each for each in photos.iterdir() if ikebana.load(paper_model).predict(each).label != first.label)
    file.write_bytes(other.read_bytes())
    predict_command.predict_to_table(paper_model, [str(photos)], out=out)
    assert read(out).filter(path=str(file))["label"].to_list() == [ikebana.load(paper_model).predict(other).label]
    assert read(out).height == 24
    assert "15 predicted earlier" in capsys.readouterr().err


def test_a_path_of_another_folder_has_the_answer_of_its_own_file(paper_model, photos, tmp_path, cut_short, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, order in ((here, 1), (there, -1)):
        (folder / "p").mkdir(parents=True)
        for number, photo in enumerate(sorted(photos.iterdir())[::order]):
            shutil.copy(photo, folder / "p" / f"{number:02}.jpg")
    monkeypatch.chdir(here)
    cut_short("p", out=tmp_path / "said.csv")
    monkeypatch.chdir(there)
    predict_command.predict_to_table(paper_model, ["p"], out=tmp_path / "said.csv")
    predict_command.predict_to_table(paper_model, ["p"], out=tmp_path / "fresh.csv")
    assert read(tmp_path / "said.csv").equals(read(tmp_path / "fresh.csv"))


# --- sorting what is there already ---


@pytest.mark.parametrize("before", [None, "other"])
def test_what_an_earlier_call_had_answered_is_sorted_too(paper_model, photos, tmp_path, cut_short, before):
    cut_short(photos, out=tmp_path / "said.csv", sort_into=before and tmp_path / before)
    predict_command.predict_to_table(
        paper_model, [str(photos)], out=tmp_path / "said.csv", sort_into=tmp_path / "sorted"
    )
    where = {each.name: each.parent.name for each in (tmp_path / "sorted").rglob("*.jpg")}
    of_table = {Path(row["path"]).name: row["label"] or "not sure" for row in read(tmp_path / "said.csv").to_dicts()}
    assert where == of_table
    assert len(where) == 24


@pytest.mark.parametrize("link", [False, True])
def test_sorted_photos_among_those_they_come_from_are_not_found_the_next_time(paper_model, photos, tmp_path, link):
    sorted_photos = photos / "a folder" / "sorted"
    tables = []
    for _ in range(3):
        predict_command.predict_to_table(
            paper_model, [str(photos)], out=tmp_path / "a.csv", sort_into=sorted_photos, link=link
        )
        tables.append(read(tmp_path / "a.csv"))
    assert [each.height for each in tables] == [24] * 3
    assert len(list(sorted_photos.rglob("*.jpg"))) == 24
    one, *_ = (each for each in sorted_photos.iterdir() if each.is_dir())
    predict_command.predict_to_table(paper_model, [str(one)], out=tmp_path / "b.csv", sort_into=tmp_path / "elsewhere")
    predict_command.predict_to_table(
        paper_model, [str(sorted_photos)], out=tmp_path / "c.csv"
    )  # whoever names them gets them
    assert read(tmp_path / "b.csv").height == len(list(one.iterdir()))
    assert read(tmp_path / "c.csv").height == 24


def test_photos_are_not_sorted_into_the_very_folder_that_they_lie_in(paper_model, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    for named, place in [(".", photos), (str(photos), Path()), (f"{photos}/../photos", photos)]:
        with pytest.raises(UsageError, match="mixed with the input photos"):
            predict_command.predict_to_table(paper_model, [named], out=tmp_path / "a.csv", sort_into=place)
    assert len(os.listdir(photos)) == 24
    predict_command.predict_to_table(paper_model, [str(photos / "00.jpg")], out=tmp_path / "a.csv", sort_into=photos)
    assert len(os.listdir(photos)) == 25


# --- the table's own files ---


@pytest.mark.usefixtures("terminal")
def test_the_table_is_no_photo_of_the_folder_it_lies_in(paper_model, photos, tmp_path, cut_short, monkeypatch, capsys):
    monkeypatch.chdir(photos)
    for _ in range(2):
        predict_command.predict_to_table(paper_model, ["."], out=Path("out.csv"))
        cut_short(".", out=Path("out.csv"))
        predict_command.predict_to_table(paper_model, ["."], out=Path("out.csv"))
        ikebana.predict(paper_model, ".", "out.csv")
        assert read("out.csv").height == 24
    told = capsys.readouterr().err
    assert told.count(", 0 unusable") == told.count("unusable") == 6
    (photos / "sub").mkdir()
    shutil.copy("out.csv", "sub/out.csv")  # somebody's own
    predict_command.predict_to_table(paper_model, ["."], out=Path("out.csv"))
    assert read("out.csv").filter(status="ok").height == 24
    assert read("out.csv").height == 25


def test_a_folder_with_nothing_but_the_table_has_no_photos(paper_model, tmp_path):
    (tmp_path / "out.csv").touch()
    with pytest.raises(PhotosError, match="no photos found"):
        predict_command.predict_to_table(paper_model, [str(tmp_path)], out=tmp_path / "out.csv")


def test_a_table_below_home_is_written_there(paper_model, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    predict_command.predict_to_table(paper_model, [str(photos)], out=Path("~/a.csv"), sort_into=Path("~/sorted"))
    ikebana.predict(paper_model, photos, "~/b.csv")
    assert {"a.csv", "b.csv", "sorted"} == set(os.listdir(tmp_path / "home"))
    assert not (tmp_path / "~").exists()


# --- the part itself ---


def test_a_part_whose_first_line_was_cut_off_is_nobodys_and_is_begun_anew_without_a_word(tmp_path, capsys):
    with Table(tmp_path / "t.csv", CLASSES, "model") as opened:
        pass
    head = opened.part_path.read_text()
    for length in (0, 1, len(head) - 1):
        opened.part_path.write_text(head[:length])
        assert calls(tmp_path / "t.csv", [good("x")]) == [("x", "ok")]
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("terminal")
def test_what_an_older_ikebana_began_is_begun_anew(tmp_path, capsys):
    head = {"format": 1, "model": "model", "classes": CLASSES}
    part = tmp_path / "t.csv.part"
    part.write_text(json.dumps(head) + "\n" + json.dumps(["x", "a", 0.9, "ok", 0.9, 0.1]) + "\n")
    assert calls(tmp_path / "t.csv", [good("y")]) == [("y", "ok")]
    assert "starting over" in capsys.readouterr().err


def test_who_opens_a_table_while_another_finishes_it_begins_a_new_one(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    out, real = tmp_path / "t.csv", prediction_table._lock
    with Table(out, CLASSES, "model") as first:
        first.add([good("x")])

        def late(*given):
            monkeypatch.setattr(prediction_table, "_lock", real)
            first.finish()
            first.__exit__()
            real(*given)

        monkeypatch.setattr(prediction_table, "_lock", late)
        with Table(out, CLASSES, "model") as second:
            assert second.part_path.exists()
            second.add([good("y")])
            second.finish()
    assert read(out)["path"].to_list() == ["y"]
