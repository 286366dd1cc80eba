"""Photos and changed copies of them that stay the same: a frozen network sees each of them once, however many epochs follow."""

import hashlib
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from ikebana.choices import Augmentation
from ikebana.learning.augmentation import augmented
from ikebana.learning.inference import Photos


class Views:
    """Each photo as it is, then all of them changed, and changed in another way, ...: row `copy * photos + number`.

    How a copy is changed depends on the photo's row and the copy's number alone, so that any of them can be made again at any
    time, beside any others.
    """

    def __init__(self, photos: Photos, augmentation: Augmentation, copies: int, rows: np.ndarray | None = None):
        """rows: int64, those that are meant; all if none are given"""
        self.photos, self.augmentation, self.copies = photos, augmentation, copies
        self.rows = np.arange((1 + copies) * len(photos)) if rows is None else rows
        of = self.rows % max(1, len(photos))
        self.labels, self.for_choices, self.groups = photos.labels[of], photos.for_choices[of], photos.groups[of]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def side(self) -> int:
        return self.photos.side

    @property
    def height(self) -> int:
        """How many rows there are in all."""
        return (1 + self.copies) * len(self.photos)

    @property
    def about(self) -> str:
        """All that distinguishes them from other views of the same kept pixels, in words."""
        rows = hashlib.sha256(self.photos.rows.tobytes()).hexdigest()
        return f"{self.copies} changed copies, {asdict(self.augmentation)}, of {rows}"

    def at(self, rows: np.ndarray) -> "Views":
        """Those of some rows."""
        return Views(self.photos, self.augmentation, self.copies, rows)

    def batch(self, chosen: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
        """float32 [photos, 3, side, side], 0 to 255, in the channels-last format; and the labels."""
        copies, numbers = np.divmod(self.rows[chosen], len(self.photos))
        plain, labels = self.photos.batch(numbers, device)
        seen = plain.float()
        for place in np.flatnonzero(copies):
            numbered = (int(copies[place]), int(self.photos.rows[numbers[place]]))
            seed = np.random.SeedSequence(numbered).generate_state(1)[0]  # torch's dice hear 32 bits of it alone
            dice = torch.Generator().manual_seed(int(seed))
            seen[place] = augmented(plain[place : place + 1], self.augmentation, dice)[0]
        return seen, labels
