"""Where ikebana keeps what it makes for itself, and how it writes: beside, then renamed, so that nothing is ever half there."""

import errno
import glob
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from ikebana.errors import MachineError

FORGOTTEN = 3600  # seconds
NOTHING = 2**16  # bytes: a disk with less is full
ELSEWHERE = {  # what to try, by the number of the error
    errno.ENAMETOOLONG: "a shorter name",
    errno.ENOTDIR: "another place",
    errno.EINVAL: "another name",
}
PARTIAL, LOCK = ".partial", ".lock"  # what is not whole yet; what says that somebody is at it


def cache_folder() -> Path:
    """Where kept pixels, unpacked archives and measurements lie; IKEBANA_CACHE moves it. It may be deleted at any time."""
    given = os.environ.get("IKEBANA_CACHE")
    if given:
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("ikebana"))


def to_write(place: str | Path, appears: bool = False) -> Path:
    """The place with ~ resolved, before any work is done for what will be written there, a file or a folder.

    appears  whether it is a folder that will be there all at once, or not
    raises   MachineError if it is plain already that nothing can be: the name is too long, a file is in the way, nobody may
             write there, or another folder should appear in place of the one we are in
    """
    named = Path(os.path.expanduser(place))
    if "\0" in str(named):
        raise cannot_write(OSError(errno.EINVAL, "a NUL in the name"), Path(str(named).replace("\0", "\\0")))
    if appears and named.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise MachineError(
            "the folder that you are in cannot be made anew", where=place, advice="a folder in it: another name"
        )
    try:
        if named.name:
            half = _beside(named)
            (lock_of(half) if appears else half).exists()  # the longest of the names that there will be
        folder = nearest(named if named.is_dir() else named.parent)
    except OSError as error:
        raise cannot_write(error, named) from None
    if not folder.is_dir():
        raise cannot_write(OSError(errno.ENOTDIR, "a file is in the way"), folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise cannot_write(OSError(errno.EACCES, os.strerror(errno.EACCES)), folder)
    return named


def nearest(folder: Path) -> Path:
    """The folder, or the one around it, and so on, that is there.

    raises  MachineError if even the disk is not
    """
    found = next((each for each in (folder, *folder.absolute().parents) if each.exists()), None)
    if found is None:
        raise MachineError("there is no such disk", where=folder, advice="another place, or a disk that is plugged in")
    return found


def _beside(file: Path) -> Path:
    """What is written to until all of it is there. Not by the process' number: that of each container's first one is the same."""
    return file.with_name(f".{file.name}.{secrets.token_hex(4)}{PARTIAL}")


@contextmanager
def written(file: Path, make: bool = True) -> Iterator[Path]:
    """A name to write to; it becomes `file` when the block ends well, and is removed when it does not.

    make    whether the folder is made if it is not there; a run's is not, since one that has vanished should be missed
    raises  MachineError if the disk is full or the place cannot be written to
    """
    beside = _beside(file)
    try:
        if make:
            file.parent.mkdir(parents=True, exist_ok=True)
        _forget(file)
        yield beside
        os.replace(beside, file)
    except Exception as error:
        found = _of_the_disk(error)
        if found is None:
            raise
        raise cannot_write(found, file) from error
    finally:
        with suppress(OSError):  # not there: it became the file, or its folder could not even be made
            beside.unlink()


def _forget(file: Path) -> None:
    """Remove what killed processes had written of this file."""
    for half in file.parent.glob(f".{glob.escape(file.name)}.*{PARTIAL}"):
        _forgotten(half)


def _forgotten(half: Path) -> None:
    """Remove a half-written file that has not grown for an hour."""
    with suppress(OSError):
        if half.is_file() and time.time() - half.stat().st_mtime > FORGOTTEN:
            half.unlink()


@contextmanager
def filled(folder: Path, shared: bool = True, make: bool = True) -> Iterator[Path]:
    """An empty folder to fill; it becomes `folder` when the block ends well.

    If another process was faster, its folder stays: both were made from the same inputs, by their name. What a killed process
    left half-filled beside it is removed: the kernel lets go of a dead process' lock.

    shared  False for a folder that must be ours alone
    make    whether the folder around it is made if it is not there; a run's is not, since one that has vanished should be missed
    raises  MachineError if the disk is full, the place cannot be written to, or another process has made what is not shared
    """
    beside: Path | None = None
    try:
        if make:
            folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent)
        beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{PARTIAL}")
        with FileLock(lock_of(beside)):
            beside.mkdir()
            yield beside
            try:
                with suppress(OSError):
                    folder.rmdir()  # an empty one is in nobody's way
                beside.rename(folder)
            except OSError:
                if not (shared and folder.is_dir()):
                    raise
    except Exception as error:
        found = _of_the_disk(error)
        if found is None:
            raise
        raise cannot_write(found, folder) from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
            with suppress(OSError):
                lock_of(beside).unlink()


