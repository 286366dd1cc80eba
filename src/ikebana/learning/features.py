"""A frozen backbone looks at each photo once; what it says lies on disk, and heads learn from that in seconds.

The features of a data set are one memory-mapped array, named by the hash of all that made them: the kept pixels, the
network, its weights, the number format. Rows are filled as they are needed and each has a checksum beside it, so a row
that was never written, was torn by a kill, or has changed on the disk is simply computed again.
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

from ikebana import progress
from ikebana.errors import RecipeError
from ikebana.learning import backbones, device, lean, networks
from ikebana.learning.device import Setting
from ikebana.learning.inference import Features, Photos, unlabelled
from ikebana.learning.weights import Weights
from ikebana.machine import need_disk
from ikebana.photos.kept import reserve
from ikebana.places import cache_folder, cannot_write, filled, set_aside
from ikebana.recipe import Recipe

MANY = 256  # photos that tell how fast a network sees them
RULES = 3  # raised when features of the same photos come out otherwise, if only in the last bit


@dataclass(frozen=True)
class Origin:
    """What a backbone's features are made of; the same in every way, the same features."""

    pixels: str  # name of the kept pixels: the photos, the side, how they became square
    network: str
    weights: str  # sha256
    until: str = ""
    mirrored: bool = False  # whether what is said is the mean over photo and mirror image
    depths: str = ""  # which maps within the network are told of besides its last, and how; none: what a head sees


def origin(pixels: str, recipe: Recipe, weights: Weights | None) -> Origin:
    """What the features of a recipe's backbone are made of.

    pixels  the name of the kept pixels
    """
    mirrored = recipe.transfer is not None and recipe.transfer.mirrored
    return Origin(pixels, recipe.network, weights.sha256 if weights is not None else "", recipe.until, mirrored)


def backbone(recipe: Recipe, pixels: str, setting: Setting) -> tuple[nn.Module, Origin]:
    """A recipe's one frozen backbone with its pretrained weights, on the device, and what its features are made of.

    pixels  the name of the kept pixels
    raises  RecipeError or MachineError if its weights cannot be had
    """
    network = networks.build(recipe, classes=2).to(setting.device)
    weights = backbones.fill(network, recipe)
    return network.get_submodule("seer"), origin(pixels, recipe, weights)


def of(seer: nn.Module, origin: Origin, photos: Photos, setting: Setting) -> Features:
    """The features of these photos, computed now where they are not kept yet.

    seer     normalisation and backbone: photos to features
    setting  float32 keeps features exactly; bfloat16 is faster and keeps them in half precision
    raises   MachineError if the disk cannot hold them; RecipeError if they are no numbers
    """
    exact = setting.number_format == "float32"
    whole, dtype = (photos.height, *shape(seer, photos.side)), np.dtype(np.float32 if exact else np.float16)
    if not photos.height:  # no file of no rows can be mapped
        return Features(np.zeros(whole, dtype), photos.rows, photos.labels, photos.for_choices, photos.groups)
    array, checks = _opened(origin, setting, whole, dtype)
    missing = np.array([row for row in np.unique(photos.rows) if checks[row] != _check(array[row])], np.int64)
    if len(missing):
        begun = time.perf_counter()
        _fill(lean.fused(seer.to(setting.device), photos), photos.at(missing), array, checks, setting)
        if len(missing) >= MANY:
            device.was_faster(setting, (time.perf_counter() - begun) / len(missing))
    return Features(array, photos.rows, photos.labels, photos.for_choices, photos.groups)


@torch.inference_mode()
def _fill(seer: nn.Module, photos: Photos, array: np.ndarray, checks: np.ndarray, setting: Setting) -> None:
    with progress.stage("features", len(photos)) as bar:
        for start in range(0, len(photos), setting.at_a_time):
            rows = photos.rows[start : start + setting.at_a_time]
            # Every batch is full: in one of another size last digits differ, and with them what a run that was killed here,
            # or found some rows kept, would learn.
            chosen = np.resize(np.arange(start, start + len(rows)), setting.at_a_time)
            pixels, _ = photos.batch(chosen, setting.device)
            with setting.autocast():
                found = seer(pixels)[: len(rows)].float().cpu().numpy()
            with np.errstate(over="ignore"):  # what half precision does not hold becomes infinite
                found = found.astype(array.dtype)
            if not np.isfinite(found).all():
                raise RecipeError(
                    "what the frozen network sees in some photo is no number, or too large for half precision",
                    advice="--precision float32, or another --network",
                )
            array[rows] = found
            checks[rows] = [_check(array[row]) for row in rows]
            bar.advance(len(rows))


