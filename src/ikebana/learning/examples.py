"""Batches of labelled photos or features, and a network's predictions for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
import torch
from torch import Tensor

from ikebana.data.dataset import SPLITS, Dataset
from ikebana.data.split import get_selection_mask, find_groups

# Of the device memory that is free beside a training step; the memory of a step is an estimate.
MAX_PIXEL_MEMORY_FRACTION = 0.5
# Photos copied to the device at a time.
CHUNK_PHOTOS = 1024


class Examples(Protocol):
    """Labelled inputs of a network: photos, or features of them."""

    @property
    def rows(self) -> np.ndarray: ...  # int64 [examples]: in the dataset's table
    @property
    def labels(self) -> np.ndarray: ...  # int64 [examples]: class indices
    @property
    def for_choices(self) -> np.ndarray: ...  # bool [examples]: for model selection
    def __len__(self) -> int: ...
    def batch(self, indices: np.ndarray, device: str) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Photos:
    """Labelled photos: rows of the pixel cache."""

    pixels: np.ndarray  # uint8 [rows, image_size, image_size, 3]
    rows: np.ndarray  # int64 [photos]: of each photo in `pixels`
    labels: np.ndarray  # int64 [photos]: class indices
    for_choices: np.ndarray  # bool [photos]: never of a class without training photos
    groups: np.ndarray  # int64 [photos]: equal for duplicates, and photos of one group
    held: Tensor | None = None  # `pixels` on the device; None: each batch is copied there

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def side(self) -> int:
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        """The number of rows in the pixel cache."""
        return len(self.pixels)

    def at(self, rows: np.ndarray) -> "Photos":
        """Return the photos in some rows of the pixel cache, without labels."""
        return unlabelled(self.pixels, rows)

    def some(self, indices: np.ndarray) -> "Photos":
        """Return some of the photos, in the order of the indices: int64 or bool."""
        return Photos(
            self.pixels,
            self.rows[indices],
            self.labels[indices],
            self.for_choices[indices],
            self.groups[indices],
            self.held,
        )

    def batch(self, indices: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
        """Return photos, uint8 [photos, 3, image_size, image_size] channels last, and labels."""
        rows, labels = self.rows[indices], torch.from_numpy(self.labels[indices]).to(device)
        if self.held is not None:
            return self.held[torch.from_numpy(rows).to(self.held.device)].permute(0, 3, 1, 2).to(device), labels
        return torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2).to(device), labels


@dataclass(frozen=True)
class Features:
    """Labelled features: rows of the feature cache."""

    array: np.ndarray  # float [rows, ...]
    rows: np.ndarray  # int64 [examples]: of each example in `array`
    labels: np.ndarray  # int64 [examples]: class indices
    for_choices: np.ndarray  # bool [examples]
    groups: np.ndarray  # int64 [examples]: one group must not be in both training and test folds

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
        """Return features, float32 [examples, ...], and labels."""
        features = torch.from_numpy(self.array[self.rows[indices]].astype(np.float32))
        return features.to(device), torch.from_numpy(self.labels[indices]).to(device)

    def values(self) -> np.ndarray:
        """Read all features at once: float32 [examples, ...]."""
        return self.array[self.rows].astype(np.float32)

    def first(self, count: int) -> "Features":
        """Return the first examples alone."""
        columns = (self.rows, self.labels, self.for_choices, self.groups)
        return Features(self.array, *(column[:count] for column in columns))


def on_device(pixels: np.ndarray, device: str, room: int) -> Tensor | None:
    """Copy all pixels to the device if they fit in half of its free memory.

    Else return None, and each batch is read from the mapped file.

    Args:
        room: device memory in bytes that a training step leaves free.
    """
    if pixels.nbytes > MAX_PIXEL_MEMORY_FRACTION * room:
        return None
    device_pixels = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(pixels), CHUNK_PHOTOS):
        chunk = slice(start, start + CHUNK_PHOTOS)
        device_pixels[chunk] = torch.from_numpy(np.array(pixels[chunk]))
    return device_pixels


def parts(dataset: Dataset, pixels: np.ndarray, device: str = "cpu", free_bytes: int = 0) -> dict[str, Photos]:
    """Return the photos of each split; copy their pixels to a GPU if they fit.

    Args:
        free_bytes: device memory that a training step leaves free.
    """
    device_pixels = on_device(pixels, device, free_bytes)
    class_indices = {name: index for index, name in enumerate(dataset.classes)}
    photos = dataset.used_photos_with_row
    photos = photos.with_columns(together=np.array(find_groups(photos.drop("row")), np.int64))
    trained_classes = photos.filter(pl.col("split") == "train")["label"].unique().to_list()
    return {
        split: Photos(
            pixels,
            table["row"].to_numpy().astype(np.int64),
            np.array([class_indices[name] for name in table["label"]], np.int64),
            get_selection_mask(table) & table["label"].is_in(trained_classes).to_numpy(),
            table["together"].to_numpy(),
            device_pixels,
        )
        for split in SPLITS
        for table in [photos.filter(pl.col("split") == split)]
    }


def unlabelled(pixels: np.ndarray, rows: np.ndarray) -> Photos:
    """Make photos without labels: all of class 0, each in its own group."""
    return Photos(pixels, rows, np.zeros(len(rows), np.int64), np.zeros(len(rows), bool), np.arange(len(rows)))


def joined(first: Photos, second: Photos) -> Photos:
    """Concatenate photos of the same pixel cache."""
    return Photos(
        first.pixels,
        np.concatenate((first.rows, second.rows)),
        np.concatenate((first.labels, second.labels)),
        np.concatenate((first.for_choices, second.for_choices)),
        np.concatenate((first.groups, second.groups)),
        first.held,
    )


def for_calibration(
    splits: Mapping[str, Photos], probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Select the validation photos that were not used for model selection.

    Classes without training photos are left out, since their probabilities mean nothing.

    Args:
        probabilities: float [photos, classes], the validation photos first.
    Returns:
        probabilities [photos, trained classes], labels among these classes, group numbers.
    """
    validation, trained_classes = splits["validation"], np.unique(splits["train"].labels)
    chosen = np.flatnonzero(~validation.for_choices & np.isin(validation.labels, trained_classes))
    labels = np.searchsorted(trained_classes, validation.labels[chosen])
    return probabilities[np.ix_(chosen, trained_classes)], labels, validation.groups[chosen]


def all_to_learn_from(splits: dict[str, Photos]) -> dict[str, Photos]:
    """Return splits in which every photo is a training photo, in the order of rows."""
    photos = joined(joined(splits["train"], splits["validation"]), splits["test"])
    train = photos.some(photos.rows.argsort(kind="stable"))
    empty = unlabelled(photos.pixels, np.zeros(0, np.int64))
    return {"train": train, "validation": empty, "test": empty}
