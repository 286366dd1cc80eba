"""Colours of 16 bits, of which a camera may use 10 or 12."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.images import decode_as_int, draw_noisy_image, encode_image, get_decoding_error, to_int_array

from ikebana.data import decoding
from ikebana.errors import UnreadablePhoto

# From black to white, so that stretching changes nothing but the depth.
COLOURS = to_int_array(draw_noisy_image(60, 40))
COLOURS = ((COLOURS - COLOURS.min()) * 255 // (COLOURS.max() - COLOURS.min())).astype(np.uint16)
GREY = COLOURS[..., :1]
ALPHA = np.broadcast_to(np.linspace(0, 255, 60).astype(np.uint16)[None, :, None], (40, 60, 1))
FACTORS = {16: 257, 12: 16, 10: 4, 8: 1}
BIT_DEPTHS = list(FACTORS)
# The first column and row, and the distances of columns and rows, of the passes of an interlaced PNG.
ADAM7 = (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
PNG_GREY_ALPHA, PNG_RGB, PNG_RGBA = 4, 2, 6


def encode_png(samples, colour_type, is_interlaced=False):
    """Encode a PNG with 16 bits per sample; W3C PNG, section 11.

    Pillow writes 8-bit colours only.
    """

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, colour_type, 0, 0, is_interlaced)
    passes = [samples[y::height, x::width] for x, y, width, height in ADAM7] if is_interlaced else [samples]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in passes for row in part)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def encode_tiff(samples, order="<", has_planes=False, is_compressed=False, orientation=1):
    """Encode a TIFF with 16 bits per sample; TIFF 6.0.

    It has one strip, or one per plane. Pillow writes 8-bit colours only.
    """
    height, width, count = samples.shape
    planes = np.moveaxis(samples, -1, 0) if has_planes else samples[None]
    strips = [plane.astype(f"{order}u2").tobytes() for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if is_compressed else strips
    end = 8 + sum(map(len, strips))
    starts = [8 + sum(map(len, strips[:row])) for row in range(len(strips))]
    longs = struct.pack(f"{order}{count}H", *[16] * count)
    longs += struct.pack(f"{order}{2 * len(strips)}I", *starts, *map(len, strips))
    offsets = end + 2 * count, end + 2 * count + 4 * len(strips)
    places = offsets if len(strips) > 1 else (starts[0], len(strips[0]))
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, count, end), (259, 3, 1, 8 if is_compressed else 1),
        (262, 3, 1, 2), (273, 4, len(strips), places[0]), (274, 3, 1, orientation), (277, 3, 1, count),
        (278, 4, 1, height), (279, 4, len(strips), places[1]), (284, 3, 1, 2 if has_planes else 1),
        *([(338, 3, 1, 2)] if count == 4 else []),
    ]  # fmt: skip
    table = b"".join(
        struct.pack(f"{order}HHIHH" if kind == 3 and number == 1 else f"{order}HHII", tag, kind, number, value, *rest)
        for tag, kind, number, value in entries
        for rest in [[0] if kind == 3 and number == 1 else []]
    )
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}H", len(entries)) + table + bytes(4)
    return magic + struct.pack(f"{order}I", end + len(longs)) + b"".join(strips) + longs + directory


def encode_ppm(samples, white=65535):
    return b"P6 %d %d %d\n" % (samples.shape[1], samples.shape[0], white) + samples.astype(">u2").tobytes()


FORMATS = {
    "PNG": lambda samples: encode_png(samples, PNG_RGB),
    "PNG, interlaced": lambda samples: encode_png(samples, PNG_RGB, is_interlaced=True),
    "TIFF": encode_tiff,
    "TIFF, big-endian": lambda samples: encode_tiff(samples, ">"),
    "TIFF, deflated": lambda samples: encode_tiff(samples, is_compressed=True),
    "TIFF, deflated, big-endian": lambda samples: encode_tiff(samples, ">", is_compressed=True),
    "TIFF, a plane per colour": lambda samples: encode_tiff(samples, has_planes=True),
    "TIFF, a plane per colour, big-endian": lambda samples: encode_tiff(samples, ">", has_planes=True),
    "PPM": encode_ppm,
}


@pytest.mark.parametrize("bits", BIT_DEPTHS)
@pytest.mark.parametrize("name", FORMATS)
def test_colours_have_the_same_brightness_at_every_bit_depth(name, bits):
    data = FORMATS[name](COLOURS * FACTORS[bits])
    photo = decoding.decode_full_size(data).astype(int)
    assert np.abs(photo - COLOURS).max() <= 1


def test_colours_of_all_samples_are_stretched_together():
    """If channels were stretched separately, a red flower would turn grey."""
    red = (COLOURS * [4, 2, 1] // 4).astype(np.uint16)
    photo = decoding.decode_full_size(encode_png(red * 16, PNG_RGB)).astype(int)
    assert np.abs(photo - red.astype(int)).max() <= 2


@pytest.mark.parametrize("bits", BIT_DEPTHS)
@pytest.mark.parametrize(
    ("colour_type", "colours"), [(PNG_RGBA, COLOURS), (PNG_GREY_ALPHA, GREY)], ids=["RGBA", "grey with alpha"]
)
def test_transparent_pixels_of_any_bit_depth_show_the_white_background(colour_type, colours, bits):
    data = encode_png(np.concatenate([colours, ALPHA], -1) * FACTORS[bits], colour_type)
    opaque = ALPHA / 255
    expected = np.broadcast_to(colours, COLOURS.shape) * opaque + 255 * (1 - opaque)
    assert np.abs(decoding.decode_full_size(data) - expected).max() <= 2


def test_transparency_of_16_bits_is_kept_with_dark_colours():
    data = encode_png(np.concatenate([COLOURS * 16, np.full_like(GREY, 65535)], -1), PNG_RGBA)
    assert np.abs(decoding.decode_full_size(data).astype(int) - COLOURS).max() <= 1


def test_photos_that_use_a_sixteenth_of_the_range_are_read_as_by_pillow():
    for brightest in (4352, 20000, 65535):
        samples = (COLOURS.astype(np.int64) * brightest // 255).astype(np.uint16)
        for data in (encode_png(samples, PNG_RGB), encode_tiff(samples), encode_tiff(samples, ">", is_compressed=True)):
            with Image.open(io.BytesIO(data)) as image:
                assert np.array_equal(decoding.decode_full_size(data), np.asarray(image))


@pytest.mark.parametrize("value", [0, 7, 4000])
def test_a_photo_of_one_dark_colour_stays_uniform(value):
    assert len(np.unique(decode_as_int(encode_png(np.full((8, 8, 3), value, np.uint16), PNG_RGB), 8))) == 1


def test_a_rotated_photo_is_stretched_like_others():
    upright = decoding.decode_full_size(encode_tiff(COLOURS * 16))
    turned = decoding.decode_full_size(encode_tiff(COLOURS * 16, orientation=6))
    assert np.array_equal(turned, np.rot90(upright, -1))
    photo = decoding.decode(encode_tiff(COLOURS * 16, orientation=6), 8)
    assert (photo.width, photo.height) == (40, 60)


def test_a_photo_whose_lower_bits_pillow_cannot_read_is_refused():
    assert get_decoding_error(encode_tiff(COLOURS * 16, has_planes=True, is_compressed=True)) == (
        "unreadable: its colours use less than a sixteenth of their range (save it with 8 bits per colour)"
    )
    text = b"P3 2 1 65535 " + b"100 4000 7 " * 2
    assert "less than a sixteenth" in get_decoding_error(text)


# 4 x 4 pixels of 16 bits with values up to 3760, as opj_compress of OpenJPEG 2.5 wrote them. Pillow writes 8-bit colours only.
DARK_JPEG_2000 = base64.b64decode(
    "/0//UQAvAAAAAAAEAAAABAAAAAAAAAAAAAAABAAAAAQAAAAAAAAAAAADDwEBDwEBDwEB/1IADAAAAAEBAAQEAAH/XAAEQID/ZAAlAAFDcmVhdGVk"
    "IGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjD/kAAKAAAAAABCAAH/k8/8MGARUFSQh2oRJVKMFx2DRAWop/de6XhxHpvA/kIAFABSZnchIS/A/kIA"
    "EVBKZnchIS//2Q=="
)


def test_a_dark_jpeg_2000_is_refused_and_one_of_8_bits_is_black():
    assert "less than a sixteenth" in get_decoding_error(DARK_JPEG_2000)
    assert decode_as_int(encode_image(Image.new("RGB", (8, 8)), "JPEG2000"), 8).max() == 0


def test_an_open_image_with_dark_colours_is_refused_with_advice():
    with (
        Image.open(io.BytesIO(encode_png(COLOURS * 16, PNG_RGB))) as image,
        pytest.raises(UnreadablePhoto, match="give the file instead of an open image"),
    ):
        decoding.convert_image(image, 32)
    with Image.open(io.BytesIO(encode_image(Image.new("RGB", (8, 8)), "PNG"))) as black:
        assert decoding.convert_image(black, 8).pixels.max() == 0
