"""Archives are extracted only into the cache, and completely or not at all."""

import json
import os
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.archives import make_archive, make_tar, make_zip, read_statuses
from support.images import encode_photo, two_classes

from ikebana.data import archive, archive_members, pixel_cache, sources
from ikebana.data.dataset import STATUS_UNOPENED
from ikebana.errors import MachineError, PhotosError
from ikebana.system import files as system_files

LINK = stat.S_IFLNK | 0o777
DEVICE = stat.S_IFCHR | 0o666


def list_cache(cache):
    return [path.relative_to(cache).as_posix() for path in cache.rglob("*")]


def get_refusal(tmp_path, data, name="photos.zip"):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PhotosError) as refused:
        sources.read(tmp_path / name)
    assert refused.value.where == tmp_path / name
    return refused.value.what


# Paths outside the archive

OUTSIDE = [
    "../x.jpg",
    "a/../../x.jpg",
    "/tmp/ikebana-escaped.jpg",
    "//x.jpg",
    "C:/x.jpg",
    "c:x.jpg",
    "..\\y.jpg",
    "a/..",
    "\\y.jpg",
]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_with_a_path_outside_the_archive_is_skipped(tmp_path, kind, ikebana_cache):
    statuses = read_statuses(tmp_path, make_archive(OUTSIDE, kind), f"photos.{kind}")
    assert list(statuses.values()).count("its path points outside the archive") == len(OUTSIDE)
    assert list(statuses.values()).count(STATUS_UNOPENED) == 6
    assert not Path("/tmp/ikebana-escaped.jpg").exists()
    assert len([path for path in ikebana_cache.rglob("*.jpg") if path.is_file()]) == 6


def test_links_and_devices_stay_packed(tmp_path, ikebana_cache):
    kinds = {
        "a/link.jpg": (b"/etc/passwd", LINK),
        "a/device.jpg": (b"", DEVICE),
        "a/pipe.jpg": (b"", stat.S_IFIFO | 0o666),
    }
    members = [(name, data, 0o100644) for name, data in two_classes().items()]
    statuses = read_statuses(tmp_path, make_zip(members + [(name, *kind) for name, kind in kinds.items()]))
    assert {statuses[name] for name in kinds} == {"a link or device in an archive"}
    assert not any(path.is_symlink() for path in ikebana_cache.rglob("*"))


def test_a_tar_cannot_write_through_its_own_links(tmp_path, ikebana_cache):
    kinds = [
        ("a/link.jpg", b"/etc/passwd", tarfile.SYMTYPE), ("a/hard.jpg", b"a/0.jpg", tarfile.LNKTYPE),
        ("a/device.jpg", b"", tarfile.CHRTYPE), ("a/pipe.jpg", b"", tarfile.FIFOTYPE),
        ("out", str(tmp_path / "home").encode(), tarfile.SYMTYPE), ("out/x.jpg", encode_photo(9), tarfile.REGTYPE),
    ]  # fmt: skip
    files = [(name, data, tarfile.REGTYPE) for name, data in two_classes().items()]
    statuses = read_statuses(tmp_path, make_tar(files + kinds), "photos.tar")
    assert list(statuses.values()).count("a link or device in an archive") == 5
    assert statuses["out/x.jpg"] == STATUS_UNOPENED  # in a real folder of that name, within the cache
    assert not any(path.is_symlink() for path in ikebana_cache.rglob("*"))


# Members that cannot be unpacked among others that can


def mark_encrypted(data: bytes, *names: str) -> bytes:
    marked = bytearray(data)
    for name in map(str.encode, names):
        for place in (data.index(name) - 24, data.rindex(name) - 38):  # its flags, local and central
            marked[place] |= 1
    return bytes(marked)


def test_an_encrypted_zip_is_refused_with_what_to_do(tmp_path):
    file = tmp_path / "photos.zip"
    file.write_bytes(mark_encrypted(make_archive([], "zip"), *two_classes()))
    with pytest.raises(PhotosError) as refusal:
        sources.read(file)
    assert "(encrypted)" in refusal.value.what
    assert refusal.value.advice == "unpack the archive with its password, and give the folder"


