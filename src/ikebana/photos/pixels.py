"""The only place that opens a photo.

Training, prediction and the server all come through `decode`, so a photo means the same everywhere. Its rules:

orientation    EXIF's, applied once; Pillow turns TIFFs itself when it loads them and then drops the tag
colour         an embedded ICC profile is followed to sRGB; CMYK, Lab, grey and palettes become RGB
transparency   laid over white
bit depth      16-bit integers are scaled from the white level that the file declares, floats from 0..1; what declares
               neither, or fills less than a sixteenth of what it declares (12 camera bits in a 16-bit file), from its
               own darkest to its own brightest value. Pillow's convert("RGB") would clip all of them
damage         a photo that is there in part only is refused, never filled up with grey
animation      the first frame
size           squashed to a square (or its centre cut out) by an antialiased triangle filter
large JPEGs    decoded at a half, a quarter or an eighth, as long as both sides stay at least twice the target's. At 150,
               224 and 299 pixels that moves a pixel of drawn 12-megapixel photos by 0.2 to 0.3 grey levels on average
               and by 7 at most (tests/test_pixels.py); of real ones with 1 or 2 megapixels by 0.2 to 0.5 and by 15
"""

import functools
import hashlib
import io
import math
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.IcoImagePlugin import IcoFile
from PIL.TiffImagePlugin import TiffImageFile

from ikebana.errors import UnreadablePhoto
from ikebana.photos import damage
from ikebana.recipe import Fit

RULES = 2  # raised with each change of the rules above: kept pixels of older rules are made anew

MAX_BYTES = 512 * 2**20  # of a file: nothing that a camera writes is larger
MAX_PIXELS = 178_956_970  # twice Image.MAX_IMAGE_PIXELS: beyond it Pillow itself refuses
LARGEST_ICON = 2048  # pixels of a side, a bitmap's mask beneath it included: Windows shows 256, some write 1024
LARGE = 24_000_000  # pixels from which photos are decoded one at a time, so that memory stays flat
DRAFT = 2  # a JPEG may be reduced while it decodes as long as it stays this many times the target

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "QOI", "ICO", "TGA", "PCX")
UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")
SRGB = ImageCms.createProfile("sRGB")
SAME = 2  # grey levels that a profile may move a colour and still be called sRGB
TRANSFORMS = 64  # colour transforms a thread keeps: some programs write a profile of its own into each photo
TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 256, 257, 258, 262, 339  # its tags
TIFF_TILE = (322, 323)  # its width and height

NO_MEMORY = "too large for this machine's memory"
NO_HEIF = "unsupported format: HEIF (it can be read after: pip install 'ikebana[heif]')"
PASSING = (NO_MEMORY, NO_HEIF)  # reasons that say nothing of the photo

Image.init()  # all plug-ins now: doing so at the first odd file would race between threads
_one_large_photo = threading.Semaphore(1)
_transforms = threading.local()  # littlecms transforms keep a state: one set a thread

# Pillow warns of large photos, of odd EXIF blocks and tags, without saying in which photo. What matters of it is
# decided here, photo by photo, and reported by name.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Photo:
    """One photo as the network sees it."""

    pixels: np.ndarray  # uint8 [side, side, 3], sRGB
    width: int  # of the upright original, in pixels
    height: int
    small: np.ndarray | None = None  # uint8 [small, small, 3]: the whole photo squashed, if it was asked for


def decode(data: bytes, side: int, fit: Fit = "squash", small: int = 0) -> Photo:
    """The photo in these bytes, upright, in sRGB, made a square of `side` pixels.

    data    the whole file
    small   the side of a second, squashed square; 0 for none
    raises  UnreadablePhoto with a reason in plain words; never anything else for any bytes
    """
    with _in_plain_words(data), _opened(data) as image:
        _refuse_too_large(image)
        _refuse_damage(data, image)
        return _decoded(image, side, fit, small)


