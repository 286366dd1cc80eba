"""Sorted photos get names that every disk can hold, and each photo is there once."""

import os
import shutil
import unicodedata
from pathlib import Path

import pytest

from ikebana.inference import prediction, sorting
from ikebana.inference.sorting import Sorter

CLASSES = ["花" * 100, "b"]


def said(file):
    return prediction.to_prediction([0.1, 0.9], CLASSES, None, str(file))


def put(sorter, file):
    """Where a photo, which is there, is put."""
    place = sorter.put(said(file), file)
    assert place is not None
    return place


def many(folder, count, size=1000):
    """Photos of one name in as many folders, as cameras make them; no two alike."""
    for number in range(count):
        file = folder / str(number) / "photo.jpg"
        file.parent.mkdir(parents=True)
        file.write_bytes(number.to_bytes(4) + bytes(size))
        yield file


# --- names ---


@pytest.mark.parametrize("name", ["con", "NUL", "aux.jpg", "Com1", "lpt9.tar.gz", "COM¹", "con "])
def test_no_folder_has_a_name_that_windows_keeps_for_itself(name):
    (found,) = sorting.make_folder_names([name])
    assert found == f"_{name.strip()}"


def test_names_that_hold_a_reserved_one_stay_as_they_are():
    assert sorting.make_folder_names(["convallaria", "com", "nul-2"]) == ["convallaria", "com", "nul-2"]


def test_names_that_look_alike_are_two_folders_on_a_disk_that_writes_accents_its_own_way():
    forms = [unicodedata.normalize(form, "rosé") for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    found = sorting.make_folder_names(forms)
    for disk in ("NFC", "NFD"):
        assert len({unicodedata.normalize(disk, each) for each in found}) == 2


@pytest.mark.parametrize("letter", ["花", "é", "a", "🌷"])
def test_a_class_of_a_long_name_has_a_folder_that_can_be_made(letter, tmp_path):
    found = sorting.make_folder_names([letter * 300] * 12)
    assert len(set(found)) == 12
    for each in found:
        (tmp_path / each).mkdir()
        assert set(each.rpartition("-")[0] or each) == {letter}


def test_two_photos_of_the_longest_name_there_is_are_both_there(tmp_path):
    files = [tmp_path / side / ("花" * 83 + "xx.jpg") for side in "ab"]
    for file in files:
        file.parent.mkdir()
        file.write_text(str(file))
    sorter = Sorter(tmp_path / "sorted", CLASSES, link=False)
    places = [put(sorter, file) for file in files]
    assert [place.read_text() for place in places] == [str(file) for file in files]
    assert [place.suffix for place in places] == [".jpg", ".jpg"]


def test_a_place_below_home_is_found_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert Sorter(Path("~/sorted"), CLASSES, link=False).target_folder == tmp_path / "sorted"


# --- photos of one name ---


@pytest.mark.parametrize("link", [False, True])
def test_photos_of_one_name_are_all_there_once_however_often_the_command_is_given(tmp_path, link):
    files = list(many(tmp_path / "photos", 30))
    for _ in range(3):
        sorter = Sorter(tmp_path / "sorted", CLASSES, link)
        places = [put(sorter, file) for file in files]
        assert [place.read_bytes() for place in places] == [file.read_bytes() for file in files]
        assert len(list((tmp_path / "sorted").rglob("*.jpg"))) == 30


def test_of_photos_of_one_name_each_is_looked_at_once(tmp_path, monkeypatch):
    looks = []

    def counted(real):
        return lambda *given: looks.append(1) or real(*given)

    monkeypatch.setattr(sorting, "_create", counted(sorting._create))
    monkeypatch.setattr(sorting, "_identify", counted(sorting._identify))
    sorter = Sorter(tmp_path / "sorted", CLASSES, link=False)
    for file in many(tmp_path / "photos", 200):
        sorter.put(said(file), file)
    assert len(os.listdir(tmp_path / "sorted" / "b")) == 200
    assert len(looks) < 3 * 200


def test_a_link_that_leads_to_the_photo_by_another_way_is_left_alone(tmp_path):
    file = tmp_path / "photos" / "a.jpg"
    file.parent.mkdir()
    file.write_text("a photo")
    (tmp_path / "way").symlink_to(file.parent)
    sorted_by_one = Sorter(tmp_path / "sorted", CLASSES, link=True).put(said(file), file)
    other = tmp_path / "way" / "a.jpg"
    assert Sorter(tmp_path / "sorted", CLASSES, link=True).put(said(other), other) == sorted_by_one
    assert len(list((tmp_path / "sorted").rglob("*.jpg"))) == 1


def test_what_is_no_photo_or_a_link_to_nothing_is_passed_by_and_stays(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_text("a photo")
    place = tmp_path / "sorted" / "b"
    (place / "a.jpg").mkdir(parents=True)
    (place / "a-2.jpg").symlink_to(tmp_path / "gone.jpg")
    shutil.copy(file, place / "a-4.jpg")
    (place / "a-3.jpg").write_text("somebody's own")
    for _ in range(2):
        assert Sorter(tmp_path / "sorted", CLASSES, link=False).put(said(file), file) == place / "a-4.jpg"
    assert len(list(place.iterdir())) == 4
    assert (place / "a-3.jpg").read_text() == "somebody's own"
