"""Folder layouts of public data sets: read as intended, or refused with both readings."""

import contextlib
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.images import encode_photo, write_files

from ikebana.auditing import dataset_checks
from ikebana.data import sources
from ikebana.data.dataset import STATUS_UNOPENED
from ikebana.errors import PhotosError


def make_photos(*folders: str, count: int = 2) -> dict[str, bytes]:
    """Make `count` different files in each folder.

    They are not opened here, so they need not be photos.
    """
    return {f"{folder}/{number}.jpg": f"{folder} {number}".encode() for folder in folders for number in range(count)}


def make_classes(*folders: str) -> dict[str, bytes]:
    return make_photos(*(f"{folder}/{name}" for folder in folders for name in ("daisy", "rose")))


def read(folder):
    """Return the dataset, and {(label, split)} of its photos."""
    dataset = sources.read(folder)
    return dataset, set(dataset.photos.filter(status=STATUS_UNOPENED).select("label", "split").iter_rows())


def list_pairs(*splits):
    return {(name, split) for name in ("daisy", "rose") for split in splits}


def get_refusal(folder) -> PhotosError:
    with pytest.raises(PhotosError) as error:
        sources.read(folder)
    assert str(folder) in str(error.value.where)
    assert error.value.advice
    return error.value


def count_used(dataset) -> int:
    return dataset.photos.filter(status=STATUS_UNOPENED).height


# Splits

SPLIT_FOLDERS = [
    {"Training": "train", "Testing": "test"},
    {"seg_train": "train", "seg_test": "test"},
    {"training_set": "train", "test_set": "test"},
    {"trainset": "train", "validset": "validation", "testset": "test"},
    {"train_images": "train", "val_images": "validation", "test_images": "test"},
    {"images-train": "train", "images-test": "test"},
    {"01_train": "train", "02_val": "validation", "03_test": "test"},
    {"1. Train": "train", "2. Test": "test"},
    {"trainData": "train", "testData": "test"},
    {"flowers_train": "train", "flowers_test": "test"},
    {"train2017": "train", "val2017": "validation"},
    {"train": "train", "dev": "validation", "test": "test"},
    {"train": "train", "eval": "validation"},
    {"train": "train", "eval": "validation", "test": "test"},
    {"train": "train", "val": "validation", "eval": "test"},
    {"train": "train", "holdout": "test"},
    {"trainval": "train", "test": "test"},
    {"train_val": "train", "test": "test"},
    {"train_sep": "train", "valid": "validation", "test": "test"},
    {"train": "train", "val": "validation", "test_set": "test"},
]


@pytest.mark.parametrize("names", SPLIT_FOLDERS, ids="+".join)
@pytest.mark.parametrize("wrapper", ["", "download/"])
def test_split_folders_are_recognised_in_the_spellings_of_public_data_sets(tmp_path, names, wrapper):
    dataset, labels = read(write_files(tmp_path, make_classes(*(wrapper + name for name in names))))
    assert labels == list_pairs(*names.values())
    by_folder = {
        (path.removeprefix(wrapper).split("/")[0], split)
        for path, split in dataset.photos.select("path", "split").iter_rows()
    }
    assert by_folder == set(names.items())


SPLITS_IN_WRAPPERS = [
    ("seg_train/seg_train", "seg_test/seg_test"),
    ("train/train", "test/test"),
    ("train/images", "test/images"),
    ("images/train", "images/test"),
    ("flowers/data/train", "flowers/data/test"),
]


@pytest.mark.parametrize("folders", SPLITS_IN_WRAPPERS)
@pytest.mark.parametrize(
    "beside", [(), ("README.md", "notebooks/train.ipynb", "labels/train/0.txt", "Annotations/0.xml")]
)
def test_split_folders_are_found_around_and_within_wrapper_folders(tmp_path, folders, beside):
    dataset, labels = read(write_files(tmp_path, make_classes(*folders) | dict.fromkeys(beside, b"text")))
    assert labels == list_pairs("train", "test")
    assert count_used(dataset) == 8


