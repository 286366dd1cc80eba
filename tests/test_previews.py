"""Files whose first picture is a preview: the photo is used, or refused."""

import io
import struct

import numpy as np
import pytest
from PIL import Image
from support.images import decode_as_int, draw_image, encode_image, get_decoding_error, to_int_array

from ikebana.data import decoding, previews
from ikebana.data.corruption import REASON_RAW

PREVIEW, PHOTO = to_int_array(draw_image(16, 1)).astype(np.uint8), to_int_array(draw_image(64, 2)).astype(np.uint8)
REDUCED, FULL = 1, 0
RGB, CFA, LINEAR_RAW = 2, 32803, 34892
NEXT, SUB = "the next directory", "a sub-directory"


def encode_directory(position, pixels, subfile_type, photometric=RGB, extra=(), following=0):
    """Encode a TIFF directory and its uncompressed picture; TIFF 6.0."""
    height, width = pixels.shape[:2]
    count = pixels.shape[2] if pixels.ndim == 3 else 1
    entries = sorted([
        (254, 4, 1, subfile_type), (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1),
        (262, 3, 1, photometric), (273, 4, 1, 0), (277, 3, 1, count), (278, 4, 1, height), (279, 4, 1, pixels.size), *extra,
    ])  # fmt: skip
    start = position + 2 + 12 * len(entries) + 4
    table = b"".join(
        struct.pack("<HHII", tag, kind, number, start if tag == 273 else value) for tag, kind, number, value in entries
    )
    return struct.pack("<H", len(entries)) + table + struct.pack("<I", following) + pixels.tobytes()


def encode_two(first, second, place=NEXT, extra=()):
    """Encode a TIFF of two pictures: (pixels, subfile type, photometric).

    The second is in the next directory or in a sub-directory.
    """
    sub = [(330, 4, 1, 0)] if place == SUB else []
    size = len(encode_directory(8, *first, extra=[*extra, *sub]))
    offset = 8 + size
    sub = [(330, 4, 1, offset)] if place == SUB else []
    following = offset if place == NEXT else 0
    return (
        b"II*\0" + struct.pack("<I", 8) + encode_directory(8, *first, extra=[*extra, *sub], following=following)
        + encode_directory(offset, *second)
    )  # fmt: skip


SENSOR = PHOTO[..., 0]


@pytest.mark.parametrize("photometric", [CFA, LINEAR_RAW])
@pytest.mark.parametrize("subfile_type", [REDUCED, FULL])
def test_a_raw_file_with_its_photo_in_a_sub_directory_is_refused(photometric, subfile_type):
    data = encode_two((PREVIEW, subfile_type, RGB), (SENSOR, FULL, photometric), SUB)
    assert get_decoding_error(data) == previews.REASON_PREVIEW


def test_a_raw_file_with_its_photo_in_the_next_directory_is_refused():
    assert get_decoding_error(encode_two((PREVIEW, REDUCED, RGB), (SENSOR, FULL, CFA))) == previews.REASON_PREVIEW


@pytest.mark.parametrize("photometric", [CFA, LINEAR_RAW])
def test_a_raw_file_without_a_preview_is_refused_as_raw(photometric):
    data = b"II*\0" + struct.pack("<I", 8) + encode_directory(8, SENSOR, FULL, photometric)
    assert get_decoding_error(data) == REASON_RAW
    for size in (4, 8, 9, 30):
        assert get_decoding_error(data[:size]).startswith("unreadable: ")


def test_a_dng_is_refused_even_if_its_preview_is_large():
    version = (50706, 1, 4, 0x00000401)
    data = encode_two((PHOTO, REDUCED, RGB), (SENSOR[:8], FULL, CFA), SUB, [version])
    assert get_decoding_error(data) == REASON_RAW


def test_raw_files_of_canon_are_refused_with_any_preview():
    data = b"II*\0" + struct.pack("<I", 16) + b"CR\x02\0" + bytes(4) + encode_directory(16, PHOTO, FULL)
    assert get_decoding_error(data) == REASON_RAW
    assert np.array_equal(decode_as_int(data.replace(b"CR\x02", b"\0\0\0"), 64), PHOTO)


@pytest.mark.parametrize(
    "start",
    [
        b"IIRO\x08\0\0\0", b"MMOR\0\0\0\x08", b"IIU\0\x18\0\0\0", b"FUJIFILMCCD-RAW 0201", b"II\x1a\0\0\0HEAPCCDR",
        b"FOVb\0\0\2\0", b"\0MRM\0\0\1\0", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
    ],
)  # fmt: skip
def test_raw_files_of_other_formats_are_refused_as_raw(start):
    assert get_decoding_error(start + bytes(500)) == REASON_RAW


def test_a_photo_after_its_preview_is_read_at_full_size():
    data = encode_two((PREVIEW, REDUCED, RGB), (PHOTO, FULL, RGB))
    assert np.array_equal(decode_as_int(data, 64), PHOTO)
    assert decoding.decode(data, 8).width == 64
    assert decoding.read_dimensions(data) == (64, 64)


@pytest.mark.parametrize(
    ("first", "second"),
    [((PREVIEW, FULL), (PHOTO, FULL)), ((PHOTO, FULL), (PREVIEW, REDUCED)), ((PHOTO, REDUCED), (PREVIEW, FULL))],
)
def test_the_first_of_several_pages_is_used_as_before(first, second):
    data = encode_two((*first, RGB), (*second, RGB))
    assert np.array_equal(decode_as_int(data, len(first[0])), first[0])


def test_smaller_copies_in_sub_directories_are_ignored():
    """Microscopes and slide scanners store them for viewers."""
    data = encode_two((PHOTO, FULL, RGB), (PREVIEW, REDUCED, RGB), SUB)
    assert np.array_equal(decode_as_int(data, 64), PHOTO)


def test_a_single_picture_that_is_marked_as_a_preview_is_used():
    data = b"II*\0" + struct.pack("<I", 8) + encode_directory(8, PHOTO, REDUCED)
    assert np.array_equal(decode_as_int(data, 64), PHOTO)


@pytest.mark.parametrize("offset", [0, 5, 10**6, 2**32 - 1])
def test_a_damaged_sub_directory_is_ignored(offset):
    data = b"II*\0" + struct.pack("<I", 8) + encode_directory(8, PHOTO, FULL, extra=[(330, 4, 1, offset)])
    assert np.array_equal(decode_as_int(data, 64), PHOTO)


def test_the_large_picture_of_a_camera_file_with_two_is_used():
    """An MPO, and a JPEG with a preview in its EXIF block."""
    large, small = draw_image(64, 2), draw_image(16, 1)
    data = encode_image(large, "MPO", save_all=True, append_images=[small], quality=95)
    assert decoding.decode(data, 64).width == 64
    exif = Image.Exif()
    exif.get_ifd(0x8769)
    block = exif.tobytes() + encode_image(small, "JPEG")
    photo = encode_image(large, "JPEG", exif=block)
    assert decoding.decode(photo, 64).width == 64
    with Image.open(io.BytesIO(photo)) as image:
        assert image.size == (64, 64)
