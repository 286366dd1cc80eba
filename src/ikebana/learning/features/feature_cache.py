"""The feature cache: a frozen backbone's features, extracted once per image and stored.

The features of a dataset are one memory-mapped array, named by a hash of everything they depend on:
the cached pixels, the network, its weights, the precision. Rows are computed when needed, and each
has a checksum. A row that is missing, torn by a kill or changed on disk is computed again.
"""

import copy
import hashlib
import importlib.metadata
import json
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ikebana.data.pixel_cache import reserve_array
from ikebana.errors import RecipeError
from ikebana.learning import fast
from ikebana.learning.device import DeviceSettings
from ikebana.learning.examples import FeatureExamples, PhotoExamples, make_unlabelled
from ikebana.learning.models.pretrained_weights import Weights
from ikebana.learning.precision import record_faster_speed
from ikebana.recipe import PretrainedMethod, Recipe
from ikebana.system import progress
from ikebana.system.cache_folder import cache_folder
from ikebana.system.files import atomic_directory, discard, write_error
from ikebana.system.resources import require_disk

# Fewer images do not update the measured speed.
MIN_TIMED_PHOTOS = 256
# Increase it when the features of the same images change, even in the last bit.
FEATURES_VERSION = 3


@dataclass(frozen=True)
class FeatureKey:
    """Everything that features depend on: equal keys give equal features.

    The order of the fields is hashed.

    Attributes:
        pixel_cache: name of the pixel cache, which depends on images, size and resizing.
        weights: sha256 of the weights.
        intermediate_maps: which are included and how; empty for the head's input alone.
    """

    pixel_cache: str
    network: str
    weights: str
    truncate_at: str = ""
    flip_tta: bool = False
    intermediate_maps: str = ""


def make_feature_key(pixel_cache: str, recipe: Recipe, weights: Weights | None) -> FeatureKey:
    """Make the key of the features of a recipe's backbone."""
    flip_tta = isinstance(recipe.method, PretrainedMethod) and recipe.method.flip_tta
    sha256 = weights.sha256 if weights is not None else ""
    return FeatureKey(pixel_cache, recipe.network, sha256, recipe.truncate_at, flip_tta)


def extract_features(
    backbone: nn.Module, key: FeatureKey, photos: PhotoExamples, settings: DeviceSettings
) -> FeatureExamples:
    """Extract the features of the photos; only missing rows are computed.

    Args:
        settings: float32 caches features exactly; bfloat16 is faster and caches half precision.
    Raises:
        MachineError: the disk is too small.
        RecipeError: features are NaN or infinite.
    """
    is_exact = settings.precision == "float32"
    shape = (photos.pixel_row_count, *get_feature_shape(backbone, photos.image_size))
    dtype = np.dtype(np.float32 if is_exact else np.float16)
    # A file without rows cannot be mapped.
    if not photos.pixel_row_count:
        return FeatureExamples(np.zeros(shape, dtype), photos.rows, photos.labels, photos.for_selection, photos.groups)
    array, checksums = _open_cache(key, settings, shape, dtype)
    missing = np.array(
        [row for row in np.unique(photos.rows) if checksums[row] != _compute_checksum(array[row])], np.int64
    )
    if len(missing):
        start = time.perf_counter()
        fused = fast.fuse_layers(backbone.to(settings.device), photos)
        _compute_rows(fused, photos.select_unlabelled_rows(missing), array, checksums, settings)
        if len(missing) >= MIN_TIMED_PHOTOS:
            record_faster_speed(settings, (time.perf_counter() - start) / len(missing))
    return FeatureExamples(array, photos.rows, photos.labels, photos.for_selection, photos.groups)


@torch.inference_mode()
def _compute_rows(
    backbone: nn.Module, photos: PhotoExamples, array: np.ndarray, checksums: np.ndarray, settings: DeviceSettings
) -> None:
    """Compute the features of these photos, and write them with their checksums."""
    with progress.stage("extract features", len(photos)) as bar:
        for start in range(0, len(photos), settings.inference_batch_size):
            rows = photos.rows[start : start + settings.inference_batch_size]
            # Every batch is full: another batch size changes the last digits. A resumed run, or one
            # with cached rows, would then learn something else.
            chosen = np.resize(np.arange(start, start + len(rows)), settings.inference_batch_size)
            pixels, _ = photos.get_batch(chosen, settings.device)
            with settings.autocast():
                features = backbone(pixels)[: len(rows)].float().cpu().numpy()
            # Values beyond half precision become infinite.
            with np.errstate(over="ignore"):
                features = features.astype(array.dtype)
            if not np.isfinite(features).all():
                raise RecipeError(
                    "the frozen network's features of a photo are NaN, infinite or too large for half precision",
                    advice="--precision float32, or another --network",
                )
            array[rows] = features
            checksums[rows] = [_compute_checksum(array[row]) for row in rows]
            bar.advance(len(rows))


