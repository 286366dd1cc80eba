"""Where a training stands, as one safetensors file: weights, the optimiser's state, the epochs so far."""

import json
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ikebana.errors import RunError
from ikebana.machine import no_memory
from ikebana.places import written


@dataclass(frozen=True)
class Epoch:
    """One pass over the training photos: what it gave. Losses are means of what was made small, accuracies shares of 1.

    `train_` figures are running means over the epoch's own steps, augmentation and dropout included, as Keras gives them; in a
    recipe with `tuning` of the smoothed truth and with the classes' shares counted in, neither of which is in `val_` figures,
    which are plain cross-entropies. Where the head is found at once, both are of the head that was found.
    """

    epoch: int  # from 1
    train_loss: float
    train_accuracy: float
    val_loss: float | None  # None if there are no validation photos
    val_accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class Saved:
    """All that an interrupted training needs to go on."""

    epochs: list[Epoch] = field(default_factory=list)  # those that are done
    tensors: dict[str, Tensor] = field(default_factory=dict)  # of the network, the optimiser and whatever else there is
    best_loss: float = math.inf  # of the epoch whose weights are kept as the best

    def entries(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, without that beginning."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def save(file: Path, saved: Saved) -> None:
    """Write the whole state beside, then rename it: an interrupted write costs nothing."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in saved.tensors.items()}
    about = {"epochs": [asdict(each) for each in saved.epochs], "best_loss": repr(saved.best_loss)}
    _write(file, tensors, {"training": json.dumps(about)})


def load(file: Path) -> Saved:
    """What `save` wrote.

    raises  RunError if the file is damaged
    """
    with usable(file):
        # First: it checks the file from end to end. Copied, since what is mapped cannot be written over on Windows.
        tensors = {name: value.clone() for name, value in load_file(file).items()}
        about = json.loads(_metadata(file)["training"])
        return Saved([Epoch(**each) for each in about["epochs"]], tensors, float(about["best_loss"]))


@contextmanager
def usable(file: Path | None) -> Iterator[None]:
    """Whatever shows here that a checkpoint is damaged, or of another network, becomes a RunError that says what to do; it is
    to be deleted only where nothing else would help."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise RunError(
            f"the checkpoint cannot be read: {why}", where=file, advice="see that it can be, then again"
        ) from None
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        if no_memory(error):
            raise
        raise RunError(
            f"the checkpoint cannot be used: {str(error).splitlines()[0]}",
            where=file,
            advice="delete it: --resume then trains from the start",
        ) from None


def save_weights(file: Path, network: nn.Module) -> None:
    """The network alone, for `weights.safetensors`: no time and no path in it, so equal weights are equal files."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    _write(file, tensors)


def _write(file: Path, tensors: dict[str, Tensor], about: dict[str, str] | None = None) -> None:
    """A file that whoever may look into the run's folder may read: safetensors makes its own for one user alone."""
    with written(file, make=False) as beside:
        save_file(tensors, beside, about)
        beside.chmod(file.parent.stat().st_mode & 0o666)


def load_weights(file: Path, network: nn.Module) -> None:
    """The weights of a finished run.

    raises  RunError if the file is missing, damaged or of another network
    """
    try:
        network.load_state_dict(load_file(file))
    except FileNotFoundError:
        raise RunError(
            "this run has no weights yet", where=file.parent, advice=f"ikebana fit --resume {file.parent}"
        ) from None
    except (SafetensorError, OSError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise RunError(
            f"the weights cannot be used: {why}", where=file, advice="a copy of the run that is whole"
        ) from None


def _metadata(file: Path) -> dict[str, str]:
    """A safetensors file opens with the length of a JSON header, 8 bytes little-endian, then that header."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return json.loads(stream.read(length))["__metadata__"]
