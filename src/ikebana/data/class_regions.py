"""Class folders, and folders that only look like them: copies, folds, another data set.

A network that is trained on the wrong reading looks right, so what can be read in two ways is
refused.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from ikebana.data import folder_names
from ikebana.data.folder import to_printable
from ikebana.data.folder_copies import is_copy
from ikebana.data.regions import LayoutDraft, Region, join_names, show_folder
from ikebana.data.split_folders import find_image_folder
from ikebana.errors import PhotosError


def add_classes(draft: LayoutDraft, parent: Path, split: str | None) -> None:
    """Add the sub-folders of a folder as classes.

    Raises:
        PhotosError: the sub-folders of a class are named like the classes, or they are folds.
    """
    folders = draft.list_folders(parent)
    draft.regions[draft.get_key(parent)] = Region(split=split, has_classes=True)
    _refuse_numbered(parent, folders, draft)
    parts = _find_download_parts(draft, folders)
    for folder, inner in parts.items():
        draft.set_aside(folder, f"outside {show_folder(inner)}")
        draft.regions[draft.get_key(inner)] = Region(split=split, label=to_printable(inner.name))
        draft.classes.add(to_printable(inner.name))
    if parts:
        draft.notes.append(f"parts of downloads are read as the classes inside: {join_names(map(show_folder, parts))}")
    folders = [path for path in folders if path not in parts]
    names = {path.name.casefold(): to_printable(path.name) for path in folders}
    for folder in folders:
        if not _set_aside_nested_copy(draft, parent, folder, names):
            draft.classes.add(to_printable(folder.name))
            _set_aside_annotations(draft, folder, split)


def _find_download_parts(draft: LayoutDraft, folders: Sequence[Path]) -> dict[Path, Path]:
    """Find the class inside each part of a Google Drive download: daisy-20240101T101010Z-001/daisy.

    If all parts are of one folder, it is the data set, not a class.
    """
    parts = dict[Path, Path]()
    for folder in folders:
        inner = draft.tree.try_list_folders(folder)
        is_part = len(inner) == 1 and inner[0].name == folder_names.get_download_name(folder.name)
        if is_part and not inner[0].is_symlink():
            parts[folder] = inner[0]
    classes = {inner.name for inner in parts.values()} | {path.name for path in folders if path not in parts}
    return parts if len(classes) > 1 else {}


def _set_aside_annotations(draft: LayoutDraft, folder: Path, split: str | None) -> None:
    """Use only the folder `images` of a class that has annotations beside it."""
    folders = draft.tree.try_list_folders(folder)
    images = find_image_folder(folders, draft.tree)
    if images is None:
        return
    draft.regions[draft.get_key(images)] = Region(split=split, label=to_printable(folder.name))
    for path in folders:
        if path != images:
            draft.set_aside(path, f"beside {show_folder(images)}, which has the photos of the class")
            draft.notes.append(f"of the classes, {show_folder(images)} is used and {show_folder(path)} is not")


def _set_aside_nested_copy(draft: LayoutDraft, parent: Path, folder: Path, names: Mapping[str, str]) -> bool:
    """Set a class folder aside if it is a copy of all classes.

    Args:
        names: printable names of the classes, by casefolded names.
    Raises:
        PhotosError: its sub-folders are named like the classes, but other photos are in them.
    """
    base, shared = _find_shared_names(draft, folder, names)
    own_name = to_printable(folder.name)
    others = [name for name in shared if name != own_name]
    if not others:
        return False
    is_set = len(shared) == len(names) - 1 == len(draft.tree.try_list_folders(base))
    if len(shared) == 1 and not is_set:
        evidence = f"{show_folder(folder)} has a folder {others[0]}, named like another class"
        draft.doubts.append((evidence, f"its photos are read as {own_name}: move it if it has photos of {others[0]}"))
        return False
    base_path = "/".join(draft.get_key(base))
    if is_copy(base, parent):
        draft.set_aside(folder, "in a second copy of the photos")
        draft.notes.append(f"{base_path}/ has the same files as the class folders around it and is not used")
        return True
    raise PhotosError(
        f"{base_path}/ has folders named like the classes ({join_names(others)}): {own_name} may be a class, or a second "
        "copy or a split of the data set",
        where=parent,
        advice=f"if it is not a class, move {folder} elsewhere; if it is one, rename the folders inside it",
    )


def _find_shared_names(draft: LayoutDraft, folder: Path, names: Mapping[str, str]) -> tuple[Path, list[str]]:
    """Find class names among the folders inside a class."""
    base = folder
    while True:
        inner = draft.tree.try_list_folders(base)
        shared = sorted(names[key] for path in inner if (key := path.name.casefold()) in names)
        if any(name != to_printable(folder.name) for name in shared):
            return base, shared
        if len(inner) != 1 or inner[0].is_symlink():
            return base, []
        base = inner[0]


def _refuse_numbered(parent: Path, folders: Sequence[Path], draft: LayoutDraft) -> None:
    """Refuse folds, and pieces of a data set that each have the classes, as classes."""
    word = folder_names.find_numbered_word([path.name for path in folders])
    if word is None:
        return
    shared = set[str].intersection(*(draft.tree.list_names(path) for path in folders))
    if word in folder_names.FOLD_WORDS or len(shared) > 1:
        inside = f"each with the folders {join_names(sorted(shared))}" if shared else "without class folders"
        raise PhotosError(
            f"{join_names(map(show_folder, folders))} look like folds or parts of one data set, {inside}, or classes",
            where=parent,
            advice="for folds, use one folder per class, or a table with the columns path,label,group; "
            "for classes, rename the folders",
        )
    evidence = f"{join_names(map(show_folder, folders))} are read as classes, and differ only in a number"
    draft.doubts.append((evidence, "if they are parts of one data set, use one folder per class, or a table"))


def add_doubts(draft: LayoutDraft, top: Path) -> None:
    """Add doubts about class folders that are perhaps none, by their names or sub-folders."""
    folders = [path for path in draft.list_folders(top) if to_printable(path.name) in draft.classes]
    draft.doubts += [
        (f"{show_folder(path)} is read as a class", "move it elsewhere if it is not one")
        for path in folders
        if folder_names.is_rarely_class(path.name)
    ]
    parts = [show_folder(path) for path in folders if folder_names.get_download_name(path.name) is not None]
    if parts:
        evidence = f"{join_names(parts)} {'is' if len(parts) == 1 else 'are'} named like parts of a download"
        draft.doubts.append((f"{evidence}, and read as classes", "move their class folders into one folder"))
    inside = [_list_unread_names(draft, path) for path in folders]
    if not all(inside):
        draft.doubts += [
            (
                f"{show_folder(path)} is read as a class with the folders {join_names(sorted(names))}",
                f"if those are the classes, give only the folder {show_folder(path)}",
            )
            for path, names in zip(folders, inside, strict=True)
            if len(names) > 1 and folder_names.is_filler(path.name)
        ]
    if len(inside) > 1 and len(inside[0]) > 1 and all(names == inside[0] for names in inside):
        evidence = (
            f"{join_names(map(show_folder, folders))} are read as classes, and all have the folders "
            f"{join_names(sorted(inside[0]))}"
        )
        draft.doubts.append((evidence, "if those are the classes, move them one level up"))
    else:
        _add_shared_names(draft, folders)


def _add_shared_names(draft: LayoutDraft, folders: Sequence[Path]) -> None:
    """Add a doubt if class folders share a folder that may be a class.

    Numbered folders, such as `plant 1`, are groups in most data sets.
    """
    inside = {path: _list_possible_classes(draft, path) for path in folders}
    counts = Counter(chain.from_iterable(inside.values()))
    shared = {name for name, count in counts.items() if count > 1}
    sharing = [show_folder(path) for path, names in inside.items() if names & shared]
    if shared:
        evidence = f"{join_names(sharing)} are read as classes, and share the folders {join_names(sorted(shared))}"
        draft.doubts.append((evidence, "if those are the classes, move them one level up"))


def _list_possible_classes(draft: LayoutDraft, folder: Path) -> set[str]:
    """List the folders inside a class, or its wrappers, that may be classes."""
    names = set[str]()
    while not folder.is_symlink():
        names |= _list_unread_names(draft, folder)
        inner = draft.tree.try_list_folders(folder)
        if len(inner) != 1:
            break
        folder = inner[0]
    return {
        name
        for name in names
        if not (folder_names.is_filler(name) or folder_names.is_rarely_class(name) or any(map(str.isdigit, name)))
    }


def _list_unread_names(draft: LayoutDraft, folder: Path) -> set[str]:
    """List the names of sub-folders that are not regions of their own."""
    folders = draft.tree.try_list_folders(folder)
    return {to_printable(path.name) for path in folders if draft.get_key(path) not in draft.regions}
