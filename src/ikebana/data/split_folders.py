"""Split folders: which folders are splits of one data set, and where their classes are.

    flowers/train/daisy/1.jpg              train, val, valid, validation, test
    flowers/Training/daisy/1.jpg           also training_set, 01_train, train_images, dev, eval, holdout
    flowers/seg_train/seg_train/daisy/…    the classes may be one folder deeper
    flowers/test/1.jpg                     no class folders: photos without labels

A class may be called `train`, beside `bus` and `tram`. So splits need several such folders, one of
them for training, and class folders in common if there are other folders beside them.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ikebana.data import folder_names, roboflow
from ikebana.data.folder import FolderTree, to_printable
from ikebana.data.folder_names import UNLABELLED, SplitNames
from ikebana.errors import PhotosError


@dataclass(frozen=True)
class SplitFolder:
    """A folder whose photos are one split.

    Attributes:
        split: train, validation, test or unlabelled.
        base: the folder of the class folders: this one, or one inside it.
        classes: names of the class folders.
    """

    folder: Path
    split: str
    base: Path
    classes: frozenset[str]

    @property
    def name(self) -> str:
        """The printable name of the folder."""
        return to_printable(self.folder.name)

    @property
    def has_labels(self) -> bool:
        """Whether its photos have labels, by class folders or by a table."""
        return self.split != UNLABELLED and (bool(self.classes) or roboflow.has_table(self.base))


def find_split_folders(top: Path, folders: Sequence[Path], tree: FolderTree) -> list[SplitFolder]:
    """Find the split folders among some folders, sorted; none if they are classes.

    Raises:
        PhotosError: they may be splits or classes, there is none for training, or two are the same.
    """
    names = folder_names.find_splits(folder.name for folder in folders)
    splits = open_splits(top, names.splits, tree)
    if not _are_splits(top, splits, _find_others(folders, names, tree), names, tree):
        return []
    labelled = [split for split in splits if split.split != UNLABELLED]
    counts = Counter(split.split for split in labelled)
    if repeated := [split for split in labelled if counts[split.split] > 1]:
        raise PhotosError(
            f"two folders are the same split: {_join(repeated)}",
            where=top,
            advice="keep one folder each for train, validation and test; if they are classes, rename them",
        )
    return splits


def open_splits(top: Path, names: Mapping[str, str], tree: FolderTree) -> list[SplitFolder]:
    """Find the class folders of each split, sorted by the name of the split folder."""
    inside = [tree.list_names(top / name) for name in names]
    classes = set[str]().union(*(sub_folders for sub_folders in inside if len(sub_folders) > 1))
    return [_open_split(top / name, names[name], classes, tree) for name in sorted(names)]


def share_class(splits: Collection[SplitFolder]) -> bool:
    """Return whether a class has photos for training and photos in another split."""
    trained = frozenset[str]().union(*(split.classes for split in splits if split.split == "train"))
    return any(trained & split.classes for split in splits if split.split != "train")


def find_image_folder(folders: Sequence[Path], tree: FolderTree) -> Path | None:
    """Find the folder `images` if the others have annotations or no photos.

    So it is in YOLO, COCO, Pascal VOC and CUB-200.
    """
    images = [folder for folder in folders if folder_names.is_image_folder(folder.name) and not folder.is_symlink()]
    if len(images) != 1 or len(folders) == 1:
        return None
    others = [folder for folder in folders if folder != images[0]]
    is_beside_annotations = any(folder_names.is_annotation_folder(folder.name) for folder in others)
    are_unused = all(folder_names.is_annotation_folder(path.name) or not tree.may_have_photos(path) for path in others)
    return images[0] if are_unused and (is_beside_annotations or tree.try_list_folders(images[0])) else None


def _find_others(folders: Sequence[Path], names: SplitNames, tree: FolderTree) -> list[Path]:
    """List the folders beside the splits that may be classes."""
    if not names.splits:
        return []
    others = [folder for folder in folders if folder.name not in names.splits]
    return [
        folder
        for folder in others
        if not folder_names.is_annotation_folder(folder.name) and tree.may_have_photos(folder)
    ]


def _are_splits(
    top: Path, splits: Sequence[SplitFolder], others: Sequence[Path], names: SplitNames, tree: FolderTree
) -> bool:
    """Return whether folders with names of splits are splits, rather than classes.

    Raises:
        PhotosError: they may be either, or there are no photos for training.
    """
    if not any(split.split == "train" for split in splits):
        _refuse_without_training(top, splits, others, names)
        return False
    if share_class(splits):
        return True
    if not names.is_certain or not others:
        return names.is_certain
    if all(split.classes for split in splits) and all(tree.list_folders(folder) for folder in others):
        return False
    raise PhotosError(
        f"the folders {_join(splits)} may be splits, but they have no class folders in common; or they may be "
        f"classes, beside {', '.join(to_printable(folder.name) for folder in others)}",
        where=top,
        advice="for splits, give each class a folder of the same name in all of them, and move the other folders "
        "elsewhere; for classes, rename the folders",
    )


def _refuse_without_training(
    top: Path, splits: Sequence[SplitFolder], others: Sequence[Path], names: SplitNames
) -> None:
    """Raise PhotosError if all folders are splits, but none is for training."""
    if names.is_certain and not others and len({split.split for split in splits} - {UNLABELLED}) > 1:
        raise PhotosError(
            f"the folders {_join(splits)} look like splits, and there is no folder of training photos",
            where=top,
            advice="add a folder train, or give one of the folders alone; if they are classes, rename them",
        )


def _join(splits: Iterable[SplitFolder]) -> str:
    return ", ".join(split.name for split in splits)


def _open_split(folder: Path, split: str, classes: Collection[str], tree: FolderTree) -> SplitFolder:
    """Find the class folders of a split, which may be one or more folders deeper.

    Args:
        classes: names that stand beside others in some split folder, so they are no wrappers.
    """
    base = folder
    while (inner := _find_wrapped_folder(base, classes, tree)) is not None:
        base = inner
    return SplitFolder(folder, split, base, frozenset(tree.list_names(base)))


def _find_wrapped_folder(folder: Path, classes: Collection[str], tree: FolderTree) -> Path | None:
    """Find a sub-folder with all photos: seg_train/seg_train, train/images, test/unlabelled."""
    folders = tree.list_folders(folder)
    if (images := find_image_folder(folders, tree)) is not None:
        return images
    inner = folders[0] if len(folders) == 1 and not folders[0].is_symlink() else None
    if inner is None or to_printable(inner.name) in classes:
        return None
    return inner if folder_names.is_wrapper(inner.name, folder.name) else None
