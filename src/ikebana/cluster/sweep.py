"""`ikebana sweep --backend ray`: runs as tasks on a Ray cluster."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ikebana.cluster.connection import connect
from ikebana.commands import sweep as sweep_command
from ikebana.commands.sweep import PlannedRun, Sweep, TrainedRun
from ikebana.data.sources import PhotoSource
from ikebana.errors import UsageError
from ikebana.recipe import Recipe


def sweep(photos: PhotoSource, recipes: Sequence[str | Path | Recipe], **options: Any) -> Sweep:
    """Train and compare as `ikebana.sweep` does, with the runs on the nodes of a cluster.

    Raises:
        UsageError: an option needs runs on this machine.
        MachineError: there is no cluster, or a node differs from this machine.
    """
    for name in ("watch", "log", "minutes"):
        if options.get(name):
            raise UsageError(f"--{name} needs runs on this machine", advice=f"leave out --{name} or --backend")
    # First, so that no photos are read without a cluster.
    with connect():
        return sweep_command.sweep(photos, recipes, train=_train, **options)


def _train(photos: PhotoSource, runs: Sequence[PlannedRun], folder: Path, device: str) -> Iterator[TrainedRun]:
    from ikebana.cluster.training_tasks import train_runs

    return train_runs(photos, runs, folder, device)
