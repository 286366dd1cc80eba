"""Folders that are a copy of another folder, file by file."""

import filecmp
import os
from collections.abc import Sequence
from pathlib import Path

from ikebana.data.folder import FolderTree, is_hidden
from ikebana.data.folder_names import get_original_name


def find_named_copies(folders: Sequence[Path]) -> dict[Path, Path]:
    """Find folders such as `daisy - Copy` with the same files as `daisy`."""
    by_name = {folder.name.casefold(): folder for folder in folders}
    pairs = ((folder, by_name.get((get_original_name(folder.name) or "").casefold())) for folder in folders)
    return {folder: original for folder, original in pairs if original is not None and is_copy(folder, original)}


def find_copied_sets(folders: Sequence[Path], tree: FolderTree) -> dict[Path, Path]:
    """Find folders with the same sub-folders and files as an earlier one."""
    originals: dict[frozenset[str], Path] = {}
    copies: dict[Path, Path] = {}
    for folder in folders:
        names = frozenset(tree.list_names(folder))
        original = originals.setdefault(names, folder)
        if len(names) > 1 and original != folder and is_copy(folder, original):
            copies[folder] = original
    return copies


def is_copy(folder: Path, original: Path) -> bool:
    """Return whether the other folder has all visible files of a folder.

    Contents are compared, because uncompressed photos of one camera have equal sizes.
    """
    size = 0
    try:
        for current, folder_names, file_names in os.walk(folder):
            folder_names[:] = [name for name in folder_names if not is_hidden(name)]
            counterpart = original / Path(current).relative_to(folder)
            for name in file_names:
                if is_hidden(name):
                    continue
                if not filecmp.cmp(Path(current, name), counterpart / name, shallow=False):
                    return False
                size += os.path.getsize(counterpart / name)
    # A file is missing or unreadable.
    except OSError:
        return False
    # Empty files, as of a broken download, are all the same.
    return size > 0
