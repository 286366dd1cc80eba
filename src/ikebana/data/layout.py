"""How the folders of a photo collection are read: as classes, splits, groups or neither.

    flowers/daisy/1.jpg                one sub-folder per class
    flowers/daisy/garden/1.jpg         a folder inside a class is a group, if every class has enough
    flowers/train/daisy/1.jpg          given splits (see `split_folders`)
    flowers/daisy/train/1.jpg          the same splits in every class
    flowers/train/_classes.csv         the labels of the photos beside this table (see `roboflow`)
    somewhere/flowers/daisy/1.jpg      any of these inside a wrapper folder (other files are allowed)

Folders that can be read in two ways are refused: a network trained on the wrong reading looks right.
"""

from collections.abc import Sequence
from pathlib import Path

from ikebana.data import class_regions, folder_names, roboflow, split_folders, split_regions
from ikebana.data.folder import FolderTree
from ikebana.data.folder_copies import find_copied_sets
from ikebana.data.regions import Layout, LayoutDraft, join_names, show_folder
from ikebana.errors import PhotosError


def find_layout(folder: Path, name: str, tree: FolderTree | None = None) -> Layout:
    """Decide how the folders of a collection are read.

    Args:
        name: of the collection, for notes.
        tree: the folders; by default those on disk.
    Raises:
        PhotosError: the folders have two readings, or no labels; or one cannot be read.
    """
    draft = LayoutDraft(folder) if tree is None else LayoutDraft(folder, tree)
    top = _enter_wrappers(draft, name)
    folders = draft.list_folders(top)
    if splits := split_folders.find_split_folders(top, folders, draft.tree):
        split_regions.add_splits(draft, top, splits)
    elif (labelled := _find_table_folder(top, folders)) is not None:
        split_regions.add_table(draft, labelled, None)
    elif not split_regions.add_splits_in_classes(draft, top, folders):
        class_regions.add_classes(draft, top, None)
        class_regions.add_doubts(draft, top)
    return draft.finish(top)


def _find_table_folder(top: Path, folders: Sequence[Path]) -> Path | None:
    """Find the only folder with photos, if it has a table of their labels."""
    folder = top if not folders else folders[0] if len(folders) == 1 else None
    return folder if folder is not None and roboflow.has_table(folder) else None


def _enter_wrappers(draft: LayoutDraft, name: str) -> Path:
    """Enter folders that only wrap the class folders or split folders."""
    top, unused = draft.folder, list[str]()
    while (inner := _find_wrapped_folder(draft, top)) is not None:
        unused += [show_folder(folder) for folder in draft.list_folders(top) if folder != inner]
        top = inner
    if top != draft.folder:
        top_path = "/".join(draft.get_key(top))
        position = f"the only folder in {name}" if not unused else f"and not from {join_names(unused)}"
        draft.notes.insert(0, f"the classes are read from {top_path}/, {position}")
    return top


def _find_wrapped_folder(draft: LayoutDraft, folder: Path) -> Path | None:
    """Find the sub-folder that has all classes, if it has sub-folders in turn.

    A single folder is a wrapper, because a classifier needs at least two classes.

    Raises:
        PhotosError: the sub-folders are images and their annotations, or several data sets.
    """
    folders = draft.list_folders(folder)
    if (images := split_folders.find_image_folder(folders, draft.tree)) is not None:
        return _open_image_folder(draft, folder, images)
    if len(folders) > 1 and not folder_names.find_splits(path.name for path in folders).splits:
        draft.set_aside_copies(find_copied_sets(folders, draft.tree))
        folders = draft.list_folders(folder)
        if (inner := _find_only_split_set(draft, folder, folders)) is not None:
            return inner
    # Caltech-101 has `Annotations` beside its only folder of classes.
    folders = [path for path in folders if not _has_only_annotations(draft, path)] or folders
    inner = folders[0] if len(folders) == 1 and not folders[0].is_symlink() else None
    return inner if inner is not None and draft.tree.list_folders(inner) else None


def _has_only_annotations(draft: LayoutDraft, folder: Path) -> bool:
    return folder_names.is_annotation_folder(folder.name) and not draft.tree.may_have_photos(folder)


def _open_image_folder(draft: LayoutDraft, folder: Path, images: Path) -> Path:
    """Return the folder of all images, if it has sub-folders."""
    if draft.tree.list_folders(images):
        return images
    others = join_names(show_folder(path) for path in draft.list_folders(folder) if path != images)
    raise PhotosError(
        f"{show_folder(images)} beside {others} looks like a data set for object detection or segmentation: its photos "
        "have no class folders",
        where=folder,
        advice="arrange the photos in one folder per class; if these folders are the classes, rename them",
    )


def _find_only_split_set(draft: LayoutDraft, folder: Path, folders: Sequence[Path]) -> Path | None:
    """Find the sub-folder that has split folders, if no other one has photos.

    Raises:
        PhotosError: others have photos, so that the sub-folders may be classes.
    """
    sets = [path for path in folders if not path.is_symlink() and _has_split_set(draft, path)]
    if not sets:
        return None
    others = [show_folder(path) for path in folders if path != sets[0] and draft.tree.may_have_photos(path)]
    if not others:
        return sets[0]
    raise PhotosError(
        f"{show_folder(sets[0])} has split folders with classes inside, and beside it {join_names(others)} "
        f"{'has' if len(others) == 1 else 'have'} photos too: these may be several data sets, or classes",
        where=folder,
        advice=f"for a data set, give its folder, such as {sets[0]}; for classes, rename the folders inside them",
    )


def _has_split_set(draft: LayoutDraft, folder: Path) -> bool:
    """Return whether a folder has splits with the same classes inside."""
    inner = draft.tree.try_list_folders(folder)
    while len(inner) == 1 and not inner[0].is_symlink():
        folder = inner[0]
        inner = draft.tree.try_list_folders(folder)
    named = folder_names.find_splits(path.name for path in inner)
    if not named.is_certain or "train" not in named.splits.values():
        return False
    return split_folders.share_class(split_folders.open_splits(folder, named.splits, draft.tree))
