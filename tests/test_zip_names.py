"""Encodings of names in archives: decoded where they are known, and two classes never merged."""

import io
import sys
import tarfile
import unicodedata
import zipfile
from typing import Literal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.archives import make_raw_zip, make_unicode_path, make_zip
from support.images import encode_photo

from ikebana.data import archive, archive_members, sources, unlabelled, zip_names
from ikebana.data.dataset import STATUS_UNOPENED
from ikebana.system import progress

FLOWERS = ["Gänseblümchen", "Rosé", "ソメイヨシノ", "ソケイ", "薔薇"]
PHOTOS_PER_CLASS = 2
FAT, UNIX = 0, 3


def list_paths(classes, separator="/"):
    """List a path for each photo of these classes."""
    return [f"{name}{separator}{number}.jpg" for name in classes for number in range(PHOTOS_PER_CLASS)]


def make_encoded_zip(names, encoding, form: Literal["NFC", "NFD"] = "NFC", **options):
    """Make a zip of photos with names in an undeclared encoding."""
    raw = [unicodedata.normalize(form, name).encode(encoding) for name in names]
    return make_raw_zip([(name, encode_photo(row)) for row, name in enumerate(raw)], **options)


def read(tmp_path, data, name="photos.zip"):
    (tmp_path / name).write_bytes(data)
    return sources.read(tmp_path / name)


def count_photos(dataset):
    """Count {class: photos} of the usable photos."""
    usable = dataset.photos.filter(status=STATUS_UNOPENED)
    return dict(usable["label"].value_counts().iter_rows())


# Names in a known encoding


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("system", [FAT, UNIX])
def test_utf8_names_without_the_flag_are_read_as_utf8(tmp_path, form, system):
    dataset = read(tmp_path, make_encoded_zip(list_paths(FLOWERS), "utf-8", form, system=system))
    assert count_photos(dataset) == dict.fromkeys(FLOWERS, PHOTOS_PER_CLASS)
    assert dataset.notes == ()


def test_a_unicode_path_field_gives_the_name(tmp_path):
    members = [
        (raw := b"_/%d.jpg" % row, encode_photo(row), b"UT\x01\0\0" + make_unicode_path(raw, path))
        for row, path in enumerate(list_paths(FLOWERS))
    ]
    dataset = read(tmp_path, make_raw_zip(members, system=FAT))
    assert count_photos(dataset) == dict.fromkeys(FLOWERS, PHOTOS_PER_CLASS)
    assert dataset.notes == ()


def test_a_unicode_path_field_of_an_earlier_name_is_ignored(tmp_path):
    members = [
        (path.encode(), encode_photo(row), make_unicode_path(b"another name", f"old/{row}.jpg"))
        for row, path in enumerate(list_paths(["a", "b"]))
    ]
    assert count_photos(read(tmp_path, make_raw_zip(members))) == {"a": PHOTOS_PER_CLASS, "b": PHOTOS_PER_CLASS}


def test_a_unicode_path_field_cannot_point_outside_either(tmp_path):
    evil = (b"a/9.jpg", encode_photo(9), make_unicode_path(b"a/9.jpg", "../../9.jpg"))
    members = [(path.encode(), encode_photo(row)) for row, path in enumerate(list_paths(["a", "b"]))]
    dataset = read(tmp_path, make_raw_zip([*members, evil]))
    assert dataset.set_aside_photos.filter(path="photos.zip!../../9.jpg")["status"].to_list() == [
        "its path points outside the archive"
    ]


@pytest.mark.parametrize("extra", [b"u", b"up\xff\xff", b"up\x05\0\x01\0\0\0\0", b"up\x06\0\x02\0\0\0\0x"])
def test_a_malformed_extra_field_does_not_cost_the_name(extra):
    entry = zipfile.ZipInfo("x.jpg")
    entry.extra = extra
    assert zip_names.read_names([entry]) == [zip_names.MemberName("x.jpg")]


def test_names_of_one_archive_in_two_unicode_forms_are_one_class(tmp_path):
    names = [unicodedata.normalize(form, f"Rosé/{form}.jpg") for form in ("NFC", "NFD")] + list_paths(["b"])
    members = [(name.encode(), encode_photo(row)) for row, name in enumerate(names)]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name.decode())
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    for name, data in {"photos.zip": make_raw_zip(members), "photos.tar": stream.getvalue()}.items():
        assert count_photos(read(tmp_path, data, name)) == {"Rosé": 2, "b": 2}


# Names in an unknown encoding


@pytest.mark.parametrize("system", [FAT, UNIX])
def test_shift_jis_names_stay_distinct_classes_and_are_reported(tmp_path, system):
    names = ["ソメイヨシノ", "ソケイ", "薔薇", "表"]
    dataset = read(tmp_path, make_encoded_zip(list_paths(names), "cp932", system=system))
    assert sorted(count_photos(dataset).values()) == [PHOTOS_PER_CLASS] * 4
    (note,) = dataset.notes
    assert note.startswith("the encoding of 8 names in the archive is unknown")
    garbled = "ソメイヨシノ".encode("cp932").decode("cp437")
    assert f"{garbled}/0.jpg" in note
    assert garbled in dataset.classes


def test_predict_reports_unknown_encodings_too(tmp_path):
    (tmp_path / "photos.zip").write_bytes(make_encoded_zip(list_paths(["ソケイ"]), "cp932"))
    messages = []

    class Recorder(progress.SilentReporter):
        def warning(self, text):
            messages.append(text)

    with progress.use_reporter(Recorder()):
        assert len(list(unlabelled.find_photos(tmp_path / "photos.zip"))) == PHOTOS_PER_CLASS
    (message,) = messages
    assert message.startswith("photos.zip: the encoding of 2 names in the archive is unknown")


