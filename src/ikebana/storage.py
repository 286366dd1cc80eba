"""`ikebana cache`: what ikebana keeps for itself, how large it is, and how to be rid of it."""

import datetime
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ikebana import progress
from ikebana.places import cache_folder, set_aside, sweep

# Each kind lies in a folder of its own; its entries bear the name of what made them. Whatever has another name is not ours.
KINDS = {
    "pixels": ("photos, decoded", r"[0-9a-f]{32}"),
    "features": ("what backbones say of photos", r"[0-9a-f]{32}"),
    "archives": ("archives, unpacked", r"[0-9a-f]{64}"),
    "weights": ("pretrained weights, converted", r"[\w.+-]+-[0-9a-f]{64}-[0-9a-f]{16}\.safetensors"),
    "measured": ("this machine's speed", r"[0-9a-f]{16}\.json"),
    "onnxruntime-web": ("onnxruntime for browsers", r"[\d.]+"),
}


@dataclass(frozen=True)
class Kept:
    """All that is kept of one kind."""

    kind: str
    about: str
    entries: int
    bytes: int
    made: float | None  # when the newest was, in seconds since 1970; None if there is nothing


@dataclass(frozen=True)
class Cache:
    """The cache as it is."""

    folder: Path
    kinds: tuple[Kept, ...]

    @property
    def bytes(self) -> int:
        return sum(each.bytes for each in self.kinds)

    def __repr__(self) -> str:
        lines = [
            f"{each.about:<30} {each.entries:>5,}  {each.bytes / 1e6:>10,.1f} MB  {_day(each.made)}".rstrip()
            for each in self.kinds
        ]
        total = f"{self.folder}: {self.bytes / 1e6:,.1f} MB; it may be cleared at any time: ikebana cache --clear"
        return "\n".join([*lines, total])


def cache(clear: bool = False) -> Cache:
    """What is in the cache; with `clear` it is emptied first.

    Only what ikebana made goes, and nothing that a running process is filling.
    """
    folder = cache_folder()
    if clear:
        freed = sum(_remove(folder, kind) for kind in KINDS)
        progress.say(f"{freed / 1e6:,.1f} MB cleared")
    found = Cache(folder, tuple(_kept(folder, kind) for kind in KINDS))
    progress.result(repr(found))
    progress.event("done", folder=str(folder), bytes={each.kind: each.bytes for each in found.kinds})
    return found


def _kept(folder: Path, kind: str) -> Kept:
    entries = list(_entries(folder, kind))
    times = [each.st_mtime for entry in entries for each in _files(entry)]
    return Kept(kind, KINDS[kind][0], len(entries), sum(map(size, entries)), max(times, default=None))


def _entries(folder: Path, kind: str) -> Iterator[Path]:
    """Those of a kind that bear a name which ikebana gives."""
    yield from (each for each in folder.glob(f"{kind}/*") if re.fullmatch(KINDS[kind][1], each.name))


def _remove(folder: Path, kind: str) -> int:
    """Bytes that are freed."""
    freed = 0
    for entry in _entries(folder, kind):
        before = size(entry)
        set_aside(entry)
        freed += before - size(entry)
    sweep(folder / kind)
    with suppress(OSError):
        (folder / kind).rmdir()  # stays if something else lies in it
    return freed


def _files(entry: Path) -> Iterator[os.stat_result]:
    """A file, or all files in a folder, as the disk knows them; other processes may take them away meanwhile."""
    for each in entry.rglob("*") if entry.is_dir() else [entry]:
        with suppress(OSError):
            found = each.stat()
            if stat.S_ISREG(found.st_mode):
                yield found


def size(entry: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(each.st_size for each in _files(entry))


def _day(moment: float | None) -> str:
    return f"made {datetime.datetime.fromtimestamp(moment):%Y-%m-%d %H:%M}" if moment is not None else ""
