"""Malicious archives: paths outside the folder, memory exhaustion, full disks."""

import gzip
import io
import tarfile
import zipfile

import pytest
from support.archives import make_archive, make_zip, read_statuses
from support.images import encode_photo

from ikebana.data import archive, archive_members
from ikebana.data.dataset import STATUS_UNOPENED
from ikebana.errors import PhotosError


def make_gzipped_tar(members):
    """Make a .tar.gz of (name, bytes), with None for a folder."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", format=tarfile.GNU_FORMAT) as packed:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.type = len(data or b""), tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            packed.addfile(entry, io.BytesIO(data or b""))
    return stream.getvalue()


@pytest.mark.parametrize(
    "name",
    [
        "./C:/evil.jpg",
        "./\\evil.jpg",
        "./\\\\srv\\share\\x.jpg",
        "a\\..\\..\\x.jpg",
        "c:x.jpg",
        "\\x.jpg",
    ],
)
def test_no_path_points_outside_the_archive_on_any_system(name):
    path = archive_members.normalise_path(name)
    problem = archive_members.find_path_problem(name, path)
    assert problem == "its path points outside the archive"


@pytest.mark.parametrize("name", ["a/12.30.jpg", "console/1.jpg", "a/com10.jpg", "a/x.con", "./a//b.jpg"])
def test_unusual_but_harmless_names_are_accepted(name, monkeypatch):
    monkeypatch.setattr(archive_members, "IS_WINDOWS", True)
    assert archive_members.find_path_problem(name, archive_members.normalise_path(name)) is None


NOT_ON_WINDOWS = [
    "a/12:30.jpg",
    "a/x.jpg:stream",
    "rose: red/1.jpg",
    "a/CON",
    "con/1.jpg",
    "a/Nul.jpg",
    "a/com1.tar.gz",
    "aux ./x.jpg",
]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_of_windows_devices_and_streams_are_skipped_only_on_windows(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(archive_members, "IS_WINDOWS", True)
    statuses = read_statuses(tmp_path, make_archive(NOT_ON_WINDOWS, kind), f"photos.{kind}")
    assert {statuses.pop(name) for name in NOT_ON_WINDOWS} == {"Windows cannot store its name (rename it)"}
    assert list(statuses.values()) == [STATUS_UNOPENED] * 6
    monkeypatch.setattr(archive_members, "IS_WINDOWS", False)
    assert all(
        archive_members.find_path_problem(name, archive_members.normalise_path(name)) is None for name in NOT_ON_WINDOWS
    )


def test_only_the_member_with_too_deep_a_path_is_skipped(tmp_path):
    deep = "d/" * 1500 + "x.jpg"
    (tmp_path / "photos.tar.gz").write_bytes(
        make_gzipped_tar([("a/1.jpg", encode_photo(0)), (deep, encode_photo(1)), ("a/2.jpg", encode_photo(2))])
    )
    archive_contents = archive.unpack(tmp_path / "photos.tar.gz")
    assert [member.status for member in archive_contents.skipped_members] == ["its path is deeper than 64 levels"]
    assert sorted(path.name for path in archive_contents.folder.rglob("*.jpg")) == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_members_that_cannot_be_streamed_are_skipped(tmp_path, compression):
    (tmp_path / "photos.zip").write_bytes(make_zip([("a/bomb.jpg", bytes(2**20), 0)], compression))
    archive_contents = archive.unpack(tmp_path / "photos.zip")
    assert [member.status for member in archive_contents.skipped_members] == [
        "compressed with bzip2 or LZMA (repack it with deflate)"
    ]
    assert list(archive_contents.folder.iterdir()) == []


# Headers of tar members


def make_pax_tar(header, kind=tarfile.XHDTYPE, name="a/1.jpg"):
    """Make a .tar.gz of one photo with this PAX header."""
    entry, header_entry, data = tarfile.TarInfo(name), tarfile.TarInfo("PaxHeaders"), encode_photo(0)
    entry.size, header_entry.size, header_entry.type = len(data), len(header), kind
    blocks = (header_entry.tobuf(tarfile.USTAR_FORMAT), header, entry.tobuf(tarfile.USTAR_FORMAT), data, bytes(1024))
    return gzip.compress(b"".join(block + bytes(-len(block) % 512) for block in blocks))


def encode_record(key, value):
    """Encode LENGTH KEY=VALUE, where LENGTH counts its own digits; pax in POSIX.1-2017."""
    rest = f" {key}=".encode() + value + b"\n"
    length = next(size for size in range(len(rest), len(rest) + 9) if size == len(rest) + len(str(size)))
    return str(length).encode() + rest


def list_photos(tmp_path, data):
    """List the paths of the photos in an archive of these bytes."""
    (tmp_path / "photos.tar.gz").write_bytes(data)
    folder = archive.unpack(tmp_path / "photos.tar.gz").folder
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def test_attributes_of_macos_do_not_affect_a_photo_or_its_name(tmp_path):
    header = encode_record("LIBARCHIVE.xattr.com.apple.ResourceFork", b"\n=\0 7" * 100_000) + encode_record(
        "path", "a/Blüte.jpg".encode()
    )
    assert list_photos(tmp_path, make_pax_tar(header + encode_record("size", b"%d" % len(encode_photo(0))))) == [
        "a/Blüte.jpg"
    ]


def test_names_in_a_tar_of_any_format_are_those_that_tarfile_wrote(tmp_path):
    names = ["a/" + "x" * 150 + ".jpg", "a/花.jpg", "a/" + "deep/" * 30 + "1.jpg"]
    for number, form in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        (tmp_path / str(number)).mkdir()
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz", format=form) as packed:
            for name in names[number == 0 :]:  # the first is too long for the oldest format
                entry = tarfile.TarInfo(name)
                entry.size, entry.mtime = 3, 1.5  # half a second needs a PAX header
                packed.addfile(entry, io.BytesIO(b"abc"))
        assert sorted(list_photos(tmp_path / str(number), stream.getvalue())) == sorted(names[number == 0 :])


def test_global_pax_headers_do_not_rename_members(tmp_path):
    assert list_photos(
        tmp_path, make_pax_tar(encode_record("comment", b"a commit") + encode_record("path", b"x"), tarfile.XGLTYPE)
    ) == ["a/1.jpg"]


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (encode_record("SCHILY.xattr.x", bytes(2**20)), "the header of one member is 1,048,600 bytes"),
        (encode_record("path", b"n" * 2**17), "the name of one member is 131,072 bytes long"),
        (
            encode_record("GNU.sparse.major", b"1") + encode_record("GNU.sparse.minor", b"0"),
            "a member is a sparse file",
        ),
        (encode_record("GNU.sparse.map", b"1,2,3,4"), "a member is a sparse file"),
        (
            encode_record("GNU.sparse.size", b"9") + encode_record("GNU.sparse.offset", b"1"),
            "a member is a sparse file",
        ),
    ],
)
def test_a_tar_with_too_large_a_header_is_refused_but_not_called_damaged(tmp_path, header, why):
    with pytest.raises(PhotosError, match=f"this archive is refused: {why}") as refused:
        list_photos(tmp_path, make_pax_tar(header))
    assert "unpack it yourself" in (refused.value.advice or "")


def test_a_long_name_does_not_fill_the_memory(tmp_path):
    with pytest.raises(PhotosError, match="refused: the header of one member is 200,001 bytes"):
        list_photos(tmp_path, make_gzipped_tar([("n" * 200_000, encode_photo(0))]))


def encode_header(kind, size=b"%011o\0" % 0, more=b""):
    """Encode a header of the old GNU format with its checksum."""
    entry = tarfile.TarInfo("a/1.jpg")
    entry.type = kind
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[386 : 386 + len(more)] = size, more
    header[148:156] = b"%06o\0 " % sum(header[:148] + b" " * 8 + header[156:])
    return bytes(header)


def test_an_old_sparse_member_is_refused_before_its_map_is_read(tmp_path):
    pieces = b"%011o\0%011o\0" % (7, 9)
    # The map continues in the next block, and that one in the next.
    first = encode_header(tarfile.GNUTYPE_SPARSE, more=pieces * 4 + b"\1")
    with pytest.raises(PhotosError, match="refused: a member is a sparse file"):
        list_photos(tmp_path, gzip.compress(first + (pieces * 21 + b"\1" + bytes(7)) * 1000 + bytes(1024)))


@pytest.mark.parametrize(
    "header",
    [
        b"2 " * 1000 + b"=\n",
        b"9 path=x",
        b"99 path=x\n",
        b"8 path=x\n",
        b"path=x\n",
        encode_record("size", b"-1"),
        b"0 x=y\n",
    ],
)
def test_a_malformed_pax_header_is_called_damaged(tmp_path, header):
    good = gzip.decompress(make_gzipped_tar([("a/0.jpg", encode_photo(1))])).rstrip(b"\0")
    with pytest.raises(PhotosError, match="this archive is damaged"):
        list_photos(tmp_path, gzip.compress(good + bytes(-len(good) % 512) + gzip.decompress(make_pax_tar(header))))


@pytest.mark.parametrize(
    "headers",
    [
        # A negative size: tarfile would seek back and read it again.
        encode_header(tarfile.REGTYPE, b"\xff" * 11 + b"\0"),
        encode_header(tarfile.SYMTYPE, b"\xff" * 11 + b"\0"),
        encode_header(tarfile.REGTYPE, b"\x80" + b"\x7f" * 11),
        (encode_header(tarfile.GNUTYPE_LONGNAME, b"%011o\0" % 2) + b"a".ljust(512, b"\0"))
        * 3000,  # thousands of long names for one member
    ],
)
def test_malicious_headers_are_called_damaged(tmp_path, headers):
    good = gzip.decompress(make_gzipped_tar([("a/0.jpg", encode_photo(1))])).rstrip(b"\0")
    with pytest.raises(PhotosError, match="this archive is damaged"):
        list_photos(tmp_path, gzip.compress(good + bytes(-len(good) % 512) + headers + bytes(1024)))


def test_empty_files_and_folders_count_towards_the_unpacked_size(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MIN_UNPACK_BUDGET_BYTES", 2**18)
    names = [(f"{number}/" + "d/" * 40 + "x.jpg", b"") for number in range(40)]
    (tmp_path / "photos.tar.gz").write_bytes(make_gzipped_tar(names))
    with pytest.raises(PhotosError, match="expands to more than"):
        archive.unpack(tmp_path / "photos.tar.gz")
