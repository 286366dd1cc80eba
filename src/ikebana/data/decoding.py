"""Decoding of photos, the same for training and prediction.

No other module opens a photo, so training and prediction get the same pixels.

orientation    EXIF's, applied once; Pillow turns TIFFs while it loads them and drops the tag
colour         converted to sRGB by the embedded ICC profile; CMYK, Lab, grey, palettes become RGB
transparency   composited over white
bit depth      16-bit integers are scaled from the file's declared white level, floats from 0..1.
               Without one, or below a sixteenth of it (12 camera bits in a 16-bit file), from the
               darkest to the brightest value, of all colours together
damage         a truncated photo is refused, never filled with grey, even if a program appended an
               end marker; a JPEG that lacks only its end marker is complete
preview        a raw file, of which Pillow reads only a preview, is refused
animation      the first frame
size           squashed to a square, or centre-cropped, by an antialiased triangle filter
large JPEGs    decoded at a half, a quarter or an eighth while both sides stay at least twice the
               target's. At 150, 224 and 299 pixels that moves a pixel of drawn 12-megapixel photos
               by 0.2 to 0.3 grey levels on average and by 7 at most (tests/test_decoding.py), of real
               ones with 1 or 2 megapixels by 0.2 to 0.5 and by 15
"""

import hashlib
import io
import math
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.IcoImagePlugin import IcoFile
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ikebana.data import bit_depth, corruption, jpeg_end, previews
from ikebana.data.pillow_output import silence_pillow
from ikebana.errors import UnreadablePhoto, advise_extra
from ikebana.recipe import Resize

# Increase it with each change of the rules above; that invalidates cached pixels.
DECODER_VERSION = 4

# No camera writes a larger file.
MAX_FILE_BYTES = 512 * 2**20
# Twice Image.MAX_IMAGE_PIXELS, beyond which Pillow itself refuses.
MAX_PIXELS = 178_956_970
# Including the mask below a bitmap. Windows shows 256 pixels, some programs write 1024.
MAX_ICON_SIDE = 2048
# Larger photos are decoded one at a time, to bound memory.
LARGE_PHOTO_PIXELS = 24_000_000
# A JPEG without an end marker is decoded up to six times to find out whether it is complete, but not
# above this size, where that takes longer than a client of `serve` may cost.
MAX_COMPLETED_PIXELS = 50_000_000
# A JPEG is decoded at a reduced size that is at least this many times the target.
JPEG_DRAFT_SCALE = 2

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "QOI", "ICO", "TGA", "PCX")
ORIENTATION_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SRGB_PROFILE = ImageCms.createProfile("sRGB")
# Grey levels that a profile may move a colour and still count as sRGB.
MAX_SRGB_DEVIATION = 2
# Per thread: some programs write a different profile into each photo.
MAX_CACHED_TRANSFORMS = 64
TIFF_WIDTH, TIFF_HEIGHT = 256, 257
TIFF_TILE_SIZE = (322, 323)

REASON_OUT_OF_MEMORY = "too large for this machine's memory"
REASON_NO_HEIF = f"unsupported format: HEIF (to read it: {advise_extra('heif')})"
# The beginning of some errors of Pillow, and what they mean to the owner of the photo.
REASONS_OF_PILLOW = {
    "Truncated File Read": corruption.MISSING_END,
    "image file is truncated": corruption.MISSING_END,
    "decoder error": "its data are damaged",
    "broken data stream": "its data are damaged",
    "Decompressed data too large": "a text or colour profile in it is too large when decompressed",
}
REASON_STORE_UNAVAILABLE = "unreadable: its store does not answer"
REASON_TOO_LARGE_FILE = f"too large: a file of more than {MAX_FILE_BYTES // 2**20} MB"
TRANSIENT_REASONS = (REASON_OUT_OF_MEMORY, REASON_NO_HEIF, REASON_STORE_UNAVAILABLE)

# Load all plug-ins now: loading them at the first unusual file would be a race between threads.
# Pillow itself loads them at the first file that it does not know.
Image.init()
_large_photo_slot = threading.Semaphore(1)
# littlecms transforms hold state, so each thread has its own.
_transform_cache = threading.local()


@dataclass(frozen=True)
class Photo:
    """One photo as the network sees it.

    Width and height are those of the upright original, in pixels.
    """

    # uint8 [image_size, image_size, 3], sRGB.
    pixels: np.ndarray
    width: int
    height: int
    # uint8 [thumbnail_size, thumbnail_size, 3]: the whole photo squashed, if requested.
    thumbnail: np.ndarray | None = None


