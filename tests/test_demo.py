"""The demo plants defects, finds them again, and reports it."""

from pathlib import Path

import polars as pl
import pytest

import ikebana
from ikebana import cli
from ikebana.demo_data import demo, paper_flowers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo_result(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKEBANA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(demo, "OPTIONS", {"image_size": 96, "precision": "float32"})
        real = paper_flowers.draw_collection
        patch.setattr(paper_flowers, "draw_collection", lambda folder: real(folder, photos_per_kind=16))
        return ikebana.demo(tmp_path_factory.mktemp("walk") / "demo")


def get_photo_folder(out, monkeypatch):
    """Start the demo, and stop it at the folder into which it draws its photos."""
    places = []

    def record(folder):
        places.append(folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(paper_flowers, "draw_collection", record)
        with pytest.raises(KeyboardInterrupt):
            ikebana.demo(out)
    return places[0]


def test_the_demo_runs_every_step_and_leaves_the_files_it_names(demo_result):
    for place in ("photos", "new", "new.csv", "run/figures/confusion.png", "run/audit.json", "run/evaluation.json"):
        assert (demo_result.folder / place).exists()


def test_the_demo_counts_the_new_photos_classified_correctly(demo_result, tmp_path):
    truth = paper_flowers.draw_new(tmp_path / "new")
    assert sorted(truth) == sorted(file.name for file in (demo_result.folder / "new").iterdir())
    predictions = pl.read_csv(demo_result.folder / "new.csv", infer_schema_length=None)
    assert predictions.height == demo_result.new_total == len(truth)
    labels = {Path(row["path"]).name: row["label"] for row in predictions.iter_rows(named=True)}
    assert demo_result.new_correct == sum(labels[name] == kind for name, kind in truth.items())
    assert demo_result.new_correct > len(truth) / 2  # five kinds: guessing gives a fifth


def test_the_report_on_planted_defects_agrees_with_the_run(demo_result):
    table = {row["path"]: row for row in demo_result.run.dataset.iter_rows(named=True)}
    assert all(table[path]["status"].startswith("unreadable") for path in demo_result.planted.broken)
    assert all(table[path]["status"] == "used" for path in demo_result.planted.sideways)
    assert all(table[first]["split"] == table[other]["split"] for first, other in demo_result.planted.duplicates)
    broken, duplicates, sideways, wrong = demo.describe_faults(demo_result.run, demo_result.planted)
    count = len(demo_result.planted.broken)
    assert broken.startswith(f"{count} broken files: {count} skipped")
    count = len(demo_result.planted.duplicates)
    assert f"{count} found, {count} kept in the same split" in duplicates
    count = len(demo_result.planted.sideways)
    assert f"{count} read upright" in sideways
    held_out = {row["path"] for row in demo_result.run.predictions.iter_rows(named=True)} & set(
        demo_result.planted.wrong_label
    )
    assert f"{len(held_out)} in validation or test" in wrong


def test_the_demo_uses_the_first_free_folder_and_refuses_an_existing_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert get_photo_folder(None, monkeypatch) == Path("ikebana-demo/photos")
    (tmp_path / "ikebana-demo").mkdir()
    assert get_photo_folder(None, monkeypatch) == Path("ikebana-demo-2/photos")
    (tmp_path / "ikebana-demo" / "something").touch()
    with pytest.raises(ikebana.RunError, match="already exists and is not empty"):
        ikebana.demo(tmp_path / "ikebana-demo")


def test_a_folder_given_with_a_tilde_is_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert get_photo_folder("~/x", monkeypatch) == tmp_path / "x" / "photos"


def test_doctor_reports_how_the_machine_is_used_and_why(monkeypatch, capsys):
    from ikebana.learning.features import feature_cache

    monkeypatch.setattr(feature_cache, "measure_seconds_per_photo", lambda *_, **__: 0.01)
    facts = ikebana.doctor()
    assert capsys.readouterr() == ("", "")
    assert {"processor", "GPU", "device", "threads", "allocator", "precision", "cache", "torch"} <= set(facts)
    with pytest.raises(SystemExit):
        cli.main(["doctor"])
    output = capsys.readouterr().out
    assert all(str(value) in output for value in facts.values())
