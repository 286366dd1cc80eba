"""Seeded augmentation of a uint8 batch on its device.

Rotation, shift, shear, zoom and flip are composed into one affine map per photo, and every pixel is
sampled once: a chain of steps would blur it at each. Units, order and borders are those of Keras'
`ImageDataGenerator`, so the recipe `augmented` is the tutorial's.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ikebana.recipe import Augmentation

# Values (pixels x channels) warped at a time on a CPU, so that temporary arrays stay in its cache.
CHUNK_VALUES = 2**20
# The aspect ratio of a random crop is between exp(-0.2) and exp(0.2).
MAX_LOG_ASPECT_RATIO = 0.2


def augment(
    photos: Tensor, augmentation: Augmentation, generator: torch.Generator, batch: tuple[int, slice] | None = None
) -> Tensor:
    """Augment each photo of the batch on its own.

    Args:
        photos: uint8 [photos, 3, image_size, image_size].
        generator: on the CPU, whatever the device, so that a seed gives the same maps everywhere.
        batch: if the photos are a share of a batch, how many photos the batch has, and which of them
            these are. Random numbers are drawn for all of them.
    Returns:
        float32 of the same shape, 0 to 255, channels last.
    """
    count, rows = batch or (len(photos), slice(None))
    maps = draw_affine_maps(count, photos.shape[-1], augmentation, generator)
    changed = warp(photos, maps[rows])
    return (
        jitter_contrast_and_brightness(changed, augmentation.brightness, generator, batch)
        if augmentation.brightness
        else changed
    )


def draw_affine_maps(count: int, image_size: int, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Draw the maps from pixels of augmented photos to positions in the originals.

    Returns:
        float64 [count, 2, 3]: (x, y, 1) of the augmented photo, in pixels from its centre, to
        (x, y) of the original.
    """

    def draw_uniform(limit: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1) * limit

    rotation = draw_uniform(math.radians(augmentation.rotation))
    # Keras calls the vertical shift tx and applies it along x: equal for squares and equal limits.
    shift_x, shift_y = (
        draw_uniform(augmentation.shift[0] * image_size),
        draw_uniform(augmentation.shift[1] * image_size),
    )
    shear = draw_uniform(math.radians(augmentation.shear))
    zoom_x, zoom_y = 1 + draw_uniform(augmentation.zoom), 1 + draw_uniform(augmentation.zoom)
    is_flipped = torch.rand(count, generator=generator, dtype=torch.float64) < (0.5 if augmentation.flip else 0.0)
    maps = compose_affine_maps(rotation, shift_x, shift_y, shear, zoom_x, zoom_y)
    if augmentation.crop_area < 1:
        maps = _crop_maps(maps, augmentation.crop_area, image_size, generator)
    # Keras flips after warping: mirror the augmented photo's x about its centre.
    maps[is_flipped, :, 0] *= -1
    return maps


def _crop_maps(maps: Tensor, min_area: float, image_size: int, generator: torch.Generator) -> Tensor:
    """Draw a random crop per photo and compose its map with the given one.

    Args:
        min_area: fraction of the photo's area.
    Returns:
        float64 [count, 2, 3].
    """

    def draw_uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(maps), generator=generator, dtype=torch.float64)

    size = draw_uniform(min_area, 1).sqrt()
    aspect = draw_uniform(-MAX_LOG_ASPECT_RATIO, MAX_LOG_ASPECT_RATIO).exp().sqrt()
    width, height = size * aspect, size / aspect
    # Scale x and y of the augmented photo.
    maps = maps * torch.stack((width, height, torch.ones_like(width)), 1)[:, None]
    for axis, extent in enumerate((width, height)):
        maps[:, axis, 2] += draw_uniform(-1, 1) * (1 - extent).clamp(min=0) * image_size / 2
    return maps


def jitter_contrast_and_brightness(
    photos: Tensor, limit: float, generator: torch.Generator, batch: tuple[int, slice] | None = None
) -> Tensor:
    """Change contrast about each photo's own mean, then brightness.

    Args:
        photos: float [photos, 3, image_size, image_size], 0 to 255; changed in place.
        limit: both factors are drawn from 1 - limit to 1 + limit.
        batch: as in `augment`.
    """
    count, rows = batch or (len(photos), slice(None))

    def draw_factors() -> Tensor:
        factors = 1 + (2 * torch.rand(count, generator=generator) - 1) * limit
        return factors[rows].to(photos.device).view(-1, 1, 1, 1)

    mean = photos.mean((1, 2, 3), keepdim=True)
    contrast, brightness = draw_factors(), draw_factors()
    return photos.sub_(mean).mul_(contrast).add_(mean).mul_(brightness).clamp_(0, 255)


