"""uint8 batch → changed float batch, on the device, seeded.

Rotation, shift, shear, zoom and flip are composed into one affine map a photo, and every pixel is sampled once: a chain of
steps would blur it at each. Units, order and borders are those of Keras' `ImageDataGenerator`, so that the tutorial's
`augmented` recipe means here what it means there.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ikebana.choices import Augmentation

CACHED = 2**20  # numbers of photos that are warped at a time
PROPORTION = 0.2  # a part of a photo is up to exp(0.2) times as wide as high, or as high as wide


def augmented(photos: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Each photo of the batch changed in its own way.

    photos     uint8 [photos, 3, side, side]
    generator  on the CPU, whatever the device: a seed then means the same everywhere
    returns    float32 of the same shape, 0 to 255, channels last
    """
    maps = random_maps(len(photos), photos.shape[-1], augmentation, generator)
    changed = warped(photos, maps)
    return relit(changed, augmentation.light, generator) if augmentation.light else changed


def random_maps(count: int, side: int, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Where each pixel of a changed photo is taken from.

    returns  float64 [count, 2, 3]: maps (x, y, 1) of the changed photo, in pixels from its centre, to (x, y) of the original
    """

    def uniform(reach: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1) * reach

    rotation = uniform(math.radians(augmentation.rotation))
    # Keras calls the height's shift tx and applies it along x. For squares and equal reaches that cannot be seen.
    shift_x, shift_y = uniform(augmentation.shift[0] * side), uniform(augmentation.shift[1] * side)
    shear = uniform(math.radians(augmentation.shear))
    zoom_x, zoom_y = 1 + uniform(augmentation.zoom), 1 + uniform(augmentation.zoom)
    flipped = torch.rand(count, generator=generator, dtype=torch.float64) < (0.5 if augmentation.flip else 0.0)
    maps = affine_maps(rotation, shift_x, shift_y, shear, zoom_x, zoom_y)
    if augmentation.area < 1:
        maps = _of_parts(maps, augmentation.area, side, generator)
    maps[flipped, :, 0] *= -1  # Keras flips after it has warped: the changed photo's x is mirrored about its centre
    return maps


def _of_parts(maps: Tensor, area: float, side: int, generator: torch.Generator) -> Tensor:
    """The maps, each of a part of its photo instead of the whole.

    area     the least share of the photo
    returns  float64 [count, 2, 3]
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(maps), generator=generator, dtype=torch.float64)

    size, proportion = uniform(area, 1).sqrt(), uniform(-PROPORTION, PROPORTION).exp().sqrt()
    width, height = size * proportion, size / proportion
    maps = (
        maps * torch.stack((width, height, torch.ones_like(width)), 1)[:, None]
    )  # x and y of the changed photo shrink
    for axis, extent in enumerate((width, height)):
        maps[:, axis, 2] += uniform(-1, 1) * (1 - extent).clamp(min=0) * side / 2
    return maps


def relit(photos: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    """Photos in another light: contrast about each photo's own mean, then brightness.

    photos  float [photos, 3, side, side], 0 to 255; changed in place
    """

    def factor() -> Tensor:
        drawn = 1 + (2 * torch.rand(len(photos), generator=generator) - 1) * reach
        return drawn.to(photos.device).view(-1, 1, 1, 1)

    mean = photos.mean((1, 2, 3), keepdim=True)
    contrast, brightness = factor(), factor()
    return photos.sub_(mean).mul_(contrast).add_(mean).mul_(brightness).clamp_(0, 255)


def affine_maps(
    rotation: Tensor, shift_x: Tensor, shift_y: Tensor, shear: Tensor, zoom_x: Tensor, zoom_y: Tensor
) -> Tensor:
    """rotation · shift · shear · zoom about the centre, in the order in which Keras multiplies them.

    Angles in radians, shifts in pixels; each float64 [count].
    source  keras/src/legacy/preprocessing/image.py, apply_affine_transform
    """
    one, zero = torch.ones_like(rotation), torch.zeros_like(rotation)
    turn = _matrix(rotation.cos(), -rotation.sin(), zero, rotation.sin(), rotation.cos(), zero)
    move = _matrix(one, zero, shift_x, zero, one, shift_y)
    slant = _matrix(one, -shear.sin(), zero, zero, shear.cos(), zero)
    scale = _matrix(zoom_x, zero, zero, zero, zoom_y, zero)
    return (turn @ move @ slant @ scale)[:, :2]


def _matrix(*entries: Tensor) -> Tensor:
    zero, one = torch.zeros_like(entries[0]), torch.ones_like(entries[0])
    return torch.stack((*entries, zero, zero, one), dim=1).view(-1, 3, 3)


def warped(photos: Tensor, maps: Tensor) -> Tensor:
    """Photos seen through their maps, bilinear, the border's colour continued.

    photos   [photos, 3, side, side], uint8 or float
    maps     as `random_maps` gives them
    returns  float32, channels last
    """
    side = photos.shape[-1]
    units = torch.tensor([1.0, 1.0, 2 / (side - 1)], dtype=maps.dtype)  # grid_sample measures from -1 to 1
    theta = (maps * units).to(device=photos.device, dtype=torch.float32)
    changed = torch.empty(photos.shape, device=photos.device, memory_format=torch.channels_last)
    # On a processor a few at a time, so that what lies between stays in its cache: three quarters of the time.
    at_a_time = max(1, CACHED // photos.shape[1:].numel()) if photos.device.type == "cpu" else len(photos)
    for start in range(0, len(photos), at_a_time):
        some = slice(start, start + at_a_time)
        grid = _grid(theta[some], side)
        changed[some] = functional.grid_sample(
            photos[some].float(), grid, mode="bilinear", padding_mode="border", align_corners=True
        )
    return changed


def _grid(theta: Tensor, side: int) -> Tensor:
    """Where each pixel is taken from, as `affine_grid` gives it with aligned corners; sums of rows and columns are cheaper
    than its product of every position with every map.

    theta    float32 [photos, 2, 3]
    returns  float32 [photos, side, side, 2], from -1 to 1
    """
    steps = torch.linspace(-1, 1, side, device=theta.device)
    grid = torch.empty((len(theta), side, side, 2), device=theta.device)
    for axis in (0, 1):
        by_x, by_y, shift = theta[:, axis].unsqueeze(-1).unbind(1)
        torch.add((by_x * steps)[:, None, :], (by_y * steps + shift)[:, :, None], out=grid[..., axis])
    return grid


def examples(photo: np.ndarray, augmentation: Augmentation | None, seed: int, count: int = 4) -> list[np.ndarray]:
    """A photo as it is and some changed copies, for people to look at; empty if the recipe changes none.

    photo  uint8 [side, side, 3]
    """
    if augmentation is None:
        return []
    batch = torch.from_numpy(photo.copy()).permute(2, 0, 1).expand(count, -1, -1, -1)
    changed = augmented(batch, augmentation, torch.Generator().manual_seed(seed))
    return [photo, *changed.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()]
