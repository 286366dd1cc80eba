"""Any known arrangement of labelled photos is read as written, or refused."""

import io
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.archives import make_raw_zip, make_unicode_path
from support.images import encode_photo

from ikebana.data import sources
from ikebana.data.dataset import STATUS_UNOPENED
from ikebana.errors import PhotosError

SPLITS: tuple[str, ...] = ("train", "validation", "test")
SPLIT_FOLDERS = [
    ("train", "validation", "test"), ("Train", "Val", "Test"), ("Training", "Validation", "Testing"),
    ("seg_train", "seg_val", "seg_test"), ("train_set", "dev_set", "test_set"), ("training_images", "val_images", "test_images"),
    ("01_train", "02_val", "03_test"),
]  # fmt: skip
PLAIN_NAMES = [
    "daisy",
    "rose",
    "tulip",
    "maple tree",
    "cat",
    "Gänseblümchen",
    "薔薇",
    "ソメイ",
    "naïve café",
    "a.b",
    "1",
    "2",
]
# Each can be a class, and something else as well.
AMBIGUOUS_NAMES = [
    "train", "test", "val", "images", "labels", "masks", "fold1", "fold2", "daisy - Copy", "rose (1)", "Daisy", "daisy ", "NaN",
    "None", "null", "data", "part1", "runs", "CON", "ＲＯＳＥ", "label", "path", "true", "1.0", "01", "a;b", 'a"b', "a,b",
]  # fmt: skip
JUNK = [".DS_Store", "Thumbs.db", "README.txt", "._1.jpg"]


@dataclass(frozen=True)
class Photo:
    number: int
    label: str
    split: str | None

    @property
    def name(self) -> str:
        return f"{self.number:04}.jpg"


Collection = list[Photo]


@st.composite
def collections(draw: st.DrawFn, names: list[str]) -> Collection:
    """Draw photos of two or more classes, with optional splits.

    If there are splits, each class has a photo in every split.
    """
    classes = draw(st.lists(st.sampled_from(names), min_size=2, max_size=4, unique=True))
    has_splits = draw(st.booleans())
    labelled = [
        (label, split)
        for label in classes
        for split in (SPLITS if has_splits else (None,))
        for _ in range(draw(st.integers(1, 3)))
    ]
    return [Photo(number, label, split) for number, (label, split) in enumerate(labelled)]


def arrange(draw: st.DrawFn, photos: Collection) -> dict[str, Photo]:
    """Draw folders for the photos: {path: photo}."""
    folders: dict[str, str] = dict(zip(SPLITS, draw(st.sampled_from(SPLIT_FOLDERS)), strict=True))
    wrapper = draw(st.sampled_from(["", "", "flowers/", "download/data/"]))
    return {
        f"{wrapper}{folders[photo.split] + '/' if photo.split else ''}{photo.label}/{photo.name}": photo
        for photo in photos
    }


def write_folder(draw: st.DrawFn, photos: Collection, folder: Path) -> Path:
    target = folder / "photos"
    paths = arrange(draw, photos)
    for path, photo in paths.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(encode_photo(photo.number))
    first = next(iter(paths))
    for junk in draw(st.lists(st.sampled_from(JUNK), unique=True)):
        (target / first).with_name(junk).write_bytes(b"junk")
    return target


def write_zip(draw: st.DrawFn, photos: Collection, folder: Path) -> Path:
    file, kind = folder / "photos.zip", draw(st.sampled_from(["flag", "no flag", "extra field", "backslashes"]))
    contents = {path: encode_photo(photo.number) for path, photo in arrange(draw, photos).items()}
    if kind == "flag":
        with zipfile.ZipFile(file, "w") as archive:
            for path, content in contents.items():
                archive.writestr(path, content)
    elif kind == "extra field":
        members = []
        for number, (path, content) in enumerate(contents.items()):
            raw = f"_/{number}.jpg".encode()
            members.append((raw, content, make_unicode_path(raw, path)))
        file.write_bytes(make_raw_zip(members))
    else:
        separator = "\\" if kind == "backslashes" else "/"
        file.write_bytes(
            make_raw_zip([(path.replace("/", separator).encode(), content) for path, content in contents.items()])
        )
    return file


