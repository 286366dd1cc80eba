"""Samples of more than eight bits, scaled to eight.

Grey values keep their depth in Pillow. Of 16-bit colours it unpacks the upper 8 bits, which are
nearly black where a camera or a microscope stores 10 or 12 bits. Its raw modes name the order of the
two bytes of a sample, so the other order reads the lower 8 bits.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImagePalette
from PIL.ImageFile import ImageFile, _Tile  # pyright: ignore[reportPrivateUsage]
from PIL.TiffImagePlugin import TiffImageFile

from ikebana.errors import UnreadablePhoto

TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_PLANES, TIFF_COLOUR_MAP, TIFF_SAMPLE_FORMAT = 258, 262, 284, 320, 339
SEPARATE_PLANES = 2
MAX_SAMPLE = 65535
# The start of a JPEG 2000 codestream, and the position of its first bit depth.
JPEG2000_SIGNATURE, JPEG2000_DEPTH_POSITION = b"\xff\x4f\xff\x51", 42
# Photos that use less than this part of their range are stretched to the full range.
MIN_RANGE_DIVISOR = 16
# The order of bytes in which a raw mode's upper byte is the lower one. N is that of the machine.
SWAPPED_ORDERS = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
REASON_DARK_COLOURS = "unreadable: its colours use less than a sixteenth of their range"
REASON_UNREADABLE_BITS = f"{REASON_DARK_COLOURS} (save it with 8 bits per colour)"


@dataclass(frozen=True)
class SampleDepth:
    """The meaning of grey samples with more than eight bits."""

    white_level: float | None
    # 32-bit unsigned integers, which Pillow returns as signed.
    is_unsigned: bool = False
    is_white_zero: bool = False


def read_grey_depth(image: Image.Image) -> SampleDepth | None:
    """Read the depth of an image that is not loaded yet.

    Returns None if it has 8 bits or colours.
    """
    if not image.mode.startswith(("I", "F")):
        return None
    if not isinstance(image, TiffImageFile):
        return SampleDepth(None if image.mode == "F" else MAX_SAMPLE)
    tags = image.tag_v2
    bits, sample_format = tags.get(TIFF_BITS, (16,))[0], tags.get(TIFF_SAMPLE_FORMAT, (1,))[0]
    white = 2.0 ** (bits - 1 if sample_format == 2 else bits) - 1 if bits <= 16 and image.mode != "F" else None
    is_unsigned = image.mode == "I" and bits == 32 and sample_format == 1
    return SampleDepth(white, is_unsigned, is_white_zero=tags.get(TIFF_PHOTOMETRIC) == 0)


def scale_grey(image: Image.Image, depth: SampleDepth) -> Image.Image:
    """Scale grey values to 8 bits.

    Raises:
        UnreadablePhoto: there is no finite value.
    """
    values = np.asarray(image)
    values = values.view(np.uint32).astype(np.float32) if depth.is_unsigned else values.astype(np.float32)
    finite = np.isfinite(values)
    low, high = float(values.min(where=finite, initial=np.inf)), float(values.max(where=finite, initial=-np.inf))
    if low > high:
        raise UnreadablePhoto("unreadable: all of its values are NaN or infinite")
    values = np.nan_to_num(values, copy=False, nan=low, posinf=high, neginf=low)
    white = 1.0 if image.mode == "F" and low >= 0 and 0 < high <= 1 else depth.white_level
    if white is None or low < 0 or high > white or high < white / MIN_RANGE_DIVISOR:
        white = high
    else:
        low = 0.0
    levels = _scale(values, low, white)
    levels = 255 - levels if depth.is_white_zero else levels
    # The transparent value of a PNG is shown as white, like all transparency.
    transparent = image.info.get("transparency")
    return Image.fromarray(
        np.where(values == transparent, np.uint8(255), levels) if transparent is not None else levels
    )


def _scale(values: np.ndarray, low: float, white: float) -> np.ndarray:
    """Scale float32 values to uint8, so that low becomes 0 and white 255."""
    scale = 255.0 / (white - low) if white > low else 0.0
    return np.rint(np.clip(values * scale - low * scale, 0, 255)).astype(np.uint8)


def read_colour_white_level(image: Image.Image) -> int | None:
    """Read the white level of an image that is not loaded yet.

    Returns None if it has 8 bits or no colours.
    """
    if not isinstance(image, ImageFile) or image.mode not in ("RGB", "RGBA") or not image.tile:
        return None
    codec, _, _, args = image.tile[0]
    if codec in ("ppm", "ppm_plain") and isinstance(args, tuple):
        white = args[-1]
    elif codec == "jpeg2k":
        white = _read_jpeg2000_white_level(image)
    else:
        is_deep = ";16" in _get_raw_mode(image.tile[0]) or (_has_planes(image) and _get_bits(image) == 16)
        white = MAX_SAMPLE if is_deep else 0
    return white if white > 255 else None


def _read_jpeg2000_white_level(image: ImageFile) -> int:
    """Read the white level from the header of the codestream; ITU-T T.800, A.5.1."""
    assert image.fp is not None, "the image is not loaded yet"
    position = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(position)
    depth = data[data.find(JPEG2000_SIGNATURE) + JPEG2000_DEPTH_POSITION]
    # The upper bit is the sign, and the others are the number of bits minus 1.
    return 2 ** ((depth & 0x7F) + 1) - 1


def correct_planes(image: Image.Image) -> None:
    """Correct how Pillow reads an uncompressed TIFF with one plane per colour.

    It takes each byte of a 16-bit sample for a sample.
    """
    if isinstance(image, TiffImageFile) and _has_planes(image) and _get_bits(image) == 16:
        order = "L" if image.tag_v2.prefix == b"II" else "B"
        image.tile = [
            _with_raw_mode(tile, f"{_get_raw_mode(tile)};16{order}") if tile.codec_name == "raw" else tile
            for tile in image.tile
        ]


def correct_palette(image: Image.Image) -> None:
    """Correct the palette of a TIFF if a program wrote it with 8 bits.

    The image is not loaded yet. Colours have 16 bits there, of which Pillow takes the upper 8. libtiff
    makes the same distinction.
    """
    if isinstance(image, TiffImageFile) and image.mode == "P":
        levels = image.tag_v2.get(TIFF_COLOUR_MAP, ())
        if max(levels, default=256) < 256:
            image.palette = ImagePalette.raw("RGB;L", bytes(levels))


def stretch_dark_colours(
    image: Image.Image, white_level: int, open_again: Callable[[], ImageFile] | None
) -> Image.Image:
    """Stretch the colours of a loaded image if they use little of their range.

    Otherwise the image is returned as it is.

    Args:
        open_again: opens the same file; None if there is none.
    Raises:
        UnreadablePhoto: the lower bits cannot be read.
    """
    colours = image.getextrema()[:3]
    if max(high for _, high in colours) > 256 // MIN_RANGE_DIVISOR:  # pyright: ignore
        return image
    if open_again is None:
        raise UnreadablePhoto(f"{REASON_DARK_COLOURS} (give the file instead of an open image)")
    samples = _read_samples(open_again)
    colours, alpha = samples[..., :3], samples[..., 3:]
    low, high = int(colours.min()), int(colours.max())
    if high >= white_level / MIN_RANGE_DIVISOR:
        return image
    levels = _scale(colours.astype(np.float32), low, high)
    if not alpha.size:
        return Image.fromarray(levels)
    is_alpha_dark = alpha.max() < MAX_SAMPLE / MIN_RANGE_DIVISOR
    alpha_levels = (
        _scale(alpha.astype(np.float32), 0, int(alpha.max())) if is_alpha_dark else (alpha >> 8).astype(np.uint8)
    )
    return Image.fromarray(np.concatenate([levels, alpha_levels], axis=-1))


def _read_samples(open_image: Callable[[], ImageFile]) -> np.ndarray:
    """Read all 16 bits of the samples: uint16 [height, width, channels]."""
    upper, lower = (_read_bytes(open_image, is_upper) for is_upper in (True, False))
    return upper.astype(np.uint16) << 8 | lower


def _read_bytes(open_image: Callable[[], ImageFile], is_upper: bool) -> np.ndarray:
    """Read the upper or the lower bytes of 16-bit samples."""
    with open_image() as image:
        if _has_planes(image) and image.tile[0].codec_name == "libtiff":
            raise UnreadablePhoto(REASON_UNREADABLE_BITS)
        correct_planes(image)
        is_grey = _get_raw_mode(image.tile[0]) == "LA;16B"
        image.tile = [_select_bytes(tile, is_upper) for tile in image.tile]
        image.load()
        levels = np.asarray(image)
    # There is no raw mode for the lower bytes of grey with alpha: each byte was read as a channel.
    return levels[..., [1, 1, 1, 3]] if is_grey and not is_upper else levels


def _select_bytes(tile: _Tile, is_upper: bool) -> _Tile:
    """Let a tile read the upper or the lower bytes."""
    mode = _get_raw_mode(tile)
    if tile.codec_name == "ppm":
        return tile._replace(codec_name="raw", args=("RGB;16B" if is_upper else "RGB;16L", 0, 1))
    if is_upper and ";16" in mode:
        return tile
    if mode == "LA;16B":
        return _with_raw_mode(tile, "RGBA")
    if mode[:-1].endswith(";16") and not mode.startswith("RGBa"):
        return _with_raw_mode(tile, mode[:-1] + SWAPPED_ORDERS[mode[-1]])
    raise UnreadablePhoto(REASON_UNREADABLE_BITS)


def _get_raw_mode(tile: _Tile) -> str:
    """Return the layout of a tile's samples, as Pillow names it."""
    mode = tile.args[0] if isinstance(tile.args, tuple) else tile.args
    return mode if isinstance(mode, str) else ""


def _with_raw_mode(tile: _Tile, mode: str) -> _Tile:
    return tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode)


def _has_planes(image: Image.Image) -> bool:
    return isinstance(image, TiffImageFile) and image.tag_v2.get(TIFF_PLANES) == SEPARATE_PLANES


def _get_bits(image: Image.Image) -> int:
    return image.tag_v2.get(TIFF_BITS, (0,))[0] if isinstance(image, TiffImageFile) else 0
