"""Reading folders, archives and tables: every path is used, or set aside with a reason."""

import hashlib
import io
import os
import shutil
import socket
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.images import draw_image, encode_image, encode_photo, two_classes, write_files

from ikebana.data import pixel_cache, sources
from ikebana.data.dataset import SCHEMA, STATUS_UNOPENED, STATUS_USED
from ikebana.data.folder import is_hidden
from ikebana.errors import PhotosError


def open_source(source):
    """Read a dataset and open every photo, as `fit` does."""
    return pixel_cache.open_pixel_cache(sources.read(source), 8, "squash")[0]


def list_labels(dataset):
    """{path: label} of the photos that are not set aside."""
    rows = dataset.photos.filter(pl.col("status").is_in([STATUS_UNOPENED, STATUS_USED])).select("path", "label")
    return dict(rows.iter_rows())


def list_statuses(dataset):
    return dict(dataset.photos.select("path", "status").iter_rows())


def list_splits(dataset):
    return dict(dataset.photos.select("path", "split").iter_rows())


def get_refusal(source, **choices):
    with pytest.raises(PhotosError) as refused:
        sources.read(source, **choices)
    return refused.value


def describe_tree(folder):
    """Describe everything that a program might change: names, types, contents and times."""
    described = {}
    for place in sorted(folder.rglob("*")):
        file_status = place.lstat()
        content = hashlib.sha256(place.read_bytes()).hexdigest() if place.is_file() else None
        described[str(place.relative_to(folder))] = (
            file_status.st_mode,
            file_status.st_mtime_ns,
            file_status.st_ctime_ns,
            content,
        )
    return described


# Folders


def test_a_sub_folder_is_a_class(tmp_path):
    dataset = sources.read(write_files(tmp_path, two_classes()))
    assert dataset.classes == ("a", "b")
    assert list_labels(dataset) == {f"{name}/{number}.jpg": name for name in "ab" for number in range(3)}
    assert dataset.photos.schema == pl.Schema(SCHEMA)
    assert dataset.photos["path"].is_sorted()


def test_folders_within_a_class_belong_to_the_class(tmp_path):
    write_files(tmp_path, {**two_classes(), "a/garden/may/9.jpg": encode_photo(9)})
    assert list_labels(sources.read(tmp_path))["a/garden/may/9.jpg"] == "a"


PART_FOLDERS = [
    ("train", "validation", "test"), ("train", "val", "test"), ("Train", "Valid", "Test"),
    ("TRAINING", "VAL", "TEST"), ("train", None, "test"), ("train", "val", None),
]  # fmt: skip


@pytest.mark.parametrize("names", PART_FOLDERS)
@pytest.mark.parametrize("wrapped", ["", "flowers/", "download/flowers/"])
def test_given_splits_are_recognised_in_every_spelling(tmp_path, names, wrapped):
    meant = {name: part for name, part in zip(names, ("train", "validation", "test"), strict=True) if name}
    write_files(tmp_path, {f"{wrapped}{name}/{file}": data for name in meant for file, data in two_classes().items()})
    dataset = sources.read(tmp_path)
    assert dataset.classes == ("a", "b")
    assert list_splits(dataset) == {
        f"{wrapped}{name}/{file}": part for name, part in meant.items() for file in two_classes()
    }
    assert bool(dataset.notes) == bool(wrapped)


def test_two_folders_for_one_split_are_refused(tmp_path):
    write_files(
        tmp_path, {f"{name}/{file}": data for name in ("train", "val", "valid") for file, data in two_classes().items()}
    )
    assert "val, valid" in get_refusal(tmp_path).what


def test_a_class_may_be_called_train(tmp_path):
    write_files(
        tmp_path,
        {f"{name}/{number}.jpg": encode_photo(number) for name in ("bus", "train", "tram") for number in range(2)},
    )
    dataset = sources.read(tmp_path)
    assert dataset.classes == ("bus", "train", "tram")
    assert set(list_splits(dataset).values()) == {None}


