"""The regions of split folders, around the class folders or inside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ikebana.data import folder_names, roboflow
from ikebana.data.class_regions import add_classes
from ikebana.data.folder import to_printable
from ikebana.data.regions import LayoutDraft, Region, join_names, show_folder
from ikebana.data.split_folders import SplitFolder
from ikebana.errors import PhotosError


def add_splits(draft: LayoutDraft, top: Path, splits: Sequence[SplitFolder]) -> None:
    """Add the split folders of a collection; at least the training photos have labels.

    Raises:
        PhotosError: the training photos have no labels.
    """
    names = [split.name for split in splits]
    draft.regions[draft.get_key(top)] = Region(inner_reason=f"outside {', '.join(names)}")
    unused = sorted(draft.tree.list_names(top) - set(names))
    if unused:
        draft.notes.append(f"folders that are not used: {', '.join(unused)} (outside {', '.join(names)})")
    labelled = [split for split in splits if split.has_labels]
    if not any(split.split == "train" for split in labelled):
        raise _refuse_unlabelled(draft, top, splits)
    if any(not folder_names.is_plain_split(split.name) for split in labelled):
        meanings = ", ".join(f"{split.name} as {split.split}" for split in labelled)
        draft.notes.append(f"split folders are read as splits: {meanings}")
    # Without labels elsewhere, the training folder is just the collection.
    is_given = len(labelled) > 1
    for split in splits:
        if split not in labelled:
            _add_unlabelled(draft, split, is_given)
        elif split.classes:
            add_classes(draft, split.base, split.split if is_given else None)
        else:
            add_table(draft, split.base, split.split if is_given else None)


def _add_unlabelled(draft: LayoutDraft, split: SplitFolder, is_given: bool) -> None:
    """Set a split folder aside whose photos have no labels."""
    why = f"{split.name}/ has no class folders" if not split.classes else f"{split.name}/ is named as photos to predict"
    draft.set_aside(split.folder, f"no label: {why}")
    consequence = "" if is_given else "; the split is made from the others"
    draft.notes.append(f"{why}: its photos have no labels and are not used{consequence}")


def _refuse_unlabelled(draft: LayoutDraft, top: Path, splits: Sequence[SplitFolder]) -> PhotosError:
    """Make the error for split folders without labels."""
    names = ", ".join(split.name for split in splits if not split.has_labels)
    what = f"the folders {names} look like splits, but have no class folders: their photos have no labels"
    if annotations := _find_annotations(draft, top, splits):
        return PhotosError(
            f"{what}, and {annotations} belongs to object detection or segmentation",
            where=top,
            advice="export the data set for classification, with one folder per class in each split folder",
        )
    return PhotosError(
        what,
        where=top,
        advice="use train/CLASS/photo.jpg, or a table with the columns path,label,split; "
        "if the folders are classes, rename them",
    )


def _find_annotations(draft: LayoutDraft, top: Path, splits: Sequence[SplitFolder]) -> str | None:
    """Return the name of annotations for object detection, if there are any."""
    folders = [path for split in splits for path in draft.tree.list_folders(split.folder)]
    for path in [*draft.tree.list_folders(draft.folder), *draft.tree.list_folders(top), *folders]:
        if folder_names.is_annotation_folder(path.name):
            return f"{to_printable(path.name)}/"
    patterns = ("data.yaml", "_annotations*", "*.xml")
    files = (
        file for split in splits for pattern in patterns for file in (*top.glob(pattern), *split.base.glob(pattern))
    )
    return next((to_printable(file.name) for file in files), None)


def add_splits_in_classes(draft: LayoutDraft, top: Path, folders: Sequence[Path]) -> bool:
    """Add classes that have the same splits inside: daisy/train, daisy/test, rose/train, …

    Raises:
        PhotosError: only some of the classes have them.
    """
    tree, divided = draft.tree, dict[Path, Mapping[str, str]]()
    for path in folders:
        names = folder_names.find_splits(inner.name for inner in tree.try_list_folders(path))
        if names.is_certain and "train" in names.splits.values():
            divided[path] = names.splits
    if not divided or len(folders) < 2:
        return False
    undivided = [show_folder(path) for path in folders if path not in divided and tree.may_have_photos(path)]
    if undivided:
        first = min(divided)
        raise PhotosError(
            f"{show_folder(first)} is divided into {', '.join(sorted(divided[first]))}, but {join_names(undivided)} "
            f"{'is' if len(undivided) == 1 else 'are'} not: these may be splits of a class, or groups",
            where=top,
            advice="divide every class in the same way; if the folders inside are groups, rename them",
        )
    draft.classes |= {to_printable(path.name) for path in folders}
    for path, splits in divided.items():
        _add_divided_class(draft, path, splits)
    draft.notes.append("the splits are read from the folders inside the class folders")
    return True


def _add_divided_class(draft: LayoutDraft, folder: Path, splits: Mapping[str, str]) -> None:
    """Add a class folder that has split folders inside."""
    draft.set_aside(folder, f"outside {', '.join(sorted(splits))}")
    for name, split in splits.items():
        if split == folder_names.UNLABELLED:
            draft.set_aside(folder / name, f"outside any split: {name}/ is named as photos to predict")
        else:
            region = Region(split=split, label=to_printable(folder.name))
            draft.regions[draft.get_key(folder / name)] = region


def add_table(draft: LayoutDraft, folder: Path, split: str | None) -> None:
    """Add a folder whose photos have their labels in a table."""
    table = roboflow.read_table(folder)
    draft.regions[draft.get_key(folder)] = Region(split=split, table=table)
    draft.classes |= set(table.classes)
    path = "/".join(draft.get_key(folder))
    draft.missing_paths += [f"{path}/{name}" if path else name for name in table.missing]
    draft.notes.append(f"the labels are read from {f'{path}/' if path else ''}{roboflow.FILE_NAME}")
