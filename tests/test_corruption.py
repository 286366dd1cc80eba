"""What cannot be decoded, or not as a whole, is refused by name: never a grey part, a traceback or a full memory."""

import functools
import io
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from PIL.IcoImagePlugin import IcoFile
from support.images import (
    GRADIENT,
    decode_as_int,
    draw_image,
    draw_noisy_image,
    encode_grey_tiff,
    encode_image,
    get_decoding_error,
    pillow_heif,
    skip_unless_supported,
    to_int_array,
    two_classes,
    write_files,
)

from ikebana.data import decoding, pixel_cache, sources
from ikebana.errors import UnreadablePhoto
from ikebana.recipe import Resize

# Files that are not whole

CUT = {
    "JPEG": ("JPEG", {}),
    "progressive JPEG": ("JPEG", {"progressive": True}),
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {}),
    "lossless WebP": ("WEBP", {"lossless": True}),
    "GIF": ("GIF", {}),
    "BMP": ("BMP", {}),
    "TIFF": ("TIFF", {}),
    "LZW TIFF": ("TIFF", {"compression": "tiff_lzw"}),
    "JPEG TIFF": ("TIFF", {"compression": "jpeg"}),
    "AVIF": ("AVIF", {}),
    "HEIF": ("HEIF", {}),
    "PPM": ("PPM", {}),
    "QOI": ("QOI", {}),
    "TGA": ("TGA", {}),
    "JPEG 2000": ("JPEG2000", {}),
    "ICO": ("ICO", {"sizes": [(64, 64)]}),
}


@functools.cache
def whole_file(name):
    kind, options = CUT[name]
    return encode_image(draw_noisy_image(160, 120), kind, **options)