def test_photos_to_predict_beside_the_splits_are_not_used_and_reported(tmp_path):
    files = make_classes("seg_train/seg_train", "seg_test/seg_test") | make_photos("seg_pred/seg_pred")
    dataset, labels = read(write_files(tmp_path, files))
    assert labels == list_pairs("train", "test")
    assert any("seg_pred" in note and "not used" in note for note in dataset.notes)


@pytest.mark.parametrize("folder", ["test", "test/test", "test/unlabelled", "test/images"])
def test_a_test_folder_without_classes_holds_unlabelled_photos(tmp_path, folder):
    dataset, labels = read(write_files(tmp_path, make_classes("train") | make_photos(folder)))
    assert labels == list_pairs(None)
    statuses = dict(dataset.photos.select("path", "status").iter_rows())
    assert statuses[f"{folder}/0.jpg"] == "no label: test/ has no class folders"
    assert any("test/ has no class folders" in note for note in dataset.notes)


def test_a_test_folder_without_classes_does_not_change_a_given_validation_split(tmp_path):
    _, labels = read(write_files(tmp_path, make_classes("train", "val") | make_photos("test")))
    assert labels == list_pairs("train", "validation")


def test_the_same_splits_in_every_class_are_the_splits(tmp_path):
    files = make_photos(*(f"{name}/{split}" for name in ("daisy", "rose") for split in ("train", "val", "test")))
    dataset, labels = read(
        write_files(tmp_path, files | make_photos("daisy/train/plant 7") | {"daisy/lost.jpg": b"lost"})
    )
    assert labels == list_pairs("train", "validation", "test")
    assert dict(dataset.photos.select("path", "status").iter_rows())["daisy/lost.jpg"] == "outside test, train, val"


def test_splits_in_one_class_only_are_refused_with_both_readings(tmp_path):
    error = get_refusal(write_files(tmp_path, make_photos("daisy/train", "daisy/test", "rose")))
    assert "splits of a class, or groups" in error.what


NO_CLASS_FOLDERS = [
    make_photos("train", "test"),
    make_photos("Training", "Testing"),
    make_photos("train", "valid", "test"),
    make_photos("train") | make_classes("test"),
    make_photos("train/images", "test/images"),
]


@pytest.mark.parametrize("files", NO_CLASS_FOLDERS)
def test_split_folders_without_class_folders_are_refused(tmp_path, files):
    error = get_refusal(write_files(tmp_path, files))
    assert "look like splits" in error.what
    assert "if the folders are classes" in str(error.advice)


DETECTION = [
    make_photos("images") | {"labels/0.txt": b"0 0.5 0.5 1 1"},
    make_photos("images/train", "images/val") | {"labels/train/0.txt": b"0 0.5 0.5 1 1"},
    make_photos("train/images", "valid/images")
    | {"train/labels/0.txt": b"0", "valid/labels/0.txt": b"0", "data.yaml": b"nc: 2"},
    make_photos("train2017", "val2017") | {"annotations/instances.json": b"{}"},
    make_photos("train", "valid") | {"train/_annotations.coco.json": b"{}", "valid/_annotations.coco.json": b"{}"},
    make_photos("train", "valid") | {"train/0.xml": b"<annotation/>"},
    make_photos("VOC/JPEGImages", "VOC/SegmentationClass")
    | {"VOC/Annotations/0.xml": b"", "VOC/ImageSets/Main/a.txt": b""},
    make_photos("images", "masks"),
]


@pytest.mark.parametrize("files", DETECTION)
def test_data_sets_for_detection_and_segmentation_are_refused_by_name(tmp_path, files):
    error = get_refusal(write_files(tmp_path, files))
    assert "object detection or segmentation" in error.what


def test_annotations_beside_images_in_class_folders_are_not_a_class(tmp_path):
    files = make_classes("images/Images") | {"annotations/Annotation/daisy/0": b"<annotation/>"}
    dataset, labels = read(write_files(tmp_path, files))
    assert labels == list_pairs(None)
    assert "annotations/" in dataset.notes[0]


AMBIGUOUS = [
    make_photos("train", "test", "bus"),
    make_photos("train/steam", "train/electric", "test", "bus"),
    make_classes("train") | make_photos("test/test", "sample/sample"),
    make_photos("val", "test"),
    make_classes("val", "test"),
    make_classes("training", "public_test", "private_test"),
    make_classes("fold1", "fold2", "fold3", "fold4", "fold5"),
    make_photos("fold_1", "fold_2"),
    make_classes("part 1", "part 2"),
    make_classes("first/train", "first/test", "second/train", "second/test"),
    make_classes("flowers/train", "flowers/test") | make_photos("scans"),
]