def decode(data: bytes, image_size: int, resize: Resize = "squash", thumbnail_size: int = 0) -> Photo:
    """Decode a file's bytes to an upright sRGB square.

    A thumbnail is decoded as well, unless its size is 0.

    Raises:
        UnreadablePhoto: with a reason; never anything else for any bytes.
    """
    with _translate_errors(data), _open_intact_image(data) as image, _wait_if_large(image):
        return _decode_image(image, data, image_size, resize, thumbnail_size)


def decode_full_size(data: bytes) -> np.ndarray:
    """Decode a file's bytes like `decode`, at full size: uint8 [height, width, 3]."""
    with _translate_errors(data), _open_intact_image(data) as image:
        upright, _ = _load_upright(image, data)
        return np.asarray(upright)


def convert_image(image: Image.Image, image_size: int, resize: Resize = "squash") -> Photo:
    """Convert an open image like `decode`, but from all its pixels; the image stays unchanged."""
    with _translate_errors():
        _check_size(image)
        upright, _ = _load_upright(image, None)
        return Photo(np.asarray(_resize(upright, image_size, resize)), *upright.size)


@contextmanager
def _translate_errors(data: bytes = b"") -> Iterator[None]:
    """Convert every exception of a decoder to UnreadablePhoto."""
    try:
        with silence_pillow():
            yield
    except UnreadablePhoto:
        raise
    except UnidentifiedImageError:
        raise UnreadablePhoto(corruption.identify_foreign_file(data)) from None
    except Image.DecompressionBombError as error:
        raise UnreadablePhoto(f"too large: {_find_first_number(str(error)) / 1e6:,.0f} megapixels") from None
    except MemoryError:
        raise UnreadablePhoto(REASON_OUT_OF_MEMORY) from None
    # Pillow's plug-ins raise any exception, and a broken photo must not end a run.
    except Exception as error:
        raise UnreadablePhoto(f"unreadable: {_describe_error(error)}") from None


def _open_intact_image(data: bytes) -> ImageFile:
    """Open a file; refuse damage that the decoder would not report, or decode forever."""
    image = _open_image(data)
    _check_size(image)
    problem = corruption.find_silent_damage(data, image.format)
    if problem is None and image.info.get("progressive") and not jpeg_end.has_all_scans(data):
        problem = corruption.MISSING_END
    elif problem == corruption.MISSING_END and math.prod(image.size) <= MAX_COMPLETED_PIXELS:
        with _wait_if_large(image):
            completed = jpeg_end.complete(data, _checksum_pixels)
        if completed is not None:
            return _open_image(completed)
    if problem is not None:
        raise UnreadablePhoto(f"unreadable: {problem}")
    return image


def _checksum_pixels(data: bytes, is_reduced: bool = False) -> int | None:
    """Compute a checksum of a JPEG's pixels; None if it cannot be decoded.

    Args:
        is_reduced: decodes an eighth of the size, the mean of each block, which takes less time.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if is_reduced:
                image.draft(None, (1, 1))  # pyright: ignore[reportArgumentType]
            return zlib.crc32(image.tobytes())
    # Pillow's plug-ins raise any exception.
    except Exception:
        return None


@dataclass(frozen=True)
class Header:
    """A file's format (JPEG, ...), mode (RGB, ...) and other metadata."""

    format: str
    mode: str
    # Mean of a JPEG's quantisation tables: the higher, the poorer; 0 for other files.
    mean_quantisation: float
    # Names of metadata that are present: EXIF, a colour profile, progressive, ...
    markers: str


def read_header(stream: IO[bytes]) -> Header:
    """Read the header of an open file; raise UnreadablePhoto or OSError if it is bad."""
    start = stream.read(64)
    stream.seek(0)
    if corruption.is_heif(start):
        return Header("HEIF", "RGB", 0.0, "")
    with _translate_errors(start), Image.open(stream, formats=FORMATS) as image:
        tables = getattr(image, "quantization", None) or {}
        levels = [level for table in tables.values() for level in table]
        names = ("exif", "icc_profile", "jfif", "adobe", "progressive", "photoshop", "comment")
        markers = ", ".join(name for name in names if image.info.get(name))
        return Header(str(image.format), image.mode, float(np.mean(levels)) if levels else 0.0, markers)


