"""Paths on the command line that are those of a run's photos in its report."""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ikebana.data import stores
from ikebana.data.containers import is_container_source
from ikebana.data.dataset import STATUS_USED
from ikebana.errors import IkebanaError, PhotosError
from ikebana.exporting import run_photos
from ikebana.inference.classifier import Classifier
from ikebana.runs.run import Run

GLOB_CHARACTERS = re.compile(r"[*?\[]")


def resolve_run_paths(opened: Classifier | Run, photos: Sequence[str | Path]) -> list[str | Path]:
    """Replace missing paths that are photos of the run by where these are.

    Args:
        opened: only a run knows its photos; for a model file nothing changes.
        photos: files, folders, globs or archives.
    Raises:
        PhotosError: a path neither exists nor is a photo of the run.
    """
    missing = [photo for photo in photos if isinstance(opened, Run) and _is_missing(photo)]
    if not missing or not isinstance(opened, Run):
        return list(photos)
    recorded = opened.dataset.filter(status=STATUS_USED)["path"].to_list()
    known = set(recorded)
    for photo in missing:
        if error := stores.describe_unsupported(photo):
            raise error
        if str(photo) not in known:
            raise PhotosError(
                "there is no such file or folder, and the run has no such photo",
                where=photo,
                advice=_suggest_path(str(photo), recorded),
            )
    try:
        splits = run_photos.find_photos(opened)
    except IkebanaError as error:
        raise PhotosError(error.what, where=error.where, advice="the path of the photo where it is now") from None
    locations = {photo.path: photo.location for split in splits.values() for photo in split}
    files = {path: location.address for path, location in locations.items() if location.is_whole_file}
    return [files.get(str(photo), photo) if photo in missing else photo for photo in photos]


def _is_missing(photo: str | Path) -> bool:
    text = str(photo)
    if is_container_source(photo):
        return False
    return bool(text) and not GLOB_CHARACTERS.search(text) and not os.path.lexists(os.path.expanduser(text))


def _suggest_path(photo: str, recorded: Sequence[str]) -> str:
    """Suggest a path of the run: with the same name, the most similar, or any."""
    same_name = [path for path in recorded if os.path.basename(path) == os.path.basename(photo)]
    similar = same_name or difflib.get_close_matches(photo, recorded, n=1) or list(recorded[:1])
    return f"an existing photo, or a photo of the run, such as {similar[0]}" if similar else "an existing photo"