def whole(data: bytes) -> np.ndarray:
    """The photo in these bytes, upright, in sRGB, in its own size: uint8 [height, width, 3].

    raises  UnreadablePhoto with a reason in plain words
    """
    with _in_plain_words(data), _opened(data) as image:
        _refuse_too_large(image)
        _refuse_damage(data, image)
        shown, _ = _shown(image)
        return np.asarray(shown)


def of_picture(picture: Image.Image, side: int, fit: Fit = "squash") -> Photo:
    """The same of a picture that is open already, and is not changed. All of its pixels count; of a large JPEG that comes as
    bytes only as many are decoded as the square needs.

    raises  UnreadablePhoto with a reason in plain words
    """
    with _in_plain_words():
        _refuse_too_large(picture)
        shown, _ = _shown(picture)
        return Photo(np.asarray(_square(shown, side, fit)), *shown.size)


@contextmanager
def _in_plain_words(data: bytes = b"") -> Iterator[None]:
    """Whatever a decoder raises becomes an UnreadablePhoto."""
    try:
        yield
    except UnreadablePhoto:
        raise
    except UnidentifiedImageError:
        raise UnreadablePhoto(damage.what_it_is_instead(data)) from None
    except Image.DecompressionBombError as error:
        raise UnreadablePhoto(f"too large: {_first_number(str(error)) / 1e6:,.0f} megapixels") from None
    except MemoryError:
        raise UnreadablePhoto(NO_MEMORY) from None
    except Exception as error:  # Pillow's plug-ins raise whatever their parsers meet: a broken photo must not end a run
        raise UnreadablePhoto(f"unreadable: {_reason(error)}") from None


def _refuse_damage(data: bytes, image: Image.Image) -> None:
    """What the decoder would pass over in silence, or never be done with."""
    unsaid = damage.in_silence(data, image.format)
    if unsaid is not None:
        raise UnreadablePhoto(f"unreadable: {unsaid}")


@dataclass(frozen=True)
class Header:
    """What a photo's file says of itself before its pixels."""

    kind: str  # JPEG, PNG, ...
    mode: str  # RGB, L, ...
    compression: float  # mean of a JPEG's quantisation tables: the higher, the poorer; 0 for other files
    marks: str  # what else was written into it: EXIF, a colour profile, progressive, ...


def header(file: str | Path) -> Header:
    """How a photo's file was made, by its first bytes alone.

    raises  UnreadablePhoto with a reason in plain words; OSError if it cannot be read
    """
    with open(file, "rb") as stream:
        start = stream.read(64)
        stream.seek(0)
        if damage.is_heif(start):
            return Header("HEIF", "RGB", 0.0, "")
        with _in_plain_words(start), Image.open(stream, formats=FORMATS) as image:
            tables = getattr(image, "quantization", None) or {}
            levels = [level for table in tables.values() for level in table]
            known = ("exif", "icc_profile", "jfif", "adobe", "progressive", "photoshop", "comment")
            marks = ", ".join(name for name in known if image.info.get(name))
            return Header(str(image.format), image.mode, float(np.mean(levels)) if levels else 0.0, marks)


def read_bytes(file: str | Path) -> bytes:
    """A photo's file, unless it is larger than any photo.

    raises  UnreadablePhoto if it is, or than the memory that is left; OSError if it cannot be read
    """
    with open(file, "rb") as stream:
        if os.fstat(stream.fileno()).st_size > MAX_BYTES:
            raise UnreadablePhoto(f"too large: more than {MAX_BYTES // 2**20} MB in one file")
        try:
            return stream.read()
        except MemoryError:
            raise UnreadablePhoto(NO_MEMORY) from None


def threads() -> int:
    """How many threads may decode at once: the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def declared(data: bytes) -> tuple[int, int] | None:
    """Width and height of what `decode` would hold, by the file's header. None where `decode` will say what is wrong."""
    try:
        with _opened(data) as image:
            return _extent(image)
    except Exception:  # Pillow's plug-ins raise whatever their parsers meet
        return None


def sha256(data: bytes) -> str:
    """The name of these bytes, whatever their file is called."""
    return hashlib.sha256(data).hexdigest()


