"""Sorted photos get names that every file system can store, without duplicates."""

import os
import shutil
import unicodedata
from pathlib import Path

import pytest

from ikebana.inference import prediction, sorting
from ikebana.inference.sorting import Sorter

CLASSES = ["花" * 100, "b"]


def make_prediction(file):
    return prediction.to_prediction([0.1, 0.9], CLASSES, None, str(file))


def sort_photo(sorter, file):
    """Sort an existing photo, and return its target."""
    place = sorter.put(make_prediction(file), file)
    assert place is not None
    return place


def write_photos(folder, count, size=1000):
    """Write different photos of the same name into as many folders, as cameras do."""
    for number in range(count):
        file = folder / str(number) / "photo.jpg"
        file.parent.mkdir(parents=True)
        file.write_bytes(number.to_bytes(4) + bytes(size))
        yield file


# --- names ---


@pytest.mark.parametrize("name", ["con", "NUL", "aux.jpg", "Com1", "lpt9.tar.gz", "COM¹", "con "])
def test_no_folder_has_a_name_reserved_by_windows(name):
    (folder,) = sorting.make_folder_names([name])
    assert folder == f"_{name.strip()}"


def test_names_that_contain_a_reserved_name_are_kept():
    assert sorting.make_folder_names(["convallaria", "com", "nul-2"]) == ["convallaria", "com", "nul-2"]


def test_names_in_two_unicode_forms_have_different_folders():
    forms = [unicodedata.normalize(form, "rosé") for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    folders = sorting.make_folder_names(forms)
    for disk in ("NFC", "NFD"):
        assert len({unicodedata.normalize(disk, folder) for folder in folders}) == 2


@pytest.mark.parametrize("letter", ["花", "é", "a", "🌷"])
def test_a_class_with_a_long_name_has_a_valid_folder(letter, tmp_path):
    folders = sorting.make_folder_names([letter * 300] * 12)
    assert len(set(folders)) == 12
    for folder in folders:
        (tmp_path / folder).mkdir()
        assert set(folder.rpartition("-")[0] or folder) == {letter}


def test_two_photos_with_the_longest_possible_name_are_both_copied(tmp_path):
    files = [tmp_path / side / ("花" * 83 + "xx.jpg") for side in "ab"]
    for file in files:
        file.parent.mkdir()
        file.write_text(str(file))
    sorter = Sorter(tmp_path / "sorted", CLASSES, link=False)
    places = [sort_photo(sorter, file) for file in files]
    assert [place.read_text() for place in places] == [str(file) for file in files]
    assert [place.suffix for place in places] == [".jpg", ".jpg"]


def test_a_target_given_with_a_tilde_is_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert Sorter(Path("~/sorted"), CLASSES, link=False).target_folder == tmp_path / "sorted"


# --- photos of one name ---


@pytest.mark.parametrize("link", [False, True])
def test_photos_with_the_same_name_are_each_copied_once(tmp_path, link):
    files = list(write_photos(tmp_path / "photos", 30))
    for _ in range(3):
        sorter = Sorter(tmp_path / "sorted", CLASSES, link)
        places = [sort_photo(sorter, file) for file in files]
        assert [place.read_bytes() for place in places] == [file.read_bytes() for file in files]
        assert len(list((tmp_path / "sorted").rglob("*.jpg"))) == 30


def test_photos_with_the_same_name_are_each_compared_once(tmp_path, monkeypatch):
    looks = []

    def counted(real):
        return lambda *given: looks.append(1) or real(*given)

    monkeypatch.setattr(sorting, "_create", counted(sorting._create))
    monkeypatch.setattr(sorting, "_identify", counted(sorting._identify))
    sorter = Sorter(tmp_path / "sorted", CLASSES, link=False)
    for file in write_photos(tmp_path / "photos", 200):
        sorter.put(make_prediction(file), file)
    assert len(os.listdir(tmp_path / "sorted" / "b")) == 200
    assert len(looks) < 3 * 200


def test_a_link_to_the_photo_by_another_path_is_left_alone(tmp_path):
    file = tmp_path / "photos" / "a.jpg"
    file.parent.mkdir()
    file.write_text("a photo")
    (tmp_path / "way").symlink_to(file.parent)
    sorted_by_one = Sorter(tmp_path / "sorted", CLASSES, link=True).put(make_prediction(file), file)
    other = tmp_path / "way" / "a.jpg"
    assert Sorter(tmp_path / "sorted", CLASSES, link=True).put(make_prediction(other), other) == sorted_by_one
    assert len(list((tmp_path / "sorted").rglob("*.jpg"))) == 1


def test_other_files_and_broken_links_in_the_target_stay(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_text("a photo")
    place = tmp_path / "sorted" / "b"
    (place / "a.jpg").mkdir(parents=True)
    (place / "a-2.jpg").symlink_to(tmp_path / "gone.jpg")
    shutil.copy(file, place / "a-4.jpg")
    (place / "a-3.jpg").write_text("another file")
    for _ in range(2):
        assert Sorter(tmp_path / "sorted", CLASSES, link=False).put(make_prediction(file), file) == place / "a-4.jpg"
    assert len(list(place.iterdir())) == 4
    assert (place / "a-3.jpg").read_text() == "another file"