def write_tar(draw: st.DrawFn, photos: Collection, folder: Path) -> Path:
    file, kind = folder / "photos.tar", draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    with tarfile.open(file, "w", format=kind) as archive:
        for path, photo in arrange(draw, photos).items():
            member, content = tarfile.TarInfo(path), encode_photo(photo.number)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def make_frame(photos: Collection, folder: Path) -> pl.DataFrame:
    """Write the photos side by side, and make a frame of their absolute paths."""
    for photo in photos:
        (folder / photo.name).write_bytes(encode_photo(photo.number))
    columns = {"path": [str(folder / photo.name) for photo in photos], "label": [photo.label for photo in photos]}
    return pl.DataFrame(columns | ({"split": [photo.split for photo in photos]} if photos[0].split is not None else {}))


def write_csv(draw: st.DrawFn, photos: Collection, folder: Path) -> Path:
    frame, separator = make_frame(photos, folder), draw(st.sampled_from(",;\t"))
    names = draw(
        st.sampled_from([("path", "label"), ("Path", " LABEL"), ("filename", "class"), ("image_path", "category")])
    )
    frame = frame.with_columns(pl.col("path").str.strip_prefix(f"{folder}/"))
    text = frame.rename(dict(zip(("path", "label"), names, strict=True))).write_csv(
        separator=separator, line_terminator=draw(st.sampled_from(["\n", "\r\n", "\r"])), quote_style="necessary"
    )
    text = draw(st.sampled_from(["", "", f"sep={separator}\r\n", "\n"])) + text
    file = folder / "photos.csv"
    file.write_bytes(text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))))
    return file


def write_parquet(draw: st.DrawFn, photos: Collection, folder: Path) -> Path:
    frame = make_frame(photos, folder)
    kind = draw(st.sampled_from([pl.String, pl.Categorical, pl.Enum(sorted({photo.label for photo in photos}))]))
    frame.with_columns(pl.col("label").cast(kind)).write_parquet(folder / "photos.parquet")
    return folder / "photos.parquet"


def give_frame(draw: st.DrawFn, photos: Collection, folder: Path) -> pl.DataFrame | pl.LazyFrame:
    frame = make_frame(photos, folder)
    return frame.lazy() if draw(st.booleans()) else frame


FORMS: list[Callable[..., sources.PhotoSource]] = [
    write_folder,
    write_zip,
    write_tar,
    write_csv,
    write_parquet,
    give_frame,
]


Rows = set[tuple[int, str | None, str | None]]


def read_back(photos: Collection, source: sources.PhotoSource) -> tuple[Rows, set[int]]:
    """Read a source and identify its photos by their bytes.

    Returns:
        Number, label and split of those that are used, and the numbers of those with a reason against it.
    """
    numbers = {encode_photo(photo.number): photo.number for photo in photos}
    dataset = sources.read(source)
    rows = [
        (numbers.get(Path(dataset.resolve_path(path)).read_bytes()), label, split, status)
        for path, label, split, status in dataset.photos.select("path", "label", "split", "status").iter_rows()
    ]
    known = [(number, *values) for number, *values in rows if number is not None]
    used = {(number, label, split) for number, label, split, status in known if status == STATUS_UNOPENED}
    return used, {number for number, *_, status in known if status != STATUS_UNOPENED}


def strip_labels(photos: Collection) -> Collection:
    """Remove outer spaces from labels, as tables do, because they are invisible there."""
    return [replace(photo, label=photo.label.strip()) for photo in photos]


def describe(photos: Collection) -> Rows:
    return {(photo.number, photo.label, photo.split) for photo in photos}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60)
@given(st.data())
def test_photos_with_plain_names_are_read_back_as_written(form, data):
    photos = data.draw(collections(PLAIN_NAMES))
    with tempfile.TemporaryDirectory() as folder:
        source = form(data.draw, photos, Path(folder))
        assert read_back(photos, source) == (describe(photos), set())


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=100)
@given(st.data())
def test_photos_with_ambiguous_names_are_read_back_as_written_or_refused(form, data):
    photos = data.draw(collections([*PLAIN_NAMES[:4], *AMBIGUOUS_NAMES]))
    with tempfile.TemporaryDirectory() as folder:
        source = form(data.draw, photos, Path(folder))
        try:
            used, set_aside = read_back(photos, source)
        except PhotosError:
            assume(False)
        is_table = form in (write_csv, write_parquet, give_frame)
        expected = describe(strip_labels(photos) if is_table else photos)
        assert used == {row for row in expected if row[0] not in set_aside}