def test_folders_named_train_and_test_beside_other_classes_are_classes(tmp_path):
    files = ("train/steam/1.jpg", "train/electric/2.jpg", "test/blood/3.jpg", "bus/red/4.jpg")
    dataset = sources.read(write_files(tmp_path, {name: encode_photo(row) for row, name in enumerate(files)}))
    assert dataset.classes == ("bus", "test", "train")


def test_folders_next_to_the_splits_are_skipped_and_reported(tmp_path):
    write_files(
        tmp_path, {f"{part}/{file}": data for part in ("train", "test") for file, data in two_classes().items()}
    )
    write_files(
        tmp_path, {"models/old/graph.jpg": encode_photo(50), "notes.txt": b"hello", "train/lost.jpg": encode_photo(51)}
    )
    dataset = sources.read(tmp_path)
    assert dataset.classes == ("a", "b")
    assert list_statuses(dataset)["models/old/graph.jpg"] == "outside test, train"
    assert list_statuses(dataset)["notes.txt"] == list_statuses(dataset)["train/lost.jpg"] == "outside any class folder"
    assert any("models" in note for note in dataset.notes)


@pytest.mark.parametrize("depth", ["flowers", "download/flowers"])
def test_a_wrapper_folder_is_entered_even_with_a_readme_in_it(tmp_path, depth):
    write_files(tmp_path, {f"{depth}/{file}": data for file, data in two_classes().items()})
    write_files(tmp_path, {"README.md": b"who made it", ".DS_Store": b"x"})
    dataset = sources.read(tmp_path)
    assert dataset.classes == ("a", "b")
    assert dataset.root == tmp_path
    assert list_statuses(dataset)["README.md"] == "outside any class folder"
    assert depth in dataset.notes[0]


HIDDEN = [
    ".DS_Store",
    "a/._0.jpg",
    "a/Thumbs.db",
    "b/desktop.ini",
    "__MACOSX/a/._0.jpg",
    "a/.trash/old.jpg",
    "b/@eaDir/x.jpg",
    "#recycle/x.jpg",
    "lost+found/x.jpg",
    "System Volume Information/x.jpg",
    "RECYCLER/x.jpg",
    "Network Trash Folder/x.jpg",
    ".Trash-1000/x.jpg",
]


def test_hidden_and_system_files_are_skipped_and_counted(tmp_path):
    dataset = sources.read(write_files(tmp_path, {**two_classes(), **dict.fromkeys(HIDDEN, b"x")}))
    assert list_labels(dataset).keys() == two_classes().keys()
    assert dataset.photos.height == 6
    assert dataset.ignored_count == len(HIDDEN)


NAMES = {
    "with blank.jpg": "JPEG", "Blüte été 花 (1).jpeg": "JPEG", "UPPER.JPG": "JPEG", "a jpeg.png": "JPEG",
    "a png.jpg": "PNG", "no extension": "WEBP", "percent%20!.jpg": "JPEG", "semi;colon,comma.jpg": "JPEG",
    "quote'\".jpg": "JPEG", "line\nbreak.jpg": "JPEG", "-rf.jpg": "JPEG", "a photo.txt": "GIF", "*.jpg": "JPEG",
}  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no such names")
def test_a_photo_is_recognised_by_content_and_not_by_name(tmp_path):
    write_files(tmp_path, {f"Rose 🌹 x/{name}": encode_image(draw_image(16, 3), kind) for name, kind in NAMES.items()})
    write_files(tmp_path, {"b/readme.txt": b"not a photo", "b/1.jpg": encode_photo(1)})
    dataset = open_source(tmp_path)
    assert list_labels(dataset) == {**{f"Rose 🌹 x/{name}": "Rose 🌹 x" for name in NAMES}, "b/1.jpg": "b"}
    assert list_statuses(dataset)["b/readme.txt"] == "not a photo: text"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_not_utf8_is_set_aside_with_an_escaped_name(tmp_path):
    write_files(tmp_path, two_classes())
    for name in (b"a/caf\xe9.jpg", b"ros\xe9/1.jpg"):
        place = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        Path(os.fsdecode(place)).write_bytes(encode_photo(1))
    os.mkdir(os.path.join(os.fsencode(tmp_path), b"empty\xff"))
    dataset = open_source(tmp_path)
    assert "not valid Unicode" in list_statuses(dataset)["a/caf\\xe9.jpg"]
    assert "not valid Unicode" in list_statuses(dataset)["ros\\xe9/1.jpg"]
    assert dataset.classes == ("a", "b")
    assert dataset.empty_classes == ("empty\\xff", "ros\\xe9")
    str(dataset.empty_classes).encode()  # can be printed and written


