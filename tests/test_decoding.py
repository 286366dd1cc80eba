"""Decoding: the same upright sRGB picture from every encoding, or a refusal with the reason."""

import io
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from support.images import (
    GRADIENT,
    decode_as_int,
    draw_image,
    draw_noisy_image,
    encode_grey_tiff,
    encode_image,
    get_decoding_error,
    mean_difference,
    skip_unless_supported,
    to_int_array,
)

from ikebana.data import decoding
from ikebana.data.pillow_output import _load_libtiff

ORIENTATION = 0x0112  # the EXIF tag
TRANSPOSITIONS = {  # EXIF orientation -> what was done to the upright picture; TIFF 6.0, tag Orientation
    1: lambda picture: picture,
    2: lambda picture: picture[:, ::-1],
    3: lambda picture: picture[::-1, ::-1],
    4: lambda picture: picture[::-1],
    5: lambda picture: picture.transpose(1, 0, 2),
    6: lambda picture: np.rot90(picture, 1),
    7: lambda picture: np.rot90(picture, 2).transpose(1, 0, 2),
    8: lambda picture: np.rot90(picture, -1),
}
LOSSLESS = [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})]
LOSSY = [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95}), ("AVIF", {"quality": 95}), ("HEIF", {"quality": 95})]


# Orientation


def test_the_test_image_differs_in_all_eight_orientations():
    picture = to_int_array(draw_image())
    for number, lay in TRANSPOSITIONS.items():
        if number != 1:
            assert mean_difference(lay(picture), picture) > 15


@pytest.mark.parametrize("number", TRANSPOSITIONS)
@pytest.mark.parametrize(("kind", "options"), LOSSLESS + LOSSY)
def test_every_exif_orientation_gives_the_upright_picture(kind, options, number):
    skip_unless_supported(kind)
    upright = draw_image(96).resize((96, 64))
    lying = Image.fromarray(np.ascontiguousarray(TRANSPOSITIONS[number](np.asarray(upright))))
    exif = Image.Exif()
    exif[ORIENTATION] = number
    # pillow_heif turns the container's picture only if the block comes as bytes
    photo = decoding.decode(encode_image(lying, kind, exif=exif.tobytes() if kind == "HEIF" else exif, **options), 32)
    expected = to_int_array(upright.resize((32, 32), Image.Resampling.BILINEAR))
    assert (photo.width, photo.height) == (96, 64)
    assert mean_difference(photo.pixels.astype(int), expected) <= (0 if (kind, options) in LOSSLESS else 2)


@given(block=st.binary(max_size=200))
@example(block=b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0")  # orientation 99
@example(block=b"II*\0\xff\xff\xff\xff")
@settings(max_examples=40)
def test_a_photo_with_a_damaged_exif_block_is_still_used(block):
    assert decoding.decode(encode_image(draw_image(), exif=b"Exif\0\0" + block), 16).pixels.std() > 10


# Colour


# Colorants of sRGB and Display P3 under D50, as ICC profiles define them (columns R, G, B).
SRGB_TO_XYZ = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
P3_TO_XYZ = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
LINEAR = (1.0, 1.0, 0.0, 1.0, 0.0)


def make_icc_profile(colorants, curve=SRGB_CURVE, name="a profile"):
    """Encode an ICC profile of colorants and one curve; ICC.1:2010, sections 7.2, 9.2 and 10."""

    def to_fixed_point(*numbers):
        return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)

    text = name.encode("utf-16-be")
    words = b"mluc" + struct.pack(">IIIHHII", 0, 1, 12, 0x656E, 0x5553, len(text), 28) + text
    tags = {b"desc": words, b"cprt": words, b"wtpt": b"XYZ \0\0\0\0" + to_fixed_point(0.9642, 1.0, 0.8249)}
    for number, letter in enumerate(b"rgb"):
        tags[bytes([letter]) + b"XYZ"] = b"XYZ \0\0\0\0" + to_fixed_point(*colorants[:, number])
        tags[bytes([letter]) + b"TRC"] = b"para\0\0\0\0\0\3\0\0" + to_fixed_point(*curve)
    table, content = struct.pack(">I", len(tags)), b""
    for key, value in tags.items():
        table += key + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    header = struct.pack(">I4s4s4s4s4s12x4s", 0, b"lcms", b"\4\0\0\0", b"mntr", b"RGB ", b"XYZ ", b"acsp")
    header += bytes(28) + to_fixed_point(0.9642, 1.0, 0.8249)
    profile = header.ljust(128, b"\0") + table + content
    return struct.pack(">I", len(profile)) + profile[4:]


