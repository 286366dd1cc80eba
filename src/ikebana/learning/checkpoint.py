"""Where a training stands, as one safetensors file: weights, the optimiser's state, the epochs so far."""

import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ikebana.errors import RunError
from ikebana.places import written


@dataclass(frozen=True)
class Epoch:
    """One pass over the training photos: what it gave. Losses are mean cross-entropies, accuracies shares of 1.

    `train_` figures are running means over the epoch's own steps, augmentation and dropout included, as Keras gives them.
    """

    epoch: int  # from 1
    train_loss: float
    train_accuracy: float
    val_loss: float | None  # None if there are no validation photos
    val_accuracy: float | None
    seconds: float


def save(file: Path, network: nn.Module, velocities: list[Tensor], epochs: list[Epoch]) -> None:
    """Write the whole state beside, then rename it: an interrupted write costs nothing."""
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"velocity.{number:04}": value for number, value in enumerate(velocities)}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with written(file) as beside:
        save_file(tensors, beside, {"epochs": json.dumps([asdict(each) for each in epochs])})


def load(file: Path, network: nn.Module, velocities: list[Tensor]) -> list[Epoch]:
    """Put the state back into the network and the optimiser's velocities.

    returns  the epochs that it had seen
    raises   RunError if the file is damaged or of another network
    """
    try:
        tensors = load_file(file)
        network.load_state_dict({name[8:]: value for name, value in tensors.items() if name.startswith("network.")})
        with torch.no_grad():
            for number, velocity in enumerate(velocities):
                velocity.copy_(tensors[f"velocity.{number:04}"])
        return [Epoch(**each) for each in json.loads(_metadata(file)["epochs"])]
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise RunError(
            f"the checkpoint cannot be used: {str(error).splitlines()[0]}",
            where=file,
            advice="delete it: --resume then trains from the start",
        ) from None


def save_weights(file: Path, network: nn.Module) -> None:
    """The network alone, for `weights.safetensors`: no time and no path in it, so equal weights are equal files."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with written(file) as beside:
        save_file(tensors, beside)


def load_weights(file: Path, network: nn.Module) -> None:
    """The weights of a finished run.

    raises  RunError if the file is missing, damaged or of another network
    """
    try:
        network.load_state_dict(load_file(file))
    except FileNotFoundError:
        raise RunError("this run has no weights yet", where=file.parent, advice="ikebana fit --resume") from None
    except (SafetensorError, OSError, RuntimeError) as error:
        raise RunError(f"the weights cannot be used: {str(error).splitlines()[0]}", where=file) from None


def _metadata(file: Path) -> dict[str, str]:
    """A safetensors file opens with the length of a JSON header, 8 bytes little-endian, then that header."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return json.loads(stream.read(length))["__metadata__"]
