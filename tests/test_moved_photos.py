"""Photos that moved since their run began: it is resumed with them, and refuses others."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import polars as pl
import pytest
from support.interrupts import interrupt_after_steps

import ikebana
from ikebana.exporting import run_photos

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_cache")]

SMALL_OPTIONS = {"image_size": 48, "batch_size": 16, "epochs": 1, "precision": "float32"}


@pytest.fixture(scope="module")
def photos(drawn):
    return drawn(8)


@pytest.fixture(scope="module")
def unmoved_run(photos, fit_in_cache):
    """A run whose photos did not move."""
    return fit_in_cache(photos, "baseline", **SMALL_OPTIONS)


def begin(source: Path, folder: Path) -> Path:
    """Start a run and interrupt it in its first step."""
    with interrupt_after_steps(0):
        ikebana.fit(source, "baseline", run=folder, **SMALL_OPTIONS)
    return folder


def copy_photos(photos: Path, target: Path) -> Path:
    return Path(shutil.copytree(photos, target))


def pack(photos: Path, target: Path, wrapper: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(photos.rglob("*")):
            archive.write(file, f"{wrapper}{file.relative_to(photos)}")
    return target


def write_table(photos: Path, target: Path, prefix: str) -> Path:
    files = sorted(file for file in photos.glob("*/*") if file.is_file())
    rows = [{"path": f"{prefix}{file.relative_to(photos).as_posix()}", "label": file.parent.name} for file in files]
    pl.DataFrame(rows).write_csv(target)
    return target


def assert_goes_on(run: Path, place: Path, unmoved_run) -> None:
    """Assert that the run ends as if its photos had not moved.

    Later commands must find the photos.
    """
    resumed = ikebana.resume(run, photos=place)
    assert resumed.weights.read_bytes() == unmoved_run.weights.read_bytes()
    assert resumed.evaluation.to_json() | {"seconds": 0} == unmoved_run.evaluation.to_json() | {"seconds": 0}
    for opened in (resumed, ikebana.open_run(run)):
        assert opened.source["photos"] == str(place.resolve())
        used = run_photos.find_photos(opened)
        assert sum(map(len, used.values())) == opened.dataset.filter(status="used").height
        for photo in used["test"]:
            run_photos.read_photo(photo)
    assert ikebana.resume(run).is_finished


def test_a_run_resumes_if_its_folder_of_photos_has_moved(photos, unmoved_run, tmp_path):
    run = begin(copy_photos(photos, tmp_path / "photos"), tmp_path / "run")
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    with pytest.raises(ikebana.PhotosError, match="were not found") as refusal:
        ikebana.resume(run)
    assert f"ikebana fit --resume {run} --photos DIR" in str(refusal.value)
    assert_goes_on(run, tmp_path / "elsewhere", unmoved_run)
    assert ikebana.open_run(run).predictions.equals(unmoved_run.predictions)


def test_a_run_resumes_if_its_archive_was_renamed(photos, unmoved_run, tmp_path):
    run = begin(pack(photos, tmp_path / "old.zip"), tmp_path / "run")
    (tmp_path / "old.zip").rename(tmp_path / "new!.zip")
    assert_goes_on(run, tmp_path / "new!.zip", unmoved_run)
    assert set(ikebana.open_run(run).predictions["path"]) <= set(ikebana.open_run(run).dataset["path"])


def test_a_run_resumes_if_its_archive_was_unpacked_or_its_folder_packed(photos, unmoved_run, tmp_path):
    run = begin(pack(photos, tmp_path / "old.zip", wrapper="flowers/"), tmp_path / "run")
    (tmp_path / "old.zip").unlink()
    assert_goes_on(run, copy_photos(photos, tmp_path / "unpacked"), unmoved_run)
    run = begin(copy_photos(photos, tmp_path / "photos"), tmp_path / "another")
    shutil.rmtree(tmp_path / "photos")
    assert_goes_on(run, pack(photos, tmp_path / "packed.zip"), unmoved_run)


def test_a_run_resumes_if_its_table_moved_with_the_photos(photos, unmoved_run, tmp_path):
    copy_photos(photos, tmp_path / "here" / "photos")
    run = begin(write_table(photos, tmp_path / "here" / "labels.csv", "photos/"), tmp_path / "run")
    (tmp_path / "here").rename(tmp_path / "there")
    assert_goes_on(run, tmp_path / "there" / "labels.csv", unmoved_run)


def test_a_run_resumes_if_its_table_was_rewritten_for_moved_photos(photos, unmoved_run, tmp_path):
    copy_photos(photos, tmp_path / "here")
    run = begin(write_table(photos, tmp_path / "labels.csv", f"{tmp_path}/here/"), tmp_path / "run")
    (tmp_path / "here").rename(tmp_path / "there")
    assert_goes_on(run, write_table(photos, tmp_path / "new.csv", f"{tmp_path}/there/"), unmoved_run)


def test_the_command_accepts_the_new_location(photos, unmoved_run, tmp_path):
    run = begin(copy_photos(photos, tmp_path / "photos"), tmp_path / "run")
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    command = [sys.executable, "-m", "ikebana", "fit", "--resume", str(run), "--photos", str(tmp_path / "elsewhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{run}\n"), done.stderr
    assert f"the photos of this run are now at {tmp_path / 'elsewhere'}" in done.stderr
    assert ikebana.open_run(run).weights.read_bytes() == unmoved_run.weights.read_bytes()


def test_a_finished_run_records_the_new_location_too(photos, unmoved_run, tmp_path):
    shutil.copytree(unmoved_run.folder, tmp_path / "run")
    place = copy_photos(photos, tmp_path / "elsewhere")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.is_file()}
    ikebana.resume(tmp_path / "run", photos=place)
    assert ikebana.open_run(tmp_path / "run").source["photos"] == str(place)
    after = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.is_file()}
    assert {name for name in before if before[name] != after[name]} == {"source.json"}


def remove(file: Path) -> None:
    file.unlink()


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def relabel(file: Path) -> None:
    other = next(folder for folder in sorted(file.parent.parent.iterdir()) if folder.is_dir() and folder != file.parent)
    file.rename(other / f"moved {file.name}")


def add(file: Path) -> None:
    shutil.copy(file, file.with_name("another.jpg"))


@pytest.mark.parametrize(("change", "words"), [
    (remove, "1 photo differs .* of this run; the first is {path}: missing"),
    (lengthen, "1 photo differs .* of this run; the first is {path}: it had"),
    (relabel, "2 photos differ .* of this run; the first is {path}: missing"),
    (add, "1 photo differs .*another.jpg: not in the run"),
])  # fmt: skip
def test_other_photos_are_refused_with_how_many_differ_and_the_first(change, words, photos, tmp_path):
    run = begin(photos, tmp_path / "run")
    source = (run / "source.json").read_text("utf-8")
    path = ikebana.open_run(run).dataset.filter(status="used")["path"][3]
    place = copy_photos(photos, tmp_path / "elsewhere")
    change(place / path)
    with pytest.raises(ikebana.RunError, match=words.format(path=path)) as refusal:
        ikebana.resume(run, photos=place)
    assert str(place) in str(refusal.value)
    assert (run / "source.json").read_text("utf-8") == source


def test_photos_of_the_same_size_and_other_content_are_refused_by_name(photos, tmp_path):
    run = begin(photos, tmp_path / "run")
    path = ikebana.open_run(run).dataset.filter(status="used")["path"][3]
    place = copy_photos(photos, tmp_path / "elsewhere")
    data = bytearray((place / path).read_bytes())
    data[len(data) // 2] ^= 1
    (place / path).write_bytes(data)
    with pytest.raises(ikebana.RunError, match=path):
        ikebana.resume(run, photos=place)
    assert json.loads((run / "source.json").read_text("utf-8"))["photos"] == str(photos)


def test_a_location_without_photos_is_refused_as_for_a_new_run(photos, tmp_path):
    run = begin(photos, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "gone"):
        with pytest.raises(ikebana.PhotosError, match="photos of this run were not found"):
            ikebana.resume(run, photos=place)
