"""The split of an earlier run, for `fit --split-from` and for resuming such a run."""

from pathlib import Path

from ikebana.data.dataset import STATUS_USED
from ikebana.data.known_split import KnownSplit
from ikebana.runs.run import Run, open_run

# Of source.json: the run whose split was kept.
SPLIT_FROM = "split_from"
COLUMNS = ("path", "label", "split", "sha256")


def read_earlier_split(run: str | Path | Run) -> KnownSplit:
    """Read which split each photo of a run is in; the run may be unfinished.

    Raises:
        RunError: there is no such run, or it is damaged.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    return KnownSplit(opened.dataset.filter(status=STATUS_USED).select(COLUMNS), str(opened.folder))


def read_own_split(run: Run) -> KnownSplit | None:
    """Read a run's split if it kept an earlier one; None if not.

    The earlier run may have changed or gone since, so its own table says it.
    """
    if SPLIT_FROM not in run.source:
        return None
    return KnownSplit(run.dataset.filter(status=STATUS_USED).select(COLUMNS))