def test_links_are_followed_once_and_loops_are_reported(tmp_path):
    photos = write_files(tmp_path / "photos", two_classes())
    elsewhere = write_files(tmp_path / "elsewhere", {"1.jpg": encode_photo(7), "deep/2.jpg": encode_photo(8)})
    (photos / "c").symlink_to(elsewhere)
    (photos / "a" / "alias.jpg").symlink_to(photos / "b" / "0.jpg")
    (photos / "a" / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    (photos / "a" / "itself.jpg").symlink_to(photos / "a" / "itself.jpg")
    (photos / "a" / "loop").symlink_to(photos)
    (photos / "a" / "above").symlink_to(tmp_path)
    (photos / "a" / "again").symlink_to(photos / "b")
    dataset = open_source(photos)
    assert list_labels(dataset) == {
        **{f"{name}/{number}.jpg": name for name in "ab" for number in range(3)},
        "a/alias.jpg": "a", "c/1.jpg": "c", "c/deep/2.jpg": "c",
    }  # fmt: skip
    statuses = list_statuses(dataset)
    assert statuses["a/broken.jpg"] == "a broken symbolic link"
    assert statuses["a/itself.jpg"].startswith("unreadable")
    assert {statuses[f"a/{name}"] for name in ("loop", "above", "again")} == {
        "a folder that was already scanned under another name"
    }
    assert dataset.used_photos.height + dataset.set_aside_photos.height == 14


def test_a_linked_class_never_replaces_the_folder_it_points_to(tmp_path):
    write_files(
        tmp_path, {f"{name}/{number}.jpg": encode_photo(number) for name in ("rose", "tulip") for number in range(2)}
    )
    (tmp_path / "also_rose").symlink_to(tmp_path / "rose")
    dataset = sources.read(tmp_path)
    assert dataset.classes == ("rose", "tulip")
    assert "also_rose" in list_statuses(dataset)


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes among files there")
def test_pipes_and_sockets_are_reported_without_blocking(tmp_path):
    write_files(tmp_path, two_classes())
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "a" / "socket.jpg"))
        results: list[dict[str, str]] = []
        thread = threading.Thread(target=lambda: results.append(list_statuses(open_source(tmp_path))), daemon=True)
        thread.start()
        thread.join(20)
    assert not thread.is_alive(), "it waits for a pipe"
    assert results[0]["a/pipe.jpg"] == results[0]["a/socket.jpg"] == "not a regular file"
    os.mkfifo(tmp_path / "table.csv")
    assert "regular file" in get_refusal(tmp_path / "table.csv").what


@pytest.mark.skipif(sys.platform != "linux", reason="/proc has files that not even root can read")
def test_a_file_that_cannot_be_read_is_set_aside_with_the_system_error(tmp_path):
    write_files(tmp_path, two_classes())
    (tmp_path / "a" / "broken disk.jpg").symlink_to("/proc/self/mem")
    assert list_statuses(open_source(tmp_path))["a/broken disk.jpg"] == "unreadable: Input/output error"


