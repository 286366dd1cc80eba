"""The folders of listed paths, as if they were on a disk."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ikebana.data.folder import TEXT_SUFFIXES, FolderTree


@dataclass(frozen=True)
class ListedTree(FolderTree):
    """The folders of paths in a store or in a tar."""

    # Folders that directly or further below have files that may be photos, by their names.
    _with_photos: set[Path] = field(default_factory=set)

    def list_folders(self, folder: Path) -> list[Path]:
        """List the sub-folders of a folder, sorted."""
        return self._sub_folders.get(folder, [])

    def may_have_photos(self, folder: Path) -> bool:
        """Return whether any file below a folder may be a photo, judged by its name."""
        return folder in self._with_photos


def make_listed_tree(root: Path, paths: Iterable[str]) -> ListedTree:
    """Make the tree of paths below a root, which need not exist."""
    # Whether a folder directly has files that may be photos: there are few folders, but many paths.
    folders: dict[str, bool] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        is_text = f".{name.rpartition('.')[2].lower()}" in TEXT_SUFFIXES
        folders[folder] = folders.get(folder, False) or not is_text
    sub_folders: dict[Path, set[Path]] = {}
    with_photos: set[Path] = set()
    for folder, has_photos in folders.items():
        current = root / folder
        if has_photos:
            with_photos.update((current, *current.parents))
        while current != root:
            sub_folders.setdefault(current.parent, set()).add(current)
            current = current.parent
    return ListedTree({folder: sorted(inner) for folder, inner in sub_folders.items()}, with_photos)