def to_linear(srgb):
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(light):
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def to_eight_bits(fractions):
    return Image.fromarray(np.rint(np.clip(fractions, 0, 1) * 255).astype(np.uint8))


def test_display_p3_is_converted_to_srgb():
    meant = to_int_array(draw_image())
    p3 = to_srgb(np.clip(to_linear(meant / 255) @ SRGB_TO_XYZ.T @ np.linalg.inv(P3_TO_XYZ).T, 0, 1))
    file = encode_image(to_eight_bits(p3), "PNG", icc_profile=make_icc_profile(P3_TO_XYZ))
    assert np.abs(decode_as_int(file) - meant).max() <= 3  # 8 bits, twice
    assert mean_difference(to_int_array(to_eight_bits(p3)), meant) > 3  # without the conversion there is a difference


def test_a_linear_profile_named_srgb_is_applied():
    meant = to_int_array(draw_image()) // 2 + 128  # bright: where 8 linear bits suffice
    file = encode_image(
        to_eight_bits(to_linear(meant / 255)),
        "PNG",
        icc_profile=make_icc_profile(SRGB_TO_XYZ, LINEAR, "sRGB linear"),
    )
    assert np.abs(decode_as_int(file) - meant).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_swapped_channels_with_a_swapped_profile_are_the_same_picture(kind):
    red, green, blue = draw_image().split()
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    file = encode_image(
        Image.merge("RGB", (green, red, blue)),
        kind,
        icc_profile=make_icc_profile(SRGB_TO_XYZ[:, [1, 0, 2]]),
        **options,
    )
    assert np.abs(decode_as_int(file) - to_int_array(draw_image())).max() <= (4 if kind == "JPEG" else 2)


@pytest.mark.parametrize(
    "profile", [make_icc_profile(SRGB_TO_XYZ), b"", b"not a profile", make_icc_profile(P3_TO_XYZ)[:200]]
)
def test_an_srgb_or_empty_profile_changes_nothing(profile):
    assert np.array_equal(
        decode_as_int(encode_image(draw_image(), "PNG", icc_profile=profile)), to_int_array(draw_image())
    )


def test_a_colour_profile_of_a_grey_or_cmyk_picture_is_ignored():
    for mode in ("L", "CMYK"):
        picture = draw_image().convert(mode)
        file = encode_image(picture, "TIFF", icc_profile=make_icc_profile(SRGB_TO_XYZ[:, [1, 0, 2]]))
        assert np.array_equal(decode_as_int(file), to_int_array(picture))


@pytest.mark.slow
def test_the_cache_of_profile_transforms_is_bounded():
    for number in range(decoding.MAX_CACHED_TRANSFORMS + 10):
        profile = make_icc_profile(SRGB_TO_XYZ[:, [1, 0, 2]], name=f"profile {number}")
        decoding.decode(encode_image(draw_image(8), "PNG", icc_profile=profile), 8)
    assert len(decoding._transform_cache.transforms) <= decoding.MAX_CACHED_TRANSFORMS


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_becomes_the_same_picture_in_rgb(kind):
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    assert (
        np.abs(
            decode_as_int(encode_image(draw_image().convert("CMYK"), kind, **options)) - to_int_array(draw_image())
        ).max()
        <= 4
    )


def to_lab(srgb):
    """Convert to CIE 1976 L*a*b* under D50, in 8 bits.

    As in Pillow, L* from 0 to 100 is 0 to 255, and 128 is zero of a* and b*.
    """
    relative = to_linear(srgb) @ SRGB_TO_XYZ.T / (0.9642, 1.0, 0.8249)
    x, y, z = np.moveaxis(
        np.where(relative > 216 / 24389, np.cbrt(relative), (24389 / 27 * relative + 16) / 116), -1, 0
    )
    values = ((116 * y - 16) * 2.55, 500 * (x - y) + 128, 200 * (y - z) + 128)
    return Image.merge("LAB", [Image.fromarray(np.rint(channel).astype(np.uint8)) for channel in values])


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_lab_picture_has_the_right_colours(compression):
    meant = to_int_array(draw_image())
    difference = np.abs(decode_as_int(encode_image(to_lab(meant / 255), "TIFF", compression=compression)) - meant)
    assert difference.mean() < 2  # a step of a* or b* is several grey levels
    assert difference.max() <= 20