def _opened(data: bytes) -> Image.Image:
    if not data:
        raise UnreadablePhoto("empty file")
    if damage.is_heif(data):
        _register_heif()
        return Image.open(io.BytesIO(data), formats=("HEIF",))
    return Image.open(io.BytesIO(data), formats=_formats(data))


def _formats(data: bytes) -> tuple[str, ...]:
    """What this file may be. Pillow decodes an icon as it opens it, so what it would decode is measured before."""
    if not data.startswith(damage.ICON):
        return FORMATS
    try:
        place = IcoFile(io.BytesIO(data)).entry[0].offset
        with Image.open(io.BytesIO(data[place:]), formats=("PNG", "DIB")) as icon:
            width, height = icon.size
    except (SyntaxError, IndexError, struct.error, UnidentifiedImageError):
        return tuple(name for name in FORMATS if name != "ICO")
    if max(width, height) > LARGEST_ICON:
        raise UnreadablePhoto(f"too large: an icon of {width} x {height} pixels")
    return FORMATS


def _extent(image: Image.Image) -> tuple[int, int]:
    """Width and height of what must be in memory at once: a TIFF's tile may be larger than its picture."""
    tile = [image.tag_v2.get(tag) for tag in TIFF_TILE] if isinstance(image, TiffImageFile) else []
    numbers = [side for side in tile if isinstance(side, int)]  # what else a file may write there is no size
    return max(image.size, (numbers[0], numbers[1]), key=math.prod) if len(numbers) == 2 else image.size


def _refuse_too_large(image: Image.Image) -> None:
    width, height = _extent(image)
    if width * height > MAX_PIXELS:
        raise UnreadablePhoto(f"too large: {width} x {height} is {width * height / 1e6:,.0f} megapixels")


def _decoded(image: Image.Image, side: int, fit: Fit, small: int) -> Photo:
    if math.prod(_extent(image)) > LARGE:
        with _one_large_photo:
            return _loaded(image, side, fit, small)
    return _loaded(image, side, fit, small)


def _loaded(image: Image.Image, side: int, fit: Fit, small: int) -> Photo:
    size = image.size
    if image.format in ("JPEG", "MPO"):
        image.draft(None, (DRAFT * side, DRAFT * side))  # pyright: ignore[reportArgumentType]  (None keeps the mode)
    shown, turned = _shown(image)
    if image.format == "TIFF":  # Pillow turned it while it loaded
        size = image.size
    width, height = reversed(size) if turned else size
    second = np.asarray(shown.resize((small, small), Image.Resampling.BILINEAR, reducing_gap=1.0)) if small else None
    return Photo(np.asarray(_square(shown, side, fit)), width, height, second)


def _shown(image: Image.Image) -> tuple[Image.Image, bool]:
    """The picture upright and in sRGB, and whether it was turned by a quarter for that."""
    profile = image.info.get("icc_profile")
    depth = _depth(image) if image.mode.startswith(("I", "F")) else None
    if isinstance(image, TiffImageFile) and not _strips_cover(image):
        raise UnreadablePhoto("unreadable: its data cover a part of the picture only")
    image.load()
    orientation = _orientation(image)
    upright = image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
    shallow = upright if depth is None else _eight_bits(upright, depth)
    return _in_srgb(shallow, profile), orientation >= 5


def _strips_cover(image: TiffImageFile) -> bool:
    """Whether a TIFF has a strip or tile for every pixel it declares: Pillow leaves the others black."""
    boxes = [tile.extents for tile in image.tile if tile.extents is not None]
    right, bottom = max((box[2] for box in boxes), default=0), max((box[3] for box in boxes), default=0)
    return right >= image.tag_v2.get(TIFF_WIDTH, 0) and bottom >= image.tag_v2.get(TIFF_HEIGHT, 0)


def _orientation(image: Image.Image) -> int:
    """EXIF's number, 1 to 8; a damaged EXIF block says nothing and must not cost the picture."""
    try:
        number = image.getexif().get(0x0112, 1)
    except Exception:  # the parser meets arbitrary bytes here
        return 1
    return number if number in range(1, 9) else 1


