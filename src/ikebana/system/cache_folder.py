"""The folder for everything that ikebana can compute or download again."""

import functools
import os
import stat
import tempfile
from pathlib import Path

from ikebana.errors import MachineError
from ikebana.system import progress
from ikebana.system.local_paths import refuse_address

VARIABLE = "IKEBANA_CACHE"
OWNER_ONLY_MODE = 0o700


def cache_folder() -> Path:
    """Return the cache folder, which IKEBANA_CACHE moves; users may delete it at any time.

    Raises:
        MachineError: this user has no folder for it, and IKEBANA_CACHE names none.
    """
    override = os.environ.get(VARIABLE)
    if override:
        return _expand(override)
    return _choose_folder(_get_user_folder())


def _get_user_folder() -> str:
    """Return the user's cache folder; it starts with ~ if there is no home."""
    import platformdirs

    try:
        return platformdirs.user_cache_dir("ikebana")
    # The user has neither a home nor a name.
    except RuntimeError:
        return "~/.cache/ikebana"


def _expand(path: str) -> Path:
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise MachineError(
            f"{VARIABLE} is {path!r}, but this user has no home folder", advice=f"{VARIABLE}=/tmp/ikebana"
        )
    refuse_address(expanded)
    return Path(expanded)


@functools.cache
def _choose_folder(default: str) -> Path:
    """Return the user's own cache folder, or a temporary one where that cannot be written.

    Containers and services run without a home, with a read-only one, or as a user without a name.
    """
    if _make_writable(Path(default)):
        return Path(default)
    folder = _make_temporary_folder(default)
    reason = "this user has no home folder" if default.startswith("~") else f"{default} cannot be written"
    progress.warn(
        f"{reason}: the cache is in {folder}, and may be gone after a restart. Set {VARIABLE}=DIR to keep it elsewhere."
    )
    return folder


def _make_writable(folder: Path) -> bool:
    """Make the folder if it is missing; return whether it can be written."""
    # Without a home the path starts with ~, and would be a folder of that name.
    if not folder.is_absolute():
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _make_temporary_folder(default: str) -> Path:
    """Make a folder that this user's next command finds, and no other user can write."""
    user = os.getuid() if hasattr(os, "getuid") else "cache"
    try:
        folder = Path(tempfile.gettempdir()) / f"ikebana-{user}"
        folder.mkdir(mode=OWNER_ONLY_MODE, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        what = f"there is no place for the cache: neither {default} nor a temporary folder can be written"
        raise MachineError(
            what, where=error.filename, advice=f"{VARIABLE}=DIR, a folder that you may write to"
        ) from None
    is_private = stat.S_ISDIR(status.st_mode) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    # Another user may have made it, to have this user load their files.
    if hasattr(os, "getuid") and not (is_private and status.st_uid == os.getuid()):
        what = "the temporary folder for the cache belongs to another user, or others may write to it"
        raise MachineError(what, where=folder, advice=f"{VARIABLE}=DIR, a folder of your own")
    return folder