@pytest.mark.parametrize("mode", ["1", "L", "P"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF"])
def test_grey_bilevel_and_palette_images_are_those_of_pillow(mode, kind):
    picture = draw_image().convert(mode)
    assert np.array_equal(decode_as_int(encode_image(picture, kind)), to_int_array(picture))


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("TIFF", "RGBA"), ("WEBP", "RGBA")])
def test_transparent_pixels_are_white(kind, mode):
    picture = draw_image().convert(mode[:-1])
    veil = Image.fromarray(np.tile(np.linspace(0, 255, 48).astype(np.uint8), (48, 1)))
    opaque = np.asarray(veil)[..., None] / 255
    picture.putalpha(veil)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    expected = to_int_array(draw_image().convert(mode[:-1])) * opaque + 255 * (1 - opaque)
    assert np.abs(decode_as_int(encode_image(picture, kind, **options)) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(kind):
    picture = draw_image().quantize(32)
    gone = int(np.asarray(picture)[0, 0])
    expected = to_int_array(picture)
    expected[np.asarray(picture) == gone] = 255
    assert np.array_equal(decode_as_int(encode_image(picture, kind, transparency=gone)), expected)


def test_a_transparent_colour_of_an_rgb_or_grey_png_is_white():
    for picture, gone in ((draw_image(), draw_image().getpixel((0, 0))), (draw_image().convert("L"), 90)):
        expected = to_int_array(picture)
        expected[(np.asarray(picture).reshape(48, 48, -1) == gone).all(-1)] = 255
        assert np.array_equal(decode_as_int(encode_image(picture, "PNG", transparency=gone)), expected)


def test_a_palette_with_transparency_is_blended_with_white():
    picture = draw_image().convert("RGBA")
    picture.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 48).astype(np.uint8), (48, 1))))
    for palette in (picture.quantize(64), picture.convert("P")):
        expected = decode_as_int(encode_image(palette.convert("RGBA"), "PNG"))
        assert np.array_equal(decoding.convert_image(palette, 48).pixels, expected)


def test_grey_with_premultiplied_alpha_is_blended_with_white():
    picture = Image.merge("LA", (draw_image().convert("L"), Image.new("L", (48, 48), 128)))
    expected = decoding.convert_image(picture, 48).pixels.astype(int)
    assert np.abs(decoding.convert_image(picture.convert("La"), 48).pixels - expected).max() <= 1


def test_the_transparent_value_of_a_16_bit_png_is_white():
    grey = np.asarray(draw_image().convert("L"))
    gone = int(grey[0, 0])
    file = encode_image(Image.fromarray(grey.astype(np.uint16) * 257), "PNG", transparency=gone * 257)
    expected = np.where(grey == gone, 255, grey).astype(int)
    assert np.array_equal(decode_as_int(file), np.repeat(expected[..., None], 3, axis=-1))


