"""Photos to predict: files, folders, patterns and archives, in the order that they were named."""

import os
import sys
import zipfile

import pytest
from support.images import encode_photo, two_classes, write_files

from ikebana.data import sources as data_sources
from ikebana.data import unlabelled
from ikebana.errors import PhotosError


def names(folder, *sources):
    return [
        each.path.removeprefix(f"{folder}/") for each in unlabelled.find_photos([folder / source for source in sources])
    ]


@pytest.fixture
def photos(tmp_path):
    return write_files(
        tmp_path, {**two_classes(2), "a/.hidden.jpg": b"x", "single.jpg": encode_photo(1), "b[1].jpg": encode_photo(2)}
    )


def test_files_folders_and_patterns_are_found_in_the_order_they_were_named(photos):
    assert names(photos, "single.jpg", "a") == ["single.jpg", "a/0.jpg", "a/1.jpg"]
    assert names(photos, "*/1.jpg", "single.jpg") == ["a/1.jpg", "b/1.jpg", "single.jpg"]
    assert names(photos, "**/0.jpg") == ["a/0.jpg", "b/0.jpg"]


def test_a_name_with_brackets_is_a_name_before_it_is_a_pattern(photos):
    assert names(photos, "b[1].jpg") == ["b[1].jpg"]


def test_in_a_list_brackets_alone_are_no_pattern(photos):
    found = unlabelled.find_photos([str(photos / "[ab]/0.jpg"), str(photos / "a/*.jpg")], reports_errors=True)
    assert [photo.status for photo in found] == ["there is no such file", *["not opened yet"] * 2]
    assert names(photos, "[ab]/0.jpg") == ["a/0.jpg", "b/0.jpg"]


def test_an_existing_folder_with_brackets_is_read_literally(photos):
    write_files(photos, {"[ab]/0.jpg": encode_photo(3)})
    assert names(photos, "[ab]/*.jpg") == ["[ab]/0.jpg"]


def test_hidden_files_of_a_folder_are_counted_and_one_that_was_named_is_taken(photos):
    found = unlabelled.find_photos(photos / "a")
    assert (len(list(found)), len(found.ignored_paths)) == (2, 1)
    assert names(photos, "a/.hidden.jpg") == ["a/.hidden.jpg"]


@pytest.mark.parametrize("name", ["n" * 300, "~nobody-of-that-name/a.jpg"])
def test_a_line_with_a_name_that_no_file_can_have_is_told_of_and_the_next_is_looked_at(photos, name):
    first, second = unlabelled.find_photos([], iter([f"{name}\n", f"{photos}/single.jpg\n"]))
    assert first.path == name
    assert not unlabelled.is_openable(first)
    assert unlabelled.is_openable(second)
    with pytest.raises(PhotosError, match="no such file or folder"):
        unlabelled.find_photos(name)


@pytest.mark.parametrize("name", ["n" * 300, "~nobody-of-that-name/flowers", "n" * 300 + ".zip"])
def test_a_name_that_no_file_can_have_is_refused_like_any_other_that_is_not_there(tmp_path, name):
    for place in (name, tmp_path / name):
        with pytest.raises(PhotosError, match="there is no such folder, archive or table") as refusal:
            data_sources.read(place)
        assert refusal.value.where == place


def test_what_is_not_there_is_refused_by_name(photos):
    for source in ("gone.jpg", "*.tif"):
        with pytest.raises(PhotosError, match="no such file") as refused:
            unlabelled.find_photos(photos / source)
        assert refused.value.where == photos / source
    (photos / "empty").mkdir()
    with pytest.raises(PhotosError, match="no photos found"):
        unlabelled.find_photos(photos / "empty")


def test_an_archive_shows_its_members_and_what_stayed_packed(photos):
    with zipfile.ZipFile(photos / "more.zip", "w") as archive:
        for name in ("x/2.jpg", "../out.jpg", "1.jpg"):
            archive.writestr(name, encode_photo(3))
    found = list(unlabelled.find_photos(photos / "more.zip"))
    assert [each.path for each in found] == [f"{photos}/more.zip!{name}" for name in ("1.jpg", "x/2.jpg", "../out.jpg")]
    assert [unlabelled.is_openable(each) for each in found] == [True, True, False]
    assert found[0].file.read_bytes() == encode_photo(3)


def test_a_damaged_archive_among_listed_lines_is_told_of_and_the_next_line_is_looked_at(photos):
    with zipfile.ZipFile(photos / "more.zip", "w") as archive:
        archive.writestr("1.jpg", encode_photo(3))
    (photos / "cut.zip").write_bytes((photos / "more.zip").read_bytes()[:-10])
    cut, inside, single = unlabelled.find_photos(
        [], iter(f"{photos}/{name}\n" for name in ("cut.zip", "more.zip", "single.jpg"))
    )
    assert (cut.path, cut.status) == (f"{photos}/cut.zip", "this archive is damaged: the end of the zip is missing")
    assert [unlabelled.is_openable(each) for each in (cut, inside, single)] == [False, True, True]
    with pytest.raises(PhotosError, match="damaged") as refused:
        unlabelled.find_photos(photos / "cut.zip")
    assert refused.value.where == photos / "cut.zip"


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes among files there")
def test_nobody_waits_for_a_pipe_that_is_called_like_a_photo_or_an_archive(tmp_path):
    for name in ("photo.jpg", "photos.zip"):
        os.mkfifo(tmp_path / name)
    found = unlabelled.find_photos([tmp_path / "photo.jpg", tmp_path / "photos.zip"])
    assert [each.status for each in found] == ["not a regular file"] * 2


@pytest.mark.parametrize("sources", ["", [""], ["photo.jpg", ""]])
def test_an_empty_path_is_not_taken_for_the_folder_that_we_are_in(photos, monkeypatch, sources):
    monkeypatch.chdir(photos)
    with pytest.raises(PhotosError, match="an empty path"):
        unlabelled.find_photos(sources)
