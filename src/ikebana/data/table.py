"""A table of photos: `path,label[,split][,group]` in a file or a frame, read into a Dataset."""

import os
from dataclasses import replace
from pathlib import Path

import polars as pl

from ikebana.data import extra_columns, table_file, table_paths
from ikebana.data import frame as frames
from ikebana.data.columns import EXACT_LABEL, RawTable, has_exact_labels, select_columns
from ikebana.data.dataset import EXTRA_PREFIX, SCHEMA, SPLIT_ALIASES, SPLITS, Dataset, collect_rows
from ikebana.data.frame import Frame
from ikebana.data.labels import (
    describe_combined_labels,
    describe_equal_numbers,
    describe_similar_groups,
    normalise_labels,
)
from ikebana.errors import PhotosError

NO_PATH, NO_LABEL = "no path in this row", "no label in this row"


def read(file: Path) -> Dataset:
    """Read a table in a file; relative paths start at its folder.

    Raises:
        PhotosError: the file is no table, a column is missing, or rows contradict each other.
    """
    return _to_dataset(table_file.read(file), file.parent)[0]


def read_frame(frame: Frame, root: Path | None = None) -> Dataset:
    """Read the photos of a frame.

    Args:
        root: where relative paths start; by default the working directory.
    Raises:
        PhotosError: a column is missing, or rows contradict each other.
    """
    dataset, table = _to_dataset(frames.read(frame), Path.cwd() if root is None else root)
    return replace(dataset, frame=table)


def _to_dataset(raw: RawTable, root: Path) -> tuple[Dataset, pl.DataFrame]:
    """Make a Dataset.

    Returns:
        The Dataset, and the rows that it was made from, without repetitions: known columns as text,
        then the other columns that the Dataset has.
    """
    (table, notes), is_exact = select_columns(raw), has_exact_labels(raw)
    is_blank = table.select(pl.all_horizontal(pl.all().is_null())).to_series()
    table, extras = table.filter(~is_blank), extra_columns.select_extra_columns(raw)
    table = table.with_columns(
        table_paths.find_existing_paths(table["path"], str(root)),
        table["label"] if is_exact else normalise_labels(table["label"]),
    )
    if extras.width:
        extras = extras.filter(~is_blank).with_columns(table["path"]).unique("path", keep="first")
    unique = _normalise_splits(_merge_duplicate_rows(table, raw.source, str(root)), raw.source)
    if n_merged := table.height - unique.height:
        notes = (*notes, f"{n_merged:,} rows repeat another row and count only once")
    notes = (*notes, *describe_equal_numbers("label", unique["label"]), *describe_combined_labels(unique["label"]))
    if "group" in unique.columns:
        notes = (*notes, *describe_equal_numbers("group", unique["group"]), *describe_similar_groups(unique["group"]))
    rows = (_set_status(row, str(root)) for row in unique.iter_rows(named=True))
    photos = collect_rows(rows, SCHEMA).sort("path")
    rows_as_given = unique.rename({"label": EXACT_LABEL} if is_exact else {})
    if extras.width:
        photos = photos.join(extras, on="path", how="left", maintain_order="left")
        named = extras.rename(lambda name: name.removeprefix(EXTRA_PREFIX))
        rows_as_given = rows_as_given.join(named, on="path", how="left", maintain_order="left")
    return Dataset(str(raw.source), root, photos, (), notes=notes), rows_as_given


def _set_status(row: dict[str, str | None], root: str) -> dict[str, str | None]:
    path = row["path"]
    if not path:
        return {**row, "path": "", "status": NO_PATH}
    if not row["label"]:
        return {**row, "status": NO_LABEL}
    return {**row, "status": table_paths.check_path(path, root)}


def _merge_duplicate_rows(table: pl.DataFrame, source: str | Path, root: str) -> pl.DataFrame:
    """Merge repeated rows; refuse a photo with two labels, splits or groups."""
    place = pl.col("path").map_elements(lambda path: os.path.normpath(os.path.join(root, path)), pl.String)
    table = table.with_columns(place=place)
    table = table.unique(subset=[name for name in table.columns if name != "path"], keep="first", maintain_order=True)
    labelled = table.filter(pl.col("path").is_not_null() & pl.col("label").is_not_null())
    duplicates = labelled.filter(labelled["place"].is_duplicated())
    labels = duplicates.group_by("place").agg(pl.col("path").first(), pl.col("label").unique().sort())
    conflicting = labels.filter(pl.col("label").list.len() > 1).sort("path")
    if conflicting.height:
        _, path, names = conflicting.row(0)
        raise PhotosError(
            f"photos with more than one label: {conflicting.height:,}; the first is {path} ({', '.join(names)})",
            where=source,
            advice="give each photo one label: multi-label classification is not supported",
        )
    if duplicates.height:
        raise PhotosError(
            f"{duplicates['path'][0]} is in two splits or groups", where=source, advice="keep one row per photo"
        )
    return table.drop("place")


def _normalise_splits(table: pl.DataFrame, source: str | Path) -> pl.DataFrame:
    """Map the `split` column to the standard names; all rows have a split, or none."""
    if "split" not in table.columns:
        return table
    given = table["split"]
    if given.is_null().all():
        return table.drop("split")
    if given.is_null().any():
        raise PhotosError(
            f"{given.is_null().sum()} rows have no split, but the others have one",
            where=source,
            advice=f"use one of {', '.join(SPLITS)} in every row, or remove the split column",
        )
    unknown = sorted(set(given.str.to_lowercase()) - SPLIT_ALIASES.keys())
    if unknown:
        raise PhotosError(f"unknown split {unknown[0]!r}", where=source, advice=f"use one of {', '.join(SPLITS)}")
    return table.with_columns(given.str.to_lowercase().replace_strict(SPLIT_ALIASES).alias("split"))


def advise_without_photos(dataset: Dataset) -> str:
    """Suggest what to try if no photo of a table can be used."""
    if not dataset.photos.height:
        return "list one photo per row: path,label"
    labelled = dataset.photos.filter(~pl.col("status").is_in((NO_PATH, NO_LABEL)))["path"]
    if not labelled.len():
        return "fill the columns path and label in every row"
    return table_paths.suggest_path(labelled[0], str(dataset.root))


def list_paths(frame: Frame) -> list[str]:
    """List the paths of a frame, one per row; empty where there is none.

    Raises:
        PhotosError: there is no column of paths.
    """
    table, _ = select_columns(frames.read(frame), ("path",))
    return table_paths.find_existing_paths(table["path"].fill_null(""), str(Path.cwd())).to_list()