def test_a_photo_deleted_between_scan_and_opening_is_set_aside(tmp_path):
    dataset = sources.read(write_files(tmp_path, two_classes()))
    (tmp_path / "a" / "0.jpg").unlink()
    assert list_statuses(pixel_cache.open_pixel_cache(dataset, 8, "squash")[0])["a/0.jpg"].startswith(
        "unreadable: No such file"
    )


def test_a_file_larger_than_any_photo_is_not_read(tmp_path):
    write_files(tmp_path, two_classes())
    with (tmp_path / "a" / "film.jpg").open("wb") as stream:
        stream.truncate(2**40)  # a sparse file: it needs no space
    assert list_statuses(open_source(tmp_path))["a/film.jpg"].startswith("too large")


def test_empty_files_and_empty_classes_are_reported(tmp_path):
    write_files(tmp_path, {**two_classes(), "a/empty.jpg": b"", "c/broken.jpg": b"", "d/.hidden": b""})
    (tmp_path / "e").mkdir()
    dataset = open_source(tmp_path)
    assert list_statuses(dataset)["a/empty.jpg"] == "empty file"
    dataset = sources.assign_classes(dataset, ())
    assert dataset.classes == ("a", "b")
    assert dataset.empty_classes == ("c", "d", "e")


def test_a_class_of_one_photo_is_a_class(tmp_path):
    assert sources.read(write_files(tmp_path, {"a/1.jpg": encode_photo(1), "b/2.jpg": encode_photo(2)})).classes == (
        "a",
        "b",
    )


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no photos found"), ({"1.jpg": b"x"}, "1 of 1 paths were skipped (outside any class folder)"),
        ({"a/.hidden": b"", "b/.hidden": b""}, "no photos found"), ({"a/1.jpg": b"x"}, "only one class has photos: a"),
        ({"a/1.jpg": b"x", "b/.hidden": b""}, "only one class has photos: a"),
    ],
)  # fmt: skip
def test_a_folder_without_two_classes_is_refused_with_the_reason(tmp_path, files, words):
    refused = get_refusal(write_files(tmp_path / "photos", files))
    assert words in refused.what
    assert (refused.where, STATUS_UNOPENED in refused.what) == (str(tmp_path / "photos"), False)
    assert refused.advice


def test_a_folder_that_holds_only_archives_is_refused_with_their_names(tmp_path):
    refused = get_refusal(write_files(tmp_path, {"daisy.zip": b"PK", "rose.zip": b"PK", "README.txt": b"two classes"}))
    assert refused.what == "this folder contains only archives: daisy.zip, rose.zip"
    assert "unpack them into one folder per class" in str(refused.advice)


@pytest.mark.parametrize("folder", ["", "flowers/"])
def test_a_folder_of_photos_beside_a_table_is_refused_with_the_path_of_the_table(tmp_path, folder):
    files = {f"{folder}images/{name.replace('/', '')}": data for name, data in two_classes().items()}
    refused = get_refusal(write_files(tmp_path / "photos", files | {f"{folder}labels.csv": b"path,label"}))
    assert str(tmp_path / "photos" / folder / "labels.csv") in str(refused.advice)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "photos")
    assert str(get_refusal(archive).advice).endswith(f"unpack the archive and give the table: {folder}labels.csv")


def test_if_no_photo_can_be_read_the_most_common_reason_is_given(tmp_path):
    dataset = open_source(write_files(tmp_path, {"a/1.jpg": b"text", "a/2.jpg": b"text", "b/1.jpg": b""}))
    with pytest.raises(PhotosError, match=r"2 of 3 paths were skipped \(not a photo: text\)"):
        sources.assign_classes(dataset, ())


def test_a_single_class_is_refused_with_the_reason_why_the_other_has_no_photos(tmp_path):
    with pytest.raises(PhotosError, match=r"only one class has photos: a; 1 of 2 .*not a photo: text"):
        sources.assign_classes(open_source(write_files(tmp_path, {"a/1.jpg": encode_photo(0), "b/1.jpg": b"text"})), ())


