"""Where ikebana keeps what it makes for itself, and how it writes: beside, then renamed, so that nothing is ever half there."""

import errno
import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from ikebana.errors import MachineError

FORGOTTEN = 3600  # seconds
PARTIAL, LOCK = ".partial", ".lock"  # what is not whole yet; what says that somebody is at it


def cache_folder() -> Path:
    """Where kept pixels, unpacked archives and measurements lie; IKEBANA_CACHE moves it. It may be deleted at any time."""
    given = os.environ.get("IKEBANA_CACHE")
    if given:
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("ikebana"))


@contextmanager
def written(file: Path) -> Iterator[Path]:
    """A name to write to; it becomes `file` when the block ends well, and is removed when it does not.

    raises  MachineError if the disk is full or the place cannot be written to
    """
    beside = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _forget(file)
        yield beside
        os.replace(beside, file)
    except OSError as error:
        raise cannot_write(error, file) from error
    finally:
        with suppress(OSError):  # not there: it became the file, or its folder could not even be made
            beside.unlink()


def _forget(file: Path) -> None:
    """Remove what killed processes had written of this file: it has not grown for an hour."""
    for half in file.parent.glob(f".{glob.escape(file.name)}.*{PARTIAL}"):
        with suppress(OSError):
            if time.time() - half.stat().st_mtime > FORGOTTEN:
                half.unlink()


@contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; it becomes `folder` when the block ends well.

    If another process was faster, its folder stays: both were made from the same inputs, by their name. What a killed process
    left half-filled beside it is removed: the kernel lets go of a dead process' lock.

    raises  MachineError if the disk is full or the place cannot be written to
    """
    beside: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent)
        beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{PARTIAL}")
        with FileLock(lock_of(beside)):
            beside.mkdir()
            yield beside
            try:
                beside.rename(folder)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) and not folder.exists():
                    raise
    except OSError as error:
        raise cannot_write(error, folder) from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
            lock_of(beside).unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-filled in this folder; what a living one fills is left alone."""
    for lock in folder.glob(f".*{PARTIAL}{LOCK}"):
        half = lock.with_name(lock.name.removesuffix(LOCK))
        with (
            suppress(OSError),
            FileLock(lock, timeout=0),
        ):  # a living process' lock is a TimeoutError, which is an OSError
            shutil.rmtree(half, ignore_errors=True)
            lock.unlink(missing_ok=True)


def lock_of(half: Path) -> Path:
    """The file whose lock is held as long as a folder is being filled."""
    return half.with_name(half.name + LOCK)


def cannot_write(error: OSError, place: Path) -> MachineError:
    """What to tell a user whose disk is full, read-only or gone."""
    if error.errno == errno.ENOSPC:
        return MachineError(
            "the disk is full", where=place, advice="free some space; IKEBANA_CACHE=DIR moves the cache"
        )
    return MachineError(
        f"this cannot be written: {error.strerror or error}", where=place, advice="a folder that you may write to"
    )


def need_space(needed: int, folder: Path) -> None:
    """Refuse early, with the numbers, what would not fit on the disk.

    needed  bytes
    raises  MachineError if less is free
    """
    free = free_space(folder)
    if needed > free:
        raise MachineError(
            f"{needed / 1e9:.1f} GB are needed on the disk and {free / 1e9:.1f} GB are free",
            where=folder,
            advice="free some space, or point IKEBANA_CACHE at a larger disk",
        )


def free_space(folder: Path) -> int:
    """Bytes free on the disk of a folder, which need not be there yet."""
    place = folder
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
