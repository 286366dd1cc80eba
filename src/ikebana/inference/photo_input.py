"""Photos as callers give them: paths, bytes, open files, images and arrays."""

import os
from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from ikebana.data import decoding
from ikebana.data.photo_file import read_photo_file
from ikebana.errors import PhotosError, UnreadablePhoto, get_first_line
from ikebana.inference import open_files
from ikebana.inference.open_files import BinaryFile
from ikebana.recipe import Resize

Photo: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray | BinaryFile
# The caller's name for the prediction's `path`, and the photo.
NamedPhoto: TypeAlias = tuple[str, Photo]

ADVICE_PHOTO = (
    "a path, the bytes of a file, a file opened with 'rb', a Pillow image, or an RGB array uint8 [height, width, 3]"
)
# Dimensions of an array of photos.
BATCH_DIMENSIONS = 4


def is_single(photos: Any) -> bool:
    """Return whether this is meant as one photo, even if it cannot be used."""
    if isinstance(photos, str | os.PathLike | bytes | bytearray | memoryview | Image.Image) or open_files.is_file(
        photos
    ):
        return True
    if isinstance(photos, np.ndarray) and photos.ndim == 1 and photos.dtype.kind in "OUS":
        # An array of paths.
        return False
    return _is_array(photos) and len(photos.shape) != BATCH_DIMENSIONS


def iterate(photos: Any) -> Iterable[Any]:
    """Return the photos to iterate over; one photo becomes a list.

    Raises:
        PhotosError: this is neither a photo nor photos, or an array of photos that cannot be used.
    """
    if is_single(photos):
        return [photos]
    if _is_array(photos) and len(photos.shape) == BATCH_DIMENSIONS:
        batch = _to_array(photos)
        if len(batch) and (problem := _find_array_problem(batch[0])):
            raise PhotosError(f"an array {_describe_array(batch)} of photos: each {problem}", advice=ADVICE_PHOTO)
        return batch
    if advice := _find_alternative(photos):
        raise PhotosError(
            f"an object of type {type(photos).__name__} is neither a photo nor a list of photos", advice=advice
        )
    return photos


def _find_alternative(photos: object) -> str:
    """Suggest what to give instead; empty if the photos can be iterated over."""
    if hasattr(photos, "columns"):
        return 'its column of paths, as in frame["path"]'
    if hasattr(type(photos), "iter_content"):
        # A response of requests would be iterated over in chunks of bytes.
        return "its bytes: response.content"
    return ADVICE_PHOTO if isinstance(photos, Mapping) or not isinstance(photos, Iterable) else ""


def get_name(photo: Any) -> str:
    """Return the caller's name, the path, or the open file's name; else an empty string."""
    if isinstance(photo, tuple):
        return get_name(photo[0]) if _is_pair(photo) else ""
    if isinstance(photo, str | os.PathLike):
        return os.fsdecode(photo)
    if not open_files.is_file(photo) or isinstance(photo, Image.Image):
        return ""
    return open_files.get_name(photo)


def decode(photo: Any, image_size: int, resize: Resize) -> np.ndarray:
    """Decode a photo, or the photo of a pair (name, photo): uint8 [image_size, image_size, 3].

    Raises:
        UnreadablePhoto: with the reason.
    """
    content = photo
    if isinstance(photo, tuple):
        if not _is_pair(photo):
            raise UnreadablePhoto(f"a tuple of {len(photo)} is not a pair (name, photo)", advice=ADVICE_PHOTO)
        content = photo[1]
    if isinstance(content, str | os.PathLike):
        if not os.fspath(content):
            raise UnreadablePhoto("an empty path was given", advice=ADVICE_PHOTO)
        return _decode_file(Path(os.path.expanduser(os.fsdecode(content))), image_size, resize)
    if isinstance(content, Image.Image):
        return _convert_image(content, image_size, resize)
    if isinstance(content, bytes | bytearray | memoryview):
        return decoding.decode(bytes(content), image_size, resize).pixels
    if open_files.is_file(content):
        return decoding.decode(open_files.read(content, decoding.MAX_FILE_BYTES), image_size, resize).pixels
    if _is_array(content):
        return _convert_array(_to_array(content), image_size, resize)
    raise UnreadablePhoto(f"an object of type {type(content).__name__} is not a photo", advice=ADVICE_PHOTO)


def _decode_file(file: Path, image_size: int, resize: Resize) -> np.ndarray:
    try:
        return decoding.decode(read_photo_file(file), image_size, resize).pixels
    except UnreadablePhoto as error:
        raise UnreadablePhoto(error.what, where=file, advice=error.advice) from None


def _is_pair(photo: tuple[Any, ...]) -> bool:
    return len(photo) == 2 and isinstance(photo[0], str | os.PathLike)


def _is_array(photo: Any) -> bool:
    """Return whether this is an array or a tensor, of any library."""
    if isinstance(photo, np.ndarray):
        return True
    shape = getattr(photo, "shape", ())
    is_table = hasattr(photo, "columns") or not isinstance(shape, Sized)
    return hasattr(photo, "__array__") and not is_table and len(shape) > 1


def _to_array(photo: Any) -> np.ndarray:
    try:
        return np.asarray(photo)
    except (TypeError, ValueError, RuntimeError) as error:
        # A tensor on a GPU, or one that needs a gradient.
        what = f"a {type(photo).__name__} is not an array: {get_first_line(error)}"
        raise UnreadablePhoto(what, advice=ADVICE_PHOTO) from None


def _convert_array(array: np.ndarray, image_size: int, resize: Resize) -> np.ndarray:
    if problem := _find_array_problem(array):
        raise UnreadablePhoto(f"an array {_describe_array(array)} {problem}", advice=ADVICE_PHOTO)
    pixels = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return _convert_image(Image.fromarray(np.ascontiguousarray(pixels)), image_size, resize)


def _convert_image(image: Image.Image, image_size: int, resize: Resize) -> np.ndarray:
    if 0 in image.size:
        raise UnreadablePhoto(f"an image of {image.width} x {image.height} has no pixels")
    return decoding.convert_image(image, image_size, resize).pixels


def _describe_array(array: np.ndarray) -> str:
    return f"{array.dtype} [{', '.join(map(str, array.shape))}]"


def _find_array_problem(array: np.ndarray) -> str:
    """Describe why an array is no photo; empty if it is 8-bit RGB or grey."""
    if not array.size:
        return "has no pixels"
    if array.ndim not in (2, 3):
        return "is not a photo: a photo has two or three dimensions"
    if array.ndim == 3 and array.shape[2] not in (1, 3):
        return _describe_channels(array.shape)
    return _describe_range(array.dtype)


def _describe_channels(shape: tuple[int, ...]) -> str:
    if shape[2] == 4:
        return "could be RGBA or CMYK: give a Pillow image"
    if shape[0] in (1, 3):
        return "has its channels first: transpose(1, 2, 0)"
    return "is not a photo: the last dimension of a photo has 3 channels"


def _describe_range(dtype: np.dtype[Any]) -> str:
    if dtype == np.uint8:
        return ""
    if dtype.kind == "f":
        return "could have values from 0 to 1 or from 0 to 255: convert it to uint8"
    if dtype.kind in "iu":
        return "could have 255, 4095 or 65535 as white: convert it to uint8"
    return "is not a photo: convert it to uint8"