@pytest.mark.parametrize("files", AMBIGUOUS)
def test_ambiguous_folders_are_refused_with_a_way_to_declare_them_classes(tmp_path, files):
    error = get_refusal(write_files(tmp_path, files))
    assert "classes" in error.what + str(error.advice)
    assert "rename" in str(error.advice)


def test_an_archive_is_refused_by_its_file_name(tmp_path):
    archive = shutil.make_archive(
        str(tmp_path / "photos"), "zip", write_files(tmp_path / "in", make_photos("train", "test"))
    )
    assert get_refusal(archive).where == archive


CLASSES = [
    ("bus", "train", "tram"),
    ("bus", "tram", "trains"),
    ("express_train", "freight_train", "tram"),
    ("train_station", "test_tube"),
    ("express_train", "public_test", "private_test"),
    ("bus", "test"),
    ("positive_test", "negative_test"),
    ("with_mask", "without_mask"),
    ("valid", "invalid"),
    ("part_1", "part_2"),
    ("0", "1", "2"),
    ("type (1)", "type (2)"),
    ("original", "copy"),
    ("images", "drawings"),
    ("mask", "no_mask"),
]


@pytest.mark.parametrize("names", CLASSES)
@pytest.mark.parametrize("inner", ["", "/morning"])
def test_class_names_that_look_like_splits_are_kept(tmp_path, names, inner):
    dataset, labels = read(write_files(tmp_path, make_photos(*(name + inner for name in names))))
    assert labels == {(name, None) for name in names}
    assert dataset.classes == tuple(sorted(names))


DOUBTFUL = [
    (make_photos("daisy", "rose", "test"), "test/ is read as a class"),
    (make_photos("daisy", "rose", "masks"), "masks/ is read as a class"),
    (make_photos("daisy", "rose", "predictions"), "predictions/ is read as a class"),
    (
        make_classes("dataset") | make_photos("new photos of May"),
        "dataset/ is read as a class with the folders daisy, rose",
    ),
    (make_photos("images_part_1", "images_part_2"), "differ only in a number"),
    (make_classes("color", "grayscale"), "all have the folders daisy, rose"),
    (make_photos("daisy", "rose", "rose/daisy", "tulip"), "rose/ has a folder daisy, named like another class"),
    (
        make_photos("anna/daisy", "anna/rose", "bob/daisy", "bob/tulip"),
        "anna/, bob/ are read as classes, and share the",
    ),
    (make_photos("jpg/daisy", "jpg/rose", "png/daisy"), "share the folders daisy"),
    (make_photos("2023-05-01/daisy", "2023-05-01/rose", "2023-05-02/daisy", "old"), "share the folders daisy"),
    (make_classes("a/train", "b/test"), "a/, b/ are read as classes, and share the folders daisy, rose"),
    (make_classes("a/data") | make_photos("b/data/rose"), "share the folders rose"),
    (make_photos("daisy-1/daisy", "daisy-2/daisy", "rose-1/rose"), "daisy-1/, daisy-2/ are read as classes"),
    *((make_photos("daisy", "rose", name), f"{name}/ is read as a class") for name in ("Thumbs", "_trash", "backup")),
    *((make_photos("daisy", "rose", name), f"{name}/ is read as a class") for name in ("New folder (2)", "unsorted")),
    (
        make_photos("daisy-20240101T101010Z-001", "rose"),
        "daisy-20240101T101010Z-001/ is named like parts of a download",
    ),
]


@pytest.mark.parametrize(("files", "evidence"), DOUBTFUL)
def test_folders_that_may_not_be_classes_are_used_and_reported(tmp_path, files, evidence):
    dataset, labels = read(write_files(tmp_path, files))
    assert {name for name, _ in labels} == {path.split("/")[0] for path in files}
    ((reported, advice),) = dataset.doubts
    assert evidence in reported
    assert any(word in advice for word in ("move", "table", "give"))
    findings = dataset_checks.check_dataset(dataset)
    assert (findings[0].kind, findings[0].severity, findings[0].evidence) == ("ambiguous_folders", "warning", reported)