def made(folder: Path) -> Path:
    """The folder, made if it is not there; the one around it must be.

    raises  MachineError if it cannot be made
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(error, folder) from error
    return folder


def set_aside(entry: Path) -> None:
    """Remove what is damaged from where it would be trusted, be it a folder, a file or a link; no error if that fails."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with suppress(OSError):
            entry.unlink()


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-filled or half-written in this folder; what a living one is at is left alone."""
    for lock in folder.glob(f".*{PARTIAL}{LOCK}"):
        half = lock.with_name(lock.name.removesuffix(LOCK))
        with (
            suppress(OSError),
            FileLock(lock, timeout=0),
        ):  # a living process' lock is a TimeoutError, which is an OSError
            shutil.rmtree(half, ignore_errors=True)
            lock.unlink(missing_ok=True)
    for half in folder.glob(f".*{PARTIAL}"):
        _forgotten(half)


def lock_of(half: Path) -> Path:
    """The file whose lock is held as long as a folder is being filled."""
    return half.with_name(half.name + LOCK)


def _of_the_disk(error: Exception) -> OSError | None:
    """The error as Python's own, if it is one of the disk's: polars and safetensors, written in Rust, have its number in
    their words alone."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether this process has a folder for itself while the block lasts; the kernel lets go of what a killed process held.

    The lock lies in the cache, so that nothing but what belongs to it is ever in the folder.

    raises  MachineError if the cache cannot be written to
    """
    named = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    lock = FileLock(cache_folder() / "locks" / f"{named}{LOCK}", timeout=0)
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except TimeoutError:
        yield False
        return
    except OSError as error:
        raise cannot_write(error, Path(lock.lock_file)) from error
    try:
        yield True
    finally:
        with suppress(OSError):  # the cache may have gone
            Path(lock.lock_file).unlink()
        lock.release()


def tidy(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder in which nobody else writes."""
    for half in (*folder.rglob(f".*{PARTIAL}"), *folder.glob(".tmp??????")):  # ours; safetensors'
        with suppress(OSError):
            half.unlink()


def cannot_write(error: OSError, place: Path) -> MachineError:
    """What to tell a user whose disk is full, read-only or gone."""
    numberless = error.errno is None and free_space(place) < NOTHING  # as Pillow's and polars' errors are
    if numberless or error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(
            "the disk is full", where=place, advice="free some space; IKEBANA_CACHE=DIR moves the cache"
        )
    if error.errno == errno.ENOENT:
        return MachineError("the folder to write to has gone", where=place.parent, advice="put it back, or begin anew")
    advice = ELSEWHERE.get(error.errno or 0, "a folder that you may write to")
    return MachineError(f"this cannot be written: {error.strerror or error}", where=place, advice=advice)


def free_space(folder: Path) -> int:
    """Bytes free on the disk of a folder, which need not be there yet."""
    return shutil.disk_usage(nearest(folder)).free
