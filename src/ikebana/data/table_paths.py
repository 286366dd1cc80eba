"""Paths of a table as people write them: file URLs, backslashes, ~, outer blanks."""

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import PurePosixPath
from urllib.request import url2pathname

import polars as pl

from ikebana.data.folder import check_file

# Paths that can be read in another way than they are written.
UNUSUAL_PATH = r"(?i)^\s|\s$|^~|^file:|\\|[^\x00-\x7F]"
FILE_URL_PREFIX = re.compile(r"file:(//(localhost)?(?=/))?", re.IGNORECASE)
WEB_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
WINDOWS_PATH = re.compile(r"[a-z]:[\\/]|\\\\", re.IGNORECASE)
COMMON_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG")
NO_SUCH_FILE = "there is no such file"


def find_existing_paths(paths: pl.Series, root: str) -> pl.Series:
    """Replace paths that do not exist as they are written by the reading that does.

    A path without a reading that exists only loses its outer blanks.
    """
    is_unusual = paths.str.contains(UNUSUAL_PATH)
    if not is_unusual.any():
        return paths
    readings = paths.filter(is_unusual.fill_null(False)).unique()
    existing = readings.map_elements(lambda path: _find_existing(path, root), pl.String)
    return paths.replace(readings, existing)


def _find_existing(path: str, root: str) -> str:
    for reading in _list_readings(path):
        if os.path.lexists(os.path.join(root, reading)):
            return reading
    return path.strip()


def _list_readings(path: str) -> Iterator[str]:
    """Yield what a path can mean, the most literal reading first."""
    yield path
    plain = path.strip()
    yield plain
    if FILE_URL_PREFIX.match(plain):
        plain = url2pathname(FILE_URL_PREFIX.sub("", plain, count=1))
    plain = os.path.expanduser(plain)
    yield plain
    # Written on Windows.
    plain = plain.replace("\\", "/")
    yield plain
    # macOS may have written the names of files or of the table in another Unicode form.
    yield from (unicodedata.normalize(form, plain) for form in ("NFC", "NFD"))


def check_path(path: str, root: str) -> str:
    """Check whether a path can be opened; its status, with the reason if not."""
    try:
        status = check_file(os.path.join(root, path))
    except ValueError as error:
        # The path contains a NUL.
        return f"unreadable: {error}"
    if status == NO_SUCH_FILE and WEB_ADDRESS.match(path):
        return "a web address, not a file: download it first"
    if status == NO_SUCH_FILE and os.name != "nt" and WINDOWS_PATH.match(path):
        return "a Windows path, which this computer does not have"
    return status


def _list_near_paths(path: str, root: str) -> Iterator[str]:
    """Yield paths that a name without suffix or folder may stand for."""
    yield from (f"{path}{suffix}" for suffix in COMMON_SUFFIXES)
    try:
        folders = [entry.name for entry in os.scandir(root or ".") if entry.is_dir()]
    except OSError:
        return
    for name in sorted(folders):
        yield from (f"{name}/{path}{suffix}" for suffix in ("", *COMMON_SUFFIXES))


def suggest_path(path: str, root: str) -> str:
    """Suggest how to write paths of a table, from its first one."""
    if WEB_ADDRESS.match(path):
        return "download the photos, and write the paths of the files into the table"
    folder, file = root or ".", os.path.join(root, path)
    if not os.path.exists(file):
        for moved in _list_tails(path):
            if os.path.exists(os.path.join(root, moved)):
                return f"the photos may have moved: {moved} exists in {folder}; write the paths like this"
        for written in _list_near_paths(path, root):
            if os.path.exists(os.path.join(root, written)):
                return f"write the paths like this: {written} exists in {folder}"
    return f"use absolute paths or paths relative to {folder}; the first one resolves to {file}"


def _list_tails(path: str) -> Iterator[str]:
    """Yield the path without its first folder, its first two, and so on."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    yield from ("/".join(parts[start:]) for start in range(1, len(parts)))
