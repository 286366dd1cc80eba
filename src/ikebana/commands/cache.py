"""`ikebana cache`: what the cache contains, its size, and how to clear it."""

import datetime
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ikebana.data.pixel_cache import BUILDING_SUFFIX
from ikebana.system import progress
from ikebana.system.cache_folder import cache_folder
from ikebana.system.files import STALE_SECONDS, discard, remove_stale_files

# Per folder of the cache: a description, and the pattern of its entries' names. Other names are not
# ikebana's and stay.
CACHE_KINDS = {
    "pixels": ("decoded photos", r"[0-9a-f]{32}(\.parts)?"),
    "features": ("image features", r"[0-9a-f]{32}"),
    "archives": ("unpacked archives", r"[0-9a-f]{64}"),
    "weights": ("converted pretrained weights", r"[\w.+-]+-[0-9a-f]{64}-[0-9a-f]{16}\.safetensors"),
    "measurements": ("speed measurements", r"[0-9a-f]{16}\.json"),
    "onnxruntime-web": ("onnxruntime for browsers", r"[\d.]+"),
}


@dataclass(frozen=True)
class CacheUsage:
    """The entries of one kind."""

    kind: str
    description: str
    entries: int
    bytes: int
    # Of the newest file, in seconds since 1970; None if there is none.
    newest_time: float | None


@dataclass(frozen=True)
class Cache:
    """The contents of the cache."""

    folder: Path
    kinds: tuple[CacheUsage, ...]

    @property
    def bytes(self) -> int:
        return sum(usage.bytes for usage in self.kinds)

    def __repr__(self) -> str:
        lines = [
            f"{kind.description:<30} {kind.entries:>5,}  {kind.bytes / 1e6:>10,.1f} MB  {_format_time(kind.newest_time)}".rstrip()
            for kind in self.kinds
        ]
        total = f"{self.folder}: {self.bytes / 1e6:,.1f} MB in total; safe to clear at any time: ikebana cache --clear"
        return "\n".join([*lines, total])


def cache(clear: bool = False) -> Cache:
    """Return what the cache contains, after clearing it if asked.

    Only files that ikebana made are removed, and none that another process is writing.
    """
    folder = cache_folder()
    if clear:
        freed = sum(_clear(folder, kind) for kind in CACHE_KINDS)
        progress.message(f"freed {freed / 1e6:,.1f} MB")
    return Cache(folder, tuple(_measure_kind(folder, kind) for kind in CACHE_KINDS))


def _measure_kind(folder: Path, kind: str) -> CacheUsage:
    entries = list(_list_entries(folder, kind))
    times = [status.st_mtime for entry in entries for status in _stat_files(entry)]
    return CacheUsage(
        kind, CACHE_KINDS[kind][0], len(entries), sum(map(measure_size, entries)), max(times, default=None)
    )


def _list_entries(folder: Path, kind: str) -> Iterator[Path]:
    """List the entries of a kind whose names match ikebana's pattern."""
    yield from (entry for entry in folder.glob(f"{kind}/*") if re.fullmatch(CACHE_KINDS[kind][1], entry.name))


def _clear(folder: Path, kind: str) -> int:
    """Remove the entries of a kind and return the freed bytes."""
    freed = 0
    for entry in _list_entries(folder, kind):
        if _is_being_built(entry):
            continue
        before = measure_size(entry)
        discard(entry)
        freed += before - measure_size(entry)
    remove_stale_files(folder / kind)
    # The folder stays if it contains anything else.
    with suppress(OSError):
        (folder / kind).rmdir()
    return freed


def _is_being_built(entry: Path) -> bool:
    """Return whether machines of a cluster may be filling a folder: it has no lock."""
    times = [status.st_mtime for status in _stat_files(entry)]
    return entry.name.endswith(BUILDING_SUFFIX) and time.time() - max(times, default=0.0) < STALE_SECONDS


def _stat_files(entry: Path) -> Iterator[os.stat_result]:
    """Stat a file, or all files in a folder; other processes may remove them meanwhile."""
    for path in entry.rglob("*") if entry.is_dir() else [entry]:
        with suppress(OSError):
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                yield status


def measure_size(entry: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(status.st_size for status in _stat_files(entry))


def _format_time(seconds: float | None) -> str:
    return f"newest {datetime.datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}" if seconds is not None else ""