def test_names_of_western_dos_are_decoded_and_reported(tmp_path):
    names = ["Gänseblümchen", "Rosé"]
    dataset = read(tmp_path, make_encoded_zip(list_paths(names), "cp437", system=FAT))
    assert count_photos(dataset) == dict.fromkeys(names, PHOTOS_PER_CLASS)
    assert len(dataset.notes) == 1


def test_letters_that_differ_by_case_in_a_guessed_encoding_are_two_photos(tmp_path):
    first, second = "ä".encode("cp437"), "Ä".encode("cp437")
    members = [(b"a/" + name + b"\xff.jpg", encode_photo(row)) for row, name in enumerate((first, second))]
    dataset = read(tmp_path, make_raw_zip([*members, (b"b/1.jpg", encode_photo(5))]))
    assert count_photos(dataset) == {"a": 2, "b": 1}


def test_one_name_in_another_encoding_does_not_change_the_utf8_names(tmp_path):
    members = [(path.encode(), encode_photo(row)) for row, path in enumerate(list_paths(FLOWERS))]
    dataset = read(tmp_path, make_raw_zip([*members, ("Rosé/x.jpg".encode("cp437"), encode_photo(99))]))
    assert count_photos(dataset) == dict.fromkeys(FLOWERS, PHOTOS_PER_CLASS) | {"Rosé": PHOTOS_PER_CLASS + 1}
    assert "the encoding of 1 names" in dataset.notes[0]


letters = st.sampled_from(
    [(encoding, chr(code)) for encoding in ("cp932", "gbk", "big5", "cp949", "cp1252", "cp866") for code in range(0xA0, 0xFFFF)
     if chr(code).isalpha() and chr(code).encode(encoding, "ignore")]
)  # fmt: skip


@given(st.lists(st.tuples(letters, letters), min_size=2, max_size=6, unique_by=lambda pair: pair[0][1] + pair[1][1]))
def test_two_different_names_never_become_one(pairs):
    raw = {b"".join(letter.encode(encoding) for encoding, letter in pair) + b"/1.jpg" for pair in pairs}
    with zipfile.ZipFile(io.BytesIO(make_raw_zip([(name, b"") for name in raw]))) as packed:
        names = zip_names.read_names(packed.infolist())
    assert len({name.text.split("/")[0] for name in names}) == len(raw)


# Backslashes


@pytest.mark.parametrize("names", [["a", "b"], FLOWERS])
def test_backslashes_of_windows_programs_are_folder_separators(tmp_path, names):
    dataset = read(tmp_path, make_encoded_zip(list_paths(names, "\\"), "utf-8", system=FAT))
    assert count_photos(dataset) == dict.fromkeys(names, PHOTOS_PER_CLASS)


def test_a_backslash_that_may_be_half_of_a_character_is_refused_with_both_readings(tmp_path):
    names = list_paths(["ソケイ", "Rose", "Lilie"], "\\")
    dataset = read(tmp_path, make_encoded_zip(names, "cp932", system=FAT))
    assert count_photos(dataset) == {"Rose": PHOTOS_PER_CLASS, "Lilie": PHOTOS_PER_CLASS}
    skipped = dataset.photos.filter(pl.col("status") != STATUS_UNOPENED)
    assert skipped["status"].to_list() == [zip_names.AMBIGUOUS_MESSAGE] * PHOTOS_PER_CLASS


def test_a_backslash_in_a_name_from_unix_is_a_character(tmp_path):
    names = ["red\\rose", "red\\tulip"]
    dataset = read(tmp_path, make_encoded_zip(list_paths(names), "utf-8", system=UNIX))
    assert count_photos(dataset) == dict.fromkeys(names, PHOTOS_PER_CLASS)


def test_windows_cannot_store_a_backslash_or_drop_the_end_of_a_folders_name(monkeypatch):
    monkeypatch.setattr(archive_members, "IS_WINDOWS", True)
    for name in ("red\\rose/1.jpg", "rose./1.jpg", "rose /1.jpg", "rose/1.jpg.", "rose/1 "):
        assert archive_members.find_path_problem(name, name) == "Windows cannot store its name (rename it)"


# File systems that ignore case


def test_a_disk_that_ignores_case_merges_no_classes(tmp_path):
    target = archive._Target(tmp_path)
    assert archive._make_folders(target, "Rose/red") > 0
    assert archive._make_folders(target, "Rose/red") == 0
    (tmp_path / "rose").mkdir()  # as such a file system shows once Rose exists
    with pytest.raises(archive._MemberSkipped, match="does not distinguish"):
        archive._make_folders(target, "rose")


@pytest.mark.skipif(sys.platform != "linux", reason="disks of other systems ignore case")
def test_names_that_differ_by_case_alone_are_two_classes(tmp_path):
    names = ["Rose/1.jpg", "Rose/2.jpg", "rose/3.jpg", "rose/2.jpg"]
    dataset = read(tmp_path, make_zip([(name, encode_photo(row), 0) for row, name in enumerate(names)]))
    assert count_photos(dataset) == {"Rose": 2, "rose": 1}
    assert (
        dataset.photos.filter(path="photos.zip!rose/2.jpg")["status"].item() == "differs from Rose/2.jpg by case alone"
    )
