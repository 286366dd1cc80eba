"""Locks between processes."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from ikebana.system.cache_folder import cache_folder
from ikebana.system.files import LOCK_SUFFIX, write_error


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[bool]:
    """Try to lock a folder for this process; yields whether it succeeded.

    The kernel releases the lock of a killed process. The lock file is in the cache, so the folder
    contains nothing but its own files.

    Raises:
        MachineError: the cache cannot be written.
    """
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    lock = FileLock(cache_folder() / "locks" / f"{name}{LOCK_SUFFIX}", timeout=0)
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except TimeoutError:
        yield False
        return
    except OSError as error:
        raise write_error(error, Path(lock.lock_file)) from error
    try:
        yield True
    finally:
        # A user may have removed the cache.
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()