def _square(image: Image.Image, side: int, fit: Fit) -> Image.Image:
    if fit == "crop":
        return ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    return image.resize((side, side), Image.Resampling.BILINEAR)


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode in TRANSPARENT or "transparency" in image.info:
        image = _over_white(image)
    elif image.mode == "P":
        image = image.convert("RGB")
    followed = _transformed(image, profile) if profile else None
    return followed or (image if image.mode == "RGB" else image.convert("RGB"))


def _over_white(image: Image.Image) -> Image.Image:
    coloured = image.convert("RGBA")
    white = Image.new("RGBA", coloured.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, coloured).convert("RGB")


@dataclass(frozen=True)
class Depth:
    """How a file with more than eight bits a sample is meant."""

    white: float | None  # the value that it calls white; None where it does not say
    unsigned: bool = False  # 32-bit integers from 0 on, which Pillow hands out as signed ones
    inverted: bool = False  # zero is white


def _depth(image: Image.Image) -> Depth:
    if not isinstance(image, TiffImageFile):
        return Depth(None if image.mode == "F" else 65535.0)
    tags = image.tag_v2
    bits, kind = tags.get(TIFF_BITS, (16,))[0], tags.get(TIFF_SAMPLE_FORMAT, (1,))[0]
    white = 2.0 ** (bits - 1 if kind == 2 else bits) - 1 if bits <= 16 and image.mode != "F" else None
    unsigned = image.mode == "I" and bits == 32 and kind == 1
    return Depth(white, unsigned, inverted=tags.get(TIFF_PHOTOMETRIC) == 0)


def _eight_bits(image: Image.Image, depth: Depth) -> Image.Image:
    values = np.asarray(image)
    values = values.view(np.uint32).astype(np.float32) if depth.unsigned else values.astype(np.float32)
    finite = np.isfinite(values)
    low, high = float(values.min(where=finite, initial=np.inf)), float(values.max(where=finite, initial=-np.inf))
    if low > high:
        raise UnreadablePhoto("unreadable: not one of its values is a number")
    values = np.nan_to_num(values, copy=False, nan=low, posinf=high, neginf=low)
    white = 1.0 if image.mode == "F" and low >= 0 and 0 < high <= 1 else depth.white
    if white is None or low < 0 or high > white or high < white / 16:
        white = high
    else:
        low = 0.0
    scale = 255.0 / (white - low) if white > low else 0.0
    levels = np.rint(np.clip(values * scale - low * scale, 0, 255)).astype(np.uint8)
    return Image.fromarray(255 - levels if depth.inverted else levels)


def _transformed(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The picture in sRGB by its own profile; None where the profile is sRGB already, broken or of another kind."""
    if image.mode not in ("RGB", "L", "CMYK"):
        return None
    key = (image.mode, profile)
    kept: dict[Any, Any] = _transforms.__dict__.setdefault("kept", {})
    if key not in kept:
        if len(kept) >= TRANSFORMS:
            kept.clear()
        kept[key] = _transform(image.mode, profile)
    return ImageCms.applyTransform(image, kept[key]) if kept[key] else None


def _transform(mode: str, profile: bytes) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, SRGB, mode, "RGB")
        return None if mode == "RGB" and _changes_nothing(transform) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None  # a profile that cannot be followed says nothing about the picture


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether a transform leaves colours as they are; most photos' profiles are sRGB, under many names."""
    steps = np.linspace(0, 255, 6).astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(6, 36, 3)
    moved = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform))
    return int(np.abs(moved.astype(np.int16) - colours).max()) <= SAME


@functools.cache
def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]  (an extra)
    except ImportError:
        raise UnreadablePhoto(NO_HEIF) from None
    register_heif_opener()


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


def _first_number(text: str) -> int:
    return next((int(word.strip("()")) for word in text.split() if word.strip("()").isdigit()), 0)
