"""The cache is reported and can be cleared, without touching other files."""

import errno
import os
from pathlib import Path

import pytest

import ikebana
from ikebana.commands import cache as cache_command
from ikebana.system import cache_folder, files


@pytest.fixture
def filled_cache(tmp_path, monkeypatch):
    """A cache with an entry of each kind, and files of the user."""
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


def test_each_kind_of_entry_is_counted_and_measured(filled_cache):
    contents = ikebana.cache()
    assert {usage.kind: (usage.entries, usage.bytes) for usage in contents.kinds} == dict.fromkeys(
        cache_command.CACHE_KINDS, (1, 1000)
    )
    assert contents.bytes == 6000
    assert str(filled_cache) in repr(contents)


def test_clearing_removes_all_files_of_ikebana(filled_cache):
    assert ikebana.cache(clear=True).bytes == 0
    assert not list(filled_cache.iterdir())


def test_clearing_leaves_files_of_other_programs(filled_cache):
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
    assert sorted(path for path in filled_cache.rglob("*") if path.is_file()) == sorted(theirs)


def test_clearing_removes_the_files_of_dead_processes_and_not_of_running_ones(filled_cache):
    dead = filled_cache / "pixels" / ".x.1.partial"
    dead.mkdir()
    files.lock_path(dead).touch()
    with files.atomic_directory(filled_cache / "features" / ("0" * 32)) as living:
        (living / "half").touch()
        ikebana.cache(clear=True)
        assert (living / "half").exists()
    assert not dead.exists()
    assert ikebana.cache().kinds[1].entries == 1


def test_clearing_leaves_what_a_cluster_is_building_and_removes_what_it_left(filled_cache):
    fresh, old = (filled_cache / "pixels" / f"{digit * 32}.parts" for digit in "12")
    for folder in (fresh, old):
        folder.mkdir()
        (folder / "pixels.npy").touch()
    os.utime(old / "pixels.npy", (0, 0))
    assert ikebana.cache().kinds[0].entries == 3
    ikebana.cache(clear=True)
    assert list((filled_cache / "pixels").iterdir()) == [fresh]


def test_a_link_is_removed_and_its_target_stays(filled_cache, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("photos")
    (elsewhere / "rose.jpg").write_text("mine")
    (filled_cache / "pixels" / ("9" * 32)).symlink_to(elsewhere)
    ikebana.cache(clear=True)
    assert (elsewhere / "rose.jpg").exists()
    assert not (filled_cache / "pixels").exists()


def test_an_empty_cache_is_not_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path / "not there"))
    assert ikebana.cache(clear=True).bytes == 0


def test_the_next_write_removes_old_partial_files_and_leaves_recent_ones(tmp_path):
    old, young, other = (tmp_path / name for name in (".a.json.7.partial", ".a.json.8.partial", ".b.json.7.partial"))
    for path in (old, young, other):
        path.touch()
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    with files.atomic_write(tmp_path / "a.json") as beside:
        beside.write_text("{}")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", young.name, other.name}


def test_a_file_that_another_process_removes_does_not_stop_the_count(monkeypatch):
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


def test_clearing_removes_old_partial_files_and_leaves_recent_ones():
    place = cache_folder.cache_folder() / "weights"
    place.mkdir(parents=True)
    old, new = (place / f".net.safetensors.{name}.partial" for name in ("aa", "bb"))
    for path in (old, new):
        path.write_bytes(b"x" * 10)
    os.utime(old, (0, 0))
    cache_command.cache(clear=True)
    assert not old.exists()
    assert new.exists()
