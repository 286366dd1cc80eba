"""The demo keeps its word: what it plants, it finds again, and says so."""

from pathlib import Path

import polars as pl
import pytest

import ikebana
from ikebana import cli
from ikebana.demo_data import demo, paper_flowers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKEBANA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(demo, "OPTIONS", {"image_size": 96, "precision": "float32"})
        real = paper_flowers.draw_collection
        patch.setattr(paper_flowers, "draw_collection", lambda folder: real(folder, photos_per_kind=16))
        return ikebana.demo(tmp_path_factory.mktemp("walk") / "demo")


def drawn_into(out, monkeypatch):
    """The folder that the demo draws its photos into; it ends there."""
    places = []

    def note(folder):
        places.append(folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(paper_flowers, "draw_collection", note)
        with pytest.raises(KeyboardInterrupt):
            ikebana.demo(out)
    return places[0]


def test_it_walks_the_whole_road_and_leaves_everything_it_names(walk):
    for place in ("photos", "new", "new.csv", "run/figures/confusion.png", "run/audit.json", "run/evaluation.json"):
        assert (walk.folder / place).exists()


def test_it_counts_the_new_photos_that_the_run_classified_correctly(walk, tmp_path):
    truth = paper_flowers.draw_new(tmp_path / "new")
    assert sorted(truth) == sorted(file.name for file in (walk.folder / "new").iterdir())
    predictions = pl.read_csv(walk.folder / "new.csv", infer_schema_length=None)
    assert predictions.height == walk.new_total == len(truth)
    labels = {Path(row["path"]).name: row["label"] for row in predictions.iter_rows(named=True)}
    assert walk.new_correct == sum(labels[name] == kind for name, kind in truth.items())
    assert walk.new_correct > len(truth) / 2  # five kinds: guessing gives a fifth


def test_the_report_on_planted_faults_agrees_with_the_run(walk):
    table = {row["path"]: row for row in walk.run.dataset.iter_rows(named=True)}
    assert all(table[path]["status"].startswith("unreadable") for path in walk.planted.broken)
    assert all(table[path]["status"] == "used" for path in walk.planted.sideways)
    assert all(table[one]["split"] == table[other]["split"] for one, other in walk.planted.duplicates)
    broken, twins, sideways, wrong = demo.describe_faults(walk.run, walk.planted)
    count = len(walk.planted.broken)
    assert broken.startswith(f"{count} broken files: {count} skipped")
    count = len(walk.planted.duplicates)
    assert f"{count} found, {count} kept in the same split" in twins
    count = len(walk.planted.sideways)
    assert f"{count} read upright" in sideways
    held_out = {row["path"] for row in walk.run.predictions.iter_rows(named=True)} & set(walk.planted.wrong_label)
    assert f"{len(held_out)} in validation or test" in wrong


def test_it_takes_the_first_free_folder_and_refuses_one_that_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert drawn_into(None, monkeypatch) == Path("ikebana-demo/photos")
    (tmp_path / "ikebana-demo").mkdir()
    assert drawn_into(None, monkeypatch) == Path("ikebana-demo-2/photos")
    (tmp_path / "ikebana-demo" / "something").touch()
    with pytest.raises(ikebana.RunError, match="already exists and is not empty"):
        ikebana.demo(tmp_path / "ikebana-demo")


def test_a_folder_below_home_is_made_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert drawn_into("~/x", monkeypatch) == tmp_path / "x" / "photos"


def test_doctor_says_how_the_machine_is_used_and_why(monkeypatch, capsys):
    from ikebana.learning.features import feature_cache

    monkeypatch.setattr(feature_cache, "measure_seconds_per_photo", lambda *_, **__: 0.01)
    facts = ikebana.doctor()
    assert capsys.readouterr() == ("", "")
    assert {"processor", "GPU", "device", "threads", "allocator", "precision", "cache", "torch"} <= set(facts)
    with pytest.raises(SystemExit):
        cli.main(["doctor"])
    said = capsys.readouterr().out
    assert all(str(value) in said for value in facts.values())
