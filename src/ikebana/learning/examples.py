"""Batches of labelled photos or features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import polars as pl
import torch
from torch import Tensor

from ikebana.data.dataset import SPLITS, Dataset
from ikebana.data.split import find_groups, get_selection_mask
from ikebana.data.verified_array import Pixels

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
    def for_selection(self) -> np.ndarray: ...  # bool [examples]: for model selection
    def __len__(self) -> int: ...
    def get_batch(self, indices: np.ndarray, device: str) -> tuple[Tensor, Tensor]: ...


class SelectableExamples(Examples, Protocol):
    """Examples of which some can be selected."""

    def select(self, indices: np.ndarray) -> Self: ...


@dataclass(frozen=True)
class PhotoExamples:
    """Labelled photos: rows of the pixel cache."""

    # uint8 [rows, image_size, image_size, 3].
    pixels: Pixels
    # int64 [photos]: of each photo in `pixels`.
    rows: np.ndarray
    # int64 [photos]: class indices.
    labels: np.ndarray
    # bool [photos]: never of a class without training photos.
    for_selection: np.ndarray
    # int64 [photos]: equal for duplicates, and photos of one group.
    groups: np.ndarray
    # `pixels` on the device; None: each batch is copied there.
    device_pixels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def image_size(self) -> int:
        return self.pixels.shape[1]

    @property
    def pixel_row_count(self) -> int:
        """The number of rows in the pixel cache."""
        return len(self.pixels)

    def select_unlabelled_rows(self, rows: np.ndarray) -> "PhotoExamples":
        """Return the photos in some rows of the pixel cache, without labels."""
        return make_unlabelled(self.pixels, rows)

    def select(self, indices: np.ndarray) -> "PhotoExamples":
        """Return some of the photos, in the order of the indices: int64 or bool."""
        return PhotoExamples(
            self.pixels,
            self.rows[indices],
            self.labels[indices],
            self.for_selection[indices],
            self.groups[indices],
            self.device_pixels,
        )

    def get_batch(self, indices: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
        """Return photos, uint8 [photos, 3, image_size, image_size] channels last, and labels."""
        rows, labels = self.rows[indices], torch.from_numpy(self.labels[indices]).to(device)
        if self.device_pixels is not None:
            return self.device_pixels[torch.from_numpy(rows).to(self.device_pixels.device)].permute(0, 3, 1, 2).to(
                device
            ), labels
        return torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2).to(device), labels


@dataclass(frozen=True)
class FeatureExamples:
    """Labelled features: rows of the feature cache."""

    # float [rows, ...].
    array: np.ndarray
    # int64 [examples]: of each example in `array`.
    rows: np.ndarray
    # int64 [examples]: class indices.
    labels: np.ndarray
    # bool [examples].
    for_selection: np.ndarray
    # int64 [examples]: one group must not be in both training and test folds.
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def get_batch(self, indices: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
        """Return features, float32 [examples, ...], and labels."""
        features = torch.from_numpy(self.array[self.rows[indices]].astype(np.float32))
        return features.to(device), torch.from_numpy(self.labels[indices]).to(device)

    def to_array(self) -> np.ndarray:
        """Read all features at once: float32 [examples, ...]."""
        return self.array[self.rows].astype(np.float32)

    def select(self, indices: np.ndarray | slice) -> "FeatureExamples":
        """Return some of the examples, by indices: int64, bool or a slice."""
        columns = (self.rows, self.labels, self.for_selection, self.groups)
        return FeatureExamples(self.array, *(column[indices] for column in columns))


def copy_to_device(pixels: Pixels, device: str, free_bytes: int) -> Tensor | None:
    """Copy all pixels to the device if they fit in half of its free memory.

    Else return None, and each batch is read from the mapped file.

    Args:
        free_bytes: device memory that a training step leaves free.
    """
    if pixels.nbytes > MAX_PIXEL_MEMORY_FRACTION * free_bytes:
        return None
    device_pixels = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(pixels), CHUNK_PHOTOS):
        chunk = slice(start, start + CHUNK_PHOTOS)
        device_pixels[chunk] = torch.from_numpy(np.array(pixels[chunk]))
    return device_pixels


def build_split_examples(
    dataset: Dataset, pixels: Pixels, device: str = "cpu", free_bytes: int = 0
) -> dict[str, PhotoExamples]:
    """Return the photos of each split; copy their pixels to a GPU if they fit.

    Args:
        free_bytes: device memory that a training step leaves free.
    """
    device_pixels = copy_to_device(pixels, device, free_bytes)
    class_indices = {name: index for index, name in enumerate(dataset.classes)}
    photos = dataset.used_photos_with_row
    photos = photos.with_columns(together=np.array(find_groups(photos.drop("row")), np.int64))
    trained_classes = photos.filter(pl.col("split") == "train")["label"].unique().to_list()
    return {
        split: PhotoExamples(
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


def make_unlabelled(pixels: Pixels, rows: np.ndarray) -> PhotoExamples:
    """Make photos without labels: all of class 0, each in its own group."""
    return PhotoExamples(pixels, rows, np.zeros(len(rows), np.int64), np.zeros(len(rows), bool), np.arange(len(rows)))


def concatenate(first: PhotoExamples, second: PhotoExamples) -> PhotoExamples:
    """Concatenate photos of the same pixel cache."""
    return PhotoExamples(
        first.pixels,
        np.concatenate((first.rows, second.rows)),
        np.concatenate((first.labels, second.labels)),
        np.concatenate((first.for_selection, second.for_selection)),
        np.concatenate((first.groups, second.groups)),
        first.device_pixels,
    )


def find_calibration_photos(splits: Mapping[str, PhotoExamples]) -> np.ndarray:
    """Find the validation photos that were not used for model selection: int64 indices.

    Classes without training photos are left out, since their probabilities mean nothing.
    """
    validation, trained_classes = splits["validation"], np.unique(splits["train"].labels)
    return np.flatnonzero(~validation.for_selection & np.isin(validation.labels, trained_classes))


def select_for_calibration(
    splits: Mapping[str, PhotoExamples], probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Select the validation photos that were not used for model selection.

    Classes without training photos are left out, since their probabilities mean nothing.

    Args:
        probabilities: float [photos, classes], the validation photos first.
    Returns:
        probabilities [photos, trained classes], labels among these classes, group numbers.
    """
    validation, trained_classes = splits["validation"], np.unique(splits["train"].labels)
    chosen = find_calibration_photos(splits)
    labels = np.searchsorted(trained_classes, validation.labels[chosen])
    return probabilities[np.ix_(chosen, trained_classes)], labels, validation.groups[chosen]


def merge_for_refit(splits: dict[str, PhotoExamples]) -> dict[str, PhotoExamples]:
    """Return splits in which every photo is a training photo, in the order of rows."""
    photos = concatenate(concatenate(splits["train"], splits["validation"]), splits["test"])
    train = photos.select(photos.rows.argsort(kind="stable"))
    empty = make_unlabelled(photos.pixels, np.zeros(0, np.int64))
    return {"train": train, "validation": empty, "test": empty}
