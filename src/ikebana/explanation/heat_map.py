"""A heat map, and how it is drawn over its photo.

This needs numpy and Pillow only."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from ikebana.explanation.faithfulness import Check

Method: TypeAlias = Literal["grad_cam", "occlusion"]

# Colours of the overlay: from transparent to this colour, RGB.
HEAT_COLOUR = np.array([255, 90, 31], np.float32)
# Largest opacity of that colour; the photo darkens where the map is low.
MAX_OPACITY, MIN_BRIGHTNESS = 0.6, 0.45


@dataclass(frozen=True, eq=False)
class HeatMap:
    """How much each part of a photo speaks for a class.

    Attributes:
        values: float32 [rows, columns], 0 to 1, of the square that the network sees.
        class_index: of the class that the map explains.
        method: how it was computed.
        check: the comparison with random and displaced maps.
    """

    values: np.ndarray
    class_index: int
    method: Method
    check: Check

    @property
    def is_trusted(self) -> bool:
        """Whether the map passed the deletion and insertion check; others are not shown."""
        return self.check.is_passed

    def __repr__(self) -> str:
        rows, columns = self.values.shape
        trust = "trusted" if self.is_trusted else "not trusted"
        return f"HeatMap(class {self.class_index}, {self.method}, {rows} x {columns}, {trust})"


def overlay(photo: np.ndarray, heat_map: HeatMap) -> np.ndarray:
    """Draw a heat map over a photo: warm where it is high, dark elsewhere.

    Args:
        photo: uint8 [side, side, 3], the square that was explained.
    Returns:
        uint8 [side, side, 3].
    """
    height, width = photo.shape[:2]
    image = Image.fromarray(heat_map.values.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(image), 0, 1)[..., None]
    grey = photo.astype(np.float32).mean(2, keepdims=True)
    # Grey where the map is low, so that no colour of the photo looks like heat.
    base = (grey + (photo - grey) * heat) * (MIN_BRIGHTNESS + (1 - MIN_BRIGHTNESS) * heat)
    opacity = MAX_OPACITY * heat**2
    return np.clip(base * (1 - opacity) + HEAT_COLOUR * opacity, 0, 255).astype(np.uint8)
