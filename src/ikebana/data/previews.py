"""TIFFs whose first picture is a preview of the photo.

Most raw files of cameras are such TIFFs. Pillow opens the first picture. A raw file keeps the photo
itself in a sub-directory, as samples of the sensor that Pillow cannot read. Other TIFFs mark the
first picture as a preview, and the photo follows it.

Source: TIFF 6.0, NewSubfileType; TIFF/EP (ISO 12234-2); DNG specification 1.7, DNGVersion.
"""

import math
import struct
from collections.abc import Iterator
from io import BytesIO

from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from ikebana.data.corruption import BIGTIFF_SIGNATURES, RAW_ADVICE, REASON_RAW, TIFF_SIGNATURES
from ikebana.errors import UnreadablePhoto

SUBFILE_TYPE, IMAGE_WIDTH, IMAGE_LENGTH, SUB_DIRECTORIES, DNG_VERSION = 254, 256, 257, 330, 50706
# Colour filter array and linear raw data.
PHOTOMETRIC, SENSOR_PHOTOMETRICS = 262, (32803, 34892)
# A bit of the subfile type.
REDUCED_RESOLUTION = 1
# Canon's raw files are TIFFs with these bytes after the header.
CR2_SIGNATURE, CR2_POSITION = b"CR\x02", 8
BIGTIFF_HEADER_BYTES, TIFF_HEADER_BYTES = 16, 8
# Pictures of one file in which the photo is searched.
MAX_FRAMES = 100
REASON_PREVIEW = (
    f"unsupported format: only a preview of this TIFF can be read, as of a raw file of a camera ({RAW_ADVICE})"
)


def select_photo(image: TiffImageFile, data: bytes) -> None:
    """Move to the photo if the first picture is a preview.

    Raises:
        UnreadablePhoto: the photo itself cannot be read.
    """
    if DNG_VERSION in image.tag_v2 or data[CR2_POSITION:].startswith(CR2_SIGNATURE):
        raise UnreadablePhoto(REASON_RAW)
    width, height = image.size
    for sub_width, sub_height in _iterate_sub_directories(image, data):
        if sub_width * sub_height > width * height:
            raise UnreadablePhoto(REASON_PREVIEW)
    if _is_reduced(image):
        _seek_photo(image)


def _iterate_sub_directories(image: TiffImageFile, data: bytes) -> Iterator[tuple[int, int]]:
    """Iterate over the sizes of the pictures in sub-directories."""
    offsets = image.tag_v2.get(SUB_DIRECTORIES, ())
    for offset in offsets if isinstance(offsets, tuple) else (offsets,):
        directory = _load_directory(data, offset)
        # A damaged directory costs nothing if the first picture is the photo.
        if directory is not None:
            yield directory.get(IMAGE_WIDTH, 0), directory.get(IMAGE_LENGTH, 0)


def is_sensor_data(data: bytes) -> bool:
    """Return whether the first picture of a TIFF holds samples of a sensor."""
    directory = _load_directory(data) if data.startswith(TIFF_SIGNATURES) else None
    return directory is not None and directory.get(PHOTOMETRIC) in SENSOR_PHOTOMETRICS


def _load_directory(data: bytes, offset: int | None = None) -> ImageFileDirectory_v2 | None:
    """Load a directory, the first one without an offset; None if it is damaged."""
    try:
        is_big = data.startswith(BIGTIFF_SIGNATURES)
        directory = ImageFileDirectory_v2(data[: BIGTIFF_HEADER_BYTES if is_big else TIFF_HEADER_BYTES])
        stream = BytesIO(data)
        stream.seek(directory.next if offset is None else offset)
        directory.load(stream)
    except (OSError, SyntaxError, ValueError, struct.error):
        return None
    return directory


def _is_reduced(image: TiffImageFile) -> bool:
    subfile_type = image.tag_v2.get(SUBFILE_TYPE, 0)
    return isinstance(subfile_type, int) and bool(subfile_type & REDUCED_RESOLUTION)


def _seek_photo(image: TiffImageFile) -> None:
    """Move to the first larger picture that is no preview, if there is one."""
    preview_pixels = math.prod(image.size)
    for number in range(1, MAX_FRAMES):
        try:
            image.seek(number)
        except EOFError:
            break
        except (OSError, SyntaxError, KeyError, TypeError, ValueError, struct.error):
            raise UnreadablePhoto(REASON_PREVIEW) from None
        if not _is_reduced(image) and math.prod(image.size) > preview_pixels:
            return
    image.seek(0)
