"""Processor time of all descendants of this process, for `cluster.py`.

The kernel adds the time of a process to that of its parent only if the parent waits for it. Ray's
raylet does not, so each process is looked at while it runs.
"""

import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

SAMPLE_SECONDS = 0.2
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat after the name, from `man proc_pid_stat`.
PARENT_FIELD, USER_FIELD, SYSTEM_FIELD, START_FIELD = 1, 11, 12, 19


class ProcessorTime:
    """Samples the descendants of this process within a `with` block.

    Up to 0.2 s of each process before its end is missed.

    Attributes:
        seconds: of all descendants, until now.
    """

    def __init__(self) -> None:
        # By process id and start, as an id may be used again.
        self._ticks: dict[tuple[int, str], int] = {}
        self._before: dict[tuple[int, str], int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def seconds(self) -> float:
        """Return the processor seconds of the descendants since the block began."""
        ticks = sum(self._ticks.values()) - sum(self._before.values())
        return ticks / TICKS_PER_SECOND

    def __enter__(self) -> Self:
        self._sample()
        self._before = dict(self._ticks)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        stats = {}
        for place in Path("/proc").iterdir():
            if place.name.isdecimal():
                # A process may end meanwhile.
                with suppress(OSError):
                    stats[int(place.name)] = (place / "stat").read_text().rpartition(")")[2].split()
        parents = {pid: int(fields[PARENT_FIELD]) for pid, fields in stats.items()}
        for pid, fields in stats.items():
            if _is_descendant(pid, parents):
                self._ticks[pid, fields[START_FIELD]] = int(fields[USER_FIELD]) + int(fields[SYSTEM_FIELD])


def _is_descendant(pid: int, parents: dict[int, int]) -> bool:
    """Return whether a process descends from this one."""
    while pid in parents:
        pid = parents[pid]
        if pid == os.getpid():
            return True
    return False
