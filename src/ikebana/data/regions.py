"""Regions of a photo collection: what the paths below a folder mean.

`layout` decides it. `class_regions` and `split_regions` add the regions of classes and splits.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ikebana.data.folder import FolderTree, to_printable
from ikebana.data.folder_copies import find_named_copies
from ikebana.data.roboflow import LabelTable

OUTSIDE_CLASSES = "outside any class folder"
# More names are not listed in a message.
MAX_LISTED_NAMES = 5


@dataclass(frozen=True)
class Region:
    """A folder, and what the paths below it mean.

    Attributes:
        split: of all photos.
        has_classes: whether the sub-folders are classes.
        label: of all photos, if the folder is a class or a split of one.
        table: labels of the photos directly in the folder.
        reason: why photos directly in the folder have no label.
        inner_reason: why photos in its sub-folders have no label.
    """

    split: str | None = None
    has_classes: bool = False
    label: str | None = None
    table: LabelTable | None = None
    reason: str = OUTSIDE_CLASSES
    inner_reason: str = OUTSIDE_CLASSES


@dataclass(frozen=True)
class Layout:
    """How all paths of a collection are read.

    Attributes:
        top: the folder of the class folders or split folders, below the collection.
        regions: by folder below the collection. The innermost one applies.
        classes: names of class folders, empty ones too.
        missing_paths: photos that a table names and that do not exist.
        notes: how the folders were understood, for the user.
        doubts: what may have been understood wrongly: evidence and advice.
    """

    top: tuple[str, ...]
    regions: Mapping[tuple[str, ...], Region]
    classes: frozenset[str]
    missing_paths: tuple[str, ...]
    notes: tuple[str, ...]
    doubts: tuple[tuple[str, str], ...]

    def find_region(self, folders: Sequence[str]) -> tuple[int, Region]:
        """Find the innermost region of a path, and how deep it is."""
        depths = range(len(folders), -1, -1)
        return next((depth, self.regions[key]) for depth in depths if (key := tuple(folders[:depth])) in self.regions)


@dataclass
class LayoutDraft:
    """A layout in the making."""

    folder: Path
    tree: FolderTree = field(default_factory=FolderTree)
    regions: dict[tuple[str, ...], Region] = field(default_factory=lambda: {(): Region()})
    classes: set[str] = field(default_factory=set)
    missing_paths: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    doubts: list[tuple[str, str]] = field(default_factory=list)
    copies: set[Path] = field(default_factory=set)

    def get_key(self, folder: Path) -> tuple[str, ...]:
        """Return the printable names of the folders that lead to a folder."""
        return tuple(to_printable(part) for part in folder.relative_to(self.folder).parts)

    def set_aside(self, folder: Path, reason: str) -> None:
        """Use no photo below a folder."""
        self.regions[self.get_key(folder)] = Region(reason=reason, inner_reason=reason)

    def list_folders(self, folder: Path) -> list[Path]:
        """List the sub-folders, without copies of their neighbours."""
        self.set_aside_copies(find_named_copies(self._list_originals(folder)))
        return self._list_originals(folder)

    def set_aside_copies(self, copies: Mapping[Path, Path]) -> None:
        """Use no photo of these copies; each is mapped to its original."""
        names: dict[str, list[str]] = {}
        for copy, original in copies.items():
            self.set_aside(copy, f"in a copy of {show_folder(original)}")
            names.setdefault(show_folder(original), []).append(show_folder(copy))
        for original, copied in names.items():
            ending = "has the same files as {} and is" if len(copied) == 1 else "have the same files as {} and are"
            self.notes.append(f"{join_names(copied)} {ending.format(original)} not used")
        self.copies |= copies.keys()

    def _list_originals(self, folder: Path) -> list[Path]:
        return [path for path in self.tree.list_folders(folder) if path not in self.copies]

    def finish(self, top: Path) -> Layout:
        """Make the layout, with each note and doubt once."""
        return Layout(
            self.get_key(top),
            self.regions,
            frozenset(self.classes),
            tuple(self.missing_paths),
            tuple(dict.fromkeys(self.notes)),
            tuple(dict.fromkeys(self.doubts)),
        )


def show_folder(folder: Path) -> str:
    """Show the name of a folder as one of a folder."""
    return f"{to_printable(folder.name)}/"


def join_names(names: Iterable[str]) -> str:
    """Join the first few names, and say how many more there are."""
    listed = list(names)
    more = len(listed) - MAX_LISTED_NAMES
    return ", ".join(listed[:MAX_LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")