def test_an_8_bit_tiff_palette_is_as_bright_as_a_16_bit_one():
    file = encode_image(draw_image().quantize(256), "TIFF")
    with Image.open(io.BytesIO(file)) as image:
        colours = image.tag_v2[320]  # pyright: ignore[reportAttributeAccessIssue]
    wide, narrow = (np.array(values, "<u2").tobytes() for values in (colours, np.array(colours) // 256))
    assert wide in file
    assert np.array_equal(decode_as_int(file.replace(wide, narrow)), decode_as_int(file))


# Bit depth: a gradient from black to white is the same at every depth


def make_gradient(white, kind: type = np.uint16):
    """Return the gradient with black 0 and white `white`."""
    return (GRADIENT.astype(np.int64) * white // 255).astype(kind)


def pack_twelve_bits():
    """Pack two samples in three bytes."""
    values = make_gradient(4095).astype(np.uint32)
    pairs = (values[:, ::2] << 12) | values[:, 1::2]
    return np.stack([pairs >> 16, pairs >> 8 & 255, pairs & 255], axis=-1).astype(np.uint8).tobytes()


def encode_netpbm(white, channels=1):
    values = np.repeat(make_gradient(white)[..., None], channels, axis=-1).astype(">u2").tobytes()
    return b"P%d 48 48 %d\n" % (5 if channels == 1 else 6, white) + values


DEPTHS = {
    "16-bit PNG": lambda: encode_image(Image.fromarray(make_gradient(65535)), "PNG"),
    "16-bit TIFF": lambda: encode_image(Image.fromarray(make_gradient(65535)), "TIFF"),
    "16-bit TIFF, compressed": lambda: encode_image(
        Image.fromarray(make_gradient(65535)), "TIFF", compression="tiff_lzw"
    ),
    "16-bit TIFF, white is zero": lambda: encode_grey_tiff((65535 - make_gradient(65535)).tobytes(), 16, photometric=0),
    "8-bit TIFF, white is zero": lambda: encode_grey_tiff((255 - GRADIENT).tobytes(), 8, photometric=0),
    "16-bit TIFF, signed": lambda: encode_grey_tiff(make_gradient(32767).tobytes(), 16, sample_format=2),
    "32-bit TIFF, unsigned": lambda: encode_grey_tiff(make_gradient(2**32 - 1, np.uint32).tobytes(), 32),
    "32-bit TIFF, signed": lambda: encode_grey_tiff(make_gradient(2**31 - 1, np.int32).tobytes(), 32, sample_format=2),
    "12-bit TIFF": lambda: encode_grey_tiff(pack_twelve_bits(), 12),
    "12 bits in a 16-bit PNG": lambda: encode_image(Image.fromarray(make_gradient(4095)), "PNG"),
    "12 bits in a 16-bit TIFF": lambda: encode_image(Image.fromarray(make_gradient(4095)), "TIFF"),
    "16-bit PGM": lambda: encode_netpbm(65535),
    "12-bit PGM": lambda: encode_netpbm(4095),
    "16-bit PPM": lambda: encode_netpbm(65535, channels=3),
    "float TIFF, 0 to 1": lambda: encode_image(Image.fromarray((GRADIENT / 255).astype(np.float32)), "TIFF"),
    "float TIFF, 0 to 255": lambda: encode_image(Image.fromarray(GRADIENT.astype(np.float32)), "TIFF"),
    "float TIFF, -2 to 2": lambda: encode_image(Image.fromarray((GRADIENT / 255 * 4 - 2).astype(np.float32)), "TIFF"),
    "float TIFF, all there is": lambda: encode_image(
        Image.fromarray(((GRADIENT / 255 * 2 - 1) * 3e38).astype(np.float32)), "TIFF"
    ),
}


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_grey_gradient_has_the_same_brightness_at_every_bit_depth(depth):
    assert np.abs(decode_as_int(DEPTHS[depth]()) - GRADIENT[..., None]).max() <= 1


def test_a_dark_16_bit_photo_stays_dark():
    assert (
        np.abs(
            decode_as_int(encode_image(Image.fromarray(make_gradient(65535) // 4), "PNG")) - GRADIENT[..., None] / 4
        ).max()
        <= 1
    )


@pytest.mark.parametrize("value", [0, 100, 65535])
def test_a_16_bit_photo_of_one_value_does_not_divide_by_zero(value):
    assert len(np.unique(decode_as_int(encode_image(Image.fromarray(np.full((8, 8), value, np.uint16)), "PNG")))) == 1


def test_a_nan_affects_only_its_own_pixel():
    values = (GRADIENT / 255).astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    expected = GRADIENT.astype(int)
    expected[0, :3] = 0, 255, 0
    assert np.abs(decode_as_int(encode_image(Image.fromarray(values), "TIFF")) - expected[..., None]).max() <= 1
    assert "NaN or infinite" in get_decoding_error(
        encode_image(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF")
    )


# Animations


@pytest.mark.parametrize(
    ("kind", "options"),
    [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("AVIF", {"quality": 95, "subsampling": "4:4:4"})],
)
def test_an_animation_is_its_first_frame(kind, options):
    skip_unless_supported(kind)
    first, second = (
        draw_image(seed=1).quantize(64).convert("RGB"),
        draw_image(seed=2).transpose(Image.Transpose.ROTATE_180),
    )
    file = encode_image(first, kind, save_all=True, append_images=[second], duration=100, **options)
    with Image.open(io.BytesIO(file)) as image:
        assert getattr(image, "n_frames", 1) == 2
    assert (
        mean_difference(decode_as_int(file), to_int_array(first))
        <= (4 if kind == "AVIF" else 0)
        < mean_difference(decode_as_int(file), to_int_array(second))
    )


# Size


@pytest.fixture(scope="module")
def twelve_megapixels():
    """A JPEG of 4000 x 3000 pixels, and its decoded picture.

    It has gradients, edges, fine lines and noise.
    """
    soft = draw_noisy_image(125, 94, 3).resize((4000, 3000), Image.Resampling.BICUBIC)
    texture = draw_noisy_image(1000, 750, 4).resize((4000, 3000), Image.Resampling.NEAREST)
    grain = Image.merge("RGB", [Image.effect_noise((4000, 3000), 60) for _ in range(3)])
    picture = Image.blend(Image.blend(soft, texture, 0.4), grain, 0.25)
    picture.paste(draw_image(700, 5), (2600, 1800))
    for number in range(0, 1500, 6):  # a grating of lines one to five pixels wide
        picture.paste((number % 256, 40, 200), (200 + number, 300, 201 + number + number // 375, 1300))
    data = encode_image(picture, "JPEG", quality=92)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return data, image


@pytest.mark.slow
@pytest.mark.parametrize("side", [150, 224, 299])
def test_decoding_a_large_jpeg_at_reduced_scale_changes_little(twelve_megapixels, side):
    data, full = twelve_megapixels
    difference = np.abs(decode_as_int(data, side) - to_int_array(full.resize((side, side), Image.Resampling.BILINEAR)))
    assert difference.mean() < 0.3
    assert difference.max() <= 7


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (33, 200), (20, 20)])
def test_squash_and_crop_are_those_of_pillow(size):
    picture = draw_noisy_image(*size)
    file = encode_image(picture, "PNG")
    squashed = picture.resize((40, 40), Image.Resampling.BILINEAR)
    cropped = ImageOps.fit(picture, (40, 40), Image.Resampling.BILINEAR)
    assert np.array_equal(decode_as_int(file, 40), to_int_array(squashed))
    assert np.array_equal(decode_as_int(file, 40, "crop"), to_int_array(cropped))
    assert size == (20, 20) or not np.array_equal(to_int_array(squashed), to_int_array(cropped))


def test_threads_decode_the_same_pixels_as_one_thread():
    files = [
        encode_image(
            draw_image(seed=number),
            "PNG",
            icc_profile=make_icc_profile(P3_TO_XYZ if number % 2 else SRGB_TO_XYZ[:, [1, 0, 2]]),
        )
        for number in range(16)
    ]
    alone, together = [decode_as_int(file) for file in files], {}
    threads = [
        threading.Thread(
            target=lambda part=part: together.update({row: decode_as_int(files[row]) for row in range(part, 16, 4)})
        )
        for part in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(alone[row], together[row]) for row in range(16))


def test_broken_tiff_files_print_nothing(tmp_path):
    """libtiff and Pillow's logger write lines without the photo's name to standard error."""
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(stream, "TIFF", compression="tiff_lzw")
    data = stream.getvalue()
    (tmp_path / "broken.tif").write_bytes(data[:200] + bytes(600) + data[800:])
    code = (
        "import io, sys; from pathlib import Path; from PIL import Image; from ikebana.data import decoding\n"
        "data = Path(sys.argv[1]).read_bytes()\n"
        "try:\n    decoding.decode(data, 32)\nexcept Exception as error:\n    print(type(error).__name__)\n"
        "if len(sys.argv) > 2:\n    Image.open(io.BytesIO(data)).load()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "broken.tif")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("UnreadablePhoto\n", "")
    plain = subprocess.run([*command, "plain"], capture_output=True, text=True, check=False)
    if _load_libtiff() is not None:
        assert "LZWDecode" in plain.stderr  # libtiff prints again outside a call
