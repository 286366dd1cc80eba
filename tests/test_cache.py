"""What is in the cache is told and can be cleared, and nothing that is not ikebana's ever goes."""

import errno
import os
from pathlib import Path

import pytest

import ikebana
from ikebana.commands import cache as cache_command
from ikebana.system import cache_folder, files


@pytest.fixture
def filled_cache(tmp_path, monkeypatch):
    """A cache with an entry of each kind, and things of the user's beside them."""
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path))
    names = {
        "pixels": "a" * 32, "features": "b" * 32, "archives": "c" * 64, "measurements": "d" * 16 + ".json",
        "weights": f"tf_efficientnet_lite0-{'e' * 64}-{'f' * 16}.safetensors",
    }  # fmt: skip
    for kind, name in names.items():
        file = tmp_path / kind / name
        file = file if "." in name else file / "inside" / "data"
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(1000))
    runtime = tmp_path / "onnxruntime-web" / "1.2.3"
    runtime.mkdir(parents=True)
    (runtime / "ort.wasm").write_bytes(bytes(1000))
    return tmp_path


def test_each_kind_is_counted_and_weighed(filled_cache):
    found = ikebana.cache()
    assert {each.kind: (each.entries, each.bytes) for each in found.kinds} == dict.fromkeys(
        cache_command.CACHE_KINDS, (1, 1000)
    )
    assert found.bytes == 6000
    assert str(filled_cache) in repr(found)


def test_clearing_takes_all_that_is_ikebanas(filled_cache):
    assert ikebana.cache(clear=True).bytes == 0
    assert not list(filled_cache.iterdir())


def test_clearing_leaves_what_is_not_ikebanas(filled_cache):
    theirs = [
        filled_cache / name
        for name in (
            "holiday.jpg",
            "pixels/mine.png",
            "archives/2019/tax.pdf",
            "weights/my.safetensors",
            "onnxruntime-web/x/a",
        )
    ]
    for file in theirs:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    ikebana.cache(clear=True)
    assert sorted(each for each in filled_cache.rglob("*") if each.is_file()) == sorted(theirs)


def test_clearing_takes_what_a_dead_process_left_and_not_what_a_living_one_fills(filled_cache):
    dead = filled_cache / "pixels" / ".x.1.partial"
    dead.mkdir()
    files.lock_path(dead).touch()
    with files.atomic_directory(filled_cache / "features" / ("0" * 32)) as living:
        (living / "half").touch()
        ikebana.cache(clear=True)
        assert (living / "half").exists()
    assert not dead.exists()
    assert ikebana.cache().kinds[1].entries == 1


def test_a_link_to_elsewhere_is_removed_and_what_it_leads_to_stays(filled_cache, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("photos")
    (elsewhere / "rose.jpg").write_text("mine")
    (filled_cache / "pixels" / ("9" * 32)).symlink_to(elsewhere)
    ikebana.cache(clear=True)
    assert (elsewhere / "rose.jpg").exists()
    assert not (filled_cache / "pixels").exists()


def test_an_empty_cache_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path / "not there"))
    assert ikebana.cache(clear=True).bytes == 0


def test_a_file_that_a_killed_process_left_half_written_goes_with_the_next_writing_and_a_young_one_stays(tmp_path):
    old, young, other = (tmp_path / name for name in (".a.json.7.partial", ".a.json.8.partial", ".b.json.7.partial"))
    for each in (old, young, other):
        each.touch()
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    with files.atomic_write(tmp_path / "a.json") as beside:
        beside.write_text("{}")
    assert {each.name for each in tmp_path.iterdir()} == {"a.json", young.name, other.name}


def test_a_file_that_another_process_takes_away_meanwhile_does_not_end_the_count(monkeypatch):
    place = cache_folder.cache_folder() / "measurements"
    place.mkdir(parents=True)
    for number in range(3):
        (place / f"{number:016x}.json").write_bytes(b"12345")
    real = Path.stat

    def vanishing(self, **how):
        if self.name.startswith("0000000000000001"):
            raise FileNotFoundError(errno.ENOENT, "gone", str(self))
        return real(self, **how)

    monkeypatch.setattr(Path, "stat", vanishing)
    assert cache_command.cache().bytes == 10


def test_clearing_takes_what_was_left_half_written_long_ago_and_nothing_that_is_being_written():
    place = cache_folder.cache_folder() / "weights"
    place.mkdir(parents=True)
    old, new = (place / f".net.safetensors.{name}.partial" for name in ("aa", "bb"))
    for each in (old, new):
        each.write_bytes(b"x" * 10)
    os.utime(old, (0, 0))
    cache_command.cache(clear=True)
    assert not old.exists()
    assert new.exists()
