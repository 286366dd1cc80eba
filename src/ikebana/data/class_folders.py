"""A folder of class folders, read into a Dataset with one row per path.

`layout` decides what the folders mean. This module neither opens a photo nor changes a user's file.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

import polars as pl

from ikebana.data import stores
from ikebana.data.dataset import SCHEMA, STATUS_UNOPENED, Dataset, collect_rows
from ikebana.data.folder import ScannedPath, scan, to_printable
from ikebana.data.layout import find_layout
from ikebana.data.listed_tree import make_listed_tree
from ikebana.data.photo_listing import PhotoListing
from ikebana.data.regions import Layout, Region
from ikebana.data.roboflow import NOT_LISTED
from ikebana.errors import PhotosError

# Folders inside a class are groups only if each class then has this many groups (a photo beside
# the folders is its own group), and no group exceeds this share of its class. Otherwise some split
# would have no photo of the class, or far too many.
MIN_GROUPS_PER_CLASS = 5
MAX_GROUP_SHARE = 0.4


def read(
    folder: Path, *, source: str | None = None, archive_prefix: str = "", skipped_members: Iterable[ScannedPath] = ()
) -> Dataset:
    """List the photos of a folder of class folders.

    Args:
        source: the path that the user gave, if it is not the folder.
        archive_prefix: put before each path.
        skipped_members: paths to add that are not in the folder.
    Raises:
        PhotosError: the folder cannot be read, or its folders can be understood in two ways.
    """
    try:
        layout = find_layout(folder, to_printable(Path(source or folder).name))
    except PhotosError as error:
        if source is None:
            raise
        raise _name_archive(error, folder, source) from None
    ignored: list[str] = []
    rows = (_to_row(scanned, archive_prefix, layout) for scanned in scan(folder, ignored))
    missing = (ScannedPath(path, "there is no such file") for path in layout.missing_paths)
    extra_rows = (
        {"path": archive_prefix + scanned.path, "status": scanned.status} for scanned in chain(skipped_members, missing)
    )
    dataset = _build_dataset(source or str(folder), folder, chain(rows, extra_rows), layout)
    return replace(dataset, ignored_count=len(ignored), archive_prefix=archive_prefix)


def read_listing(listing: PhotoListing, source: str) -> Dataset:
    """Read the folders in listed paths like those on disk.

    Args:
        source: the address or path that the user gave.
    Raises:
        PhotosError: the folders can be understood in two ways.
    """
    # It does not exist: the layout is found in the listing alone.
    root = Path("/", source)
    try:
        layout = find_layout(root, stores.get_name(source), make_listed_tree(root, listing.photos["path"]))
    except PhotosError as error:
        where, advice = (str(text).replace(str(root), source) for text in (error.where, error.advice))
        raise PhotosError(error.what, where=where, advice=advice) from None
    rows = (
        _to_row(ScannedPath(path, status), prefix or "", layout)
        for path, status, prefix in listing.photos.select("path", "status", "prefix").iter_rows()
    )
    return _build_dataset(source, root, rows, layout)


def _build_dataset(source: str, root: Path, rows: Iterable[Mapping[str, str | None]], layout: Layout) -> Dataset:
    notes = list(layout.notes)
    photos = _check_groups(collect_rows(rows, SCHEMA).sort("path"), notes)
    empty = tuple(sorted(layout.classes - set(photos["label"].drop_nulls())))
    return Dataset(source, root, photos, (), empty_classes=empty, notes=tuple(notes), doubts=layout.doubts)


def _name_archive(error: PhotosError, folder: Path, source: str) -> PhotosError:
    """Name the user's archive instead of the folder that it was unpacked to."""
    where, advice = (str(text).replace(str(folder), source) for text in (error.where, error.advice))
    return PhotosError(error.what, where=where, advice=f"unpack the archive, then {advice}")


def _to_row(scanned: ScannedPath, prefix: str, layout: Layout) -> dict[str, str | None]:
    """Make a row of a scanned path; its folders are split, label and group."""
    *folders, name = scanned.path.split("/")
    depth, region = layout.find_region(folders)
    inner = folders[depth:]
    label, reason = _find_label(region, inner, name)
    # The number of folders that lead to those inside the class.
    class_depth = depth + (region.label is None)
    group = None
    if label is not None and len(folders) > class_depth:
        group = _name_group(folders[len(layout.top) : class_depth + 1], label, region)
    return {
        "path": prefix + scanned.path,
        "label": label,
        "split": region.split,
        "status": reason if label is None and scanned.status == STATUS_UNOPENED else scanned.status,
        "group": group,
    }


def _name_group(folders: list[str], label: str, region: Region) -> str:
    """Name a group by its folders, without a given split."""
    return "/".join(folders if region.split is None else (label, folders[-1]))


def _find_label(region: Region, inner: list[str], name: str) -> tuple[str | None, str]:
    """Find the label of a photo, or the reason why it has none."""
    if region.label is not None:
        return region.label, ""
    if region.has_classes:
        return (inner[0] if inner else None), region.reason
    if region.table is not None and not inner:
        return region.table.labels.get(name), region.table.reasons.get(name, NOT_LISTED)
    return None, region.inner_reason if inner else region.reason


def _check_groups(photos: pl.DataFrame, notes: list[str]) -> pl.DataFrame:
    """Keep the folders inside classes as groups if every class can be split by them.

    Otherwise remove all groups. A note reports the decision.
    """
    if photos["group"].is_null().all():
        return photos
    group_sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for number, (label, group) in enumerate(photos.filter(status=STATUS_UNOPENED).select("label", "group").iter_rows()):
        group_sizes[label][group or f"/{number}"] += 1
    for label, sizes in sorted(group_sizes.items()):
        share = max(sizes.values()) / sizes.total()
        if len(sizes) < MIN_GROUPS_PER_CLASS or share > MAX_GROUP_SHARE:
            is_few = len(sizes) < MIN_GROUPS_PER_CLASS
            reason = f"has only {len(sizes)} groups" if is_few else f"has {share:.0%} of its photos in one group"
            notes.append(
                f"folders inside classes are not used as groups: class {label} {reason} "
                "(to set groups yourself, use a table with a group column)"
            )
            return photos.with_columns(pl.lit(None, pl.String).alias("group"))
    group_count = photos["group"].n_unique() - photos["group"].has_nulls()
    split_counts = photos.drop_nulls("group").group_by("group").agg(pl.col("split").drop_nulls().n_unique())["split"]
    divided_count = (split_counts > 1).sum()
    consequence = f"{divided_count} of them are in several given splits" if divided_count else "each stays in one split"
    notes.append(f"{group_count} folders inside classes are used as groups: {consequence}")
    return photos
