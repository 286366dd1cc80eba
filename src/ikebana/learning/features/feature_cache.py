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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
# In the folder of a dataset's features.
FEATURES_FILE, CHECKSUMS_FILE = "features.npy", "checks.npy"


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
    backbone: nn.Module,
    key: FeatureKey,
    photos: PhotoExamples,
    settings: DeviceSettings,
    stage: str = "extract features",
) -> FeatureExamples:
    """Extract the features of the photos; only missing rows are computed.

    Args:
        settings: float32 caches features exactly; bfloat16 is faster and caches half precision.
        stage: what progress bars call it.
    Raises:
        MachineError: the disk is too small.
        RecipeError: features are NaN or infinite.
    """
    # A file without rows cannot be mapped.
    if not photos.pixel_row_count:
        array = np.zeros((0, *get_feature_shape(backbone, photos.image_size)), get_dtype(settings))
        return FeatureExamples(array, photos.rows, photos.labels, photos.for_selection, photos.groups)
    cache = open_cache(backbone, key, photos, settings)
    missing = cache.find_missing(photos.rows)
    if len(missing):
        start = time.perf_counter()
        fused = fast.fuse_layers(backbone.to(settings.device), photos)
        with progress.stage(stage, len(missing)) as bar:
            for rows, features in compute_features(fused, photos.select_unlabelled_rows(missing), settings):
                cache.array[rows] = features
                cache.checksums[rows] = compute_checksums(cache.array[rows])
                bar.advance(len(rows))
        if len(missing) >= MIN_TIMED_PHOTOS:
            record_faster_speed(settings, (time.perf_counter() - start) / len(missing))
    return FeatureExamples(cache.array, photos.rows, photos.labels, photos.for_selection, photos.groups)


class FeatureCache(NamedTuple):
    """The mapped files of a feature cache.

    Another process may write to them at the same time: it writes the same rows.
    """

    folder: Path
    # float [rows, ...].
    array: np.ndarray
    # uint32 [rows].
    checksums: np.ndarray

    def find_missing(self, rows: np.ndarray) -> np.ndarray:
        """Find those of the rows that are missing or damaged: int64, sorted."""
        return np.array(
            [row for row in np.unique(rows) if self.checksums[row] != _compute_checksum(self.array[row])], np.int64
        )


def get_dtype(settings: DeviceSettings) -> np.dtype:
    """Return the number format of cached features."""
    return np.dtype(np.float32 if settings.precision == "float32" else np.float16)


def compute_features(
    backbone: nn.Module, photos: PhotoExamples, settings: DeviceSettings
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Compute the features of photos, and yield rows of the pixel cache with their features.

    Raises:
        RecipeError: features are NaN or infinite.
    """
    for start in range(0, len(photos), settings.inference_batch_size):
        rows = photos.rows[start : start + settings.inference_batch_size]
        # Every batch is full: another batch size changes the last digits. A resumed run, or one
        # with cached rows, would then learn something else.
        chosen = np.resize(np.arange(start, start + len(rows)), settings.inference_batch_size)
        pixels, _ = photos.get_batch(chosen, settings.device)
        with torch.inference_mode(), settings.autocast():
            features = backbone(pixels)[: len(rows)].float().cpu().numpy()
        # Values beyond half precision become infinite.
        with np.errstate(over="ignore"):
            features = features.astype(get_dtype(settings))
        if not np.isfinite(features).all():
            raise RecipeError(
                "the frozen network's features of a photo are NaN, infinite or too large for half precision",
                advice="--precision float32, or another --network",
            )
        yield rows, features


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


def compute_checksums(features: np.ndarray) -> list[int]:
    """Compute the checksum of each row."""
    return [_compute_checksum(row) for row in features]


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


def open_cache(backbone: nn.Module, key: FeatureKey, photos: PhotoExamples, settings: DeviceSettings) -> FeatureCache:
    """Map the features and checksums of all rows, created if missing."""
    shape = (photos.pixel_row_count, *get_feature_shape(backbone, photos.image_size))
    folder, dtype = _get_cache_path(key, settings, shape), get_dtype(settings)
    if not _is_intact(folder, shape, dtype):
        require_disk({cache_folder(): int(np.prod(shape)) * dtype.itemsize})
        with atomic_directory(folder) as partial:
            reserve_array(partial / FEATURES_FILE, shape, dtype)
            reserve_array(partial / CHECKSUMS_FILE, shape[:1], np.dtype(np.uint32))
    try:
        array, checksums = (np.load(folder / name, mmap_mode="r+") for name in (FEATURES_FILE, CHECKSUMS_FILE))
    except OSError as error:
        raise write_error(error, folder) from error
    return FeatureCache(folder, array, checksums)


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
        return int(np.count_nonzero(np.load(path / CHECKSUMS_FILE, mmap_mode="r")))
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
        array, checksums = (np.load(path / name, mmap_mode="r") for name in (FEATURES_FILE, CHECKSUMS_FILE))
    except (OSError, ValueError, EOFError):
        return None
    return array.shape, array.dtype, checksums.shape, checksums.dtype
