"""Photos to predict: files, folders, patterns and archives, in the given order."""

import os
import sys
import zipfile

import pytest
from support.images import encode_photo, two_classes, write_files

from ikebana.data import sources as data_sources
from ikebana.data import unlabelled
from ikebana.errors import PhotosError


def list_names(folder, *sources):
    return [
        photo.path.removeprefix(f"{folder}/")
        for photo in unlabelled.find_photos([folder / source for source in sources])
    ]


@pytest.fixture
def photos(tmp_path):
    return write_files(
        tmp_path, {**two_classes(2), "a/.hidden.jpg": b"x", "single.jpg": encode_photo(1), "b[1].jpg": encode_photo(2)}
    )


def test_files_folders_and_patterns_are_found_in_the_given_order(photos):
    assert list_names(photos, "single.jpg", "a") == ["single.jpg", "a/0.jpg", "a/1.jpg"]
    assert list_names(photos, "*/1.jpg", "single.jpg") == ["a/1.jpg", "b/1.jpg", "single.jpg"]
    assert list_names(photos, "**/0.jpg") == ["a/0.jpg", "b/0.jpg"]


def test_an_existing_name_with_brackets_is_not_a_pattern(photos):
    assert list_names(photos, "b[1].jpg") == ["b[1].jpg"]


def test_in_a_list_brackets_alone_are_not_a_pattern(photos):
    photo_list = unlabelled.find_photos([str(photos / "[ab]/0.jpg"), str(photos / "a/*.jpg")], reports_errors=True)
    assert [photo.status for photo in photo_list] == ["there is no such file", *["not opened yet"] * 2]
    assert list_names(photos, "[ab]/0.jpg") == ["a/0.jpg", "b/0.jpg"]


def test_an_existing_folder_with_brackets_is_read_literally(photos):
    write_files(photos, {"[ab]/0.jpg": encode_photo(3)})
    assert list_names(photos, "[ab]/*.jpg") == ["[ab]/0.jpg"]


def test_hidden_files_are_counted_and_used_if_named(photos):
    photo_list = unlabelled.find_photos(photos / "a")
    assert (len(list(photo_list)), len(photo_list.ignored_paths)) == (2, 1)
    assert list_names(photos, "a/.hidden.jpg") == ["a/.hidden.jpg"]


def test_a_misspelt_folder_gets_the_similar_one_as_advice(tmp_path):
    (tmp_path / "garden").mkdir()
    with pytest.raises(PhotosError, match="no such file or folder") as refusal:
        unlabelled.find_photos(str(tmp_path / "gardn"))
    assert refusal.value.advice == str(tmp_path / "garden")


@pytest.mark.parametrize("name", ["n" * 300, "~nobody-of-that-name/a.jpg"])
def test_a_line_with_an_impossible_name_is_reported_and_the_next_is_used(photos, name):
    first, second = unlabelled.find_photos([], iter([f"{name}\n", f"{photos}/single.jpg\n"]))
    assert first.path == name
    assert not unlabelled.is_openable(first)
    assert unlabelled.is_openable(second)
    with pytest.raises(PhotosError, match="no such file or folder"):
        unlabelled.find_photos(name)


@pytest.mark.parametrize("name", ["n" * 300, "~nobody-of-that-name/flowers", "n" * 300 + ".zip"])
def test_an_impossible_name_is_refused_like_a_missing_file(tmp_path, name):
    for place in (name, tmp_path / name):
        with pytest.raises(PhotosError, match="there is no such folder, archive or table") as refusal:
            data_sources.read(place)
        assert refusal.value.where == place


def test_missing_files_are_refused_by_name(photos):
    for source in ("gone.jpg", "*.tif"):
        with pytest.raises(PhotosError, match="no such file") as refused:
            unlabelled.find_photos(photos / source)
        assert refused.value.where == photos / source
    (photos / "empty").mkdir()
    with pytest.raises(PhotosError, match="no photos found"):
        unlabelled.find_photos(photos / "empty")


def test_an_archive_lists_its_members_and_the_skipped_ones(photos):
    with zipfile.ZipFile(photos / "more.zip", "w") as archive:
        for name in ("x/2.jpg", "../out.jpg", "1.jpg"):
            archive.writestr(name, encode_photo(3))
    photo_list = list(unlabelled.find_photos(photos / "more.zip"))
    assert [photo.path for photo in photo_list] == [
        f"{photos}/more.zip!{name}" for name in ("1.jpg", "x/2.jpg", "../out.jpg")
    ]
    assert [unlabelled.is_openable(photo) for photo in photo_list] == [True, True, False]
    assert photo_list[0].file.read_bytes() == encode_photo(3)


def test_a_damaged_archive_in_a_list_is_reported_and_the_next_line_is_used(photos):
    with zipfile.ZipFile(photos / "more.zip", "w") as archive:
        archive.writestr("1.jpg", encode_photo(3))
    (photos / "cut.zip").write_bytes((photos / "more.zip").read_bytes()[:-10])
    cut, inside, single = unlabelled.find_photos(
        [], iter(f"{photos}/{name}\n" for name in ("cut.zip", "more.zip", "single.jpg"))
    )
    assert (cut.path, cut.status) == (f"{photos}/cut.zip", "this archive is damaged: the end of the zip is missing")
    assert [unlabelled.is_openable(photo) for photo in (cut, inside, single)] == [False, True, True]
    with pytest.raises(PhotosError, match="damaged") as refused:
        unlabelled.find_photos(photos / "cut.zip")
    assert refused.value.where == photos / "cut.zip"


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes among files there")
def test_a_pipe_named_like_a_photo_or_an_archive_does_not_block(tmp_path):
    for name in ("photo.jpg", "photos.zip"):
        os.mkfifo(tmp_path / name)
    photo_list = unlabelled.find_photos([tmp_path / "photo.jpg", tmp_path / "photos.zip"])
    assert [photo.status for photo in photo_list] == ["not a regular file"] * 2


@pytest.mark.parametrize("sources", ["", [""], ["photo.jpg", ""]])
def test_an_empty_path_is_not_the_working_directory(photos, monkeypatch, sources):
    monkeypatch.chdir(photos)
    with pytest.raises(PhotosError, match="an empty path"):
        unlabelled.find_photos(sources)
