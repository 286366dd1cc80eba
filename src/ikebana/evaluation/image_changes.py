"""Changes to photos at five strengths: what cameras, light and file formats do to them.

Source: Hendrycks and Dietterich 2019, arXiv:1903.12261. Blur, noise and JPEG quality have the
strengths of their ImageNet-C, which are made for images of 224 pixels. Here they are scaled to the
network's images. Darker, brighter and rotation have strengths of our own.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from ikebana.data import decoding

# The image size in pixels for which the strengths of blur and noise are given.
REFERENCE_SIZE = 224
# Standard deviation in pixels, by strength.
BLUR_PIXELS = (1.0, 2.0, 3.0, 4.0, 6.0)
# Standard deviation as a share of the range of grey levels.
NOISE_SHARES = (0.08, 0.12, 0.18, 0.26, 0.38)
JPEG_QUALITIES = (25, 18, 15, 10, 7)
# Factors of all grey levels.
DARK_FACTORS = (0.8, 0.6, 0.45, 0.3, 0.2)
BRIGHT_FACTORS = (1.25, 1.5, 2.0, 2.5, 3.5)
# Clockwise for every other photo.
ROTATION_DEGREES = (5.0, 10.0, 20.0, 30.0, 45.0)

# Changes a photo, uint8 [image_size, image_size, 3], at a strength; equal numbers give equal noise.
Change = Callable[[np.ndarray, int, int], np.ndarray]


def blur(photo: np.ndarray, strength: int, _: int) -> np.ndarray:
    """Blur a photo with a Gaussian."""
    radius = BLUR_PIXELS[strength - 1] * len(photo) / REFERENCE_SIZE
    return np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(radius)))


def add_noise(photo: np.ndarray, strength: int, number: int) -> np.ndarray:
    """Add Gaussian noise to each pixel and channel, the same pattern at every strength.

    A larger image has more pixels per area, so noise of equal strength would average out more.
    Its deviation is therefore scaled like a length.
    """
    pattern = np.random.default_rng(number).standard_normal(photo.shape, np.float32)
    deviation = 255 * NOISE_SHARES[strength - 1] * len(photo) / REFERENCE_SIZE
    return _to_levels(photo + deviation * pattern)


def compress(photo: np.ndarray, strength: int, _: int) -> np.ndarray:
    """Save a photo as a JPEG of low quality and read it again."""
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "JPEG", quality=JPEG_QUALITIES[strength - 1])
    return decoding.decode(stream.getvalue(), len(photo)).pixels


def darken(photo: np.ndarray, strength: int, _: int) -> np.ndarray:
    """Multiply all grey levels by a factor below 1."""
    return _to_levels(photo * np.float32(DARK_FACTORS[strength - 1]))


def brighten(photo: np.ndarray, strength: int, _: int) -> np.ndarray:
    """Multiply all grey levels by a factor above 1; what exceeds white becomes white."""
    return _to_levels(photo * np.float32(BRIGHT_FACTORS[strength - 1]))


def rotate(photo: np.ndarray, strength: int, number: int) -> np.ndarray:
    """Rotate a photo about its centre; the corners show its reflection at the border."""
    degrees = ROTATION_DEGREES[strength - 1] * (-1) ** number
    # The half diagonal of a square exceeds half of its side by 21%.
    margin = min(len(photo) - 1, int(0.21 * len(photo)) + 1)
    padded = np.pad(photo, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    rotated = Image.fromarray(padded).rotate(degrees, Image.Resampling.BILINEAR)
    return np.asarray(rotated)[margin:-margin, margin:-margin]


def _to_levels(values: np.ndarray) -> np.ndarray:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


# In the order of the report.
CHANGES: dict[str, Change] = {
    "blur": blur,
    "noise": add_noise,
    "JPEG quality": compress,
    "darker": darken,
    "brighter": brighten,
    "rotation": rotate,
}
