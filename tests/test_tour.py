"""The demo keeps its word: what it plants, it finds again, and says so."""

import pytest

import ikebana
from ikebana import paper, tour


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKEBANA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(tour, "OPTIONS", {"side": 96, "precision": "float32"})
        real = paper.draw_collection
        patch.setattr(paper, "draw_collection", lambda folder: real(folder, photos_per_kind=16))
        return ikebana.demo(tmp_path_factory.mktemp("walk") / "demo")


def test_it_walks_the_whole_road_and_leaves_everything_it_names(walk):
    for place in ("photos", "new", "new.csv", "run/figures/confusion.png", "run/audit.json", "run/evaluation.json"):
        assert (walk.folder / place).exists()
    assert 0 <= walk.new_right <= walk.new_total == len(list((walk.folder / "new").iterdir()))


def test_it_says_of_each_planted_fault_what_the_run_really_made_of_it(walk):
    table = {row["path"]: row for row in walk.run.dataset.iter_rows(named=True)}
    assert all(table[path]["status"].startswith("unreadable") for path in walk.planted.broken)
    assert all(table[path]["status"] == "used" for path in walk.planted.sideways)
    assert all(table[one]["split"] == table[other]["split"] for one, other in walk.planted.twins)
    broken, twins, sideways, wrong = tour.fates(walk.run, walk.planted)
    count = len(walk.planted.broken)
    assert broken.startswith(f"{count} broken files: {count} set aside")
    count = len(walk.planted.twins)
    assert f"{count} found, {count} kept in one part" in twins
    count = len(walk.planted.sideways)
    assert f"{count} read upright" in sideways
    held_out = {row["path"] for row in walk.run.predictions.iter_rows(named=True)} & set(walk.planted.wrong_label)
    assert f"{len(held_out)} came into validation or test" in wrong


def test_it_takes_the_first_free_folder_and_refuses_one_that_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(tour._free_folder(None)) == "ikebana-demo"
    (tmp_path / "ikebana-demo").mkdir()
    assert str(tour._free_folder(None)) == "ikebana-demo-2"
    (tmp_path / "ikebana-demo" / "something").touch()
    with pytest.raises(ikebana.RunError, match="taken"):
        ikebana.demo(tmp_path / "ikebana-demo")


def test_a_folder_below_home_is_made_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert tour._free_folder("~/x") == tmp_path / "x"


def test_doctor_says_how_the_machine_is_used_and_why(monkeypatch, capsys):
    from ikebana.learning import features

    monkeypatch.setattr(features, "seconds_per_photo", lambda *_, **__: 0.01)
    facts = ikebana.doctor()
    assert {"processor", "GPU", "device", "threads", "allocator", "number format", "cache", "torch"} <= set(facts)
    said = capsys.readouterr().out
    assert all(str(value) in said for value in facts.values())
