"""Photos that moved since their run began: found under their recorded paths, and compared.

A run records each photo's path below its source, so photos that moved together have the same paths.
If an archive was renamed or unpacked, or a table was rewritten, the beginning of all paths differs.
"""

import os
from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from ikebana.data.dataset import STATUS_UNOPENED, STATUS_USED, Dataset
from ikebana.data.locations import Location
from ikebana.errors import RunError

# What ends the name of a folder or of an archive in a path.
SEPARATORS = ("/", "!")


def restore_paths(dataset: Dataset, recorded: pl.DataFrame) -> Dataset:
    """Give photos the paths that they had, if only the beginning of all paths differs.

    Args:
        dataset: the photos where they are now, not opened.
        recorded: the dataset of a run.
    """
    listed = dataset.photos.filter(pl.col("status") == STATUS_UNOPENED)["path"].to_list()
    before = recorded.filter(pl.col("status") == STATUS_USED)["path"].to_list()
    if not listed or not before or set(before) <= set(listed):
        return dataset
    prefix, old_prefix = _find_common_prefix(listed), _find_common_prefix(before)
    if {path.removeprefix(old_prefix) for path in before}.isdisjoint(path.removeprefix(prefix) for path in listed):
        return dataset
    renamed = pl.lit(old_prefix) + pl.col("path").str.strip_prefix(prefix)
    path = pl.when(pl.col("path").str.starts_with(prefix)).then(renamed).otherwise("path")
    if dataset.locations is not None:
        photos, locations = (
            table.with_columns(path.alias("path")).sort("path") for table in (dataset.photos, dataset.locations)
        )
        return replace(dataset, photos=photos, locations=locations)
    root = dataset.root / prefix.removeprefix(dataset.archive_prefix)
    photos = dataset.photos.with_columns(path.alias("path")).sort("path")
    return replace(dataset, root=root, archive_prefix=old_prefix, photos=photos)


def _find_common_prefix(paths: Sequence[str]) -> str:
    """Find the folders, and the archive, that all paths begin with."""
    first, last = min(paths), max(paths)
    pairs = zip(first, last, strict=False)
    length = next((number for number, (left, right) in enumerate(pairs) if left != right), len(first))
    return first[: max(first.rfind(separator, 0, length) for separator in SEPARATORS) + 1]


def check_files(recorded: pl.DataFrame, dataset: Dataset) -> None:
    """Compare paths, labels and sizes; contents are compared when the photos are read.

    Raises:
        RunError: some differ.
    """
    listed = dataset.photos.filter(pl.col("status") == STATUS_UNOPENED).select("path", now="label")
    used = recorded.filter(pl.col("status") == STATUS_USED)
    differences = [
        (path, reason)
        for path, label, size, now in used.join(listed, "path", "left")
        .select("path", "label", "bytes", "now")
        .iter_rows()
        if (reason := _compare(dataset.locate(path), label, size, now))
    ]
    new = sorted(set(listed["path"]) - set(recorded["path"]))
    differences += [(path, "not in the run") for path in new]
    if differences:
        path, reason = differences[0]
        raise RunError(
            f"{len(differences):,} photo{'s differ' if len(differences) > 1 else ' differs'} from the {used.height:,} of "
            f"this run; the first is {path}: {reason}",
            where=dataset.source,
            advice="the folder, archive or table that contains the photos that the run began with",
        )


def _compare(location: Location, label: str, size: int, label_now: str | None) -> str:
    """Return how a photo differs from its record, or ""."""
    if label_now is None:
        return "missing"
    if label_now != label:
        return f"its label was {label} and is {label_now}"
    try:
        size_now = os.stat(location.address).st_size if location.is_file else location.size
    except OSError as error:
        return f"unreadable: {error.strerror}"
    # The size of a photo in Parquet is known once it is read, and its content is compared then.
    return "" if size_now in (None, size) else f"it had {size:,} bytes and has {size_now:,}"