def read_bytes(file: str | Path) -> bytes:
    """Read a file.

    Raises:
        UnreadablePhoto: it is too large for a photo or for the memory.
    """
    with open(file, "rb") as stream:
        if os.fstat(stream.fileno()).st_size > MAX_FILE_BYTES:
            raise UnreadablePhoto(REASON_TOO_LARGE_FILE)
        try:
            return stream.read()
        except MemoryError:
            raise UnreadablePhoto(REASON_OUT_OF_MEMORY) from None


def read_dimensions(data: bytes) -> tuple[int, int] | None:
    """Read the width and height that `decode` would hold in memory.

    Returns None if `decode` would refuse the photo.
    """
    try:
        with silence_pillow(), _open_image(data) as image:
            return _get_memory_size(image)
    except Exception:
        return None


def compute_sha256(data: bytes) -> str:
    """Compute the hexadecimal sha256 that identifies a photo, whatever its file name."""
    return hashlib.sha256(data).hexdigest()


def _open_image(data: bytes) -> ImageFile:
    if not data:
        raise UnreadablePhoto("empty file")
    if corruption.is_heif(data):
        return _open_heif(data)
    try:
        image = Image.open(io.BytesIO(data), formats=_get_possible_formats(data))
    except UnidentifiedImageError:
        if previews.is_sensor_data(data):
            raise UnreadablePhoto(corruption.REASON_RAW) from None
        raise
    if isinstance(image, TiffImageFile):
        previews.select_photo(image, data)
    return image


def _get_possible_formats(data: bytes) -> tuple[str, ...]:
    """Check an icon's size first, because Pillow decodes an icon as it opens it."""
    if not data.startswith(corruption.ICO_SIGNATURE):
        return FORMATS
    try:
        offset = IcoFile(io.BytesIO(data)).entry[0].offset
        with Image.open(io.BytesIO(data[offset:]), formats=("PNG", "DIB")) as icon:
            width, height = icon.size
    except (SyntaxError, IndexError, struct.error, UnidentifiedImageError):
        return tuple(name for name in FORMATS if name != "ICO")
    if max(width, height) > MAX_ICON_SIDE:
        raise UnreadablePhoto(f"too large: an icon of {width} x {height} pixels")
    return FORMATS


def _get_memory_size(image: Image.Image) -> tuple[int, int]:
    """Get the size that must be in memory at once.

    A TIFF's tile may exceed its image.
    """
    tile = [image.tag_v2.get(tag) for tag in TIFF_TILE_SIZE] if isinstance(image, TiffImageFile) else []
    # A damaged file may hold other types here.
    sides = [side for side in tile if isinstance(side, int)]
    return max(image.size, (sides[0], sides[1]), key=math.prod) if len(sides) == 2 else image.size


def _wait_if_large(image: Image.Image) -> AbstractContextManager[Any]:
    return _large_photo_slot if math.prod(_get_memory_size(image)) > LARGE_PHOTO_PIXELS else nullcontext()


def _check_size(image: Image.Image) -> None:
    width, height = _get_memory_size(image)
    if width * height > MAX_PIXELS:
        raise UnreadablePhoto(f"too large: {width} x {height} is {width * height / 1e6:,.0f} megapixels")


def _decode_image(image: Image.Image, data: bytes, image_size: int, resize: Resize, thumbnail_size: int) -> Photo:
    size = image.size
    if image.format in ("JPEG", "MPO"):
        image.draft(None, (JPEG_DRAFT_SCALE * image_size, JPEG_DRAFT_SCALE * image_size))  # pyright: ignore[reportArgumentType]
    upright, is_transposed = _load_upright(image, data)
    if image.format == "TIFF":
        size = image.size
    width, height = reversed(size) if is_transposed else size
    thumbnail = np.asarray(_squash(upright, thumbnail_size, reducing_gap=1.0)) if thumbnail_size else None
    return Photo(np.asarray(_resize(upright, image_size, resize)), width, height, thumbnail)


