"""The only place that opens a photo.

Training, prediction and (later) the server all come through `decode`, so a photo means the same everywhere. Its rules:

orientation    EXIF's, applied once; Pillow turns TIFFs itself when it loads them and then drops the tag
colour         an embedded ICC profile is followed to sRGB; CMYK, Lab, grey and palettes become RGB
transparency   laid over white
bit depth      16-bit integers are scaled from the white level that the file declares, floats from 0..1; what declares
               neither, or fills less than a sixteenth of what it declares (12 camera bits in a 16-bit file), from its
               own darkest to its own brightest value. Pillow's convert("RGB") would clip all of them
animation      the first frame
size           squashed to a square (or its centre cut out) by an antialiased triangle filter
large JPEGs    decoded at a half, a quarter or an eighth, as long as both sides stay at least twice the target's; on
               drawn 12-megapixel photos that moves a pixel by 0.2 grey levels on average (tests/test_pixels.py)
"""

import functools
import hashlib
import io
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from ikebana.errors import UnreadablePhoto
from ikebana.recipe import Fit

RULES = 1  # raised with each change of the rules above: kept pixels of older rules are made anew

MAX_BYTES = 512 * 2**20  # of a file: nothing that a camera writes is larger
MAX_PIXELS = 178_956_970  # Pillow's own limit, four times 1 GiB of greys
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
SRGB = ImageCms.createProfile("sRGB")

Image.init()  # all plug-ins now: doing so at the first odd file would race between threads
_one_large_photo = threading.Semaphore(1)
_transforms = threading.local()  # littlecms transforms keep a state: one set a thread

# Pillow warns of large photos, of odd EXIF blocks and tags, without saying in which photo. What matters of it is decided
# here, photo by photo, and reported by name.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Photo:
    """One photo as the network sees it."""

    pixels: np.ndarray  # uint8 [side, side, 3], sRGB
    width: int  # of the upright original, in pixels
    height: int


def decode(data: bytes, side: int, fit: Fit = "squash") -> Photo:
    """The photo in these bytes, upright, in sRGB, made a square of `side` pixels.

    data    the whole file
    raises  UnreadablePhoto with a reason in plain words; never anything else for any bytes
    """
    if not data:
        raise UnreadablePhoto("empty file")
    try:
        with _opened(data) as image:
            return _decoded(image, side, fit)
    except UnreadablePhoto:
        raise
    except UnidentifiedImageError:
        raise UnreadablePhoto(_what_it_is_instead(data)) from None
    except Image.DecompressionBombError as error:
        raise UnreadablePhoto(f"too large: {_first_number(str(error)) / 1e6:,.0f} megapixels") from None
    except MemoryError:
        raise UnreadablePhoto("too large for this machine's memory") from None
    except Exception as error:  # Pillow's plug-ins raise whatever their parsers meet: a broken photo must not end a run
        raise UnreadablePhoto(f"unreadable: {_reason(error)}") from None


def sha256(data: bytes) -> str:
    """The name of these bytes, whatever their file is called."""
    return hashlib.sha256(data).hexdigest()


def _opened(data: bytes) -> Image.Image:
    if _is_heif(data):
        _register_heif()
        return Image.open(io.BytesIO(data), formats=("HEIF",))
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _decoded(image: Image.Image, side: int, fit: Fit) -> Photo:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadablePhoto(f"too large: {width} x {height} is {width * height / 1e6:,.0f} megapixels")
    if width * height > LARGE:
        with _one_large_photo:
            return _loaded(image, side, fit)
    return _loaded(image, side, fit)


def _loaded(image: Image.Image, side: int, fit: Fit) -> Photo:
    width, height = image.size
    if image.format in ("JPEG", "MPO"):
        image.draft(None, (DRAFT * side, DRAFT * side))  # pyright: ignore[reportArgumentType]  (None keeps the mode)
    profile = image.info.get("icc_profile")
    image.load()
    if image.format == "TIFF":  # Pillow turned it while it loaded
        width, height = image.size
    orientation = _orientation(image)
    if orientation >= 5:
        width, height = height, width
    white = _declared_white(image)
    upright = image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
    return Photo(np.asarray(_square(_in_srgb(upright, profile, white), side, fit)), width, height)


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


