"""Real files that break image loaders have the outcomes of their list."""

import io
import re
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps
from support.images import decode_as_int, encode_photo, get_decoding_error, mean_difference, pillow_heif, to_int_array

from ikebana.data import pixel_cache, sources
from ikebana.data.dataset import STATUS_USED

SIDE = 64
# Patterns for the third column. The first that matches decides.
OUTCOMES = {
    "ignored": r"^ignore",
    "either": r"^may decode or fail|either (is fine|way)|^refuse or load|or report as unsupported",
    "too large": r"refuse by pixel count",
    "refused": r"^report the file by name and skip|^not a photo",
    "used": r"^apply the orientation|^load|composite/convert to RGB|^use the first frame|^found",
    "heif": r"^say that the format is not supported, by name",
}
# The row is "report", but the picture is complete: see test_a_bitmap_with_a_wrong_size_in_its_header_is_read_completely and
# test_a_jpeg_without_the_last_byte_of_its_end_marker_is_read_completely.
COMPLETE_FILES = {"mmap_error.bmp", "truncated_jpeg.jpg"}


@pytest.fixture(scope="module")
def rows(awkward):
    """{file name: what a correct loader does}, from the list beside the files."""
    listed = (awkward.parent / "awkward.md").read_text("utf-8")
    return dict(re.findall(r"^\| (.+?) \| .+ \| (.+?) \|$", listed, re.MULTILINE)[1:])


@pytest.fixture(scope="module")
def awkward_dataset(awkward, tmp_path_factory):
    """The files as a class of a folder, opened; nothing is copied."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "flower").mkdir()
    (folder / "flower" / "good.jpg").write_bytes(encode_photo(1))
    (folder / "awkward").symlink_to(awkward)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKEBANA_CACHE", str(tmp_path_factory.mktemp("cache")))
        dataset, keep = pixel_cache.open_pixel_cache(sources.read(folder), SIDE, "squash")
    return dataset, np.array(keep.pixels)


@pytest.fixture(scope="module")
def status(awkward_dataset):
    """{file name: used, or why not}."""
    pairs = awkward_dataset[0].photos.filter(awkward_dataset[0].photos["label"] == "awkward").select("path", "status")
    return {path.removeprefix("awkward/"): status for path, status in pairs.iter_rows()}


def outcome(text):
    return next((name for name, pattern in OUTCOMES.items() if re.search(pattern, text)), f"unknown: {text}")


def is_allowed(name, text, actual):
    """Return whether the row of a file allows its outcome."""
    wanted = "used" if name in COMPLETE_FILES else outcome(text)
    if wanted == "heif":
        return actual == STATUS_USED if pillow_heif else "HEIF" in (actual or "")
    return {
        "ignored": actual is None,
        "either": actual is not None,
        "too large": actual is not None and actual.startswith("too large: "),
        "refused": actual not in (None, STATUS_USED),
        "used": actual == STATUS_USED,
    }[wanted]


def test_every_awkward_file_has_a_row_that_is_understood(awkward, rows):
    assert {path.name for path in awkward.iterdir()} == rows.keys()
    assert [outcome(text) for text in rows.values() if outcome(text).startswith("unknown")] == []
    assert {outcome(text) for text in rows.values()} == OUTCOMES.keys()


def test_each_awkward_file_has_an_outcome_that_its_row_allows(rows, status):
    wrong = {
        name: (text, status.get(name)) for name, text in rows.items() if not is_allowed(name, text, status.get(name))
    }
    assert wrong == {}


def test_every_path_is_accounted_for(rows, status, awkward_dataset):
    dataset = awkward_dataset[0]
    hidden = [name for name, text in rows.items() if outcome(text) == "ignored"]
    assert dataset.ignored_count == len(hidden)
    assert status.keys() == rows.keys() - set(hidden)
    assert dataset.used_photos.height + dataset.set_aside_photos.height == len(rows) - len(hidden) + 1
    assert all(actual.strip() and "\n" not in actual for actual in status.values())


def test_svg_and_office_files_are_refused_by_name(status):
    assert "SVG" in status["check.svg"]
    assert "office" in status["document_named_as.jpg"]
    assert "text" in status["text_named_as.jpg"]


def test_no_accepted_photo_is_uniformly_black_or_grey(awkward_dataset, awkward):
    dataset, pixels = awkward_dataset
    for row, (path, actual) in enumerate(dataset.photos.select("path", "status").iter_rows()):
        # Two are white: Pillow's own test of lab.tif expects white, and the other is a blank page.
        if actual == STATUS_USED and path not in (
            "awkward/lab.tif",
            "awkward/truncated_exif_dpi.jpg",
            "awkward/one_pixel.png",
        ):
            assert pixels[row].std() > 0.5, path


def test_the_eight_exif_orientations_give_the_same_picture(awkward):
    for shape in ("landscape", "portrait"):
        pictures = [decode_as_int(file.read_bytes(), SIDE) for file in sorted(awkward.glob(f"exif_{shape}_*.jpg"))]
        assert len(pictures) >= 2
        for picture in pictures[1:]:
            assert mean_difference(picture, pictures[0]) < 3  # each is a separate JPEG
            assert mean_difference(picture[::-1], pictures[0]) > 10
            assert mean_difference(picture[:, ::-1], pictures[0]) > 10


def test_a_bitmap_with_a_wrong_size_in_its_header_is_read_completely(awkward):
    lying, honest = ((awkward / name).read_bytes() for name in ("mmap_error.bmp", "pal8rle.bmp"))
    assert np.array_equal(decode_as_int(lying, 128), decode_as_int(honest, 128))


def test_a_jpeg_without_the_last_byte_of_its_end_marker_is_read_completely(awkward):
    data = (awkward / "truncated_jpeg.jpg").read_bytes()
    assert data.endswith(b"\xff")
    with Image.open(io.BytesIO(data + b"\xd9")) as image:
        assert np.array_equal(decode_as_int(data, 100), to_int_array(image))
    assert "end is missing" in get_decoding_error(data[:-40])


def test_a_huge_picture_is_refused_with_its_size(awkward):
    assert get_decoding_error((awkward / "65536-uint32-limit.png").read_bytes()) == "too large: 4,295 megapixels"


@pytest.mark.slow
def test_ordinary_pictures_are_those_of_pillow_on_a_white_background(awkward, status):
    compared = 0
    for name in sorted(name for name, actual in status.items() if actual == STATUS_USED):
        data = (awkward / name).read_bytes()
        if name == "truncated_jpeg.jpg":
            continue  # Pillow refuses it, and another test covers it
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA") or image.info.get("icc_profile"):
                continue  # test_decoding.py covers bit depth and colour
            shown = _make_upright(image).convert("RGBA")
        white = Image.new("RGBA", shown.size, "white")
        expected = Image.alpha_composite(white, shown).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        # Decoding at reduced scale changes one over-sharpened photo by 1.1 grey levels.
        assert mean_difference(decode_as_int(data, SIDE), to_int_array(expected)) < 1.5, name
        compared += 1
    assert compared > 25


def _make_upright(image):
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # exif_transpose of Pillow fails on some of these EXIF blocks; ikebana must not
        return image


def test_the_16_bit_version_is_as_bright_as_the_8_bit_version(awkward):
    deep, shallow = (
        decode_as_int((awkward / name).read_bytes(), SIDE) for name in ("hopper_16bit.pgm", "hopper_gray.jpg")
    )
    assert mean_difference(deep, shallow) < 6
