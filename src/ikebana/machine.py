"""What this machine has left for this process, and an early refusal, with the numbers, of what would not fit."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ikebana.errors import MachineError
from ikebana.places import free_space, nearest

GROUPS = Path("/sys/fs/cgroup")  # where Linux tells a container's limits
# What torch says of CUDA and MPS, of a processor, and of CUDA's libraries.
NO_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")


def need_disk(needed: Mapping[Path, float]) -> None:
    """Refuse what would not fit on the disks.

    needed  bytes for each folder, which need not be there yet; those of one disk are added up
    raises  MachineError if less is free
    """
    disks: dict[int, list[Path]] = {}
    for folder in needed:
        disks.setdefault(os.stat(nearest(folder)).st_dev, []).append(folder)
    for folders in disks.values():
        total, free = sum(needed[each] for each in folders), free_space(folders[0])
        if total > free:
            parts = " and ".join(f"{_amount(needed[each])} in {each}" for each in folders if needed[each])
            raise MachineError(
                f"{_amount(total)} are needed on the disk and {_amount(free)} are free",
                where=parts,
                advice="free some space, a smaller --side, or IKEBANA_CACHE=DIR on a larger disk",
            )


def need_memory(needed: float, advice: str, left: int | None = None, kind: str = "memory") -> None:
    """Refuse what would not fit into memory.

    needed  bytes of the whole process, with what it holds by now
    left    bytes that may be had, if it is another memory than the machine's
    raises  MachineError if less is left
    """
    left = free_memory() if left is None else left
    if left is not None and needed > left:
        raise MachineError(f"{_amount(needed)} of {kind} are needed and {_amount(left)} are left", advice=advice)


@contextmanager
def within_memory(smaller: str = "") -> Iterator[None]:
    """What memory turns out not to hold, a GPU's or the machine's, is said in words, whatever was expected.

    smaller  what else to try than to end what else needs memory
    raises   MachineError
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not no_memory(error):
            raise
        said = str(error).strip().splitlines()
        what = f"memory ran out: {said[0]}" if said else "memory ran out"
        advice = "ending what else needs memory" + (f"; or {smaller}" if smaller else "")
        raise MachineError(what, advice=advice) from error.with_traceback(None)  # whose frames hold what takes it


def no_memory(error: Exception) -> bool:
    """Whether that is what an error says; torch has a class of its own for CUDA's alone."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


def free_memory() -> int | None:
    """Bytes that this process may hold in all: what it holds and what it may still get; None where nothing tells.

    The least of what the machine has available (Linux counts the pages of files that it can drop), what the limits of the
    container leave, and the limit of the process (`ulimit -d`).
    """
    told = _numbers(Path("/proc/meminfo"))
    if "MemAvailable" not in told:
        return None
    return held() + min([told["MemAvailable"], *_left_in_groups(), *_left_to_process()])


def held() -> int:
    """Bytes that this process holds by now and that no file backs; 0 where nothing tells."""
    return _numbers(Path("/proc/self/status")).get("RssAnon", 0)


def _left_in_groups() -> Iterator[int]:
    """What each control group around this process leaves of its memory: version 2, or version 1."""
    try:
        lines = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        top = GROUPS / "memory" if kinds else GROUPS
        limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        place = top / path.lstrip("/")
        for group in (place, *place.parents):
            values = [_number(group / name) for name in (limit, used)]
            if None not in values:
                most, now = values
                yield max(0, most - now + _droppable(group, "total_" if kinds else ""))  # type: ignore[operator]
            if group == top:
                break


def _droppable(group: Path, prefix: str) -> int:
    """Bytes of pages of files that a group holds: the kernel drops them when memory is short."""
    told = _numbers(group / "memory.stat", unit=1)
    return told.get(f"{prefix}inactive_file", 0) + told.get(f"{prefix}active_file", 0)


def _left_to_process() -> Iterator[int]:
    if sys.platform.startswith("linux"):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
        if limit != resource.RLIM_INFINITY:
            yield max(0, limit - _numbers(Path("/proc/self/status")).get("VmData", 0))


def _numbers(file: Path, unit: int = 1024) -> dict[str, int]:
    """Lines like `MemAvailable:  123 kB` as bytes; nothing where the file is not there."""
    try:
        lines = [line.replace(":", " ").split() for line in file.read_text("utf-8").splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) * unit for words in lines if len(words) > 1 and words[1].isdigit()}


def _number(file: Path) -> int | None:
    """The number that a file holds; None if it is not there, or says `max`."""
    try:
        return int(file.read_text("ascii"))
    except (OSError, ValueError):
        return None


def _amount(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
