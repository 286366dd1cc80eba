"""Paths of a table as people and other computers write them."""

import os
import unicodedata
from pathlib import Path

import pytest
from support.images import encode_photo, two_classes, write_files
from support.tables import ROWS, get_refusal, list_rows, make_csv, read_table

from ikebana.data.dataset import STATUS_UNOPENED


@pytest.fixture
def photos(tmp_path):
    write_files(tmp_path / "photos", two_classes())
    return tmp_path


def rewrite(function):
    return make_csv(rows=[(function(path), label) for path, label in ROWS])


@pytest.mark.skipif(os.name == "nt", reason="a backslash is a separator there")
@pytest.mark.parametrize("prefix", ["", ".\\"])
def test_backslashes_in_windows_paths_are_separators(photos, prefix):
    dataset = read_table(photos, rewrite(lambda path: prefix + path.replace("/", "\\")))
    assert set(dataset.photos["status"]) == {STATUS_UNOPENED}
    assert [(Path(path).as_posix(), label) for path, label in list_rows(dataset)] == ROWS


@pytest.mark.skipif(os.name == "nt", reason="no such file name there")
def test_a_backslash_in_a_file_name_is_not_a_separator(photos):
    (photos / "photos\\a\\0.jpg").write_bytes(encode_photo(77))
    dataset = read_table(photos, rewrite(lambda path: path.replace("/", "\\")))
    assert dataset.photos["path"].to_list().count("photos\\a\\0.jpg") == 1
    assert set(dataset.photos["status"]) == {STATUS_UNOPENED}


def test_file_urls_and_paths_with_a_tilde_are_resolved(photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos))
    monkeypatch.setenv("USERPROFILE", str(photos))
    (photos / "photos/a/0.jpg").rename(photos / "photos/a/with space.jpg")
    rows = [
        (path.replace("0.jpg", "with space.jpg") if path.endswith("a/0.jpg") else path, label) for path, label in ROWS
    ]
    for function in (lambda path: (photos / path).as_uri(), lambda path: f"~/{path}"):
        dataset = read_table(photos, make_csv(rows=[(function(path), label) for path, label in rows]))
        assert set(dataset.photos["status"]) == {STATUS_UNOPENED}
        files = [dataset.resolve_path(path) for path in dataset.photos["path"]]
        assert {os.path.realpath(file) for file in files} == {os.path.realpath(photos / path) for path, _ in rows}


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_paths_in_both_unicode_forms_are_the_same(photos, on_disk, in_table):
    """macOS writes names in the decomposed form."""
    name = "photos/Blüte.jpg"
    (photos / unicodedata.normalize(on_disk, name)).write_bytes(encode_photo(9))
    dataset = read_table(photos, make_csv(rows=[*ROWS, (unicodedata.normalize(in_table, name), "b")]))
    assert set(dataset.photos["status"]) == {STATUS_UNOPENED}


def test_two_spellings_of_a_path_with_two_labels_are_refused(photos):
    path = ROWS[0][0]
    for again in (path.replace("/", "\\"), (photos / path).as_uri()):
        assert "more than one label" in get_refusal(photos, make_csv(rows=[*ROWS, (again, "b")])).what


@pytest.mark.skipif(os.name == "nt", reason="Windows has such paths")
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("https://example.org/1.jpg", "download it first"),
        ("s3://bucket/1.jpg", "download it first"),
        ("C:\\photos\\1.jpg", "a Windows path"),
        ("\\\\server\\photos\\1.jpg", "a Windows path"),
        ("photos/gone.jpg", "there is no such file"),
    ],
)
def test_a_path_that_is_not_a_local_file_is_set_aside_with_the_reason(photos, path, words):
    dataset = read_table(photos, make_csv(rows=[*ROWS, (path, "a")]))
    (status,) = dataset.photos.filter(path=path)["status"]
    assert words in status


@pytest.mark.parametrize("old", ["/home/ann/flowers/", "C:\\Users\\Ann\\flowers\\", "../flowers/"])
def test_a_table_whose_photos_have_moved_is_refused_with_their_likely_folder(photos, old):
    separator = "\\" if "\\" in old else "/"
    refusal = get_refusal(photos, rewrite(lambda path: old + path.replace("/", separator)))
    assert f"photos/a/0.jpg exists in {photos}" in (refusal.advice or "")


def test_a_table_of_web_addresses_is_refused_without_mention_of_a_file_of_the_same_path(photos):
    refusal = get_refusal(photos, rewrite(lambda path: f"https://example.org/{path}"))
    assert "a web address, not a file" in refusal.what
    assert refusal.advice == "download the photos, and write the paths of the files into the table"


@pytest.mark.parametrize("lost", [".jpg", "photos/", "photos/ .jpg"])
def test_names_without_suffix_or_folder_are_refused_with_an_existing_path(photos, lost):
    """Tables of competitions have identifiers like these, beside a folder of images."""
    text = make_csv()
    for part in lost.split():
        text = text.replace(part, "")
    refusal = get_refusal(photos, text)
    assert f"photos/a/0.jpg exists in {photos}" in (refusal.advice or "")
