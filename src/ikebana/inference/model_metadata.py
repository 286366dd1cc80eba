"""Checks of the metadata of a model file: classes, image size, threshold and calibration."""

from collections.abc import Mapping
from typing import Any

from ikebana.evaluation import candidate_sets


def find_metadata_error(metadata: Mapping[str, Any]) -> str | None:
    """Describe what is invalid in the metadata; None if they are valid."""
    classes, image_size, resize = (metadata.get(name) for name in ("classes", "image_size", "resize"))
    threshold = metadata.get("threshold")
    if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(name, str) and name for name in classes):
        return "the classes are not a list of names"
    if len(set(classes)) != len(classes):
        return "a class is listed twice"
    if type(image_size) is not int or not 1 <= image_size <= 4096:
        return "the image size is not an integer from 1 to 4096"
    if resize not in ("squash", "crop"):
        return "the resize method is unknown"
    if threshold is not None and not (type(threshold) in (int, float) and 0 <= threshold <= 1):
        return "the threshold is not a probability"
    return _find_candidate_error(metadata.get("candidates")) or _find_familiarity_error(metadata.get("familiarity"))


def _find_familiarity_error(values: Any) -> str | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        return "the entry about familiarity is not an object"
    threshold, photos = values.get("threshold"), values.get("photos")
    if photos is not None and (type(photos) is not int or photos < 1):
        return "the number of photos for familiarity is not a count"
    if isinstance(threshold, int | float) and type(threshold) is not bool and 0 <= threshold <= 1:
        return None
    return "the threshold of familiarity is not a share"


def _find_candidate_error(values: Any) -> str | None:
    try:
        candidate_sets.from_json(values)
    except ValueError as error:
        return str(error)
    return None
