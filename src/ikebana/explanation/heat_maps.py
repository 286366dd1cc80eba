"""Heat maps of photos, each with its deletion and insertion check."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ikebana.explanation import faithfulness, occlusion
from ikebana.explanation.heat_map import HeatMap, Method, overlay
from ikebana.explanation.masking import Predict

if TYPE_CHECKING:
    from ikebana.learning.models.networks import CalibratedNetwork

__all__ = ["HeatMap", "explain_by_occlusion", "explain_photos", "make_explainer", "overlay"]


Explainer: TypeAlias = Callable[[np.ndarray, "Sequence[int] | np.ndarray"], "list[HeatMap]"]


def explain_photos(
    network: "CalibratedNetwork", photos: np.ndarray, class_indices: Sequence[int] | np.ndarray
) -> list[HeatMap]:
    """Explain a torch network: by Grad-CAM if it is convolutional, else by occlusion.

    Args:
        network: of a run, in evaluation mode.
        photos: uint8 [photos, side, side, 3], as the network sees them.
        class_indices: the class to explain per photo.
    """
    return make_explainer(network)(photos, class_indices)


def make_explainer(network: "CalibratedNetwork") -> Explainer:
    """Return a function from photos and class indices to heat maps, as `explain_photos`."""
    from ikebana.explanation import grad_cam, torch_prediction

    predict = torch_prediction.make_predict(network)

    def explain(photos: np.ndarray, class_indices: Sequence[int] | np.ndarray) -> list[HeatMap]:
        indices = np.asarray(class_indices, np.int64)
        maps = grad_cam.compute_maps(network, photos, indices) if len(photos) else None
        if maps is None:
            return explain_by_occlusion(predict, photos, indices)
        return _check_all(predict, photos, indices, list(maps), "grad_cam")

    return explain


def explain_by_occlusion(
    predict: Predict, photos: np.ndarray, class_indices: Sequence[int] | np.ndarray
) -> list[HeatMap]:
    """Explain any classifier from its probabilities.

    Args:
        predict: uint8 [photos, side, side, 3] → probabilities [photos, classes].
        photos: uint8 [photos, side, side, 3], as the network sees them.
        class_indices: the class to explain per photo.
    """
    indices = np.asarray(class_indices, np.int64)
    maps = [occlusion.compute_map(predict, photo, int(index)) for photo, index in zip(photos, indices, strict=True)]
    return _check_all(predict, photos, indices, maps, "occlusion")


def _check_all(
    predict: Predict, photos: np.ndarray, indices: np.ndarray, maps: Sequence[np.ndarray], method: Method
) -> list[HeatMap]:
    heat_maps = []
    for photo, index, values in zip(photos, indices.tolist(), maps, strict=True):
        largest = float(values.max())
        scaled = (values / largest if largest > 0 else values).astype(np.float32)
        check = faithfulness.check_map(predict, photo, index, scaled)
        heat_maps.append(HeatMap(scaled, index, method, check))
    return heat_maps
