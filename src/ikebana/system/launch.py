"""The variables by which torchrun and other launchers number the processes of one training."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ikebana.errors import UsageError

RANK, SIZE, LOCAL_RANK, LOCAL_SIZE = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
# Where the processes find each other: host and port of the process of rank 0, or of its launcher.
MEETING_POINT = ("MASTER_ADDR", "MASTER_PORT")
ADVICE = "start it with torchrun, or unset RANK and WORLD_SIZE to use one process"


@dataclass(frozen=True)
class Launch:
    """The place of this process among those of one training.

    Attributes:
        rank: from 0, over all machines.
        size: processes on all machines.
        local_rank: from 0, on this machine.
        local_size: processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_leader(self) -> bool:
        """Whether this process writes the run and all output."""
        return self.rank == 0

    @property
    def has_peers(self) -> bool:
        """Whether there are other processes."""
        return self.size > 1

    def __str__(self) -> str:
        return f"process {self.rank} of {self.size}"


def read_launch(variables: Mapping[str, str] = os.environ) -> Launch:
    """Read the place of this process; without the variables it is alone.

    Raises:
        UsageError: a variable is missing or invalid.
    """
    if SIZE not in variables:
        return Launch()
    size = _read_count(variables, SIZE, lowest=1)
    if size == 1:
        return Launch()
    missing = [name for name in (RANK, *MEETING_POINT) if not variables.get(name)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UsageError(f"{SIZE} is {size}, but {' and '.join(missing)} {verb} not set", advice=ADVICE)
    launch = Launch(
        _read_count(variables, RANK),
        size,
        _read_count(variables, LOCAL_RANK) if LOCAL_RANK in variables else 0,
        _read_count(variables, LOCAL_SIZE, lowest=1) if LOCAL_SIZE in variables else 1,
    )
    if launch.rank >= size:
        raise UsageError(f"{RANK} is {launch.rank}, but there are {size} processes, counted from 0", advice=ADVICE)
    return launch


def find_ignored_variables(variables: Mapping[str, str] = os.environ) -> list[str]:
    """Find variables that number a process, without the number of processes."""
    return [name for name in (RANK, LOCAL_RANK, LOCAL_SIZE) if name in variables and SIZE not in variables]


def count_local_processes() -> int:
    """Count the processes on this machine; 1 if the launcher's variables are invalid.

    A training reads them before, and is refused then. `ikebana doctor` reports them.
    """
    try:
        return read_launch().local_size
    except UsageError:
        return 1


def silence_torch() -> None:
    """Keep warnings of torch's C++ code out of the output of several processes.

    It warns, for example, when the process of rank 0 has ended before the others. Takes effect only
    before torch is imported.
    """
    if SIZE in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def require_one_process(task: str) -> None:
    """Refuse a task that several processes would repeat instead of sharing it.

    Raises:
        UsageError: a launcher started several processes.
    """
    launch = read_launch()
    if launch.has_peers:
        raise UsageError(
            f"{task} is not shared by {launch.size} processes: each would do all of it",
            advice="run it without torchrun",
        )


def _read_count(variables: Mapping[str, str], name: str, lowest: int = 0) -> int:
    text = variables[name]
    if not text.isdecimal() or int(text) < lowest:
        raise UsageError(f"{name} is {text!r}; it must be a whole number from {lowest} on", advice=ADVICE)
    return int(text)
