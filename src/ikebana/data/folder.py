"""The paths below a folder, and whether each can be opened.

This module neither opens a photo nor changes a user's file.
"""

import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ikebana.data import output_folders
from ikebana.data.dataset import STATUS_UNOPENED
from ikebana.errors import PhotosError

SYSTEM_NAMES = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "icon\r"),
    *("$recycle.bin", "recycler", "#recycle", "@recycle", "network trash folder"),
    *("lost+found", "system volume information"),
}
# Files beside photos that are none, by their names. Others are judged by their content, once opened.
TEXT_SUFFIXES = frozenset(
    (
        *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".rst", ".html", ".pdf", ".log"),
        *(".py", ".pyc", ".ipynb", ".sh", ".m", ".mat", ".npy", ".npz", ".pkl", ".parquet", ".doc", ".docx", ".xlsx"),
    )
)

# Makes Python use UTF-8 for file names in any locale.
UTF8_ADVICE = "set PYTHONUTF8=1"


@dataclass(frozen=True)
class ScannedPath:
    """One path of a scan."""

    # Below the scanned folder, with forward slashes.
    path: str
    status: str


@dataclass(frozen=True)
class FolderTree:
    """The visible sub-folders of folders, without run folders; each folder is listed once."""

    _sub_folders: dict[Path, list[Path]] = field(default_factory=dict)

    def list_folders(self, folder: Path) -> list[Path]:
        """List the sub-folders of a folder, sorted.

        Raises:
            PhotosError: the folder cannot be read.
        """
        if folder not in self._sub_folders:
            self._sub_folders[folder] = _list_folders(folder)
        return self._sub_folders[folder]

    def try_list_folders(self, folder: Path) -> list[Path]:
        """List the sub-folders; none if the folder cannot be read, which the scan reports."""
        try:
            return self.list_folders(folder)
        except PhotosError:
            return []

    def list_names(self, folder: Path) -> set[str]:
        """List the printable names of the sub-folders; none if the folder cannot be read."""
        return {to_printable(sub_folder.name) for sub_folder in self.try_list_folders(folder)}

    def may_have_photos(self, folder: Path) -> bool:
        """Return whether any file below a folder may be a photo, judged by its name."""
        try:
            with os.scandir(folder) as entries:
                if any(_may_be_photo(entry) for entry in entries):
                    return True
        except OSError:
            return True
        return any(self.may_have_photos(inner) for inner in self.try_list_folders(folder) if not inner.is_symlink())


def _may_be_photo(entry: os.DirEntry[str]) -> bool:
    is_text = os.path.splitext(entry.name)[1].lower() in TEXT_SUFFIXES
    return not is_text and not is_hidden(entry.name) and not _is_folder(entry)


def is_hidden(name: str) -> bool:
    """Return whether a name is a system file or hidden, and so not a photo."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def _list_folders(folder: Path) -> list[Path]:
    """List the visible sub-folders, without run folders."""
    try:
        with os.scandir(folder) as entries:
            folders = [folder / entry.name for entry in entries if not is_hidden(entry.name) and _is_folder(entry)]
    except OSError as error:
        raise PhotosError(
            f"this folder cannot be read: {error.strerror}", where=folder, advice="check its permissions"
        ) from None
    return sorted(path for path in folders if not _is_run_output(path))


def _is_run_output(folder: Path) -> bool:
    """Return whether a folder is a run, or holds only runs.

    The thumbnails of a run are not the user's photos.
    """
    try:
        return output_folders.is_run(folder) or output_folders.holds_only_runs(folder)
    except OSError:
        # The scan reports unreadable folders.
        return False


def scan(folder: Path, ignored: list[str], excluded_folder: str | None = None) -> Iterator[ScannedPath]:
    """Iterate over all paths below a folder.

    The files of a folder come first, sorted by name, then its sub-folders.

    Links are followed last. A folder already seen under another name, or one above, is reported
    instead of entered, because links may form a cycle.

    Args:
        ignored: receives hidden paths, run folders and the excluded folder.
        excluded_folder: the real path of a folder not to enter.
    """
    visited = {os.path.realpath(folder)}
    parents = {str(parent) for parent in Path(os.path.realpath(folder)).parents}
    folders, links = [("", folder)], []
    while folders or links:
        relative, current = (folders or links).pop()
        real = os.path.realpath(current)
        if relative and (real in visited or real in parents):
            yield ScannedPath(to_printable(relative), "a folder that was already scanned under another name")
            continue
        if relative and (real == excluded_folder or _is_run_output(current)):
            ignored.append(relative)
            continue
        visited.add(real)
        try:
            folder_names, link_names, file_names = _list_folder(current, relative, ignored)
        except OSError as error:
            yield ScannedPath(to_printable(relative), f"folder cannot be read: {error.strerror}")
            continue
        for name in file_names:
            path = _join(relative, name)
            # Joining `Path` objects would take half the time of the scan.
            yield ScannedPath(to_printable(path), check_file(os.path.join(current, name)))
        folders += [(_join(relative, name), current / name) for name in reversed(folder_names)]
        links += [(_join(relative, name), current / name) for name in link_names]


def _list_folder(folder: Path, relative: str, ignored: list[str]) -> tuple[list[str], list[str], list[str]]:
    """List the sorted names of sub-folders, links to folders, and files.

    Names rather than objects: a folder may hold a million.
    """
    folders, links, files = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                ignored.append(_join(relative, entry.name))
            elif _is_folder(entry):
                (links if entry.is_symlink() else folders).append(entry.name)
            else:
                files.append(entry.name)
    return sorted(folders), sorted(links), sorted(files)


def _join(relative: str, name: str) -> str:
    return f"{relative}/{name}" if relative else name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A circular link, which `check_file` reports.
        return False


def check_file(file: str | Path) -> str:
    """Check whether a path can be opened, without opening it: a pipe would block forever."""
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        return "a broken symbolic link" if os.path.islink(file) else "there is no such file"
    except OSError as error:
        return f"unreadable: {error.strerror}"
    except UnicodeEncodeError:
        return f"unreadable: {find_name_problem(str(file))}"
    if not stat.S_ISREG(mode):
        return "not a regular file"
    problem = find_name_problem(str(file))
    return f"unreadable: {problem}" if problem else STATUS_UNOPENED


def find_name_problem(path: str) -> str:
    """Describe why the encoding of a name prevents its use; empty if it does not.

    Tables hold names as UTF-8. Python decodes file names with the encoding of the locale, which is
    UTF-8 unless an old locale or PYTHONUTF8=0 is set.
    """
    try:
        if os.fsencode(path).decode("utf-8") == path:
            return ""
        needs_utf8 = True
    except UnicodeDecodeError:
        needs_utf8 = False
    except UnicodeEncodeError:
        needs_utf8 = sys.getfilesystemencoding() != "utf-8"
    if needs_utf8:
        return f"its name needs UTF-8, but {describe_encoding()} ({UTF8_ADVICE})"
    return "its name is not valid Unicode (rename it)"


def describe_encoding() -> str:
    """Describe the encoding of file names, for a name that it lacks."""
    return f"Python uses {sys.getfilesystemencoding()} for file names here"


def to_printable(path: str) -> str:
    """Escape bytes of a name that are not valid UTF-8: no table can hold them."""
    try:
        raw = os.fsencode(path)
    # The name does not come from this computer, whose locale cannot encode it.
    except UnicodeEncodeError:
        raw = path.encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "backslashreplace")
