"""Atomic writes of files and folders.

Files and folders are written beside their target and renamed when complete.
"""

import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ikebana.errors import MachineError
from ikebana.system.local_paths import refuse_address

# Age at which a partial file counts as left behind by a killed process.
STALE_SECONDS = 3600
# A disk with less free space is full.
FULL_DISK_BYTES = 2**16
ADVICE_BY_ERRNO = {
    errno.ENAMETOOLONG: "a shorter name",
    errno.ENOTDIR: "another place",
    errno.EINVAL: "another name",
}
PARTIAL_SUFFIX, LOCK_SUFFIX = ".partial", ".lock"


def resolve_output_path(path: str | Path, is_new_folder: bool = False) -> Path:
    """Expand ~ in an output path and check early that it can be written.

    Args:
        is_new_folder: whether it is a folder that is renamed into place when complete.
    Raises:
        UsageError: this is the address of a store.
        MachineError: the name is too long, a file is in the way, permission is missing, or the
            new folder would replace the working directory or one around it.
    """
    refuse_address(path)
    expanded = Path(os.path.expanduser(path))
    if "\0" in str(expanded):
        raise write_error(OSError(errno.EINVAL, "a NUL in the name"), Path(str(expanded).replace("\0", "\\0")))
    if is_new_folder and expanded.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise MachineError(
            "the working directory cannot be replaced", where=path, advice="use another name, such as a folder in it"
        )
    try:
        if expanded.name:
            partial = _partial_path(expanded)
            # Raises for the longest name that will be used.
            (lock_path(partial) if is_new_folder else partial).exists()
        folder = nearest_existing(expanded if expanded.is_dir() else expanded.parent)
    except OSError as error:
        raise write_error(error, expanded) from None
    if not folder.is_dir():
        raise write_error(OSError(errno.ENOTDIR, "a file is in the way"), folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise write_error(OSError(errno.EACCES, os.strerror(errno.EACCES)), folder)
    return expanded


def nearest_existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists; MachineError if none does."""
    existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), None)
    if existing is None:
        raise MachineError("there is no such disk", where=folder, advice="another place, or a disk that is plugged in")
    return existing


def _partial_path(file: Path) -> Path:
    """Return a random name beside the file; process ids collide between containers."""
    return file.with_name(f".{file.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")


@contextmanager
def atomic_write(file: Path, create_parent: bool = True) -> Iterator[Path]:
    """Yield a path to write; it becomes `file` on success, or is removed.

    Args:
        create_parent: create the parent folder. False in a run's folder, whose disappearance is an
            error.
    Raises:
        MachineError: the disk is full, or the path cannot be written.
    """
    partial = _partial_path(file)
    try:
        if create_parent:
            file.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_partials(file)
        yield partial
        os.replace(partial, file)
    except Exception as error:
        disk_error = _find_os_error(error)
        if disk_error is None:
            raise
        raise write_error(disk_error, file) from error
    finally:
        # It is missing after the rename, or if its folder could not be made.
        with suppress(OSError):
            partial.unlink()


def _remove_stale_partials(file: Path) -> None:
    """Remove the partial files that killed processes left beside this file."""
    for partial in file.parent.glob(f".{glob.escape(file.name)}.*{PARTIAL_SUFFIX}"):
        _remove_if_stale(partial)


def _remove_if_stale(partial: Path) -> None:
    """Remove a partial file that has not changed for an hour."""
    with suppress(OSError):
        if partial.is_file() and time.time() - partial.stat().st_mtime > STALE_SECONDS:
            partial.unlink()


@contextmanager
def atomic_directory(folder: Path, allow_existing: bool = True, create_parent: bool = True) -> Iterator[Path]:
    """Yield an empty folder to fill; it is renamed to `folder` on success.

    If another process was faster, its folder stays: both have the same content, given by the name.
    Folders that a killed process left are removed: the kernel releases a dead process's lock.

    Args:
        allow_existing: accept the folder of a faster process. False if it must be this process's own.
        create_parent: create the parent folder. False in a run's folder, whose disappearance is an
            error.
    Raises:
        MachineError: the disk is full, the path cannot be written, or another process made the
            folder and `allow_existing` is False.
    """
    partial: Path | None = None
    try:
        if create_parent:
            folder.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_files(folder.parent)
        partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
        with FileLock(lock_path(partial)):
            partial.mkdir()
            yield partial
            try:
                # An empty folder may be replaced.
                with suppress(OSError):
                    folder.rmdir()
                partial.rename(folder)
            except OSError:
                if not (allow_existing and folder.is_dir()):
                    raise
    except Exception as error:
        disk_error = _find_os_error(error)
        if disk_error is None:
            raise
        raise write_error(disk_error, folder) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
            with suppress(OSError):
                lock_path(partial).unlink()


def discard(entry: Path) -> None:
    """Remove a damaged folder, file or link from use; errors are ignored."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with suppress(OSError):
            entry.unlink()


def remove_stale_files(folder: Path) -> None:
    """Remove partial files and folders of killed processes; those of running processes stay."""
    for lock in folder.glob(f".*{PARTIAL_SUFFIX}{LOCK_SUFFIX}"):
        partial = lock.with_name(lock.name.removesuffix(LOCK_SUFFIX))
        # The lock of a running process raises TimeoutError, which is an OSError.
        with suppress(OSError), FileLock(lock, timeout=0):
            shutil.rmtree(partial, ignore_errors=True)
            lock.unlink(missing_ok=True)
    for partial in folder.glob(f".*{PARTIAL_SUFFIX}"):
        _remove_if_stale(partial)


def lock_path(partial: Path) -> Path:
    """Return the lock file that is held while a folder is being filled."""
    return partial.with_name(partial.name + LOCK_SUFFIX)


def _find_os_error(error: Exception) -> OSError | None:
    """Return the OSError behind an error; polars and safetensors only name its number."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def remove_partial_files(folder: Path) -> None:
    """Remove partial files, ikebana's and safetensors', from a folder that is locked."""
    for partial in (*folder.rglob(f".*{PARTIAL_SUFFIX}"), *folder.glob(".tmp??????")):
        with suppress(OSError):
            partial.unlink()


def write_error(error: OSError, path: Path) -> MachineError:
    """Build the error for a disk that is full, read-only or missing."""
    # Errors of Pillow and polars have no errno.
    full_without_errno = error.errno is None and free_space(path) < FULL_DISK_BYTES
    if full_without_errno or error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError("the disk is full", where=path, advice="free some space; IKEBANA_CACHE=DIR moves the cache")
    if error.errno == errno.ENOENT and not path.parent.is_dir():
        return MachineError(
            "the folder to write to no longer exists", where=path.parent, advice="run the command again"
        )
    advice = ADVICE_BY_ERRNO.get(error.errno or 0, "a folder that you may write to")
    return MachineError(f"this cannot be written: {error.strerror or error}", where=path, advice=advice)


def free_space(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(nearest_existing(folder)).free


def write_json(file: Path, value: Any, create_parent: bool = True) -> None:
    """Write plain values or a record as indented JSON, which has no NaN."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    with atomic_write(file, create_parent) as partial_file:
        partial_file.write_text(json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def compute_file_sha256(file: Path) -> str:
    """Compute the hexadecimal sha256 of a file without holding it in memory."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
