"""Checks of the photos and the folder that all nodes of a cluster must share."""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ikebana.cluster import jobs
from ikebana.data import pixel_cache_parts
from ikebana.data.dataset import STATUS_UNOPENED, STATUS_USED, Dataset
from ikebana.data.locations import Location
from ikebana.errors import IkebanaError, UnavailablePhoto, UnreadablePhoto, get_first_line
from ikebana.system.files import atomic_write, write_error

# In the shared folder while nodes are checked. Two drivers may check theirs at the same time.
MARK_PREFIX = ".nodes-check-"
# Photos that the driver tries, to find a readable one.
MAX_TRIED_PHOTOS = 20

Photo = TypeVar("Photo")


def find_readable(photos: Iterable[Photo], read: Callable[[Photo], object]) -> Photo | None:
    """Find a photo that this machine can read; None if none of the first."""
    for photo in islice(photos, MAX_TRIED_PHOTOS):
        try:
            read(photo)
        except UnavailablePhoto:
            # Its store does not answer. Each other photo would wait as long.
            return None
        except (UnreadablePhoto, OSError):
            continue
        return photo
    return None


def find_readable_photo(dataset: Dataset) -> tuple[Any, ...] | None:
    """Return the fields of a readable photo's `Location`, if there is one."""
    photos = dataset.photos.select("path", "status").with_row_index("row")
    rows = photos.filter(photos["status"].is_in((STATUS_UNOPENED, STATUS_USED)))["row"]
    locations = (
        pixel_cache_parts.select_photos(dataset, range(row, row + 1)).locate(photos["path"][row])
        for row in rows[:MAX_TRIED_PHOTOS].to_list()
    )
    location = find_readable(locations, Location.read)
    return None if location is None else astuple(location)


def inspect_node(versions: Mapping[str, str], photo: Sequence[Any] | None, mark: str) -> list[str]:
    """Describe why this node cannot work on the photos; an empty list if it can.

    Args:
        photo: the fields of the `Location` of a photo that the driver can read.
        mark: a file of the driver in the shared folder.
    """
    problems = jobs.compare_versions(versions, jobs.describe_all_versions())
    if photo is not None:
        problems += inspect_photo(photo[0], Location(*photo).read)
    return [*problems, *inspect_folder(mark)]


def inspect_photo(address: str, read: Callable[[], object]) -> list[str]:
    """Describe why this node cannot read a photo that the driver can read, if so."""
    try:
        read()
    except UnreadablePhoto as error:
        return [f"the photo {address} cannot be read: {error.what.removeprefix('unreadable: ')}"]
    except OSError as error:
        return [f"the photo {address} cannot be read: {error.strerror or error}"]
    return []


@contextmanager
def mark_folder(folder: Path) -> Iterator[str]:
    """Yield a file by which nodes recognise the folder, which is made if missing.

    After an error, a folder that was made is removed if it is empty.

    Raises:
        MachineError: it cannot be written.
    """
    mark, is_new = folder / f"{MARK_PREFIX}{secrets.token_hex(4)}", not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise write_error(error, folder) from error
    is_used = False
    try:
        yield str(mark)
        is_used = True
    finally:
        with suppress(OSError):
            mark.unlink()
            if is_new and not is_used:
                folder.rmdir()


def inspect_folder(mark: str) -> list[str]:
    """Describe why this node cannot use the folder of a mark, if so."""
    folder = Path(mark).parent
    if not Path(mark).exists():
        return [f"{folder} is not the folder of the driver"]
    try:
        trial = folder / f".trial-{secrets.token_hex(4)}"
        with atomic_write(trial, create_parent=False) as partial_file:
            partial_file.write_bytes(b"trial")
        with suppress(OSError):
            trial.unlink()
    except IkebanaError as error:
        return [f"{folder} cannot be used: {get_first_line(error)}"]
    return []