ORDINARY_FOLDERS = [
    make_photos("daisy/plant 1", "daisy/plant 2", "rose/plant 1", "rose/plant 3"),
    make_photos("daisy/2021", "daisy/2022", "rose/2021"),
    make_photos("daisy/images", "rose/images", "rose/data"),
    make_photos("daisy/thumbnails", "rose/thumbnails", "tulip"),
    make_photos("cardboard", "glass", "trash"),
]


@pytest.mark.parametrize("files", ORDINARY_FOLDERS)
def test_classes_that_share_numbered_folders_are_not_reported(tmp_path, files):
    dataset, _ = read(write_files(tmp_path, files))
    assert count_used(dataset) == len(files)
    assert dataset.doubts == ()


@pytest.mark.parametrize("part", ["{}-20240101T1-00{}", "{}-20240101T101010Z-1-00{}"])
def test_parts_of_downloads_are_read_as_the_classes_inside_them(tmp_path, part):
    names = [("daisy", 1), ("daisy", 2), ("rose", 1)]
    files = make_photos(*(f"{part.format(name, number)}/{name}" for name, number in names), "tulip")
    dataset, labels = read(write_files(tmp_path, files | {f"{part.format('rose', 1)}/lost.jpg": b"lost"}))
    assert labels == {(name, None) for name in ("daisy", "rose", "tulip")}
    assert count_used(dataset) == 8
    assert any("parts of downloads" in note for note in dataset.notes)
    assert dataset.doubts == ()


def test_parts_of_one_download_with_the_classes_inside_are_reported(tmp_path):
    parts = ("photos-20240101T000000Z-001/photos", "photos-20240101T000000Z-002/photos")
    dataset, _ = read(write_files(tmp_path, make_classes(*parts)))
    assert any("share the folders daisy, rose" in evidence for evidence, _ in dataset.doubts)


ORDINARY_CLASSES = ["rose", "red fox", "train", "tram", "bus", "type 1", "type 2", "0", "mask", "no_mask", "Blüte"]
ORDINARY_GROUPS = ["", "", "plant 1", "plant 2", "2021", "cam1", "morning/left"]


@given(
    st.sets(st.sampled_from(ORDINARY_CLASSES), min_size=2),
    st.lists(st.sampled_from(ORDINARY_GROUPS), min_size=11, max_size=11),
    st.sampled_from(["", "flowers/", "download/data/"]),
)
@settings(max_examples=40)
def test_in_ordinary_folders_the_label_is_the_first_folder(tmp_path_factory, names, groups, wrapper):
    inner = {name: groups[row] for row, name in enumerate(ORDINARY_CLASSES)}
    files = make_photos(*(f"{wrapper}{name}/{inner[name]}".rstrip("/") for name in names))
    dataset, _ = read(write_files(tmp_path_factory.mktemp("ordinary"), files))
    assert count_used(dataset) == len(files)
    for path, label, split in dataset.photos.select("path", "label", "split").iter_rows():
        assert (label, split) == (path.removeprefix(wrapper).split("/")[0], None)


SINGLE_CLASSES = [
    make_photos("train/0/plant 1", "train/0/plant 2", "test/0/plant 3", "test/0/plant 4"),
    make_photos("daisy/plant 1", "daisy/plant 2") | {"rose/notes.txt": b"none yet"},
]


@pytest.mark.parametrize("files", SINGLE_CLASSES)
def test_the_groups_of_a_single_class_never_become_the_classes(tmp_path, files):
    dataset = None
    with contextlib.suppress(PhotosError):
        dataset = sources.read(write_files(tmp_path, files))
    assert dataset is None or not {name for name in dataset.classes if name.startswith("plant")}


def test_a_class_with_the_name_of_a_split_is_a_class_within_the_splits(tmp_path):
    files = make_photos("train/test", "train/images", "test/test") | make_photos("val/images")
    dataset, labels = read(write_files(tmp_path, files))
    assert dataset.classes == ("images", "test")
    assert labels == {("test", "train"), ("images", "train"), ("test", "test"), ("images", "validation")}


