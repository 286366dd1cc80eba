"""Prediction tables of any number of photos, with interruptions and errors."""

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
from ikebana.inference import classifier, sorting, table_formats
from ikebana.inference.prediction_table import Table


@pytest.fixture
def photos(good_photos, tmp_path):
    """Forty paths, of which two cannot be used."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):
        shutil.copy(good_photos[number % len(good_photos)], folder / f"{number:02}.jpg")
    (folder / "07.jpg").write_text("no photo")
    (folder / "33.jpg").write_bytes(b"")
    return folder


def predict_table(model, photos, out, **choices):
    predict_command.predict_to_table(model, [str(photos)], out=out, **choices)
    return {
        ".csv": partial(pl.read_csv, infer_schema_length=None),
        ".parquet": pl.read_parquet,
        ".jsonl": pl.read_ndjson,
    }[out.suffix](out)


def interrupt_after(monkeypatch, looks):
    """Interrupt the network after so many batches."""
    real, count = classifier._run_session, []

    def look(*arguments):
        count.append(1)
        if len(count) > looks:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(classifier, "_run_session", look)
    return count


def describe_files(folder):
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino, path.stat().st_nlink)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- tables ---


def test_each_kind_of_table_holds_the_same_rows(paper_model, photos, tmp_path):
    for kind in ("csv", "jsonl", "parquet"):
        predict_table(paper_model, photos, tmp_path / f"said.{kind}")
    table = pl.read_csv(tmp_path / "said.csv", infer_schema_length=None)
    assert table["path"].to_list() == sorted(str(path) for path in photos.iterdir())
    parquet = pl.read_parquet(tmp_path / "said.parquet")
    assert parquet.drop("candidates").equals(table.drop("candidates").cast({"familiarity": pl.Float64}))
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text("utf-8").splitlines()]
    for row, of_csv in zip(rows, table.iter_rows(named=True), strict=True):
        assert all(row[name] == of_csv[name] for name in ("path", "label", "confidence", "status"))
        assert all(row["probabilities"][name] == of_csv[f"p:{name}"] for name in row["probabilities"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "said.csv", "said.jsonl", "said.parquet"]


def test_broken_photos_are_rows_with_a_reason_and_do_not_affect_others(paper_model, photos, tmp_path):
    table = predict_table(paper_model, photos, tmp_path / "said.csv")
    aside = table.filter(pl.col("label").is_null())
    assert dict(aside.select(pl.col("path").str.slice(-6), "status").iter_rows()) == {
        "07.jpg": "not a photo: text",
        "33.jpg": "empty file",
    }
    assert aside.select("confidence", "^p:.*$").null_count().row(0) == (2,) * 6
    alone = ikebana.load(paper_model)
    for row in table.filter(status="ok").iter_rows(named=True):
        assert alone.predict(row["path"]).confidence == pytest.approx(row["confidence"], abs=2e-6)


def test_names_with_commas_quotes_and_line_breaks_are_kept(paper_model, good_photos, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    names = ['a,"b".jpg', "line\nbreak.jpg", "Ünïcödé 🌷.jpg", "'; --.jpg"]
    for name in names:
        shutil.copy(good_photos[0], folder / name)
    for kind in ("csv", "parquet", "jsonl"):
        predict_table(paper_model, folder, tmp_path / f"said.{kind}")
    with (tmp_path / "said.csv").open(encoding="utf-8", newline="") as stream:
        by_csv = [row["path"] for row in csv.DictReader(stream)]
    lines = (tmp_path / "said.jsonl").read_text("utf-8").split("\n")[:-1]
    assert by_csv == pl.read_parquet(tmp_path / "said.parquet")["path"].to_list()
    assert by_csv == [json.loads(line)["path"] for line in lines]
    assert {field.removeprefix(f"{folder}/") for field in by_csv} == set(names)


@pytest.mark.parametrize("name", ["said.txt", "said", "said.csv.gz"])
def test_a_table_of_another_kind_is_refused_before_any_work(name, tmp_path):
    with pytest.raises(RecipeError, match="not a supported table file"):
        predict_command.predict_to_table("no-model.onnx", ["no-photo.jpg"], out=tmp_path / name)


# --- resuming ---


@pytest.mark.usefixtures("terminal")
def test_an_interrupted_call_resumes_to_the_table_of_an_uninterrupted_one(
    paper_model, photos, tmp_path, monkeypatch, capsys
):
    expected = predict_table(paper_model, photos, tmp_path / "whole.csv")
    with monkeypatch.context() as patch:
        interrupt_after(patch, looks=1)
        with pytest.raises(KeyboardInterrupt):
            predict_table(paper_model, photos, tmp_path / "said.csv")
    assert "Run the same command again to resume" in capsys.readouterr().err
    assert not (tmp_path / "said.csv").exists()
    part = tmp_path / "said.csv.part"
    assert len(part.read_text("utf-8").splitlines()) == 1 + classifier.BATCH_PHOTOS
    with part.open("a", encoding="utf-8") as stream:
        stream.write('["torn", "ro')  # as after a kill in the middle of a line
    looks = interrupt_after(monkeypatch, looks=99)
    assert predict_table(paper_model, photos, tmp_path / "said.csv").equals(expected)
    assert len(looks) == 2  # of three batches
    # Unusable photos are tried again.
    answered = expected["confidence"][: classifier.BATCH_PHOTOS].is_not_null().sum()
    assert 0 < answered < classifier.BATCH_PHOTOS
    assert f"resuming after {answered} earlier predictions" in capsys.readouterr().err
    assert not part.exists()


def test_a_killed_process_can_be_resumed(paper_model, photos, tmp_path):
    for path in sorted(photos.iterdir()):
        shutil.copy(path, path.with_stem(f"{path.stem}-again"))
    out, paths = tmp_path / "said.csv", sorted(str(path) for path in photos.iterdir())
    command = [sys.executable, "-m", "ikebana", "predict", str(paper_model), "-", "--out", str(out)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdin is not None
    # The command then waits for more paths.
    process.stdin.write("\n".join(paths) + "\n")
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
def test_unusable_photos_are_tried_again(paper_model, photos, tmp_path, ending):
    first, second = sorted(photos.iterdir())[:2]
    data = first.read_bytes()
    first.write_bytes(data[:200])
    out = tmp_path / f"said.{ending}"
    with pytest.raises(PhotosError):
        predict_command.predict_to_table(paper_model, [str(first)], None, out)
    assert not out.exists()
    first.write_bytes(data)
    predict_command.predict_to_table(paper_model, [str(first), str(second)], None, out)
    read = {"csv": pl.read_csv, "jsonl": pl.read_ndjson, "parquet": pl.read_parquet}[ending]
    table = read(out)
    assert table["path"].to_list() == [str(first), str(second)]
    assert set(table["status"]) <= {"ok", "not sure"}


def test_an_impossible_name_is_reported_and_the_other_photos_are_sorted(paper_model, photos, tmp_path):
    lines = iter([f"{photos}/01.jpg\n", "n" * 300 + "\n"])
    predict_command.predict_to_table(paper_model, [], lines, tmp_path / "said.csv", tmp_path / "sorted")
    assert len(list((tmp_path / "sorted").rglob("*.jpg"))) == 1


@pytest.mark.usefixtures("terminal")
def test_a_table_started_by_another_model_is_started_again(
    paper_run, paper_model, photos, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        interrupt_after(patch, looks=2)
        with pytest.raises(KeyboardInterrupt):
            predict_table(paper_model, photos, tmp_path / "said.csv")
    table = predict_table(paper_run, photos, tmp_path / "said.csv")
    assert "starting over" in capsys.readouterr().err
    assert table["path"].n_unique() == table.height == 40


def test_two_processes_do_not_write_one_table(tmp_path):
    pytest.importorskip("fcntl")
    out = tmp_path / "said.csv"
    with (
        Table(out, ["a", "b"], "model"),
        pytest.raises(MachineError, match="another process"),
        Table(out, ["a", "b"], "model"),
    ):
        pass


def test_an_existing_table_stays_until_the_new_one_is_complete(paper_model, photos, tmp_path, monkeypatch):
    out = tmp_path / "said.csv"
    out.write_text("the old one")
    with monkeypatch.context() as patch:
        interrupt_after(patch, looks=1)
        with pytest.raises(KeyboardInterrupt):
            predict_table(paper_model, photos, out)
    assert out.read_text() == "the old one"
    assert predict_table(paper_model, photos, out).height == 40


# --- sorting ---


def test_photos_are_copied_into_class_folders_and_not_changed(paper_model, photos, tmp_path):
    before = describe_files(photos)
    table = predict_table(paper_model, photos, tmp_path / "said.csv", sort_into=tmp_path / "sorted")
    assert describe_files(photos) == before
    where = {file.name: file.parent.name for file in (tmp_path / "sorted").rglob("*.jpg")}
    assert where == {os.path.basename(row["path"]): row["label"] or "unusable" for row in table.iter_rows(named=True)}
    for file in (tmp_path / "sorted").rglob("*.jpg"):
        assert file.read_bytes() == (photos / file.name).read_bytes()
        assert not file.is_symlink()


def test_repeating_the_command_adds_and_overwrites_nothing(paper_model, photos, tmp_path):
    place = tmp_path / "sorted"
    table = predict_table(paper_model, photos, tmp_path / "said.csv")
    label = table.filter(path=str(photos / "00.jpg"))["label"][0]
    (place / label).mkdir(parents=True)
    (place / label / "00.jpg").write_bytes(b"somebody's own")
    predict_table(paper_model, photos, tmp_path / "said.csv", sort_into=place)
    assert (place / label / "00.jpg").read_bytes() == b"somebody's own"
    assert (place / label / "00-2.jpg").read_bytes() == (photos / "00.jpg").read_bytes()
    before = describe_files(place)
    predict_table(paper_model, photos, tmp_path / "said.csv", sort_into=place)
    assert describe_files(place) == before
    assert len(before) == 41


def test_links_point_to_the_photos_and_archive_members_are_copied(paper_model, photos, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "more"), "zip", photos)
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("../outside.jpg", b"stays packed")
    predict_command.predict_to_table(
        paper_model, [str(photos), archive], out=tmp_path / "x.csv", sort_into=tmp_path / "s", link=True
    )
    placed = list((tmp_path / "s").rglob("*.jpg"))
    links = [path for path in placed if path.is_symlink()]
    assert {path.resolve() for path in links} == {path.resolve() for path in photos.iterdir()}
    assert len(placed) - len(links) == 40
    assert not list((tmp_path / "s").rglob("*.zip"))


def test_photos_without_a_sure_class_have_a_separate_folder(paper_model, photos, tmp_path):
    unsure = ikebana.load(paper_model)
    object.__setattr__(unsure, "threshold", 1.0)
    predict_command.predict_to_table(unsure, [str(photos)], out=tmp_path / "said.csv", sort_into=tmp_path / "sorted")
    assert {path.name: len(list(path.iterdir())) for path in (tmp_path / "sorted").iterdir()} == {
        "not sure": 38,
        "unusable": 2,
    }
    table = pl.read_csv(tmp_path / "said.csv", infer_schema_length=None)
    assert table["status"].value_counts().filter(status="not sure")["count"].item() == 38
    assert table.filter(status="not sure")["confidence"].null_count() == 0


@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.usefixtures("terminal")
def test_a_missing_threshold_is_reported_each_time(paper_model, good_photos, capsys, threshold):
    model = ikebana.load(paper_model)
    object.__setattr__(model, "threshold", threshold)
    ikebana.predict(model, good_photos)
    predict_command.predict_to_table(model, [str(good_photos[0])])
    assert capsys.readouterr().err.count('know when to say "not sure"') == (2 if threshold is None else 0)


@pytest.mark.slow
@given(st.lists(st.text(max_size=120), max_size=6))
def test_every_class_name_has_a_separate_folder_inside_the_target(names):
    folders = sorting.make_folder_names([*names, "..", ".", "", "/etc", "a/../b", "NUL:", "not sure"])
    assert len({folder.casefold() for folder in folders}) == len(folders)
    for folder in folders:
        assert folder not in ("", ".", "..")
        assert not set(folder) & {"/", "\\", "\0", ":", "\n"}


# --- inputs ---


def test_missing_paths_on_standard_input_do_not_stop_the_rest(paper_model, photos, tmp_path):
    lines = iter([f"{photos}/01.jpg\n", f"{tmp_path}/gone.jpg\n", "\n", f"{photos}/02.jpg"])
    predict_command.predict_to_table(paper_model, [], lines, tmp_path / "said.csv")
    table = pl.read_csv(tmp_path / "said.csv", infer_schema_length=None)
    assert table["status"].to_list() == ["ok", "there is no such file", "ok"]


def test_folders_are_read_lazily(tmp_path, monkeypatch):
    for name in ("b", "a", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").touch()
    (tmp_path / "0.jpg").touch()
    opened = []
    real = unlabelled.folder._list_folder
    monkeypatch.setattr(unlabelled.folder, "_list_folder", lambda *given: opened.append(given[1]) or real(*given))
    photo_list = unlabelled.find_photos(tmp_path)
    opened.clear()
    paths = iter(photo_list)
    assert next(paths).path == f"{tmp_path}/0.jpg"
    assert opened == [""]
    assert [photo.path.removeprefix(f"{tmp_path}/") for photo in paths] == ["a/1.jpg", "b/1.jpg", "c/1.jpg"]
    assert photo_list.count() == 4


def test_invalid_models_are_refused_before_photos_are_searched(tmp_path):
    wrong = {"gone.onnx": ModelError, "gone": RunError, tmp_path: RunError, __file__: ModelError}
    for model, kind in wrong.items():
        with pytest.raises(kind):
            ikebana.predict(model, tmp_path / "gone.jpg")


@pytest.mark.parametrize("name", ["n" * 300, "n" * 300 + ".onnx", "~nobody-of-that-name/run"])
def test_an_impossible_model_name_is_refused(name, tmp_path):
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


def test_if_no_photo_can_be_used_there_is_an_error_and_no_table(paper_model, tmp_path):
    (tmp_path / "a.jpg").write_text("no photo")
    with pytest.raises(PhotosError, match="none of 1 paths"):
        predict_command.predict_to_table(paper_model, [str(tmp_path / "a.jpg")], out=tmp_path / "said.csv")
    assert not (tmp_path / "said.csv").exists()


def test_python_returns_a_list_and_writes_the_table(paper_model, photos, tmp_path):
    predictions = ikebana.predict(paper_model, photos, tmp_path / "said.parquet")
    of_table = pl.read_parquet(tmp_path / "said.parquet")
    assert of_table["path"].to_list() == [prediction.path for prediction in predictions]
    assert of_table["label"].to_list() == [prediction.label for prediction in predictions]


@pytest.mark.slow
def test_a_misspelt_flag_is_wrong_usage_and_not_a_photo():
    command = [sys.executable, "-m", "ikebana", "predict", "model.onnx", "photo.jpg", "--outt", "x.csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no option --outt" in done.stderr + done.stdout
    assert "photo.jpg" not in done.stderr + done.stdout


def test_probabilities_are_read_back_to_the_stored_precision():
    table = ikebana.Prediction("a.jpg", "x", 1 / 3, {"x": 1 / 3, "y": 2 / 3}, familiarity=0.25)
    row = table_formats.to_row(table, ("x", "y"))
    assert row == ["a.jpg", "x", 0.333333, "ok", [], 0.25, 0.333333, 0.666667]
    assert table_formats.format_row(row) == ["a.jpg", "x", "0.333333", "ok", "", "0.250000", "0.333333", "0.666667"]
    assert np.isclose(sum(row[6:]), 1)


# --- candidates ---


def split_names(text):
    """As docs/predict.md does."""
    return [re.sub(r"\\(.)", r"\1", name) for name in re.findall(r"(?:^|; )((?:\\.|[^\\;])+)", text)]


@given(st.lists(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1), max_size=4))
def test_joined_names_of_candidates_can_be_split_again(names):
    assert split_names(table_formats.join_candidates(names)) == names


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