@torch.inference_mode()
def seconds_per_photo(network: nn.Module, side: int, setting: Setting) -> float:
    """Time the backbone on random pixels: what a photo's features cost."""
    count = setting.at_a_time
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    photos = unlabelled(pixels, np.arange(count))
    # A copy: on a GPU the head of the original would be left behind.
    seer = lean.fused(copy.deepcopy(network.get_submodule("seer")).to(setting.device), photos)
    inputs, _ = photos.batch(photos.rows, setting.device)
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        with setting.autocast():
            seer(inputs).float().cpu()
        seconds.append(time.perf_counter() - begun)
    return min(seconds) / count


def _check(row: np.ndarray) -> int:
    return zlib.crc32(row.tobytes()) or 1  # 0 is a row that nobody has written


@torch.inference_mode()
def shape(seer: nn.Module, side: int) -> tuple[int, ...]:
    """The shape of one photo's features."""
    return tuple(seer.eval()(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=_device(seer))).shape[1:])


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _opened(origin: Origin, setting: Setting, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The array and its checksums, made if they are not there; another process may fill them too, with the same rows."""
    place = _place(origin, setting, shape)
    if not _is_whole(place, shape, dtype):
        need_disk({cache_folder(): int(np.prod(shape)) * dtype.itemsize})
        with filled(place) as folder:
            reserve(folder / "features.npy", shape, dtype)
            reserve(folder / "checks.npy", shape[:1], np.dtype(np.uint32))
    try:
        return np.load(place / "features.npy", mmap_mode="r+"), np.load(place / "checks.npy", mmap_mode="r+")
    except OSError as error:
        raise cannot_write(error, place) from error


def _place(origin: Origin, setting: Setting, shape: tuple[int, ...]) -> Path:
    versions = (torch.__version__, importlib.metadata.version("timm"))
    facts = [RULES, *vars(origin).values(), setting.device, setting.number_format, shape, *versions]
    made_of = json.dumps(facts)
    return cache_folder() / "features" / hashlib.sha256(made_of.encode()).hexdigest()[:32]


def still_to_come(
    seer: nn.Module, origin: Origin, photos: int, side: int, settings: Iterable[Setting]
) -> tuple[int, int]:
    """Of the features of so many rows of kept pixels: bytes that they will take where they have no place yet, and how many rows
    nobody has looked at in any of these number formats."""
    whole = (photos, *shape(seer, side))
    taken = seen = 0
    for setting in settings:
        place = _place(origin, setting, whole)
        if place.exists():
            seen += _looked_at(place)
        else:
            taken += int(np.prod(whole)) * setting.dtype.itemsize
    return taken, max(0, photos - seen)


def _looked_at(place: Path) -> int:
    """How many rows are kept there; none if they are damaged: they are made anew."""
    try:
        return int(np.count_nonzero(np.load(place / "checks.npy", mmap_mode="r")))
    except (OSError, ValueError, EOFError):
        return 0


def _is_whole(place: Path, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether both files are there and of their size; what is damaged is taken away."""
    if not place.exists():
        return False
    if _sizes(place) == (shape, dtype, shape[:1], np.dtype(np.uint32)):
        return True
    progress.say("the kept features have changed on disk: they are computed again")
    set_aside(place)
    return False


def _sizes(place: Path) -> tuple[Any, ...] | None:
    """Shapes and types of what is kept there; None if it cannot be read. Nothing stays mapped: Windows could not remove it."""
    try:
        array, checks = (np.load(place / name, mmap_mode="r") for name in ("features.npy", "checks.npy"))
    except (OSError, ValueError, EOFError):
        return None
    return array.shape, array.dtype, checks.shape, checks.dtype
