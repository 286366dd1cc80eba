"""Checkpoints and final weights as safetensors files."""

import io
import json
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ikebana.errors import RunError, get_first_line
from ikebana.system.files import atomic_write
from ikebana.system.resources import is_out_of_memory


@dataclass(frozen=True)
class Epoch:
    """The result of one epoch: mean losses, and accuracies from 0 to 1.

    As in Keras, `train_` figures are running means over the epoch's steps, with augmentation and
    dropout. In a recipe with `adamw` they include label smoothing and class priors. `val_` figures
    are plain cross-entropies. Where the head is fitted directly, both are of the fitted head.
    """

    # Counted from 1.
    epoch: int
    train_loss: float
    train_accuracy: float
    # None without validation photos.
    val_loss: float | None
    val_accuracy: float | None
    seconds: float
    # Cross-entropy of the model-selection photos, whose lowest value decides which epoch's weights the
    # run has; None where that is the last epoch.
    selection_loss: float | None = None


@dataclass(frozen=True)
class TrainingState:
    """All that an interrupted training needs to resume."""

    # Completed epochs.
    epochs: list[Epoch] = field(default_factory=list)
    # Of network, optimiser, EMA, best weights and the unfinished epoch, distinguished by prefix.
    tensors: dict[str, Tensor] = field(default_factory=dict)
    # Model-selection loss of the best weights.
    best_loss: float = math.inf

    def get_tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with the prefix, without the prefix."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def save(file: Path, state: TrainingState) -> None:
    """Write a checkpoint atomically: an interrupted write leaves the previous one."""
    _write_tensors(file, _copy_to_host(state.tensors), _make_metadata(state))


def to_bytes(state: TrainingState) -> bytes:
    """Return the content of the checkpoint that `save` writes."""
    return safetensors.torch.save(_copy_to_host(state.tensors), _make_metadata(state))


def from_bytes(content: bytes) -> TrainingState:
    """Read the result of `to_bytes`."""
    return _make_state(safetensors.torch.load(content), _read_metadata(io.BytesIO(content)))


def _copy_to_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _make_metadata(state: TrainingState) -> dict[str, str]:
    training = {"epochs": [asdict(epoch) for epoch in state.epochs], "best_loss": repr(state.best_loss)}
    return {"training": json.dumps(training)}


def _make_state(tensors: dict[str, Tensor], metadata: dict[str, str]) -> TrainingState:
    training = json.loads(metadata["training"])
    epochs = [Epoch(**epoch) for epoch in training["epochs"]]
    return TrainingState(epochs, tensors, float(training["best_loss"]))


def load(file: Path) -> TrainingState:
    """Read a checkpoint.

    Raises:
        RunError: the file cannot be read or is damaged.
    """
    with checkpoint_errors(file):
        # First, since it validates the whole file. Windows cannot replace a mapped file: clone.
        tensors = {name: value.clone() for name, value in load_file(file).items()}
        with file.open("rb") as stream:
            return _make_state(tensors, _read_metadata(stream))


@contextmanager
def checkpoint_errors(file: Path | None) -> Iterator[None]:
    """Turn errors from a damaged or mismatched checkpoint into a RunError with advice.

    The advice is to delete the file only where nothing else would help.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RunError(
            f"the checkpoint cannot be read: {reason}",
            where=file,
            advice="check the file's permissions and the disk, then resume",
        ) from None
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise RunError(
            f"the checkpoint cannot be used: {get_first_line(error)}",
            where=file,
            advice="delete it, then resume: training restarts from the beginning",
        ) from None


def save_weights(file: Path, network: nn.Module) -> None:
    """Write `weights.safetensors`, without time or path: equal weights give equal files."""
    _write_tensors(file, _copy_to_host(network.state_dict()))


def _write_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a file with the run folder's permissions; safetensors makes it private to its owner."""
    with atomic_write(file, create_parent=False) as partial_file:
        save_file(tensors, partial_file, metadata)
        partial_file.chmod(file.parent.stat().st_mode & 0o666)


def load_weights(file: Path, network: nn.Module) -> None:
    """Load the weights of a finished run into the network.

    Raises:
        RunError: the file is missing, damaged or of another network.
    """
    try:
        network.load_state_dict(load_file(file))
    except FileNotFoundError:
        raise RunError(
            "this run has no weights yet: training has not finished",
            where=file.parent,
            advice=f"ikebana fit --resume {file.parent}",
        ) from None
    except (SafetensorError, OSError, RuntimeError) as error:
        what = f"the weights cannot be used: {get_first_line(error)}"
        raise RunError(what, where=file, advice="an undamaged copy of the run") from None


def _read_metadata(stream: BinaryIO) -> dict[str, str]:
    """Read the header of a safetensors file: its length in 8 bytes, little-endian, then JSON."""
    (length,) = struct.unpack("<Q", stream.read(8))
    return json.loads(stream.read(length))["__metadata__"]