def test_a_missing_folder_is_refused_with_a_similar_name(tmp_path):
    write_files(tmp_path, {"flowers/a/1.jpg": b"x"})
    refused = get_refusal(tmp_path / "flowres")
    assert "no such folder" in refused.what
    assert refused.advice == str(tmp_path / "flowers")
    assert str(tmp_path) not in str(get_refusal(tmp_path / "something else").advice)  # no file there has a similar name
    assert "not a folder, an archive or a table" in get_refusal(tmp_path / "flowers/a/1.jpg").what


def test_a_class_order_that_names_each_class_once_is_used(tmp_path):
    write_files(tmp_path, two_classes())
    assert sources.read(tmp_path, ("b", "a")).classes == ("b", "a")
    for wrong in (("b",), ("a", "b", "c"), ("a", "a", "b"), ("A", "b")):
        refused = get_refusal(tmp_path, class_order=wrong)
        assert "a, b" in refused.what
        assert "c" not in wrong or "c" in refused.what


def test_the_users_files_are_never_changed(tmp_path):
    photos = write_files(tmp_path / "photos", {**two_classes(), "a/broken.jpg": b"x", "c/.hidden": b""})
    (photos / "a" / "alias.jpg").symlink_to(photos / "b" / "0.jpg")
    with zipfile.ZipFile(photos / "packed.zip", "w") as archive:
        archive.writestr("a/1.jpg", encode_photo(1))
        archive.writestr("b/1.jpg", encode_photo(2))
    (photos / "table.csv").write_text("path,label\na/0.jpg,x\nb/0.jpg,y\n")
    for place in [*photos.rglob("*"), photos]:
        if not place.is_symlink():
            place.chmod(0o555 if place.is_dir() else 0o444)  # root may still write, so the tree is compared too
    before = describe_tree(photos)
    for source in (photos, photos / "packed.zip", photos / "table.csv"):
        assert open_source(source).used_photos.height >= 2
    assert describe_tree(photos) == before


PIECES = ["a", "b", "train", "test", "val", ".git", "Thumbs.db", "é", "x y", "1.jpg", "2.JPG", "__MACOSX"]


