"""Folders, tables and archives in unusual states, and damage on disk."""

import shutil

import pytest
from support.images import encode_photo, two_classes, write_files

from ikebana.data import sources
from ikebana.errors import PhotosError


def status(dataset):
    return dict(dataset.photos.select("path", "status").iter_rows())


def test_a_file_next_to_the_folder_of_classes_is_not_a_class(tmp_path):
    files = {f"outer/inner/{name}": data for name, data in two_classes().items()}
    dataset = sources.read(
        write_files(tmp_path, files | {"outer/cover.jpg": encode_photo(9), "outer/README.txt": b"x"})
    )
    assert dataset.classes == ("a", "b")
    assert status(dataset)["outer/cover.jpg"] == status(dataset)["outer/README.txt"] == "outside any class folder"


def test_an_empty_path_is_not_the_working_directory():
    with pytest.raises(PhotosError, match="empty path"):
        sources.read("")


def test_repeated_rows_are_counted(tmp_path):
    write_files(tmp_path, two_classes())
    lines = [f"{name},{name[0]}" for name in two_classes()]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *lines, *lines[:3]]) + "\n")
    dataset = sources.read(tmp_path / "t.csv")
    assert dataset.photos.height == len(lines)
    assert any(note.startswith("3 rows") for note in dataset.notes)


def flip_byte(photo):
    photo.write_bytes(bytes([photo.read_bytes()[0] ^ 1]) + photo.read_bytes()[1:])


DAMAGES = (
    flip_byte, lambda photo: photo.unlink(), lambda photo: photo.write_bytes(b""),
    lambda photo: photo.rename(photo.with_name("other.jpg")), lambda photo: shutil.rmtree(photo.parent.parent),
    lambda photo: photo.with_name("other.jpg").write_bytes(photo.read_bytes()),
)  # fmt: skip


@pytest.mark.parametrize("spoil", DAMAGES)
def test_photos_that_were_changed_after_unpacking_are_not_trusted(tmp_path, ikebana_cache, spoil):
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", write_files(tmp_path / "in", two_classes()))
    first = status(sources.read(archive))
    (folder,) = ikebana_cache.rglob("photos")
    before = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.jpg")}
    spoil(folder / min(before))
    assert status(sources.read(archive)) == first
    assert {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.jpg")} == before
