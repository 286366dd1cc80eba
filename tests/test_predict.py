"""Any number of photos become rows of a table, whatever happens on the way."""

import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ikebana
from ikebana.commands import predict as predict_command
from ikebana.data import unlabelled
from ikebana.errors import MachineError, ModelError, PhotosError, RecipeError, RunError
from ikebana.evaluation.candidate_sets import CandidateRule
from ikebana.inference import classifier, prediction_table, sorting
from ikebana.inference.prediction_table import Table


@pytest.fixture
def photos(good_photos, tmp_path):
    """Forty photos, one after the other; two of them cannot be used."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):
        shutil.copy(good_photos[number % len(good_photos)], folder / f"{number:02}.jpg")
    (folder / "07.jpg").write_text("no photo")
    (folder / "33.jpg").write_bytes(b"")
    return folder


def predicted(model, photos, out, **choices):
    predict_command.predict_to_table(model, [str(photos)], out=out, **choices)
    return {
        ".csv": partial(pl.read_csv, infer_schema_length=None),
        ".parquet": pl.read_parquet,
        ".jsonl": pl.read_ndjson,
    }[out.suffix](out)


def interrupted(monkeypatch, looks):
    """The network is struck down after so many looks."""
    real, count = classifier._run_session, []

    def look(*arguments):
        count.append(1)
        if len(count) > looks:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(classifier, "_run_session", look)
    return count


def contents(folder):
    return {
        each.relative_to(folder): (each.read_bytes(), each.stat().st_mtime_ns, each.stat().st_ino, each.stat().st_nlink)
        for each in sorted(folder.rglob("*"))
        if each.is_file()
    }


# --- tables ---


def test_each_kind_of_table_holds_the_same_rows(paper_model, photos, tmp_path):
    for kind in ("csv", "jsonl", "parquet"):
        predicted(paper_model, photos, tmp_path / f"said.{kind}")
    said = pl.read_csv(tmp_path / "said.csv", infer_schema_length=None)
    assert said["path"].to_list() == sorted(str(each) for each in photos.iterdir())
    parquet = pl.read_parquet(tmp_path / "said.parquet")
    assert parquet.drop("candidates").equals(said.drop("candidates").cast({"familiarity": pl.Float64}))
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text("utf-8").splitlines()]
    for row, of_csv in zip(rows, said.iter_rows(named=True), strict=True):
        assert all(row[name] == of_csv[name] for name in ("path", "label", "confidence", "status"))
        assert all(row["probabilities"][name] == of_csv[f"p:{name}"] for name in row["probabilities"])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["photos", "said.csv", "said.jsonl", "said.parquet"]


def test_broken_photos_are_rows_with_a_reason_and_the_others_are_not_worse_for_it(paper_model, photos, tmp_path):
    said = predicted(paper_model, photos, tmp_path / "said.csv")
    aside = said.filter(pl.col("label").is_null())
    assert dict(aside.select(pl.col("path").str.slice(-6), "status").iter_rows()) == {
        "07.jpg": "not a photo: text",
        "33.jpg": "empty file",
    }
    assert aside.select("confidence", "^p:.*$").null_count().row(0) == (2,) * 6
    alone = ikebana.load(paper_model)
    for row in said.filter(status="ok").iter_rows(named=True):
        assert alone.predict(row["path"]).confidence == pytest.approx(row["confidence"], abs=2e-6)


def test_names_with_commas_quotes_and_line_breaks_stay_what_they_are(paper_model, good_photos, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    names = ['a,"b".jpg', "line\nbreak.jpg", "Ünïcödé 🌷.jpg", "'; --.jpg"]
    for name in names:
        shutil.copy(good_photos[0], folder / name)
    for kind in ("csv", "parquet", "jsonl"):
        predicted(paper_model, folder, tmp_path / f"said.{kind}")
    with (tmp_path / "said.csv").open(encoding="utf-8", newline="") as stream:
        by_csv = [row["path"] for row in csv.DictReader(stream)]
    lines = (tmp_path / "said.jsonl").read_text("utf-8").split("\n")[:-1]
    assert by_csv == pl.read_parquet(tmp_path / "said.parquet")["path"].to_list()
    assert by_csv == [json.loads(line)["path"] for line in lines]
    assert {each.removeprefix(f"{folder}/") for each in by_csv} == set(names)


@pytest.mark.parametrize("name", ["said.txt", "said", "said.csv.gz"])
def test_a_table_of_another_kind_is_refused_before_any_work(name, tmp_path):
    with pytest.raises(RecipeError, match="not a supported table file"):
        predict_command.predict_to_table("no-model.onnx", ["no-photo.jpg"], out=tmp_path / name)


# --- going on ---


@pytest.mark.usefixtures("terminal")
def test_a_call_that_was_interrupted_goes_on_and_the_table_is_that_of_one_that_was_not(
    paper_model, photos, tmp_path, monkeypatch, capsys
):
    whole = predicted(paper_model, photos, tmp_path / "whole.csv")
    with monkeypatch.context() as patch:
        interrupted(patch, looks=1)
        with pytest.raises(KeyboardInterrupt):
            predicted(paper_model, photos, tmp_path / "said.csv")
    assert "Run the same command again to resume" in capsys.readouterr().err
    assert not (tmp_path / "said.csv").exists()
    part = tmp_path / "said.csv.part"
    assert len(part.read_text("utf-8").splitlines()) == 1 + classifier.BATCH_PHOTOS
    with part.open("a", encoding="utf-8") as stream:
        stream.write('["torn", "ro')  # as a kill in the middle of a line leaves it
    looks = interrupted(monkeypatch, looks=99)
    assert predicted(paper_model, photos, tmp_path / "said.csv").equals(whole)
    assert len(looks) == 2  # of three batches
    answered = (
        whole["confidence"][: classifier.BATCH_PHOTOS].is_not_null().sum()
    )  # what could not be used is tried again
    assert 0 < answered < classifier.BATCH_PHOTOS
    assert f"resuming after {answered} earlier predictions" in capsys.readouterr().err
    assert not part.exists()


def test_a_process_that_was_killed_outright_goes_on(paper_model, photos, tmp_path):
    for each in sorted(photos.iterdir()):
        shutil.copy(each, each.with_stem(f"{each.stem}-again"))
    out, paths = tmp_path / "said.csv", sorted(str(each) for each in photos.iterdir())
    command = [sys.executable, "-m", "ikebana", "predict", str(paper_model), "-", "--out", str(out)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdin is not None
    process.stdin.write("\n".join(paths) + "\n")  # and waits for more
    process.stdin.flush()
    deadline = time.monotonic() + 60
    part = tmp_path / "said.csv.part"
    try:
        while not (part.exists() and part.read_bytes().count(b"\n") > 1):
            assert process.poll() is None, "predict ended before it was killed"
            assert time.monotonic() < deadline, "no row within 60 s"
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait(timeout=60)
        process.stdin.close()
    done = subprocess.run(command, input="\n".join(paths), capture_output=True, text=True, check=True)
    assert "resuming after" in done.stderr
    assert done.stdout == f"{out}\n"
    assert pl.read_csv(out, infer_schema_length=None)["path"].to_list() == paths


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_what_could_not_be_used_is_tried_again(paper_model, photos, tmp_path, ending):
    first, second = sorted(photos.iterdir())[:2]
    whole = first.read_bytes()
    first.write_bytes(whole[:200])
    out = tmp_path / f"said.{ending}"
    with pytest.raises(PhotosError):
        predict_command.predict_to_table(paper_model, [str(first)], None, out)
    assert not out.exists()
    first.write_bytes(whole)
    predict_command.predict_to_table(paper_model, [str(first), str(second)], None, out)
    read = {"csv": pl.read_csv, "jsonl": pl.read_ndjson, "parquet": pl.read_parquet}[ending]
    said = read(out)
    assert said["path"].to_list() == [str(first), str(second)]
    assert set(said["status"]) <= {"ok", "not sure"}


def test_a_name_that_no_file_can_have_is_said_of_and_the_others_are_sorted(paper_model, photos, tmp_path):
    lines = iter([f"{photos}/01.jpg\n", "n" * 300 + "\n"])
    predict_command.predict_to_table(paper_model, [], lines, tmp_path / "said.csv", tmp_path / "sorted")
    assert len(list((tmp_path / "sorted").rglob("*.jpg"))) == 1


@pytest.mark.usefixtures("terminal")
def test_what_another_model_began_is_begun_anew(paper_run, paper_model, photos, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupted(patch, looks=2)
        with pytest.raises(KeyboardInterrupt):
            predicted(paper_model, photos, tmp_path / "said.csv")
    said = predicted(paper_run, photos, tmp_path / "said.csv")
    assert "starting over" in capsys.readouterr().err
    assert said["path"].n_unique() == said.height == 40


def test_two_processes_do_not_write_one_table(tmp_path):
    pytest.importorskip("fcntl")
    out = tmp_path / "said.csv"
    with (
        Table(out, ["a", "b"], "model"),
        pytest.raises(MachineError, match="another process"),
        Table(out, ["a", "b"], "model"),
    ):
        pass


def test_a_table_that_is_there_stays_until_the_new_one_is_whole(paper_model, photos, tmp_path, monkeypatch):
    out = tmp_path / "said.csv"
    out.write_text("the old one")
    with monkeypatch.context() as patch:
        interrupted(patch, looks=1)
        with pytest.raises(KeyboardInterrupt):
            predicted(paper_model, photos, out)
    assert out.read_text() == "the old one"
    assert predicted(paper_model, photos, out).height == 40


# --- sorting ---


def test_copies_go_into_class_folders_and_the_photos_stay_as_they_are(paper_model, photos, tmp_path):
    before = contents(photos)
    said = predicted(paper_model, photos, tmp_path / "said.csv", sort_into=tmp_path / "sorted")
    assert contents(photos) == before
    where = {each.name: each.parent.name for each in (tmp_path / "sorted").rglob("*.jpg")}
    assert where == {os.path.basename(row["path"]): row["label"] or "unusable" for row in said.iter_rows(named=True)}
    for each in (tmp_path / "sorted").rglob("*.jpg"):
        assert each.read_bytes() == (photos / each.name).read_bytes()
        assert not each.is_symlink()


def test_the_same_command_again_adds_nothing_and_nothing_that_is_there_is_written_over(paper_model, photos, tmp_path):
    place = tmp_path / "sorted"
    said = predicted(paper_model, photos, tmp_path / "said.csv")
    label = said.filter(path=str(photos / "00.jpg"))["label"][0]
    (place / label).mkdir(parents=True)
    (place / label / "00.jpg").write_bytes(b"somebody's own")
    predicted(paper_model, photos, tmp_path / "said.csv", sort_into=place)
    assert (place / label / "00.jpg").read_bytes() == b"somebody's own"
    assert (place / label / "00-2.jpg").read_bytes() == (photos / "00.jpg").read_bytes()
    before = contents(place)
    predicted(paper_model, photos, tmp_path / "said.csv", sort_into=place)
    assert contents(place) == before
    assert len(before) == 41


def test_links_lead_to_the_photos_and_members_of_archives_are_copied(paper_model, photos, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "more"), "zip", photos)
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("../outside.jpg", b"stays packed")
    predict_command.predict_to_table(
        paper_model, [str(photos), archive], out=tmp_path / "x.csv", sort_into=tmp_path / "s", link=True
    )
    placed = list((tmp_path / "s").rglob("*.jpg"))
    links = [each for each in placed if each.is_symlink()]
    assert {each.resolve() for each in links} == {each.resolve() for each in photos.iterdir()}
    assert len(placed) - len(links) == 40
    assert not list((tmp_path / "s").rglob("*.zip"))


def test_photos_that_are_not_sure_have_a_folder_of_their_own(paper_model, photos, tmp_path):
    unsure = ikebana.load(paper_model)
    object.__setattr__(unsure, "threshold", 1.0)
    predict_command.predict_to_table(unsure, [str(photos)], out=tmp_path / "said.csv", sort_into=tmp_path / "sorted")
    assert {each.name: len(list(each.iterdir())) for each in (tmp_path / "sorted").iterdir()} == {
        "not sure": 38,
        "unusable": 2,
    }
    said = pl.read_csv(tmp_path / "said.csv", infer_schema_length=None)
    assert said["status"].value_counts().filter(status="not sure")["count"].item() == 38
    assert said.filter(status="not sure")["confidence"].null_count() == 0


@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.usefixtures("terminal")
def test_that_no_photo_can_be_not_sure_is_said_each_time(paper_model, good_photos, capsys, threshold):
    model = ikebana.load(paper_model)
    object.__setattr__(model, "threshold", threshold)
    ikebana.predict(model, good_photos)
    predict_command.predict_to_table(model, [str(good_photos[0])])
    assert capsys.readouterr().err.count('know when to say "not sure"') == (2 if threshold is None else 0)


@pytest.mark.slow
@given(st.lists(st.text(max_size=120), max_size=6))
def test_whatever_a_class_is_called_its_folder_lies_below_the_place_and_is_its_own(names):
    found = sorting.make_folder_names([*names, "..", ".", "", "/etc", "a/../b", "NUL:", "not sure"])
    assert len({each.casefold() for each in found}) == len(found)
    for each in found:
        assert each not in ("", ".", "..")
        assert not set(each) & {"/", "\\", "\0", ":", "\n"}


# --- what may come in ---


def test_paths_on_standard_input_may_be_gone_and_the_rest_goes_on(paper_model, photos, tmp_path):
    lines = iter([f"{photos}/01.jpg\n", f"{tmp_path}/gone.jpg\n", "\n", f"{photos}/02.jpg"])
    predict_command.predict_to_table(paper_model, [], lines, tmp_path / "said.csv")
    said = pl.read_csv(tmp_path / "said.csv", infer_schema_length=None)
    assert said["status"].to_list() == ["ok", "there is no such file", "ok"]


def test_folders_are_read_as_photos_are_asked_for(tmp_path, monkeypatch):
    for name in ("b", "a", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").touch()
    (tmp_path / "0.jpg").touch()
    opened = []
    real = unlabelled.folder._list_folder
    monkeypatch.setattr(unlabelled.folder, "_list_folder", lambda *given: opened.append(given[1]) or real(*given))
    found = unlabelled.find_photos(tmp_path)
    opened.clear()
    paths = iter(found)
    assert next(paths).path == f"{tmp_path}/0.jpg"
    assert opened == [""]
    assert [each.path.removeprefix(f"{tmp_path}/") for each in paths] == ["a/1.jpg", "b/1.jpg", "c/1.jpg"]
    assert found.count() == 4


def test_models_that_are_none_are_refused_before_photos_are_looked_for(tmp_path):
    wrong = {"gone.onnx": ModelError, "gone": RunError, tmp_path: RunError, __file__: ModelError}
    for model, kind in wrong.items():
        with pytest.raises(kind):
            ikebana.predict(model, tmp_path / "gone.jpg")


@pytest.mark.parametrize("name", ["n" * 300, "n" * 300 + ".onnx", "~nobody-of-that-name/run"])
def test_a_model_of_a_name_that_no_file_can_have_is_refused(name, tmp_path):
    for place in (name, tmp_path / name):
        with pytest.raises((ModelError, RunError)) as refusal:
            ikebana.predict(place, tmp_path)
        assert str(refusal.value.where) == str(place)


def test_a_name_that_is_too_long_is_one_row_and_the_photos_after_it_are_predicted(paper_model, good_photos, tmp_path):
    lines = iter([f"{'n' * 300}\n", f"{good_photos[0]}\n"])
    predict_command.predict_to_table(paper_model, [], lines, out=tmp_path / "out.csv")
    rows = pl.read_csv(tmp_path / "out.csv").to_dicts()
    assert [row["path"] for row in rows] == ["n" * 300, str(good_photos[0])]
    assert "too long" in rows[0]["status"]
    assert rows[1]["status"] == "ok"


def test_if_nothing_can_be_used_that_is_an_error_and_there_is_no_table(paper_model, tmp_path):
    (tmp_path / "a.jpg").write_text("no photo")
    with pytest.raises(PhotosError, match="none of 1 paths"):
        predict_command.predict_to_table(paper_model, [str(tmp_path / "a.jpg")], out=tmp_path / "said.csv")
    assert not (tmp_path / "said.csv").exists()


def test_in_python_the_answers_are_a_list_and_a_table_too(paper_model, photos, tmp_path):
    said = ikebana.predict(paper_model, photos, tmp_path / "said.parquet")
    of_table = pl.read_parquet(tmp_path / "said.parquet")
    assert of_table["path"].to_list() == [each.path for each in said]
    assert of_table["label"].to_list() == [each.label for each in said]


@pytest.mark.slow
def test_a_flag_that_is_misspelt_is_wrong_usage_and_no_photo():
    command = [sys.executable, "-m", "ikebana", "predict", "model.onnx", "photo.jpg", "--outt", "x.csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no option --outt" in done.stderr + done.stdout
    assert "photo.jpg" not in done.stderr + done.stdout


def test_probabilities_survive_the_table_to_the_last_digit_that_is_kept():
    said = ikebana.Prediction("a.jpg", "x", 1 / 3, {"x": 1 / 3, "y": 2 / 3}, familiarity=0.25)
    row = prediction_table.to_row(said, ("x", "y"))
    assert row == ["a.jpg", "x", 0.333333, "ok", [], 0.25, 0.333333, 0.666667]
    assert prediction_table.format_row(row) == ["a.jpg", "x", "0.333333", "ok", "", "0.250000", "0.333333", "0.666667"]
    assert np.isclose(sum(row[6:]), 1)


# --- candidates ---


def split_names(text):
    """As docs/predict.md does."""
    return [re.sub(r"\\(.)", r"\1", name) for name in re.findall(r"(?:^|; )((?:\\.|[^\\;])+)", text)]


@given(st.lists(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1), max_size=4))
def test_joined_names_of_candidates_can_be_split_again(names):
    assert split_names(prediction_table.join_candidates(names)) == names


def test_each_kind_of_table_has_the_same_candidates(paper_classifier, photos, tmp_path):
    rule = CandidateRule(0.9, 0.9, 0.95)
    unsure = dataclasses.replace(paper_classifier, threshold=0.9, candidate_rule=rule)
    expected = [list(prediction.candidates) for prediction in ikebana.predict(unsure, photos)]
    assert len(set(map(len, expected)) - {0}) > 1
    assert [] in expected
    for kind, read in (("csv", pl.read_csv), ("jsonl", pl.read_ndjson), ("parquet", pl.read_parquet)):
        ikebana.predict(unsure, photos, tmp_path / f"said.{kind}")
        column = read(tmp_path / f"said.{kind}")["candidates"].to_list()
        assert [split_names(text or "") for text in column] == expected if kind == "csv" else column == expected


def test_the_docs_split_names_as_the_tests_do():
    page = (Path(__file__).parent.parent / "docs/predict.md").read_text("utf-8")
    assert r're.sub(r"\\(.)", r"\1", name) for name in re.findall(r"(?:^|; )((?:\\.|[^\\;])+)", text)' in page