def cuts(size):
    """Every twentieth of a file, and close before its end."""
    return sorted({size * twentieth // 20 for twentieth in range(20)} | {size - left for left in (1, 2, 3, 8, 20, 60)})


def refused_or_equal(data, whole):
    """Whether a damaged file was refused; if not, it must show the whole picture: never a grey or black part."""
    try:
        assert np.array_equal(decode_as_int(data, 24), whole)
    except UnreadablePhoto:
        return True
    return False


@pytest.mark.parametrize("name", CUT)
def test_a_file_cut_short_is_refused_or_shows_the_whole_picture(name):
    skip_unless_supported(CUT[name][0])
    data = whole_file(name)
    whole = decode_as_int(data, 24)
    assert sum(refused_or_equal(data[:place], whole) for place in cuts(len(data))) >= 19


@pytest.mark.parametrize("name", ["JPEG", "progressive JPEG", "PNG", "GIF", "JPEG 2000"])
def test_a_copy_broken_off_and_filled_with_zeros_is_refused_or_shows_the_whole_picture(name):
    data = whole_file(name)
    whole = decode_as_int(data, 24)
    filled = [data[:place] + bytes(len(data) - place) for place in cuts(len(data))]
    assert sum(refused_or_equal(each, whole) for each in filled) >= 18


def test_zeros_in_the_first_of_two_pictures_are_noticed():
    data = encode_image(
        draw_noisy_image(160, 120, 1), "MPO", save_all=True, append_images=[draw_noisy_image(160, 120, 2)]
    )
    for share in (0.1, 0.25, 0.4):
        assert "end is missing" in get_decoding_error(data[: int(share * len(data))] + bytes(len(data)))


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded():
    plain = encode_image(draw_image(64), "JPEG", progressive=True)
    start = plain.rindex(b"\xff\xda")
    last = plain[start : start + 2 + int.from_bytes(plain[start + 2 : start + 4])]
    endless = plain[:-2] + last * 200 + plain[-2:]
    assert get_decoding_error(endless) == "unreadable: it has more than 100 scans"
    with pytest.raises(UnreadablePhoto, match="100 scans"):
        decoding.decode_full_size(endless)
    assert decoding.decode(plain[:-2] + last * 20 + plain[-2:], 32).width == 64


def test_bytes_behind_a_picture_are_nobodys_business():
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        data = encode_image(draw_image(), kind)
        assert np.array_equal(
            decode_as_int(data + b"\xff\xda a video of the same moment \xff\xd8"), decode_as_int(data)
        )


def test_a_changed_byte_of_png_data_is_noticed():
    data = bytearray(encode_image(draw_noisy_image(64, 64), "PNG"))
    data[len(data) // 2] ^= 1
    assert get_decoding_error(bytes(data)).startswith("unreadable")


def test_a_tiff_whose_strips_do_not_cover_it_is_refused_instead_of_black():
    assert "only part of the image" in get_decoding_error(encode_grey_tiff(GRADIENT.tobytes(), 8, height=4800))
    assert np.array_equal(decode_as_int(encode_grey_tiff(GRADIENT.tobytes(), 8)), np.repeat(GRADIENT[..., None], 3, -1))


# Bombs

W, H = 16000, 15000  # 240 megapixels: less than any format allows, more than any camera has


def big(*numbers, size=4):
    return b"".join(number.to_bytes(size) for number in numbers)


def little(*numbers, size=2):
    return b"".join(number.to_bytes(size, "little") for number in numbers)


def with_sum(chunk):
    """A PNG chunk with the checksum that belongs to it."""
    return chunk + big(zlib.crc32(chunk))


def bombs():
    """Files of a few hundred bytes whose headers claim 240 megapixels."""
    small = Image.new("RGB", (100, 80), (9, 200, 3))
    png, jpeg, tif = (
        encode_image(small, "PNG"),
        encode_image(small, "JPEG"),
        encode_image(small, "TIFF", compression="tiff_lzw"),
    )
    frame = jpeg.index(b"\xff\xc0") + 5
    yield "PNG", png[:12] + with_sum(b"IHDR" + big(W, H) + png[24:29]) + png[33:]
    yield "GIF", encode_image(small, "GIF").replace(little(100, 80), little(W, H))
    yield "BMP", encode_image(small, "BMP").replace(little(100, 80, size=4), little(W, H, size=4))
    yield "PPM", b"P6 %d %d 255\n" % (W, H)
    yield "QOI", encode_image(small, "QOI").replace(big(100, 80), big(W, H))
    yield "TGA", encode_image(small, "TGA").replace(little(100, 80), little(W, H))
    yield "JPEG", jpeg[:frame] + big(H, W, size=2) + jpeg[frame + 4 :]
    yield "WEBP", encode_image(small, "WEBP").replace(b"\x9d\x01\x2a" + little(100, 80), b"\x9d\x01\x2a" + little(W, H))
    yield (
        "TIFF",
        tif.replace(struct.pack("<HHIH", 256, 3, 1, 100), struct.pack("<HHIH", 256, 3, 1, W)).replace(
            struct.pack("<HHIH", 257, 3, 1, 80), struct.pack("<HHIH", 257, 3, 1, H)
        ),
    )
    if features.check("avif"):
        yield "AVIF", encode_image(small, "AVIF").replace(big(100, 80), big(W, H))
    if pillow_heif:
        yield "HEIF", encode_image(small, "HEIF").replace(big(100, 80), big(W, H))
    yield "JPEG2000", encode_image(small, "JPEG2000").replace(big(80, 100), big(H, W)).replace(big(100, 80), big(W, H))


DEFUSE = """
import resource, sys
from pathlib import Path
from ikebana.errors import UnreadablePhoto
from ikebana.data import decoding
used = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))  # 128 MiB: a bomb's greys alone are 240 MB
for file in sorted(Path(sys.argv[1]).iterdir()):
    try:
        decoding.decode(file.read_bytes(), 32)
        print(file.name, "went off")
    except UnreadablePhoto as refusal:
        print(file.name, refusal.what)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory the Linux way")
def test_bombs_are_refused_by_their_size_before_any_memory_is_taken(tmp_path):
    names = []
    for kind, data in bombs():
        (tmp_path / kind).write_bytes(data)
        names.append(kind)
    done = subprocess.run([sys.executable, "-c", DEFUSE, tmp_path], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == sorted(f"{name} too large: 240 megapixels" for name in names)


def test_bombs_are_refused_even_if_somebody_took_pillows_own_guard_away(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for _, data in bombs():
        assert get_decoding_error(data).startswith("too large: ")


def test_large_photos_pass_one_at_a_time():
    data = encode_image(Image.new("RGB", (6100, 4000), (10, 200, 90)), "JPEG")
    found = []
    threads = [threading.Thread(target=lambda: found.append(decoding.decode(data, 16))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(photo.width, photo.height) for photo in found] == [(6100, 4000)] * 3


def icon(side):
    """One frame, which says 256 pixels whatever it has; a PNG, as Windows Vista and later write it."""
    png = encode_image(Image.new("L", (side, side)), "PNG")
    entry = struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(png), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + png


def tiled_tiff(side):
    """100 x 100 pixels that lie in a single tile of so many a side, deflated."""
    data = zlib.compress(bytes(side * side))
    entries = [
        (256, 4, 100), (257, 4, 100), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1),
        (322, 4, side), (323, 4, side), (324, 4, 8), (325, 4, len(data)),
    ]  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(entries)) + table + bytes(4)


def test_an_icon_is_measured_before_it_is_decoded():
    refusal = "too large: an icon of 4096 x 4096 pixels"
    decoded = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IcoFile, "frame", lambda *given: decoded.append(given))
        assert get_decoding_error(icon(4096)) == refusal
        assert decoding.read_dimensions(icon(4096)) is None
    assert decoded == []
    assert decoding.decode(icon(1024), 16).width == 1024
    assert decoding.read_dimensions(icon(1024)) == (1024, 1024)


def test_an_icon_of_a_bitmap_is_measured_too():
    header = struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 32, 0, 0, 0, 0, 0, 0)
    entry = struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(header), 22)
    assert get_decoding_error(struct.pack("<HHH", 0, 1, 1) + entry + header).startswith("too large: ")
    whole = encode_image(draw_image(64), "ICO", sizes=[(64, 64)], bitmap_format="bmp")
    assert np.array_equal(decode_as_int(whole, 64), to_int_array(draw_image(64)))


def test_what_begins_like_an_icon_and_is_none_is_no_known_format():
    for rest in (b"", b"\1\0", b"\1\0" + bytes(12) + b"\xff" * 4, b"\1\0" + bytes(100)):
        assert get_decoding_error(b"\0\0\1\0" + rest).startswith("unreadable: ")


def test_a_tile_of_a_tiff_counts_even_if_the_picture_is_smaller(monkeypatch):
    assert decoding.read_dimensions(tiled_tiff(2000)) == (2000, 2000)
    assert decoding.decode(tiled_tiff(2000), 16).width == 100
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1_000_000)
    assert get_decoding_error(tiled_tiff(2000)) == "too large: 2000 x 2000 is 4 megapixels"


class Turns:
    """Counts who waits for a turn."""

    taken = 0

    def __enter__(self):
        self.taken += 1

    def __exit__(self, *error):
        pass


def test_photos_with_large_tiles_pass_one_at_a_time(monkeypatch):
    turns = Turns()
    monkeypatch.setattr(decoding, "LARGE_PHOTO_PIXELS", 1_000_000)
    monkeypatch.setattr(decoding, "_large_photo_slot", turns)
    for side, taken in ((992, 0), (1008, 1)):  # the format wants multiples of 16
        decoding.decode(tiled_tiff(side), 16)
        assert turns.taken == taken


class Full(io.FileIO):
    """A file that is larger than the memory that is left."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise MemoryError


def test_a_photo_whose_file_memory_does_not_hold_is_set_aside_alone(tmp_path, monkeypatch):
    photos = write_files(tmp_path, two_classes(2))
    monkeypatch.setattr(
        decoding, "open", lambda file, mode: (Full if file.name == "1.jpg" else io.FileIO)(file, mode), raising=False
    )
    dataset, _ = pixel_cache.open_pixel_cache(sources.read(photos), 8, "squash")
    assert dataset.used_photos["path"].to_list() == ["a/0.jpg", "b/0.jpg"]
    assert set(dataset.set_aside_photos["status"]) == {"too large for this machine's memory"}


# Any bytes at all

STARTS = [
    b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\x10\0\0\0WEBPVP8 ", b"BM", b"II*\0", b"MM\0*",
    b"P6 3 3 255\n", b"P5 2 2 65535\n", b"qoif", b"\0\0\1\0\1\0", b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x20ftypavif",
    b"\0\0\0\x18ftypheic", b"\n\5\1\x08", b"\0\0\2\0\0\0\0\0", b"%!PS", b"8BPS", b"<svg", b"PK\3\4",
]  # fmt: skip


def picture_or_refusal(data: bytes, fit: Resize = "squash") -> str:
    """Whatever the bytes are: nothing else may happen."""
    try:
        photo = decoding.decode(data, 8, fit)
    except UnreadablePhoto as refusal:
        return refusal.what
    assert (photo.pixels.shape, photo.pixels.dtype) == ((8, 8, 3), np.uint8)
    return "a picture"


@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=300), fit=st.sampled_from(["squash", "crop"]))
@settings(max_examples=300)
def test_any_bytes_are_a_picture_or_an_unreadable_photo(start, rest, fit):
    assert picture_or_refusal(start + rest, fit)


@pytest.mark.slow
@given(
    name=st.sampled_from(sorted(set(CUT) - {"AVIF", "HEIF"})),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
)
@settings(max_examples=150)
def test_a_file_with_changed_bytes_is_a_picture_or_an_unreadable_photo(name, changes):
    data = bytearray(small_file(name))
    for place, value in changes:
        data[place % len(data)] = value
    assert picture_or_refusal(bytes(data))


@functools.cache
def small_file(name):
    kind, options = CUT[name]
    return encode_image(draw_noisy_image(20, 14), kind, **({"sizes": [(14, 14)]} if kind == "ICO" else options))


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"), (b"hello, this is no photo", "text"), ("schöne Blume".encode(), "text"),
        (b"<svg></svg>", "SVG"), (b"<?xml version='1.0'?>\n<svg/>", "SVG"), (b"<!DOCTYPE html><p>404", "web page"),
        (b"%PDF-1.7", "PDF"), (b"PK\3\4" + bytes(30), "zip"), (b"\xd0\xcf\x11\xe0" + bytes(30), "office"),
        (b"\0\0\0\x20ftypisom" + bytes(30), "video"), (bytes(100), "unknown image format"),
        (b"II*\0" + bytes(100), "unsupported kind of TIFF"),
    ],
)  # fmt: skip
def test_what_is_no_photo_is_called_what_it_is(data, word):
    assert word in get_decoding_error(data)


def test_without_its_plug_in_heif_is_refused_with_the_way_to_read_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # what an import finds where it is not installed
    assert "pip install 'ikebana[heif]'" in get_decoding_error(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