# Roboflow's table of classes


def make_flat_folders(*folders: str, header: str = "filename, daisy, rose") -> dict[str, bytes]:
    rows = [f"{number}.jpg, {1 - number}, {number}" for number in range(2)]
    tables = {f"{folder}/_classes.csv": "\n".join([header, *rows]).encode() for folder in folders}
    return make_photos(*folders) | tables


@pytest.mark.parametrize("folders", [("train", "valid", "test"), ("export/train", "export/test"), ("train",)])
def test_the_labels_of_a_flat_folder_are_read_from_roboflows_table(tmp_path, folders):
    dataset, labels = read(write_files(tmp_path, make_flat_folders(*folders)))
    names = {"train": "train", "valid": "validation", "test": "test"}
    assert labels == list_pairs(*(names[folder.split("/")[-1]] if len(folders) > 1 else None for folder in folders))
    by_path = dict(dataset.photos.select("path", "label").iter_rows())
    assert by_path[f"{folders[0]}/0.jpg"] == "daisy"
    assert by_path[f"{folders[0]}/1.jpg"] == "rose"


def test_every_photo_of_roboflows_table_is_used_or_has_a_reason(tmp_path):
    files = make_flat_folders("train", "test")
    files["train/_classes.csv"] += b"\nboth.jpg, 1, 1\nnone.jpg, 0, 0\ngone.jpg, 1, 0\n"
    files |= dict.fromkeys(("train/both.jpg", "train/none.jpg", "train/other.jpg"), b"photo")
    dataset, _ = read(write_files(tmp_path, files))
    statuses = dict(dataset.photos.select("path", "status").iter_rows())
    assert statuses["train/both.jpg"].startswith("several labels in _classes.csv: daisy, rose")
    assert statuses["train/none.jpg"] == "no label in _classes.csv"
    assert statuses["train/other.jpg"] == "not listed in _classes.csv"
    assert statuses["train/gone.jpg"] == "there is no such file"
    assert statuses["train/_classes.csv"] == "the table of the labels"
    assert count_used(dataset) == 4


@pytest.mark.parametrize(
    "table", [b"", b"path,label\n0.jpg,daisy\n", b"filename, daisy, rose\n0.jpg, 1\n", b"\xff\xfe"]
)
def test_another_table_of_that_name_is_refused(tmp_path, table):
    error = get_refusal(write_files(tmp_path, make_photos("train", "test") | {"train/_classes.csv": table}))
    assert "table" in error.what


# Nested copies of a data set


def make_three_classes() -> dict[str, bytes]:
    return {f"{name}/{number}.jpg": encode_photo(10 * row + number) for row, name in enumerate(("daisy", "rose", "tulip"))
            for number in range(3)}  # fmt: skip


NESTED = ["flowers", "archive/flowers", "daisy", "flowers - Copy/flowers", "zip/a/b"]


@pytest.mark.parametrize("inner", NESTED)
@pytest.mark.parametrize("outer", ["", "flowers/"])
def test_a_data_set_unpacked_into_itself_is_used_once_with_a_note(tmp_path, inner, outer):
    files = make_three_classes()
    nested = {f"{outer}{path}": data for path, data in files.items()}
    nested |= {f"{outer}{inner}/{path}": data for path, data in files.items()}
    if inner == "daisy":  # a class folder: it has photos of its own
        error = get_refusal(write_files(tmp_path, nested))
        assert "daisy may be a class, or a second copy" in error.what
        return
    dataset, labels = read(write_files(tmp_path, nested))
    assert labels == {(name, None) for name in ("daisy", "rose", "tulip")}
    assert count_used(dataset) == len(files)
    assert any("same files" in note and inner.split("/")[0] in note for note in dataset.notes)


def test_nested_folders_named_like_classes_with_other_photos_are_refused(tmp_path):
    files = make_three_classes() | {f"more/{path}": data + b"more" for path, data in make_three_classes().items()}
    error = get_refusal(write_files(tmp_path, files))
    assert "more may be a class, or a second copy or a split" in error.what
    assert str(tmp_path / "more") in str(error.advice)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_data_set_within_one_of_its_splits_is_reported(tmp_path, split):
    files = make_classes("train", "test")
    again = {
        f"{split}/{split}/{path.removeprefix(f'{split}/')}": data
        for path, data in files.items()
        if path.startswith(split)
    }
    dataset, labels = read(write_files(tmp_path / "same", files | again))
    assert labels == list_pairs("train", "test")
    assert count_used(dataset) == len(files)
    get_refusal(write_files(tmp_path / "other", files | {path: data + b"x" for path, data in again.items()}))


