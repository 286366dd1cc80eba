"""Checks of the memory and disk space left for this process."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ikebana.errors import MachineError
from ikebana.system.files import free_space, nearest_existing

# Where Linux publishes the limits of a container.
CGROUP_ROOT = Path("/sys/fs/cgroup")
# Texts in the errors of torch on CUDA and MPS, of torch on a CPU, and of CUDA's libraries.
OUT_OF_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "ALLOC_FAILED")


def require_disk(needed: Mapping[Path, float]) -> None:
    """Refuse work that would not fit on the disks.

    Args:
        needed: bytes per folder, which need not exist yet; folders on one disk are added up.
    Raises:
        MachineError: less is free.
    """
    disks: dict[int, list[Path]] = {}
    for folder in needed:
        disks.setdefault(os.stat(nearest_existing(folder)).st_dev, []).append(folder)
    for folders in disks.values():
        total, free = sum(needed[folder] for folder in folders), free_space(folders[0])
        if total > free:
            amounts = " and ".join(
                f"{_format_bytes(needed[folder])} in {folder}" for folder in folders if needed[folder]
            )
            raise MachineError(
                f"{_format_bytes(total)} are needed on the disk and {_format_bytes(free)} are free",
                where=amounts,
                advice="free some space, a smaller --image-size, or IKEBANA_CACHE=DIR on a larger disk",
            )


def require_memory(needed: float, advice: str, free: int | None = None, kind: str = "memory") -> None:
    """Refuse work that would not fit into memory.

    Args:
        needed: bytes of the whole process, including what it uses now.
        free: bytes available, if it is another memory than the machine's.
    Raises:
        MachineError: less is available.
    """
    free = free_memory() if free is None else free
    if free is not None and needed > free:
        raise MachineError(
            f"{_format_bytes(needed)} of {kind} are needed and {_format_bytes(free)} are left", advice=advice
        )


@contextmanager
def memory_errors(smaller_options: str = "") -> Iterator[None]:
    """Turn out-of-memory errors, of a GPU or the machine, into MachineError.

    Args:
        smaller_options: what to try besides ending other programs.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        lines = str(error).strip().splitlines()
        what = f"memory ran out: {lines[0]}" if lines else "memory ran out"
        advice = "ending what else needs memory" + (f"; or {smaller_options}" if smaller_options else "")
        # The traceback's frames would keep the memory in use.
        raise MachineError(what, advice=advice) from error.with_traceback(None)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means out of memory; torch's own class covers only CUDA."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)


def free_memory() -> int | None:
    """Return the bytes that this process may use in total, including those in use now.

    The minimum of the machine's available memory (on Linux this includes droppable file pages),
    the container's limits, and the process limit (`ulimit -d`). None where this is unknown.
    """
    meminfo = _read_fields(Path("/proc/meminfo"))
    if "MemAvailable" not in meminfo:
        return None
    return memory_in_use() + min([meminfo["MemAvailable"], *_list_cgroup_headroom(), *_list_process_headroom()])


def memory_in_use() -> int:
    """Return the bytes of this process that no file backs; 0 where this is unknown."""
    return _read_fields(Path("/proc/self/status")).get("RssAnon", 0)


def _list_cgroup_headroom() -> Iterator[int]:
    """Yield the free bytes of each control group around this process, version 1 or 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUP_ROOT / "memory" if controllers else CGROUP_ROOT
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")

        own_group = root / path.lstrip("/")
        for group in (own_group, *own_group.parents):
            values = [_read_number(group / name) for name in names]
            if None not in values:
                limit, usage = values
                droppable = _read_droppable(group, "total_" if controllers else "")
                yield max(0, limit - usage + droppable)  # type: ignore[operator]
            if group == root:
                break


def _read_droppable(group: Path, prefix: str) -> int:
    """Return the bytes of a group's file pages, which the kernel can drop."""
    fields = _read_fields(group / "memory.stat", unit=1)
    return fields.get(f"{prefix}inactive_file", 0) + fields.get(f"{prefix}active_file", 0)


def _list_process_headroom() -> Iterator[int]:
    if sys.platform.startswith("linux"):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
        if limit != resource.RLIM_INFINITY:
            yield max(0, limit - _read_fields(Path("/proc/self/status")).get("VmData", 0))


def _read_fields(file: Path, unit: int = 1024) -> dict[str, int]:
    """Read lines like `MemAvailable:  123 kB` as bytes; empty if the file is missing."""
    try:
        lines = [line.replace(":", " ").split() for line in file.read_text("utf-8").splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) * unit for words in lines if len(words) > 1 and words[1].isdigit()}


def _read_number(file: Path) -> int | None:
    """Read a file that contains one number; None if it is missing or contains `max`."""
    try:
        return int(file.read_text("ascii"))
    except (OSError, ValueError):
        return None


def _format_bytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
