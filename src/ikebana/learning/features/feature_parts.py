"""Missing rows of a feature cache that several processes compute on a shared disk.

A process writes the features of some rows into the array, and then a part with their checksums. One
process copies the checksums of all parts, so that no two machines write to a page of that file. Rows
of two parts may share a page of the array. If one is torn, its checksum differs, and it is computed
again.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from ikebana.data.parts import Parts, prepare_parts
from ikebana.data.pixel_cache import skip_header
from ikebana.data.verified_array import Pixels
from ikebana.learning.device import DeviceSettings
from ikebana.learning.examples import PhotoExamples, make_unlabelled
from ikebana.learning.features import feature_cache
from ikebana.learning.features.feature_cache import CHECKSUMS_FILE, FEATURES_FILE, FeatureKey
from ikebana.system.files import write_error


@dataclass(frozen=True)
class FeatureParts:
    """The missing rows of a feature cache."""

    # Of the array and its checksums.
    folder: Path
    # int64 [missing]: sorted rows of the pixel cache, which the parts divide.
    rows: np.ndarray
    # uint32 checksums of the rows.
    parts: Parts


def prepare(
    backbone: nn.Module, key: FeatureKey, photos: PhotoExamples, settings: DeviceSettings, part_photos: int
) -> FeatureParts | None:
    """List what is missing in the feature cache, made if necessary; None if nothing is.

    Args:
        part_photos: rounded up to full batches, so that no row is in another batch than otherwise.
    """
    if not len(photos):
        return None
    cache = feature_cache.open_cache(backbone, key, photos, settings)
    missing = cache.find_missing(photos.rows)
    if not len(missing):
        return None
    folder = cache.folder.absolute()
    batch_size = settings.inference_batch_size
    name = hashlib.sha256(missing.tobytes()).hexdigest()[:16]
    parts = prepare_parts(folder / f"{name}.parts", len(missing), -(-part_photos // batch_size) * batch_size)
    return FeatureParts(folder, missing, parts)


def compute_part(
    feature_parts: FeatureParts, number: int, backbone: nn.Module, pixels: Pixels, settings: DeviceSettings
) -> None:
    """Compute the features of a part's rows, write them, and then the part.

    Args:
        backbone: on its device, with layers fused.
        pixels: of all rows.
    Raises:
        RecipeError: features are NaN or infinite.
        MachineError: the array cannot be written.
    """
    span = feature_parts.parts.get_rows(number)
    photos = make_unlabelled(pixels, feature_parts.rows[span.start : span.stop])
    checksums = list(_compute_rows(feature_parts.folder / FEATURES_FILE, backbone, photos, settings))
    feature_parts.parts.write(number, np.array(checksums, np.uint32).tobytes())


def _compute_rows(file: Path, backbone: nn.Module, photos: PhotoExamples, settings: DeviceSettings) -> Iterator[int]:
    """Compute features, write them into the array of a file, and yield their checksums."""
    for rows, features in feature_cache.compute_features(backbone, photos, settings):
        try:
            # Not through a memory map, which would write whole pages.
            with file.open("r+b") as stream:
                start = skip_header(stream)
                for row, values in zip(rows.tolist(), features, strict=True):
                    stream.seek(start + row * values.nbytes)
                    stream.write(values.tobytes())
        except OSError as error:
            raise write_error(error, file) from error
        yield from feature_cache.compute_checksums(features)


def join(feature_parts: FeatureParts) -> None:
    """Copy the checksums of all parts, which makes their rows valid.

    If another process has done it, nothing is left to do.

    Raises:
        MachineError: a part is missing.
    """
    contents = feature_parts.parts.read_all()
    if contents is None:
        return
    checksums = np.frombuffer(b"".join(contents), np.uint32)
    try:
        target = np.load(feature_parts.folder / CHECKSUMS_FILE, mmap_mode="r+")
    except OSError as error:
        raise write_error(error, feature_parts.folder) from error
    target[feature_parts.rows] = checksums
    target.flush()
    feature_parts.parts.remove()
