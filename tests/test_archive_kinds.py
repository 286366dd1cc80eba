"""Archives of all formats that users have: read as intended, or refused with advice."""

import gzip
import io
import json
import tarfile
import zipfile

import pytest
from support.archives import make_archive, make_raw_zip, make_tar, make_zip, read_statuses
from support.images import encode_photo, two_classes

from ikebana.data import archive, sources, unlabelled
from ikebana.data.dataset import STATUS_UNOPENED
from ikebana.errors import PhotosError

ALL_READ = dict.fromkeys(two_classes(), STATUS_UNOPENED)


def get_refusal(file, data):
    file.write_bytes(data)
    with pytest.raises(PhotosError) as refusal:
        sources.read(file)
    assert refusal.value.where in (file, str(file))
    assert refusal.value.advice
    return refusal.value


# Read as intended


def test_bytes_before_and_after_a_zip_are_ignored(tmp_path):
    data = make_archive([], "zip")
    assert read_statuses(tmp_path, b"#!/bin/sh\n" * 10 + data) == ALL_READ
    assert read_statuses(tmp_path, data + b"signature" * 100) == ALL_READ


def test_a_zip_with_64_bit_sizes_is_read(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for name, data in two_classes().items():
            with packed.open(name, "w", force_zip64=True) as member:
                member.write(data)
    assert read_statuses(tmp_path, stream.getvalue()) == ALL_READ


def test_what_macos_adds_is_ignored(tmp_path):
    extra = {f"__MACOSX/{folder}/._{number}.jpg": b"\0\5\x16\7" for folder in "ab" for number in range(3)}
    members = [(f"flowers/{name}", data, 0) for name, data in two_classes().items()] + [
        (name.replace("/", "/flowers/", 1), data, 0) for name, data in extra.items()
    ]
    statuses = read_statuses(tmp_path, make_zip(members))
    assert statuses == {f"flowers/{name}": STATUS_UNOPENED for name in two_classes()}


def test_archives_beside_photos_are_reported(tmp_path):
    names = [f"more/{number}.zip" for number in range(5)]
    (tmp_path / "photos.zip").write_bytes(make_archive(names, "zip"))
    (note,) = [note for note in sources.read(tmp_path / "photos.zip").notes if "inside" in note]
    assert note == "archives inside the archive are not unpacked: more/0.zip, more/1.zip, more/2.zip and 2 more"


def test_two_zips_in_one_file_are_reported(tmp_path):
    """Programs read the directory at the end, which lists the members of the second alone."""
    first = make_zip([("c/9.jpg", encode_photo(9), 0)])
    (tmp_path / "photos.zip").write_bytes(first + make_archive([], "zip"))
    dataset = sources.read(tmp_path / "photos.zip")
    assert dataset.classes == ("a", "b")
    (note,) = dataset.notes
    assert note.startswith(f"the first {len(first):,} bytes of the zip are not listed in it")


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_two_tars_in_one_file_are_reported(tmp_path, compress):
    first = compress(make_archive([], "tar"))
    (tmp_path / "photos.tar").write_bytes(first + compress(make_tar([("c/9.jpg", encode_photo(9), tarfile.REGTYPE)])))
    dataset = sources.read(tmp_path / "photos.tar")
    assert dataset.classes == ("a", "b")
    (note,) = dataset.notes
    assert note.startswith("other bytes follow the end of the tar: if two tars were joined")
    (tmp_path / "padded.tar").write_bytes(first + compress(bytes(5000)))
    assert sources.read(tmp_path / "padded.tar").notes == ()


def test_an_archive_unpacked_by_another_version_is_unpacked_again(tmp_path, ikebana_cache):
    read_statuses(tmp_path, make_archive([], "zip"))
    (file,) = ikebana_cache.rglob("members.json")
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"version": archive.UNPACKING_VERSION - 1, "skipped": [["x.jpg", "old"]]}))
    assert read_statuses(tmp_path, make_archive([], "zip")) == ALL_READ
    assert json.loads(file.read_text()) == record


# Refused with advice


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_that_holds_only_archives_is_refused_with_their_names(tmp_path, kind):
    inner = {"flowers/daisy.zip": make_archive([], "zip"), "flowers/rose.ZIP": make_archive([], "zip")}
    inner["flowers/README.txt"] = b"two classes"
    data = (
        make_zip([(*file, 0) for file in inner.items()])
        if kind == "zip"
        else make_tar([(*file, tarfile.REGTYPE) for file in inner.items()])
    )
    error = get_refusal(tmp_path / f"photos.{kind}", data)
    assert error.what == "this archive contains only other archives: flowers/daisy.zip, flowers/rose.ZIP"


@pytest.mark.parametrize("parts", [2, 12])
def test_the_last_part_of_a_split_zip_is_refused_with_how_to_join_it(tmp_path, parts):
    members = [(name.encode(), data) for name, data in two_classes().items()]
    error = get_refusal(tmp_path / "flowers.zip", make_raw_zip(members, disk=parts - 1))
    assert error.what == f"this is the last of the {parts} parts of a split zip"
    assert "zip -s 0 flowers.zip --out joined.zip" in (error.advice or "")


@pytest.mark.parametrize(
    ("name", "start", "what"),
    [
        ("flowers.zip", b"7z\xbc\xaf\x27\x1c\0\4", "this archive cannot be read: it is a 7z archive"),
        ("flowers.zip", b"Rar!\x1a\x07\x01\0", "this archive cannot be read: it is a RAR archive"),
        ("flowers.zip", b"PK\7\x08PK\3\4", "this archive cannot be read: it is part of a split zip"),
        ("flowers.7z", b"7z\xbc\xaf\x27\x1c\0\4", "ikebana does not read .7z files"),
        ("flowers.RAR", b"Rar!\x1a\x07\x01\0", "ikebana does not read .RAR files"),
        ("flowers.z01", b"PK\7\x08PK\3\4", "ikebana does not read .z01 files"),
        ("flowers.zip.001", b"PK\3\4", "ikebana does not read .001 files"),
    ],
)
def test_other_archive_formats_are_refused_by_name(tmp_path, name, start, what):
    assert get_refusal(tmp_path / name, start + bytes(1000)).what == what


@pytest.mark.parametrize("prefix", ["/home/ada/flowers/", "C:\\flowers\\", "C:/flowers/"])
def test_a_zip_of_absolute_paths_is_refused_with_the_reason(tmp_path, prefix):
    members = [(f"{prefix}{name}", data, 0) for name, data in two_classes().items()]
    error = get_refusal(tmp_path / "flowers.zip", make_zip(members))
    assert error.what == "no photos found; 6 of 6 paths were skipped (its path points outside the archive)"


def test_other_archive_formats_among_photos_to_predict_are_reported_by_name(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encode_photo(1))
    (tmp_path / "b.7z").write_bytes(b"7z\xbc\xaf\x27\x1c\0\4" + bytes(1000))
    assert len(list(unlabelled.find_photos(tmp_path))) == 2
