"""Photos of a dataset, batch by batch, and what a network says of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from ikebana import progress
from ikebana.learning.device import Setting
from ikebana.photos.dataset import PARTS, Dataset
from ikebana.photos.split import for_choices, groups

SHARE = 0.5  # of what a step leaves on a device may be taken by pixels: what a step needs is an estimate
CHUNK = 1024  # photos sent at a time
OF_EACH = ("rows", "labels", "for_choices", "groups")  # what `Photos` has of each photo


class Examples(Protocol):
    """What a network is shown: photos, or features of them."""

    @property
    def rows(self) -> np.ndarray: ...  # int64 [examples]: of the dataset's table
    @property
    def labels(self) -> np.ndarray: ...  # int64 [examples]: class indices
    @property
    def for_choices(self) -> np.ndarray: ...  # bool [examples]: of validation photos, those that choices are made by
    def __len__(self) -> int: ...
    def batch(self, chosen: np.ndarray, device: str) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Photos:
    """Some rows of the kept pixels, with their labels."""

    pixels: np.ndarray  # uint8 [rows, side, side, 3]
    rows: np.ndarray  # int64 [photos]: where in `pixels` each photo lies
    labels: np.ndarray  # int64 [photos]: class indices
    for_choices: np.ndarray  # bool [photos]: none of a class that nothing is learned of
    groups: np.ndarray  # int64 [photos]: copies, and photos that belong together, have the same number
    held: Tensor | None = None  # all of `pixels` on the device, where they fit; else each batch is sent there

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def side(self) -> int:
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        """How many rows there are in all."""
        return len(self.pixels)

    def at(self, rows: np.ndarray) -> "Photos":
        """Those of some rows, of which nobody says what they show."""
        return unlabelled(self.pixels, rows)

    def some(self, chosen: np.ndarray) -> "Photos":
        """Some of them, in the order asked for: int64 or bool."""
        return replace(self, **{name: getattr(self, name)[chosen] for name in OF_EACH})

    def batch(self, chosen: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
        """uint8 [photos, 3, side, side] in the channels-last format, without a copy beyond the gathering; and the labels."""
        rows, labels = self.rows[chosen], torch.from_numpy(self.labels[chosen]).to(device)
        if self.held is not None:
            return self.held[torch.from_numpy(rows).to(self.held.device)].permute(0, 3, 1, 2).to(device), labels
        return torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2).to(device), labels


@dataclass(frozen=True)
class Features:
    """Some rows of kept features, with their labels."""

    array: np.ndarray  # float [rows, ...]
    rows: np.ndarray  # int64 [examples]: where in `array` each lies
    labels: np.ndarray  # int64 [examples]: class indices
    for_choices: np.ndarray  # bool [examples]
    groups: np.ndarray  # int64 [examples]: those of one number must not judge each other

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, chosen: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
        """float32 [examples, ...], and the labels."""
        found = torch.from_numpy(self.array[self.rows[chosen]].astype(np.float32))
        return found.to(device), torch.from_numpy(self.labels[chosen]).to(device)

    def values(self) -> np.ndarray:
        """All of them at once: float32 [examples, ...]."""
        return self.array[self.rows].astype(np.float32)

    def first(self, count: int) -> "Features":
        """The first ones alone."""
        of_all = (self.rows, self.labels, self.for_choices, self.groups)
        return Features(self.array, *(each[:count] for each in of_all))


def on_device(pixels: np.ndarray, device: str, room: int) -> Tensor | None:
    """All pixels on the device, if they take less than half of the room that there is; None if they stay in their file, from
    which a processor reads them as fast.

    room  bytes that a training step leaves of the device's own memory
    """
    if pixels.nbytes > SHARE * room:
        return None
    held = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(pixels), CHUNK):
        held[start : start + CHUNK] = torch.from_numpy(np.array(pixels[start : start + CHUNK]))
    return held


def parts(dataset: Dataset, pixels: np.ndarray, device: str = "cpu", room: int = 0) -> dict[str, Photos]:
    """The training, validation and test photos of a dataset that is split; their pixels lie on a GPU from now on if they fit.

    room  bytes that a training step leaves of the device's own memory
    """
    held = on_device(pixels, device, room)
    index = {name: number for number, name in enumerate(dataset.classes)}
    found = dataset.used_by_row
    found = found.with_columns(together=np.array(groups(found.drop("row")), np.int64))
    learned = found.filter(pl.col("split") == "train")["label"].unique().to_list()
    return {
        part: Photos(
            pixels,
            chosen["row"].to_numpy().astype(np.int64),
            np.array([index[name] for name in chosen["label"]], np.int64),
            for_choices(chosen) & chosen["label"].is_in(learned).to_numpy(),
            chosen["together"].to_numpy(),
            held,
        )
        for part in PARTS
        for chosen in [found.filter(pl.col("split") == part)]
    }


def unlabelled(pixels: np.ndarray, rows: np.ndarray) -> Photos:
    """Photos of which nobody says what they show."""
    return Photos(pixels, rows, np.zeros(len(rows), np.int64), np.zeros(len(rows), bool), np.arange(len(rows)))


def joined(first: Photos, second: Photos) -> Photos:
    """The photos of both, in that order."""
    both = {name: np.concatenate((getattr(first, name), getattr(second, name))) for name in OF_EACH}
    return replace(first, **both)


def for_calibration(parts: Mapping[str, Photos], said: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What was said of the validation photos that no choice was made by, their labels and groups; of the classes that were
    learned alone: whatever is said of others is no confidence.

    said     [photos, classes], beginning with the validation photos
    returns  [photos, learned classes]; where among these each photo's class is; and the number of its group
    """
    validation, learned = parts["validation"], np.unique(parts["train"].labels)
    chosen = np.flatnonzero(~validation.for_choices & np.isin(validation.labels, learned))
    labels = np.searchsorted(learned, validation.labels[chosen])
    return said[np.ix_(chosen, learned)], labels, validation.groups[chosen]