@torch.inference_mode()
def measure_seconds_per_photo(network: nn.Module, image_size: int, settings: DeviceSettings) -> float:
    """Measure the seconds per image of feature extraction, on random pixels."""
    count = settings.inference_batch_size
    pixels = np.random.default_rng(0).integers(0, 256, (count, image_size, image_size, 3), np.uint8)
    photos = make_unlabelled(pixels, np.arange(count))
    # A copy: moving the original's backbone to a GPU would leave its head on the CPU.
    backbone = fast.fuse_layers(copy.deepcopy(network.get_submodule("backbone")).to(settings.device), photos)
    inputs, _ = photos.get_batch(photos.rows, settings.device)
    seconds = []
    for _ in range(3):
        start_time = time.perf_counter()
        with settings.autocast():
            backbone(inputs).float().cpu()
        seconds.append(time.perf_counter() - start_time)
    return min(seconds) / count


def _compute_checksum(row: np.ndarray) -> int:
    # 0 marks a row that was not written yet.
    return zlib.crc32(row.tobytes()) or 1


@torch.inference_mode()
def get_feature_shape(backbone: nn.Module, image_size: int) -> tuple[int, ...]:
    """Return the shape of one image's features."""
    device = _get_device(backbone)
    return tuple(backbone.eval()(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8, device=device)).shape[1:])


def _get_device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _open_cache(
    key: FeatureKey, settings: DeviceSettings, shape: tuple[int, ...], dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Map the array and its checksums, created if missing.

    Another process may write to them at the same time: it writes the same rows.
    """
    path = _get_cache_path(key, settings, shape)
    if not _is_intact(path, shape, dtype):
        require_disk({cache_folder(): int(np.prod(shape)) * dtype.itemsize})
        with atomic_directory(path) as folder:
            reserve_array(folder / "features.npy", shape, dtype)
            reserve_array(folder / "checks.npy", shape[:1], np.dtype(np.uint32))
    try:
        return np.load(path / "features.npy", mmap_mode="r+"), np.load(path / "checks.npy", mmap_mode="r+")
    except OSError as error:
        raise write_error(error, path) from error


def _get_cache_path(key: FeatureKey, settings: DeviceSettings, shape: tuple[int, ...]) -> Path:
    versions = (torch.__version__, importlib.metadata.version("timm"))
    parts = [FEATURES_VERSION, *vars(key).values(), settings.device, settings.precision, shape, *versions]
    # Fast paths change the last digits.
    parts += [] if fast.is_enabled() else ["plain layers"]
    return cache_folder() / "features" / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def estimate_missing(
    backbone: nn.Module, key: FeatureKey, photos: int, image_size: int, all_settings: Iterable[DeviceSettings]
) -> tuple[int, int]:
    """Estimate what is missing in the cache.

    Args:
        photos: rows of the pixel cache.
        all_settings: one per precision in which features are needed.
    Returns:
        Bytes of the files that do not exist yet, and photos without features in any precision.
    """
    shape = (photos, *get_feature_shape(backbone, image_size))
    missing_bytes = cached_photos = 0
    for settings in all_settings:
        path = _get_cache_path(key, settings, shape)
        if path.exists():
            cached_photos += _count_cached_rows(path)
        else:
            missing_bytes += int(np.prod(shape)) * settings.dtype.itemsize
    return missing_bytes, max(0, photos - cached_photos)


def _count_cached_rows(path: Path) -> int:
    """Count the cached rows; 0 if the files are damaged and will be created again."""
    try:
        return int(np.count_nonzero(np.load(path / "checks.npy", mmap_mode="r")))
    except (OSError, ValueError, EOFError):
        return 0


def _is_intact(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Return whether both files exist with the right shape; quarantine damaged ones."""
    if not path.exists():
        return False
    if _read_shapes(path) == (shape, dtype, shape[:1], np.dtype(np.uint32)):
        return True
    progress.warn("the cached features are damaged on disk and are computed again")
    discard(path)
    return False


def _read_shapes(path: Path) -> tuple[Any, ...] | None:
    """Read the shapes and types of the two files; None if a file is unreadable.

    Nothing stays mapped: Windows cannot remove a mapped file.
    """
    try:
        array, checksums = (np.load(path / name, mmap_mode="r") for name in ("features.npy", "checks.npy"))
    except (OSError, ValueError, EOFError):
        return None
    return array.shape, array.dtype, checksums.shape, checksums.dtype