@pytest.mark.slow
@given(
    st.dictionaries(
        st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("/".join), st.integers(0, 2), max_size=12
    )
)
@settings(max_examples=60)
def test_in_any_tree_every_visible_file_has_exactly_one_row(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("tree")
    contents = (encode_photo(1), b"", b"text")
    for name, kind in files.items():
        if not any(name.startswith(f"{other}/") or other.startswith(f"{name}/") for other in files):
            write_files(folder, {name: contents[kind]})
    there = {place.relative_to(folder).as_posix() for place in folder.rglob("*") if place.is_file()}
    visible = sorted(name for name in there if not any(is_hidden(piece) for piece in name.split("/")))
    try:
        dataset = sources.read(folder)
    except PhotosError:
        return
    dataset = pixel_cache.open_pixel_cache(dataset, 8, "squash")[0]
    assert dataset.photos["path"].to_list() == visible
    assert dataset.used_photos.height + dataset.set_aside_photos.height == len(visible)
    assert all((folder / path).read_bytes() == contents[0] for path in dataset.used_photos["path"])
    assert all(label in path.split("/") for path, label in list_labels(dataset).items())


# Archives of the same trees


def make_zip_of(files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def make_tar_of(files, mode):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


PACKED = {
    "photos.zip": make_zip_of,
    "photos.tar": lambda files: make_tar_of(files, "w:"),
    "photos.tar.gz": lambda files: make_tar_of(files, "w:gz"),
    "photos.tgz": lambda files: make_tar_of(files, "w:gz"),
    "Photos.TAR.BZ2": lambda files: make_tar_of(files, "w:bz2"),
    "photos.tar.xz": lambda files: make_tar_of(files, "w:xz"),
}
TREES = {
    "classes": {**two_classes(), "a/broken.jpg": b"x", "a/.hidden": b"x"},
    "parts": {f"{part}/{file}": data for part in ("train", "val", "test") for file, data in two_classes().items()},
    "wrapped": {**{f"Blüten été/{file}": data for file, data in two_classes().items()}, "LICENSE": b"free"},
}


@pytest.mark.parametrize("shape", TREES)
@pytest.mark.parametrize("name", PACKED)
def test_an_archive_of_a_folder_is_read_like_the_folder(tmp_path, name, shape):
    (tmp_path / name).write_bytes(PACKED[name](TREES[shape]))
    packed, plain = open_source(tmp_path / name), open_source(write_files(tmp_path / "plain", TREES[shape]))
    assert packed.photos["path"].to_list() == [f"{name}!{path}" for path in plain.photos["path"]]
    columns = ["label", "split", "status", "sha256", "bytes", "width", "height"]
    assert packed.photos.select(columns).equals(plain.photos.select(columns))
    assert (packed.classes, packed.ignored_count) == (plain.classes, plain.ignored_count)
    assert packed.source == str(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()].count(name) == 1


def test_a_missing_folder_is_never_confused_with_an_unrelated_file_or_a_folder_without_folders(tmp_path):
    write_files(tmp_path, {"foto.err": b"x", "fotos2/1.jpg": b"x", "photos/a/1.jpg": b"x"})
    assert get_refusal(tmp_path / "foto").advice == str(tmp_path / "photos")


def test_a_folder_of_unlabelled_photos_is_not_taken_for_a_class_of_the_folder_above(tmp_path):
    write_files(tmp_path, {"new/1.jpg": b"x", "audit/index.html": b"x", "photos/a/1.jpg": b"x"})
    with pytest.raises(PhotosError) as refusal:
        sources.assign_classes(sources.read(tmp_path / "new"), ())
    assert "did you mean" not in str(refusal.value)


def test_the_folder_of_one_class_is_refused_with_the_folder_above_it(tmp_path):
    folder = write_files(tmp_path / "photos", {f"{name}/{number}.jpg": b"x" for name in "ab" for number in range(3)})
    with pytest.raises(PhotosError, match="folder of one class") as refusal:
        sources.read(folder / "a")
    assert refusal.value.advice == f"did you mean {folder}?"


RUN = {f"{name}.json": b"{}" for name in ("recipe", "source", "environment")}
DEMO = {f"run/{name}": data for name, data in RUN.items()} | {"photos/a/1.jpg": b"x", "new/1.jpg": b"x"}
IMAGES = {"thumbnails/a/1.jpg": b"x", "figures/b/2.png": b"x"}


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (RUN | IMAGES, "a run"),
        ({f"quick/{name}": data for name, data in (RUN | IMAGES).items()}, "a folder of runs"),
        (DEMO, "the folder of a demo"),
        (IMAGES | dict.fromkeys(("index.html", "model.json", "model.onnx", "page.js"), b""), "an exported web page"),
        (IMAGES | dict.fromkeys(("index.html", "audit.json", "findings.csv"), b""), "the report of an audit"),
    ],
)  # fmt: skip
def test_a_folder_written_by_ikebana_is_not_read_as_photos(files, kind, tmp_path):
    folder = write_files(tmp_path / "given", files)
    with pytest.raises(PhotosError, match=f"this is {kind}, not a photo collection"):
        sources.read(folder)


def test_a_run_given_as_photos_is_refused_with_the_path_of_its_photos(tmp_path):
    run = write_files(tmp_path / "run", RUN | {"source.json": b'{"photos": "/data/flowers"}'})
    with pytest.raises(PhotosError) as refusal:
        sources.read(run)
    assert refusal.value.advice == "the photos of this run are in /data/flowers"