def all_to_learn_from(found: dict[str, Photos]) -> dict[str, Photos]:
    """Every photo a training photo, none held out: for the network that ships after the score is made."""
    everything = joined(joined(found["train"], found["validation"]), found["test"])
    whole = everything.some(everything.rows.argsort(kind="stable"))
    none = unlabelled(everything.pixels, np.zeros(0, np.int64))
    return {"train": whole, "validation": none, "test": none}


@torch.inference_mode()
def logits_of(network: nn.Module, photos: Examples, setting: Setting, bar: progress.Bar | None = None) -> np.ndarray:
    """What the network says of each photo: float32 logits [photos, classes]."""
    network.eval()
    found = []
    for start in range(0, len(photos), setting.at_a_time):
        chosen = np.arange(start, min(start + setting.at_a_time, len(photos)))
        pixels, _ = photos.batch(chosen, setting.device)
        with setting.autocast():
            found.append(network(pixels).float().cpu().numpy())
        if bar is not None:
            bar.advance(len(pixels))
    return np.concatenate(found) if found else np.zeros((0, 1), np.float32)


def score(logits: np.ndarray, labels: np.ndarray) -> tuple[float | None, float | None]:
    """Mean cross-entropy and accuracy; None where there is no photo."""
    if not len(labels):
        return None, None
    loss = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    return float(loss), float((logits.argmax(1) == labels).mean())


def probabilities_of(
    network: nn.Module, photos: Examples, setting: Setting, bar: progress.Bar | None = None
) -> np.ndarray:
    """float32 [photos, classes], each row adding up to 1; always computed in float32, so that scores do not depend on the
    number format that happened to be fastest for training."""
    exact = replace(setting, number_format="float32")
    return torch.softmax(torch.from_numpy(logits_of(network, photos, exact, bar=bar)), 1).numpy()
