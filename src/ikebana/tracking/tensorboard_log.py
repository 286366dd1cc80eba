"""The epochs of a training as scalars of TensorBoard."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from ikebana.errors import MachineError, advise_extra
from ikebana.system import progress

# In the run folder, so that `tensorboard --logdir runs` shows all runs.
LOG_FOLDER = "tensorboard"
# Tag per value of an epoch.
EPOCH_TAGS = {
    "train_loss": "loss/train",
    "val_loss": "loss/validation",
    "train_accuracy": "accuracy/train",
    "val_accuracy": "accuracy/validation",
    "seconds": "seconds per epoch",
}
TEST_TAGS = {name: f"test/{name}" for name in ("accuracy", "balanced_accuracy", "log_loss")}


class TensorBoardLog:
    """Writes the events of a run into its folder."""

    def __init__(self) -> None:
        """Check that TensorBoard is installed; MachineError if it is not."""
        if importlib.util.find_spec("tensorboard") is None:
            raise MachineError("TensorBoard is not installed", advice=advise_extra("tensorboard"))
        self.writer: Any = None
        self.step = 0

    def on_event(self, event: dict[str, Any]) -> None:
        """Write what an event reports, if it is about the training."""
        if event["event"] == "run":
            self._start(event)
        elif event["event"] == "epoch" and self.writer is not None:
            # Epochs of an ensemble start at 1 for each network.
            self.step += 1
            self._add_scalars(EPOCH_TAGS, event)
        elif event["event"] == "evaluation" and self.writer is not None:
            self._add_scalars(TEST_TAGS, event)

    def close(self, error: BaseException | None) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()

    def _start(self, event: dict[str, Any]) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.close(None)
        folder = Path(event["folder"])
        # A resumed run reports its first epochs again, which replace those of the interrupted one.
        self.writer, self.step = SummaryWriter(str(folder / LOG_FOLDER), purge_step=1), 0
        recipe = json.dumps(event["recipe"], indent=2)
        self.writer.add_text("recipe", "\n".join(f"    {line}" for line in recipe.splitlines()))
        self.writer.flush()
        progress.message(f"look at the curves with: tensorboard --logdir {folder.parent}")

    def _add_scalars(self, tags: dict[str, str], event: dict[str, Any]) -> None:
        for name, tag in tags.items():
            if event.get(name) is not None:
                self.writer.add_scalar(tag, event[name], self.step)
        self.writer.flush()