def test_encrypted_members_are_named(tmp_path):
    statuses = read_statuses(tmp_path, mark_encrypted(make_archive(["a/secret.jpg"], "zip"), "a/secret.jpg"))
    assert statuses.pop("a/secret.jpg") == "encrypted"
    assert set(statuses.values()) == {STATUS_UNOPENED}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_the_first_of_several_members_with_one_name_is_used(tmp_path, kind):
    again = ["a/0.jpg", "A/0.JPG", "./a/0.jpg", "a//0.jpg"]
    statuses = read_statuses(tmp_path, make_archive(again, kind), f"photos.{kind}")
    assert len(statuses) == 6 + 3  # two have the same path in the table, too
    with_it = sources.read(tmp_path / "home" / f"photos.{kind}")
    statuses = with_it.photos["status"].to_list()
    assert statuses.count("appears twice in the archive") == 3
    assert statuses.count("differs from a/0.jpg by case alone") == 1
    assert with_it.resolve_path(f"photos.{kind}!a/0.jpg").read_bytes() == two_classes()["a/0.jpg"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_path_that_is_both_a_file_and_a_folder_keeps_the_first(tmp_path, kind):
    statuses = read_statuses(tmp_path, make_archive(["a/0.jpg/inside.jpg", "b"], kind), f"photos.{kind}")
    assert statuses["a/0.jpg/inside.jpg"] == statuses["b"] == "another member has the same path"


def test_names_that_a_file_system_cannot_store_are_skipped_with_a_reason(tmp_path):
    long = f"a/{'x' * 300}.jpg"
    statuses = read_statuses(tmp_path, make_archive([long, "a/bell\a.jpg", "./"[:1]], "tar"), "photos.tar")
    assert statuses[long] == "this disk cannot store its name"
    assert statuses["a/bell\\x07.jpg"] == "its name has unprintable characters"
    assert statuses["."] == "it has no name"


GOOD_NAMES = [
    "a/Blüte été 花.jpg",
    "a/Screenshot\u202f3.45\u00a0PM.jpg",
    "a/👩‍🌾.jpg",
    "a/console con.jpg",
    "a/with blank .jpg",
    "a/..jpg",
]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_in_any_script_are_extracted_unchanged(tmp_path, kind):
    statuses = read_statuses(tmp_path, make_archive(GOOD_NAMES, kind), f"photos.{kind}")
    shown = [name for name in GOOD_NAMES if not name.startswith("a/..")]  # hidden, as everywhere
    assert {statuses[name] for name in shown} == {STATUS_UNOPENED}


def test_tar_members_with_names_in_a_legacy_encoding_are_skipped_and_named(tmp_path):
    data = make_archive(["a/caf_.jpg"], "tar").replace(b"a/caf_.jpg", b"a/caf\xe9.jpg")
    header = bytearray(data[(start := data.index(b"a/caf\xe9.jpg")) : start + 512])
    header[148:156] = b"%06o\0 " % sum(header[:148] + b" " * 8 + header[156:])
    statuses = read_statuses(tmp_path, data[:start] + bytes(header) + data[start + 512 :], "photos.tar")
    assert statuses["a/caf\\xe9.jpg"] == "its name is not valid UTF-8 (repack the archive with UTF-8 names)"
    assert len(statuses) == 7


def test_backslashes_in_a_zip_are_folder_separators(tmp_path):
    data = make_zip([(name.replace("/", "\\"), file, 0) for name, file in two_classes().items()])
    assert read_statuses(tmp_path, data) == dict.fromkeys(two_classes(), STATUS_UNOPENED)


def test_an_empty_class_folder_in_an_archive_is_reported(tmp_path):
    files = [(name, data, tarfile.REGTYPE) for name, data in two_classes().items()]
    (tmp_path / "photos.tar").write_bytes(make_tar([*files, ("c", b"", tarfile.DIRTYPE)]))
    (tmp_path / "photos.zip").write_bytes(make_zip([*((*file[:2], 0o100644) for file in files), ("c/", b"", 0o40755)]))
    for name in ("photos.tar", "photos.zip"):
        assert sources.read(tmp_path / name).empty_classes == ("c",)


def test_an_archive_within_an_archive_is_not_a_photo(tmp_path):
    inner = make_archive([], "zip")
    for name, data in {
        "photos.zip": make_zip([*((*file, 0) for file in two_classes().items()), ("b/more.zip", inner, 0)]),
        "photos.tar": make_tar(
            [*((*file, tarfile.REGTYPE) for file in two_classes().items()), ("b/more.zip", inner, tarfile.REGTYPE)]
        ),
    }.items():
        (tmp_path / name).write_bytes(data)
        dataset = pixel_cache.open_pixel_cache(sources.read(tmp_path / name), 8, "squash")[0]
        assert dataset.set_aside_photos.rows() != []
        assert dict(dataset.set_aside_photos.select("path", "status").iter_rows()) == {
            f"{name}!b/more.zip": "not a photo: a zip archive or an office document"
        }
        assert dataset.used_photos.height == 6


# Bombs


def test_an_archive_that_expands_too_much_is_refused_and_leaves_no_files(tmp_path, monkeypatch, ikebana_cache):
    monkeypatch.setattr(archive, "MIN_UNPACK_BUDGET_BYTES", 2**20)
    monkeypatch.setattr(archive, "CHUNK_BYTES", 2**16)
    zeros = bytes(3 * 2**20)
    for name, data in {
        "one.zip": make_zip([("a/0.jpg", zeros, 0)], zipfile.ZIP_DEFLATED),
        "many.zip": make_zip([(f"a/{number}.jpg", zeros[: 2**19], 0) for number in range(6)], zipfile.ZIP_DEFLATED),
        "one.tar.gz": make_tar([("a/0.jpg", zeros, tarfile.REGTYPE)], "w:gz"),
        "one.tar.xz": make_tar([("a/0.jpg", zeros, tarfile.REGTYPE)], "w:xz"),
    }.items():
        assert len(data) * archive.MAX_EXPANSION_RATIO < 2**20
        assert "expands to more than 100 times" in get_refusal(tmp_path, data, name)
        assert list_cache(ikebana_cache) in ([], ["archives"])


def test_a_normal_compression_ratio_is_accepted(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MIN_UNPACK_BUDGET_BYTES", 2**20 + 8 * archive.ENTRY_OVERHEAD_BYTES)
    members = [(f"{name}/{number}.jpg", bytes(2**18), 0) for name in "ab" for number in range(2)]  # 1 MiB in all
    assert len(read_statuses(tmp_path, make_zip(members, zipfile.ZIP_DEFLATED))) == 4


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_too_many_members_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 6)
    assert len(read_statuses(tmp_path, make_archive([], kind), f"photos.{kind}")) == 6
    assert "more than 6 members" in get_refusal(tmp_path, make_archive(["a/7.jpg"], kind), f"more.{kind}")


# Damage


@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_truncated_anywhere_is_refused(tmp_path, mode, ikebana_cache):
    data = make_tar([(*file, tarfile.REGTYPE) for file in two_classes().items()], mode)
    end = len(data) if mode != "w:" else data.rindex(b"b/2.jpg") + 512 + len(two_classes()["b/2.jpg"])
    cuts = {end * tenth // 10 for tenth in range(1, 10)} | {end - 1, 512, 1024, 1536}
    for place in sorted(cuts & set(range(end))):
        assert "archive" in get_refusal(tmp_path, data[:place], "photos.tar")
    assert list_cache(ikebana_cache) in ([], ["archives"])


def test_a_tar_truncated_within_its_first_headers_is_called_damaged(tmp_path):
    data = make_tar([("é" * 60 + "/0.jpg", encode_photo(0), tarfile.REGTYPE)])
    for place in (0, 512, 1024, 1536):
        assert "this archive is damaged" in get_refusal(tmp_path, data[:place], "photos.tar")


def test_a_tar_with_a_damaged_header_is_refused_and_not_taken_for_complete(tmp_path):
    data = bytearray(make_archive([], "tar"))
    data[data.index(b"b/0.jpg")] ^= 1  # its checksum no longer matches
    assert "damaged" in get_refusal(tmp_path, bytes(data), "photos.tar")


def test_a_truncated_zip_is_refused(tmp_path, ikebana_cache):
    data = make_archive([], "zip")
    for tenth in range(1, 10):
        assert "damaged: the end of the zip is missing" in get_refusal(tmp_path, data[: len(data) * tenth // 10])
    assert "not a zip or tar file" in get_refusal(tmp_path, b"no archive at all")
    assert "damaged: it is empty" in get_refusal(tmp_path, b"")
    assert list_cache(ikebana_cache) in ([], ["archives"])


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_only_the_damaged_member_of_a_zip_is_skipped(tmp_path, compression, ikebana_cache):
    data = bytearray(make_zip([(*file, 0) for file in two_classes().items()], compression))
    place = data.index(b"a/1.jpg") + 60
    data[place : place + 8] = b"\xff" * 8
    statuses = read_statuses(tmp_path, bytes(data))
    assert statuses.pop("a/1.jpg").startswith("damaged in the archive")
    assert set(statuses.values()) == {STATUS_UNOPENED}
    assert not [path for path in ikebana_cache.rglob("1.jpg") if path.parent.name == "a"]


def test_an_unsupported_compression_is_reported(tmp_path):
    data = bytearray(make_archive(["a/odd.jpg"], "zip"))
    for place in (data.index(b"a/odd.jpg") - 22, data.rindex(b"a/odd.jpg") - 36):
        data[place : place + 2] = struct.pack("<H", 77)
    statuses = read_statuses(tmp_path, bytes(data))
    assert statuses.pop("a/odd.jpg") == "compressed with an unsupported method (repack it with deflate)"
    assert set(statuses.values()) == {STATUS_UNOPENED}


@pytest.mark.slow
@given(
    kind=st.sampled_from(["w:", "w:gz", "w:bz2", "w:xz", "zip"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_archive_with_changed_bytes_is_read_or_refused(tmp_path_factory, kind, changes):
    files = two_classes().items()
    data = bytearray(
        make_zip([(*file, 0) for file in files], zipfile.ZIP_DEFLATED)
        if kind == "zip"
        else make_tar([(*file, tarfile.REGTYPE) for file in files], kind)
    )
    for place, value in changes:
        data[int(place * len(data))] = value
    file = tmp_path_factory.mktemp("changed") / "photos.zip"
    file.write_bytes(data)
    try:
        dataset = sources.read(file)
    except PhotosError:
        return
    assert 0 < dataset.photos.height <= 7


# Unpacked once, and completely


def test_an_unpacked_archive_is_not_unpacked_again(tmp_path, monkeypatch):
    first = read_statuses(tmp_path, make_archive(["../x.jpg"], "zip"))
    monkeypatch.setattr(archive_members, "iterate_members", None)
    assert read_statuses(tmp_path, make_archive(["../x.jpg"], "zip")) == first
    os.rename(tmp_path / "home" / "photos.zip", tmp_path / "home" / "other.zip")
    assert len(sources.read(tmp_path / "home" / "other.zip").photos) == len(first)


@pytest.mark.parametrize("spoil", ["{", "[[1]]", None])
def test_a_damaged_unpacked_archive_is_unpacked_again(tmp_path, ikebana_cache, spoil):
    first = read_statuses(tmp_path, make_archive(["../x.jpg"], "zip"))
    (members,) = ikebana_cache.rglob("members.json")
    members.unlink() if spoil is None else members.write_text(spoil)
    assert read_statuses(tmp_path, make_archive(["../x.jpg"], "zip")) == first
    assert json.loads(members.read_text())["skipped"] == [["../x.jpg", "its path points outside the archive"]]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
def test_an_interrupted_unpacking_leaves_no_partial_files(tmp_path, monkeypatch, ikebana_cache, interruption):
    (tmp_path / "photos.zip").write_bytes(make_archive([], "zip"))
    copied, calls = archive._copy_content, []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise interruption
        return copied(*arguments)

    monkeypatch.setattr(archive, "_copy_content", interrupt)
    expected = MachineError if isinstance(interruption, OSError) else interruption
    with pytest.raises(expected):
        sources.read(tmp_path / "photos.zip")
    assert list_cache(ikebana_cache) == ["archives"]
    assert sources.read(tmp_path / "photos.zip").photos.height == 6


def test_an_archive_larger_than_the_free_disk_space_is_refused_with_both_sizes(tmp_path, monkeypatch):
    (tmp_path / "photos.zip").write_bytes(make_archive([], "zip"))
    usage = system_files.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(system_files.shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(MachineError, match=r"are needed on the disk and 0 MB are free"):
        sources.read(tmp_path / "photos.zip")


def test_a_cache_that_is_not_a_folder_is_an_error_message(tmp_path, monkeypatch):
    (tmp_path / "photos.zip").write_bytes(make_archive([], "zip"))
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(MachineError, match="cannot be written"):
        sources.read(tmp_path / "photos.zip")
    with (
        pytest.raises(MachineError, match="cannot be written"),
        system_files.atomic_write(tmp_path / "file" / "x.json") as beside,
    ):
        beside.write_text("never")
