"""Small synthetic images, their files, and what ikebana decodes from them."""

import io
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, features

from ikebana.data import decoding
from ikebana.errors import UnreadablePhoto
from ikebana.recipe import Resize

try:
    import pillow_heif

    pillow_heif.register_heif_opener()
except ImportError:
    pillow_heif = None

# uint8 [48, 48]: from black on the left to white on the right.
GRADIENT = np.tile(np.linspace(0, 255, 48).round().astype(np.uint8), (48, 1))


def draw_image(side: int = 48, seed: int = 0) -> Image.Image:
    """Draw an image that differs in all eight orientations."""
    x, y = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    gradient = np.stack([40 + 160 * x, 60 + 130 * y, 200 - 90 * x - 60 * y], axis=-1)
    image = Image.fromarray(gradient.astype(np.uint8))
    draw, rng = ImageDraw.Draw(image), np.random.default_rng(seed)
    first, second, third = (tuple(int(level) for level in rng.integers(0, 256, 3)) for _ in range(3))
    draw.ellipse((side * 0.55, side * 0.1, side * 0.9, side * 0.4), fill=first)
    draw.rectangle((0, side * 0.7, side * 0.3, side), fill=second)
    draw.line((side * 0.1, side * 0.1, side * 0.5, side * 0.8), fill=third, width=max(1, side // 16))
    return image


def draw_noisy_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Draw an image with detail in every corner."""
    noise = np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    image = draw_image(64, seed).resize((width, height))
    return Image.fromarray((to_int_array(image) + noise).clip(0, 255).astype(np.uint8))


def draw_scene(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Draw a distinct scene: background, soft shapes of all sizes, some noise."""
    rng = np.random.default_rng(seed)
    ground = Image.fromarray(rng.integers(0, 256, (5, 6, 3)).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    shapes = ground.copy()
    draw = ImageDraw.Draw(shapes)
    for number in range(14):
        max_side = size[0] // (3 if number < 5 else 8)
        width, height = (int(side) for side in rng.integers(max_side // 3, max_side, 2))
        x, y = int(rng.integers(0, size[0] - width)), int(rng.integers(0, max(1, size[1] - height)))
        draw_shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        draw_shape((x, y, x + width, y + height), fill=tuple(int(level) for level in rng.integers(0, 256, 3)))
    scene = Image.blend(ground, shapes.filter(ImageFilter.GaussianBlur(2)), 0.6)
    noise = rng.normal(0, 4, (size[1], size[0], 3))
    return Image.fromarray((60 + 0.55 * np.asarray(scene) + noise).clip(0, 255).astype(np.uint8))


def draw_two_class_scenes(photos_per_class: int = 12) -> dict[str, Image.Image]:
    """Draw so many different scenes for each of two classes, by path."""
    return {f"{name}/{row}.jpg": draw_scene(100 * ord(name) + row) for name in "ab" for row in range(photos_per_class)}


def scale_image(image: Image.Image, factor: float) -> Image.Image:
    """Resize both sides of an image by this factor."""
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def encode_image(image: Image.Image, file_format: str = "JPEG", **options) -> bytes:
    """Encode an image as the bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def encode_photo(seed: int) -> bytes:
    """Encode a small JPEG; every seed gives other bytes."""
    return encode_image(draw_image(24, seed), "JPEG", quality=90)


def encode_grey_tiff(data: bytes, bits: int, photometric: int = 1, sample_format: int = 1, height: int = 48) -> bytes:
    """Encode a grey TIFF of one strip, as TIFF 6.0 defines it.

    Pillow writes none with 12 bits, signed samples, or white as zero.
    """
    entries = [
        (256, 4, 48), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
        (277, 3, 1), (278, 4, 48), (279, 4, len(data)), (339, 3, sample_format),
    ]  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(entries)) + table + bytes(4)


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write these files into a folder, which is created if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder


def two_classes(photos_per_class: int = 3) -> dict[str, bytes]:
    """Encode the simplest data set, by path: so many photos for each of two classes."""
    return {
        f"{name}/{number}.jpg": encode_photo(100 * row + number)
        for row, name in enumerate("ab")
        for number in range(photos_per_class)
    }


def skip_unless_supported(file_format: str) -> None:
    """Skip the test if this Pillow cannot read and write that format."""
    if file_format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    if file_format == "HEIF" and pillow_heif is None:
        pytest.skip("pillow_heif is not installed")


def decode_as_int(data: bytes, side: int = 48, resize: Resize = "squash") -> np.ndarray:
    """Decode a photo as ikebana does, to signed integers that can be subtracted."""
    return decoding.decode(data, side, resize).pixels.astype(int)


def to_int_array(image: Image.Image) -> np.ndarray:
    """Convert an image to RGB in signed integers that can be subtracted."""
    return np.asarray(image.convert("RGB")).astype(int)


def mean_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the mean distance of two images in grey levels."""
    return np.abs(first - second).mean()


def get_decoding_error(data: bytes, side: int = 32) -> str:
    """Return the message with which ikebana refuses to decode a photo."""
    with pytest.raises(UnreadablePhoto) as error:
        decoding.decode(data, side)
    return error.value.what
