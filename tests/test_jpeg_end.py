"""JPEGs without an end marker are used only if all pixels exist."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.images import draw_noisy_image, encode_image, get_decoding_error

from ikebana.data import decoding
from ikebana.errors import UnreadablePhoto

KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "quality 100": {"quality": 100, "subsampling": 0},
    "restart markers": {"restart_marker_blocks": 4},
    "optimised": {"optimize": True},
}
END_MISSING = "unreadable: its end is missing"


def encode(kind, seed=0):
    return encode_image(draw_noisy_image(160, 120, seed), "JPEG", **KINDS[kind])


def samsung_trailer():
    """Make a trailer of Samsung phones: blocks, and a directory of their offsets; ExifTool, Samsung.pm."""
    block = struct.pack("<HHI", 0, 0x0A01, 14) + b"Image_UTC_Data" + b"1700000000000"
    image = struct.pack("<HHI", 0, 0x0A30, 16) + b"EmbeddedVideo_xx" + encode("baseline", 9)
    blocks = block + image
    entries = struct.pack("<HHII", 0, 0x0A01, len(blocks), len(block)) + struct.pack(
        "<HHII", 0, 0x0A30, len(image), len(image)
    )
    directory = b"SEFH" + struct.pack("<II", 101, 2) + entries
    return blocks + directory + struct.pack("<I", len(directory)) + b"SEFT"


ENDINGS = {
    "nothing": b"",
    "half of the marker": b"\xff",
    "zeros": bytes(4000),
    "ones": b"\xff" * 300,
    "a Samsung trailer without a directory": b"\0\0SEFT" + bytes(2000),
    "a Samsung trailer": samsung_trailer().replace(b"\xff\xd9", b"\xff\xd0"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_photo_that_lacks_only_its_end_marker_is_the_same_photo(kind, ending):
    data = encode(kind)
    assert data.endswith(b"\xff\xd9")
    without = data[:-2] + ENDINGS[ending]
    assert np.array_equal(decoding.decode_full_size(without), decoding.decode_full_size(data))
    assert np.array_equal(decoding.decode(without, 32).pixels, decoding.decode(data, 32).pixels)


def test_a_grey_photo_and_one_in_cmyk_may_lack_their_end_marker():
    for mode in ("L", "CMYK"):
        data = encode_image(draw_noisy_image(80, 60).convert(mode), "JPEG")
        assert np.array_equal(decoding.decode_full_size(data[:-2]), decoding.decode_full_size(data))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill", [b"", bytes(1), b"\xff", b"\xaa", b"\x55", b"\x01\x02\x03", b"text behind a photo "])
def test_a_truncated_photo_is_refused_whatever_fills_it(kind, fill):
    data = encode(kind)
    start = data.index(b"\xff\xda")
    for share in (0.1, 0.5, 0.9):
        place = start + int(share * (len(data) - start))
        filled = data[:place] + (fill * len(data))[: (len(data) - place if fill else 0)]
        assert get_decoding_error(filled) == END_MISSING


@pytest.mark.parametrize("kind", ["progressive"])
def test_a_progressive_photo_without_its_last_scan_is_refused(kind):
    data = encode(kind)
    for scans in range(1, 4):
        place = len(data)
        for _ in range(scans):
            place = data.rindex(b"\xff\xda", 0, place)
        assert get_decoding_error(data[:place]) == END_MISSING
        assert get_decoding_error(data[:place] + b"\xff\xd9") == END_MISSING


def test_a_photo_that_lacks_whole_restart_intervals_is_refused():
    data = encode("restart markers")
    for number in range(1, 6):
        places = [
            place
            for place in range(len(data))
            if data[place : place + 1] == b"\xff" and data[place + 1] in range(0xD0, 0xD8)
        ]
        assert get_decoding_error(data[: places[-number]]) == END_MISSING
        assert get_decoding_error(data[: places[-number] + 2]) == END_MISSING


def test_a_photo_without_image_data_is_refused():
    data = encode("baseline")
    for marker in (b"\xff\xda", b"\xff\xc0", b"\xff\xdb"):
        assert get_decoding_error(data[: data.index(marker) + 2]).startswith("unreadable: ")


@pytest.mark.slow
@given(st.sampled_from(sorted(KINDS)), st.integers(1, 60), st.integers(0, 20))
@settings(max_examples=200)
def test_a_photo_used_without_its_last_bytes_shows_the_complete_picture(kind, missing, seed):
    data = encode(kind, seed)
    complete = decoding.decode_full_size(data)
    try:
        photo = decoding.decode_full_size(data[:-missing])
    except UnreadablePhoto:
        return
    assert np.array_equal(photo, complete)


def test_the_metadata_of_a_photo_without_its_end_marker_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode_image(draw_noisy_image(160, 120), "JPEG", exif=exif)
    photo = decoding.decode(data[:-2], 32)
    assert (photo.width, photo.height) == (120, 160)


def test_pillow_alone_refuses_such_a_photo():
    """If this changes, the module is no longer needed."""
    with Image.open(io.BytesIO(encode("progressive")[:-2])) as image, pytest.raises(OSError, match="truncated"):
        image.load()


def cut_before_the_end_marker(data, share, fill=b""):
    start = data.index(b"\xff\xda") + 14
    place = start + int(share * (len(data) - start))
    return data[:place] + (fill * len(data))[: (len(data) - place if fill else 0)] + b"\xff\xd9"


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"progressive"}))
@pytest.mark.parametrize("share", [0.05, 0.5, 0.6, 0.95])
def test_a_truncated_photo_with_an_appended_end_marker_is_refused(kind, share):
    for fill in (b"", b"\0"):
        cut = cut_before_the_end_marker(encode(kind), share, fill)
        assert get_decoding_error(cut) == END_MISSING


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_truncated_grey_or_cmyk_photo_with_an_appended_end_marker_is_refused(mode):
    data = encode_image(draw_noisy_image(160, 120).convert(mode), "JPEG")
    for size in (32, 1):
        with pytest.raises(UnreadablePhoto, match=END_MISSING):
            decoding.decode(cut_before_the_end_marker(data, 0.6), size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grey", [0, 127, 128, 255])
def test_a_photo_with_a_uniform_bottom_is_used(kind, grey):
    for height in (0, 60):
        image = Image.new("RGB", (320, 240), (grey, grey, grey))
        if height:
            image.paste(draw_noisy_image(320, height))
        data = encode_image(image, "JPEG", **KINDS[kind])
        with Image.open(io.BytesIO(data)) as complete:
            assert np.array_equal(decoding.decode_full_size(data), np.asarray(complete))


def test_a_huge_photo_without_its_end_marker_is_not_decoded_again_and_again(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_COMPLETED_PIXELS", 160 * 120 - 1)
    assert get_decoding_error(encode("baseline")[:-2]) == END_MISSING
