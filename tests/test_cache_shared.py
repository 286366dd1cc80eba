"""The cache is shared by processes; damaged entries are set aside and never used."""

import os
import shutil
import subprocess
import sys

import pytest

import ikebana

pytestmark = pytest.mark.slow

FLAGS = ["--image-size", "64", "--precision", "float32"]
SMALL_OPTIONS = {"image_size": 64, "precision": "float32"}


@pytest.fixture(scope="module")
def photos(drawn):
    return drawn(8)


@pytest.fixture(scope="module")
def clean_run(photos, fit_in_cache):
    """A run that started with an empty cache, and the cache that it filled."""
    return fit_in_cache(photos, **SMALL_OPTIONS)


def flip_byte(file):
    data = bytearray(file.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    file.write_bytes(data)


def damage_head(file):
    data = file.read_bytes()
    file.write_bytes(b"\xff" * 16 + data[16:])


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def replace_by_folder(file):
    file.unlink()
    (file / "inside").mkdir(parents=True)


def remove(file):
    file.unlink()


FILES = (
    "pixels/*/pixels.npy", "pixels/*/small.npy", "pixels/*/index.*", "pixels/*/near_duplicates.*", "features/*/features.npy",
    "features/*/checks.npy", "weights/*.safetensors", "measurements/*.json",
)  # fmt: skip
ARRAYS = ("pixels/*/pixels.npy", "features/*/features.npy", "features/*/checks.npy")


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name in FILES for damage in (flip_byte, replace_by_folder)]
    + [(name, damage) for name in ARRAYS for damage in (damage_head, truncate, remove)],
)
def test_a_damaged_cache_gives_the_results_of_a_clean_one(
    name, damage, clean_run, cache, photos, tmp_path, monkeypatch
):
    shutil.copytree(cache, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob(name)
    damage(file)
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path / "cache"))
    again = ikebana.fit(photos, run=tmp_path / "run", **SMALL_OPTIONS)
    assert again.weights.read_bytes() == clean_run.weights.read_bytes()
    assert again.predictions.equals(clean_run.predictions)
    assert again.dataset.equals(clean_run.dataset)


@pytest.mark.parametrize("kind", ["pixels", "features"])
def test_a_file_where_a_folder_of_the_cache_should_be_is_set_aside(
    kind, clean_run, cache, photos, tmp_path, monkeypatch
):
    shutil.copytree(cache, tmp_path / "cache")
    (folder,) = (path for path in (tmp_path / "cache" / kind).iterdir() if path.is_dir())
    shutil.rmtree(folder)
    folder.write_bytes(b"not a folder")
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path / "cache"))
    again = ikebana.fit(photos, run=tmp_path / "run", **SMALL_OPTIONS)
    assert again.weights.read_bytes() == clean_run.weights.read_bytes()


def test_two_runs_that_start_together_with_a_cold_cache_have_equal_results(clean_run, photos, tmp_path):
    environment = {**os.environ, "IKEBANA_CACHE": str(tmp_path / "cache")}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "ikebana", "fit", str(photos), "--run", str(tmp_path / name), *FLAGS],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        for name in ("one", "other")
    ]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    runs = [ikebana.open_run(tmp_path / name) for name in ("one", "other")]
    assert runs[0].weights.read_bytes() == runs[1].weights.read_bytes() == clean_run.weights.read_bytes()
    assert not [path for path in (tmp_path / "cache").rglob("*") if "partial" in path.name]