def compose_affine_maps(
    rotation: Tensor, shift_x: Tensor, shift_y: Tensor, shear: Tensor, zoom_x: Tensor, zoom_y: Tensor
) -> Tensor:
    """Compose rotation · shift · shear · zoom about the centre, in Keras' order.

    Angles are in radians, shifts in pixels; each float64 [count].

    Source: keras/src/legacy/preprocessing/image.py, apply_affine_transform.
    """
    ones, zeros = torch.ones_like(rotation), torch.zeros_like(rotation)
    rotations = _make_matrices(rotation.cos(), -rotation.sin(), zeros, rotation.sin(), rotation.cos(), zeros)
    shifts = _make_matrices(ones, zeros, shift_x, zeros, ones, shift_y)
    shears = _make_matrices(ones, -shear.sin(), zeros, zeros, shear.cos(), zeros)
    zooms = _make_matrices(zoom_x, zeros, zeros, zeros, zoom_y, zeros)
    return (rotations @ shifts @ shears @ zooms)[:, :2]


def _make_matrices(*entries: Tensor) -> Tensor:
    zeros, ones = torch.zeros_like(entries[0]), torch.ones_like(entries[0])
    return torch.stack((*entries, zeros, zeros, ones), dim=1).view(-1, 3, 3)


def warp(photos: Tensor, maps: Tensor) -> Tensor:
    """Sample photos through their maps: bilinear, border pixels repeated.

    Args:
        photos: [photos, 3, image_size, image_size], uint8 or float.
        maps: as `draw_affine_maps` returns them.
    Returns:
        float32, channels last.
    """
    image_size = photos.shape[-1]
    # grid_sample measures from -1 to 1.
    units = torch.tensor([1.0, 1.0, 2 / (image_size - 1)], dtype=maps.dtype)
    theta = (maps * units).to(device=photos.device, dtype=torch.float32)
    changed = torch.empty(photos.shape, device=photos.device, memory_format=torch.channels_last)
    # On a CPU in chunks that fit its cache: three quarters of the time.
    is_cpu = photos.device.type == "cpu"
    chunk_photos = max(1, CHUNK_VALUES // photos.shape[1:].numel()) if is_cpu else len(photos)
    for start in range(0, len(photos), chunk_photos):
        chunk = slice(start, start + chunk_photos)
        grid = _make_grid(theta[chunk], image_size)
        changed[chunk] = functional.grid_sample(
            photos[chunk].float(), grid, mode="bilinear", padding_mode="border", align_corners=True
        )
    return changed


def _make_grid(theta: Tensor, image_size: int) -> Tensor:
    """Compute what `affine_grid` returns with aligned corners.

    Sums of rows and columns are cheaper than its product of every position with every map.

    Args:
        theta: float32 [photos, 2, 3].
    Returns:
        float32 [photos, image_size, image_size, 2], from -1 to 1.
    """
    positions = torch.linspace(-1, 1, image_size, device=theta.device)
    grid = torch.empty((len(theta), image_size, image_size, 2), device=theta.device)
    for axis in (0, 1):
        by_x, by_y, shift = theta[:, axis].unsqueeze(-1).unbind(1)
        torch.add((by_x * positions)[:, None, :], (by_y * positions + shift)[:, :, None], out=grid[..., axis])
    return grid


def draw_examples(photo: np.ndarray, augmentation: Augmentation | None, seed: int, count: int = 4) -> list[np.ndarray]:
    """Return a photo and augmented copies to show; empty without augmentation.

    Args:
        photo: uint8 [image_size, image_size, 3].
    """
    if augmentation is None:
        return []
    batch = torch.from_numpy(photo.copy()).permute(2, 0, 1).expand(count, -1, -1, -1)
    changed = augment(batch, augmentation, torch.Generator().manual_seed(seed))
    return [photo, *changed.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()]