def _load_upright(image: Image.Image, data: bytes | None) -> tuple[Image.Image, bool]:
    """Load the image upright and in sRGB; return whether that swapped width and height.

    Args:
        data: the bytes of the image's file, if they are known.
    """
    profile = image.info.get("icc_profile")
    grey_depth, white_level = bit_depth.read_grey_depth(image), bit_depth.read_colour_white_level(image)
    bit_depth.correct_planes(image)
    bit_depth.correct_palette(image)
    if isinstance(image, TiffImageFile) and not _has_all_strips(image):
        raise UnreadablePhoto("unreadable: its data cover only part of the image")
    image.load()
    # Missing data are whole blocks, so the means of the blocks show them.
    checksum_blocks = partial(_checksum_pixels, is_reduced=True)
    if data and image.format in ("JPEG", "MPO") and jpeg_end.lacks_data(image, data, checksum_blocks):
        raise UnreadablePhoto(f"unreadable: {corruption.MISSING_END}")
    orientation = _read_orientation(image)
    if grey_depth is not None:
        eight_bit = bit_depth.scale_grey(image, grey_depth)
    elif white_level is not None:
        open_again = None if data is None else partial(_open_image, data)
        eight_bit = bit_depth.stretch_dark_colours(image, white_level, open_again)
    else:
        eight_bit = image
    transpose = ORIENTATION_TRANSPOSES.get(orientation)
    upright = eight_bit if transpose is None else eight_bit.transpose(transpose)
    return _convert_to_srgb(upright, profile), orientation >= 5


def _has_all_strips(image: TiffImageFile) -> bool:
    """Return whether strips or tiles cover a TIFF: Pillow leaves other pixels black."""
    boxes = [tile.extents for tile in image.tile if tile.extents is not None]
    right, bottom = max((box[2] for box in boxes), default=0), max((box[3] for box in boxes), default=0)
    return right >= image.tag_v2.get(TIFF_WIDTH, 0) and bottom >= image.tag_v2.get(TIFF_HEIGHT, 0)


def _read_orientation(image: Image.Image) -> int:
    """Read EXIF's orientation, 1 to 8; a damaged EXIF block counts as 1."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return orientation if orientation in range(1, 9) else 1


def _resize(image: Image.Image, image_size: int, resize: Resize) -> Image.Image:
    if resize == "crop":
        return ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    return _squash(image, image_size)


def _squash(image: Image.Image, size: int, reducing_gap: float | None = None) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=reducing_gap)


def _convert_to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.has_transparency_data:
        image = _composite_over_white(image)
    elif image.mode == "P":
        image = image.convert("RGB")
    converted = _apply_profile(image, profile) if profile else None
    return converted or (image if image.mode == "RGB" else image.convert("RGB"))


def _composite_over_white(image: Image.Image) -> Image.Image:
    # Pillow converts grey with premultiplied alpha to no other mode.
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert to sRGB by the ICC profile.

    Returns None if the profile is sRGB, broken or of another kind.
    """
    if image.mode not in ("RGB", "L", "CMYK"):
        return None
    key = (image.mode, profile)
    cache: dict[Any, Any] = _transform_cache.__dict__.setdefault("transforms", {})
    if key not in cache:
        if len(cache) >= MAX_CACHED_TRANSFORMS:
            cache.clear()
        cache[key] = _build_transform(image.mode, profile)
    return ImageCms.applyTransform(image, cache[key]) if cache[key] else None


def _build_transform(mode: str, profile: bytes) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, SRGB_PROFILE, mode, "RGB")
        return None if mode == "RGB" and _is_identity(transform) else transform
    # An unusable profile must not make the photo unusable.
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Return whether a transform keeps colours; most profiles are sRGB, under many names."""
    levels = np.linspace(0, 255, 6).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(6, 36, 3)
    converted = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform))
    return int(np.abs(converted.astype(np.int16) - colours).max()) <= MAX_SRGB_DEVIATION


def _open_heif(data: bytes) -> ImageFile:
    """Open HEIF without registering it with Pillow, whose other users may not expect it."""
    try:
        from pillow_heif import HeifImageFile  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UnreadablePhoto(REASON_NO_HEIF) from None
    try:
        image = HeifImageFile(io.BytesIO(data))
    except (SyntaxError, IndexError, TypeError, struct.error):  # as Pillow's `open` does
        raise UnidentifiedImageError from None
    if math.prod(image.size) > MAX_PIXELS:
        raise UnreadablePhoto(f"too large: {math.prod(image.size) / 1e6:,.0f} megapixels")
    return image


def _describe_error(error: Exception) -> str:
    text = str(error).strip().rstrip(".") or type(error).__name__
    return next((reason for start, reason in REASONS_OF_PILLOW.items() if text.startswith(start)), text)


def _find_first_number(text: str) -> int:
    return next((int(word.strip("()")) for word in text.split() if word.strip("()").isdigit()), 0)
