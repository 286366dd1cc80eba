"""Photos of which a part is hidden, and the score of a class for them."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageFilter

# uint8 [photos, height, width, 3] → calibrated probabilities, float [photos, classes].
Predict: TypeAlias = Callable[[np.ndarray], np.ndarray]

# The square is divided into CELLS x CELLS cells, which are hidden or visible.
CELLS = 16
# Standard deviation of the blur that hides cells, as a share of the side. Grey squares would be
# edges that no photo has.
BLUR_SHARE = 1 / 16
# Photos per forward pass.
BATCH_PHOTOS = 16
# Keeps log odds finite where float32 rounds a probability to 0 or 1.
MIN_PROBABILITY = 1e-7


def blur(photo: np.ndarray) -> np.ndarray:
    """Blur a photo so much that only coarse colours remain: uint8 [side, side, 3]."""
    radius = BLUR_SHARE * max(photo.shape[:2])
    return np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(radius)))


def hide_cells(photo: np.ndarray, blurred: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Replace the cells that are not visible by the blurred photo.

    Args:
        photo, blurred: uint8 [side, side, 3].
        visible: bool [CELLS, CELLS].
    """
    height, width = photo.shape[:2]
    rows, columns = np.arange(height) * CELLS // height, np.arange(width) * CELLS // width
    return np.where(visible[rows][:, columns][..., None], photo, blurred)


def compute_log_odds(predict: Predict, photos: np.ndarray, class_index: int) -> np.ndarray:
    """Compute the log odds of a class for each photo: float64 [photos].

    Unlike probabilities, they also change where the network is almost certain.
    """
    batches = [photos[start : start + BATCH_PHOTOS] for start in range(0, len(photos), BATCH_PHOTOS)]
    probabilities = np.concatenate([predict(batch)[:, class_index] for batch in batches]).astype(np.float64)
    clipped = np.clip(probabilities, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    return np.log(clipped) - np.log1p(-clipped)
