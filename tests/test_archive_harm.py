"""Archives made to do harm: outside of their folder, to the memory, to the disk."""

import io
import tarfile

import pytest
from conftest import photo

from ikebana.errors import PhotosError
from ikebana.photos import archive


def gzipped_tar(members):
    """A .tar.gz of (name, bytes); None for a folder."""
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
def test_no_name_leads_out_on_any_system(name):
    path = archive._path(name)
    problem = archive._no_path(name, path)
    assert problem == "its path leads out of the archive"


@pytest.mark.parametrize("name", ["a/12:30.jpg", "rose: red/1.jpg", "./a//b.jpg"])
def test_names_that_lead_nowhere_else_are_no_problem(name):
    assert archive._no_path(name, archive._path(name)) is None


def test_a_member_that_lies_too_deep_stays_packed_and_the_others_do_not(tmp_path):
    deep = "d/" * 1500 + "x.jpg"
    (tmp_path / "photos.tar.gz").write_bytes(
        gzipped_tar([("a/1.jpg", photo(0)), (deep, photo(1)), ("a/2.jpg", photo(2))])
    )
    found = archive.unpack(tmp_path / "photos.tar.gz")
    assert [each.status for each in found.set_aside] == ["it lies too deep"]
    assert sorted(each.name for each in found.folder.rglob("*.jpg")) == ["1.jpg", "2.jpg"]


def test_what_is_said_of_a_member_does_not_fill_the_memory(tmp_path):
    (tmp_path / "photos.tar.gz").write_bytes(gzipped_tar([("n" * 200_000, photo(0))]))
    with pytest.raises(PhotosError, match="bytes are said of one member"):
        archive.unpack(tmp_path / "photos.tar.gz")


def test_files_and_folders_cost_room_even_if_nothing_is_in_them(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "ALWAYS_ALLOWED", 2**18)
    names = [(f"{number}/" + "d/" * 40 + "x.jpg", b"") for number in range(40)]
    (tmp_path / "photos.tar.gz").write_bytes(gzipped_tar(names))
    with pytest.raises(PhotosError, match="grows to more than"):
        archive.unpack(tmp_path / "photos.tar.gz")