def test_a_class_folder_inside_another_is_refused(tmp_path):
    assert (
        "cat/ has folders named like the classes (dog)"
        in get_refusal(write_files(tmp_path, make_photos("cat", "cat/dog", "dog"))).what
    )


@pytest.mark.parametrize(
    "name",
    [
        "{} - Copy",
        "{} - Copy (2)",
        "{} copy",
        "{} copy 2",
        "{} (1)",
        "{}(1)",
        "Copy of {}",
        "{} (copy)",
        "{}_backup",
        "{}.bak",
        "{} (Joe's conflicted copy 2024-01-01)",
        "{}.sync-conflict-20240101-101010-ABCDEFG",
        "{}-DESKTOP-AB12",
        "{} 2",
        "{}_old",
        "{}~",
    ],
)
@pytest.mark.parametrize("of_class", [True, False])
def test_a_copy_of_a_folder_is_used_once_with_a_note(tmp_path, name, of_class):
    files = make_three_classes()
    copied = "daisy" if of_class else "flowers"
    files = files if of_class else {f"flowers/{path}": data for path, data in files.items()}
    files |= {f"{name.format(copied)}/{path.removeprefix(f'{copied}/')}": data for path, data in files.items()
              if path.startswith(f"{copied}/")}  # fmt: skip
    dataset, labels = read(write_files(tmp_path, files))
    assert labels == {(name, None) for name in ("daisy", "rose", "tulip")}
    assert count_used(dataset) == 9
    assert any("same files" in note for note in dataset.notes)


def test_a_data_set_beside_itself_under_another_name_is_used_once(tmp_path):
    files = {
        f"{folder}/{path}": data for folder in ("flowers", "archive") for path, data in make_three_classes().items()
    }
    dataset, _ = read(write_files(tmp_path, files))
    assert dataset.classes == ("daisy", "rose", "tulip")
    assert count_used(dataset) == 9


def test_a_folder_named_like_a_copy_with_other_photos_is_a_class(tmp_path):
    dataset, _ = read(write_files(tmp_path, make_photos("daisy", "daisy (1)", "rose")))
    assert dataset.classes == ("daisy", "daisy (1)", "rose")


def test_masks_beside_the_images_of_a_class_are_not_used(tmp_path):
    files = make_photos(*(f"{name}/{inner}" for name in ("daisy", "rose") for inner in ("images", "masks")))
    dataset, labels = read(write_files(tmp_path, files))
    assert labels == list_pairs(None)
    assert count_used(dataset) == 4
    assert dataset.notes == ("of the classes, images/ is used and masks/ is not",)


def test_text_beside_the_folder_of_all_images_is_not_a_class(tmp_path):
    files = make_classes("CUB/images") | {
        "CUB/attributes/a.txt": b"1",
        "CUB/parts/p.txt": b"2",
        "Annotations/0.mat": b"x",
    }
    _, labels = read(write_files(tmp_path, files))
    assert labels == list_pairs(None)


def test_empty_files_do_not_make_a_folder_a_copy(tmp_path):
    files = dict.fromkeys(make_classes("near", "far"), b"")
    assert read(write_files(tmp_path, files))[0].classes == ("far", "near")


def test_many_copies_are_reported_in_one_note(tmp_path):
    files = {f"copy of daisy/{number}.jpg": b"1" for number in range(2)} | {"rose/1.jpg": b"2"}
    files |= {f"daisy ({row})/{number}.jpg": b"1" for row in range(9) for number in range(2)}
    files |= {f"daisy/{number}.jpg": b"1" for number in range(2)}
    dataset, _ = read(write_files(tmp_path, files))
    assert dataset.classes == ("daisy", "rose")
    (note,) = dataset.notes
    assert "and 5 more have the same files as daisy/" in note
