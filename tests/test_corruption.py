"""Damaged photos are refused: no grey areas, tracebacks or exhausted memory."""

import functools
import io
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from PIL.IcoImagePlugin import IcoFile
from PIL.PngImagePlugin import PngInfo
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

# Truncated and damaged files

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


def list_positions(size):
    """Return every twentieth of a size, and some positions just before its end."""
    return sorted({size * twentieth // 20 for twentieth in range(20)} | {size - left for left in (1, 2, 3, 8, 20, 60)})


def is_refused_or_equal(data, complete):
    """Return whether a damaged file was refused; otherwise it must show the complete picture."""
    try:
        assert np.array_equal(decode_as_int(data, 24), complete)
    except UnreadablePhoto:
        return True
    return False


@pytest.mark.parametrize("name", CUT)
def test_a_truncated_file_is_refused_or_shows_the_complete_picture(name):
    skip_unless_supported(CUT[name][0])
    data = whole_file(name)
    complete = decode_as_int(data, 24)
    assert sum(is_refused_or_equal(data[:place], complete) for place in list_positions(len(data))) >= 19


@pytest.mark.parametrize("name", ["JPEG", "progressive JPEG", "PNG", "GIF", "BMP", "TIFF"])
def test_the_reason_for_half_a_file_is_its_missing_end(name):
    data = whole_file(name)
    assert get_decoding_error(data[: len(data) // 2]) == "unreadable: its end is missing"


def test_the_reason_for_a_huge_compressed_text_names_the_text():
    text = PngInfo()
    text.add_text("Comment", "a" * 2_000_000, zip=True)
    reason = get_decoding_error(encode_image(draw_image(32), "PNG", pnginfo=text))
    assert reason == "unreadable: a text or colour profile in it is too large when decompressed"


@pytest.mark.parametrize("name", ["JPEG", "progressive JPEG", "PNG", "GIF", "JPEG 2000"])
def test_a_truncated_file_padded_with_zeros_is_refused_or_shows_the_complete_picture(name):
    data = whole_file(name)
    complete = decode_as_int(data, 24)
    filled = [data[:place] + bytes(len(data) - place) for place in list_positions(len(data))]
    assert sum(is_refused_or_equal(bar, complete) for bar in filled) >= 18


def test_zeros_in_the_first_of_two_pictures_are_detected():
    data = encode_image(
        draw_noisy_image(160, 120, 1), "MPO", save_all=True, append_images=[draw_noisy_image(160, 120, 2)]
    )
    for share in (0.1, 0.25, 0.4):
        assert "end is missing" in get_decoding_error(data[: int(share * len(data))] + bytes(len(data)))


def test_a_jpeg_with_thousands_of_scans_is_refused_before_it_is_decoded():
    plain = encode_image(draw_image(64), "JPEG", progressive=True)
    start = plain.rindex(b"\xff\xda")
    last = plain[start : start + 2 + int.from_bytes(plain[start + 2 : start + 4])]
    endless = plain[:-2] + last * 200 + plain[-2:]
    assert get_decoding_error(endless) == "unreadable: it has more than 100 scans"
    with pytest.raises(UnreadablePhoto, match="100 scans"):
        decoding.decode_full_size(endless)
    assert decoding.decode(plain[:-2] + last * 20 + plain[-2:], 32).width == 64


def test_bytes_after_a_picture_are_ignored():
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        data = encode_image(draw_image(), kind)
        assert np.array_equal(
            decode_as_int(data + b"\xff\xda a video of the same moment \xff\xd8"), decode_as_int(data)
        )


def test_a_changed_byte_of_png_data_is_detected():
    data = bytearray(encode_image(draw_noisy_image(64, 64), "PNG"))
    data[len(data) // 2] ^= 1
    assert get_decoding_error(bytes(data)).startswith("unreadable")


def test_a_tiff_whose_strips_do_not_cover_it_is_refused_instead_of_black():
    assert "only part of the image" in get_decoding_error(encode_grey_tiff(GRADIENT.tobytes(), 8, height=4800))
    assert np.array_equal(decode_as_int(encode_grey_tiff(GRADIENT.tobytes(), 8)), np.repeat(GRADIENT[..., None], 3, -1))


# Decompression bombs

W, H = 16000, 15000  # 240 megapixels: less than any format allows, more than any camera has


def pack_big_endian(*numbers, size=4):
    return b"".join(number.to_bytes(size) for number in numbers)


def pack_little_endian(*numbers, size=2):
    return b"".join(number.to_bytes(size, "little") for number in numbers)


def append_checksum(chunk):
    """Append its checksum to a PNG chunk."""
    return chunk + pack_big_endian(zlib.crc32(chunk))


def make_bombs():
    """Files of a few hundred bytes whose headers claim 240 megapixels."""
    small = Image.new("RGB", (100, 80), (9, 200, 3))
    png, jpeg, tif = (
        encode_image(small, "PNG"),
        encode_image(small, "JPEG"),
        encode_image(small, "TIFF", compression="tiff_lzw"),
    )
    frame = jpeg.index(b"\xff\xc0") + 5
    yield "PNG", png[:12] + append_checksum(b"IHDR" + pack_big_endian(W, H) + png[24:29]) + png[33:]
    yield "GIF", encode_image(small, "GIF").replace(pack_little_endian(100, 80), pack_little_endian(W, H))
    yield (
        "BMP",
        encode_image(small, "BMP").replace(pack_little_endian(100, 80, size=4), pack_little_endian(W, H, size=4)),
    )
    yield "PPM", b"P6 %d %d 255\n" % (W, H)
    yield "QOI", encode_image(small, "QOI").replace(pack_big_endian(100, 80), pack_big_endian(W, H))
    yield "TGA", encode_image(small, "TGA").replace(pack_little_endian(100, 80), pack_little_endian(W, H))
    yield "JPEG", jpeg[:frame] + pack_big_endian(H, W, size=2) + jpeg[frame + 4 :]
    yield (
        "WEBP",
        encode_image(small, "WEBP").replace(
            b"\x9d\x01\x2a" + pack_little_endian(100, 80), b"\x9d\x01\x2a" + pack_little_endian(W, H)
        ),
    )
    yield (
        "TIFF",
        tif.replace(struct.pack("<HHIH", 256, 3, 1, 100), struct.pack("<HHIH", 256, 3, 1, W)).replace(
            struct.pack("<HHIH", 257, 3, 1, 80), struct.pack("<HHIH", 257, 3, 1, H)
        ),
    )
    if features.check("avif"):
        yield "AVIF", encode_image(small, "AVIF").replace(pack_big_endian(100, 80), pack_big_endian(W, H))
    if pillow_heif:
        yield "HEIF", encode_image(small, "HEIF").replace(pack_big_endian(100, 80), pack_big_endian(W, H))
    yield (
        "JPEG2000",
        encode_image(small, "JPEG2000")
        .replace(pack_big_endian(80, 100), pack_big_endian(H, W))
        .replace(pack_big_endian(100, 80), pack_big_endian(W, H)),
    )


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
        print(file.name, "was decoded")
    except UnreadablePhoto as refusal:
        print(file.name, refusal.what)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory the Linux way")
def test_decompression_bombs_are_refused_before_memory_is_allocated(tmp_path):
    names = []
    for kind, data in make_bombs():
        (tmp_path / kind).write_bytes(data)
        names.append(kind)
    done = subprocess.run([sys.executable, "-c", DEFUSE, tmp_path], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == sorted(f"{name} too large: 240 megapixels" for name in names)


def test_decompression_bombs_are_refused_even_without_pillows_own_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for _, data in make_bombs():
        assert get_decoding_error(data).startswith("too large: ")


def test_large_photos_are_decoded_one_at_a_time():
    data = encode_image(Image.new("RGB", (6100, 4000), (10, 200, 90)), "JPEG")
    decoded = []
    threads = [threading.Thread(target=lambda: decoded.append(decoding.decode(data, 16))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(photo.width, photo.height) for photo in decoded] == [(6100, 4000)] * 3


def encode_icon(side):
    """Encode an icon of one PNG frame that declares 256 pixels."""
    png = encode_image(Image.new("L", (side, side)), "PNG")
    entry = struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(png), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + png


def encode_tiled_tiff(side):
    """Encode a deflated TIFF of 100 x 100 pixels with one tile."""
    data = zlib.compress(bytes(side * side))
    entries = [
        (256, 4, 100), (257, 4, 100), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1),
        (322, 4, side), (323, 4, side), (324, 4, 8), (325, 4, len(data)),
    ]  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(entries)) + table + bytes(4)


def test_the_size_of_an_icon_is_checked_before_it_is_decoded():
    refusal = "too large: an icon of 4096 x 4096 pixels"
    decoded = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IcoFile, "frame", lambda *given: decoded.append(given))
        assert get_decoding_error(encode_icon(4096)) == refusal
        assert decoding.read_dimensions(encode_icon(4096)) is None
    assert decoded == []
    assert decoding.decode(encode_icon(1024), 16).width == 1024
    assert decoding.read_dimensions(encode_icon(1024)) == (1024, 1024)


def test_the_size_of_a_bitmap_icon_is_checked_too():
    header = struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 32, 0, 0, 0, 0, 0, 0)
    entry = struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(header), 22)
    assert get_decoding_error(struct.pack("<HHH", 0, 1, 1) + entry + header).startswith("too large: ")
    complete = encode_image(draw_image(64), "ICO", sizes=[(64, 64)], bitmap_format="bmp")
    assert np.array_equal(decode_as_int(complete, 64), to_int_array(draw_image(64)))


def test_a_file_with_only_the_header_of_an_icon_is_an_unknown_format():
    for rest in (b"", b"\1\0", b"\1\0" + bytes(12) + b"\xff" * 4, b"\1\0" + bytes(100)):
        assert get_decoding_error(b"\0\0\1\0" + rest).startswith("unreadable: ")


def test_a_tile_of_a_tiff_counts_even_if_the_picture_is_smaller(monkeypatch):
    assert decoding.read_dimensions(encode_tiled_tiff(2000)) == (2000, 2000)
    assert decoding.decode(encode_tiled_tiff(2000), 16).width == 100
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1_000_000)
    assert get_decoding_error(encode_tiled_tiff(2000)) == "too large: 2000 x 2000 is 4 megapixels"


class Turns:
    """Counts the photos that wait for the lock."""

    taken = 0

    def __enter__(self):
        self.taken += 1

    def __exit__(self, *error):
        pass


def test_photos_with_large_tiles_are_decoded_one_at_a_time(monkeypatch):
    turns = Turns()
    monkeypatch.setattr(decoding, "LARGE_PHOTO_PIXELS", 1_000_000)
    monkeypatch.setattr(decoding, "_large_photo_slot", turns)
    for side, taken in ((992, 0), (1008, 1)):  # TIFF requires multiples of 16
        decoding.decode(encode_tiled_tiff(side), 16)
        assert turns.taken == taken


class Full(io.FileIO):
    """A file that is larger than the free memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise MemoryError


def test_a_photo_whose_file_does_not_fit_in_memory_is_set_aside_alone(tmp_path, monkeypatch):
    photos = write_files(tmp_path, two_classes(2))
    monkeypatch.setattr(
        decoding,
        "open",
        lambda file, mode: (Full if Path(file).name == "1.jpg" else io.FileIO)(file, mode),
        raising=False,
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


def decode_or_refuse(data: bytes, fit: Resize = "squash") -> str:
    """Decode these bytes, or return the reason; nothing else may happen."""
    try:
        photo = decoding.decode(data, 8, fit)
    except UnreadablePhoto as refusal:
        return refusal.what
    assert (photo.pixels.shape, photo.pixels.dtype) == ((8, 8, 3), np.uint8)
    return "a picture"


@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=300), fit=st.sampled_from(["squash", "crop"]))
@settings(max_examples=300)
def test_any_bytes_are_decoded_or_refused(start, rest, fit):
    assert decode_or_refuse(start + rest, fit)


@pytest.mark.slow
@given(
    name=st.sampled_from(sorted(set(CUT) - {"AVIF", "HEIF"})),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
)
@settings(max_examples=150)
def test_a_file_with_changed_bytes_is_decoded_or_refused(name, changes):
    data = bytearray(make_small_file(name))
    for place, value in changes:
        data[place % len(data)] = value
    assert decode_or_refuse(bytes(data))


@functools.cache
def make_small_file(name):
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
def test_files_of_other_kinds_are_refused_by_name(data, word):
    assert word in get_decoding_error(data)


def test_without_its_plugin_heif_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    assert "pip install -c requirements.lock '.[heif]'" in get_decoding_error(
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    )