def _in_srgb(image: Image.Image, profile: bytes | None, white: float | None) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image, white)
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = _over_white(image)
    elif image.mode == "P":
        image = image.convert("RGB")
    if image.mode == "LAB":
        return _transformed(image, None) or image.convert("RGB")
    followed = _transformed(image, profile) if profile else None
    return followed or image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    coloured = image.convert("RGBA")
    white = Image.new("RGBA", coloured.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, coloured).convert("RGB")


def _declared_white(image: Image.Image) -> float | None:
    """The value that a high-depth file calls white, where its format says so; None where it does not."""
    if image.mode == "F":
        return None
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (16,))[0]  # pyright: ignore[reportAttributeAccessIssue]  (TiffImageFile has it)
        return float(2**bits - 1) if bits <= 16 else None
    return 65535.0


def _eight_bits(image: Image.Image, white: float | None) -> Image.Image:
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F" and low >= 0 and 0 < high <= 1:
        white = 1.0
    if white is None or low < 0 or high > white or high < white / 16:
        white = high
    else:
        low = 0.0
    scale = 255.0 / (white - low) if white > low else 0.0
    return Image.fromarray(np.rint(np.clip((values - low) * scale, 0, 255)).astype(np.uint8))


def _transformed(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """The picture in sRGB by its own profile; None where the profile is none, sRGB already, broken or of another kind."""
    if image.mode not in ("RGB", "L", "CMYK", "LAB"):
        return None
    key = (image.mode, profile)
    kept: dict[Any, Any] = _transforms.__dict__.setdefault("kept", {})
    if key not in kept:
        kept[key] = _transform(image.mode, profile)
    return ImageCms.applyTransform(image, kept[key]) if kept[key] else None


def _transform(mode: str, profile: bytes | None) -> ImageCms.ImageCmsTransform | None:
    if profile is not None and _is_srgb(profile):
        return None
    try:
        source = ImageCms.createProfile("LAB") if profile is None else ImageCms.getOpenProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(source, SRGB, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None  # a profile that cannot be followed says nothing about the picture


@functools.lru_cache(maxsize=64)
def _is_srgb(profile: bytes) -> bool:
    try:
        return "sRGB" in ImageCms.getProfileDescription(io.BytesIO(profile))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return False


def _is_heif(data: bytes) -> bool:
    return (
        data[4:8] == b"ftyp"
        and data[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
        and (b"avif" not in data[8:64])
    )


@functools.cache
def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]  (an extra)
    except ImportError:
        raise UnreadablePhoto("unsupported format: HEIF (it can be read after: pip install 'ikebana[heif]')") from None
    register_heif_opener()


def _what_it_is_instead(data: bytes) -> str:
    """What to say of a file that no decoder takes."""
    start = data[:512].lstrip().lower()
    foreign = {
        b"%pdf": "PDF",
        b"pk\x03\x04": "a zip archive or an office document",
        b"<svg": "SVG",
        b"<!doctype html": "a web page",
        b"<html": "a web page",
        b"\x00\x00\x00\x18ftypmp4": "a video",
        b"8bps": "Photoshop",
        b"\x1ae\xdf\xa3": "a video",
    }
    if start.startswith(b"<?xml") and b"<svg" in data[:4096].lower():
        return "not a photo: SVG"
    for magic, name in foreign.items():
        if start.startswith(magic):
            return f"not a photo: {name}"
    if b"\x00" not in data[:4096] and _is_text(data[:4096]):
        return "not a photo: text"
    return "unreadable: no known image format, or a header too broken to tell"


def _is_text(start: bytes) -> bool:
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(start) - 4  # a letter cut in two by our own limit
    return True


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


def _first_number(text: str) -> int:
    return next((int(word.strip("()")) for word in text.split() if word.strip("()").isdigit()), 0)
