"""A table of photos: `path,label[,split][,group]` as CSV or Parquet."""

import codecs
import os
from collections import Counter
from pathlib import Path

import polars as pl

from ikebana.data.dataset import SCHEMA, SPLIT_ALIASES, SPLITS, Dataset, collect_rows
from ikebana.data.folder import check_file
from ikebana.errors import PhotosError

COLUMNS = ("path", "label", "split", "group")
SEPARATORS = ",;\t"


def read(file: Path) -> Dataset:
    """Read the photos of a table; relative paths start at the table's folder.

    Raises:
        PhotosError: columns are missing, a split is unknown, or a photo has two labels.
    """
    table = _normalise_columns(_read_parquet(file) if file.suffix.lower() == ".parquet" else _read_csv(file), file)
    unique = _merge_duplicate_rows(table, file)
    n_merged = table.height - unique.height
    notes = (f"{n_merged:,} rows repeat another row and count only once",) if n_merged else ()
    rows = (_set_status(row, str(file.parent)) for row in _normalise_splits(unique, file).iter_rows(named=True))
    return Dataset(str(file), file.parent, collect_rows(rows, SCHEMA).sort("path"), (), notes=notes)


def _normalise_columns(table: pl.DataFrame, file: Path) -> pl.DataFrame:
    """Select the known columns, as strings and under their standard names."""
    names = {name: name.strip().lower() for name in table.columns if name.strip().lower() in COLUMNS}
    for column, number in Counter(names.values()).items():
        if number > 1:
            raise PhotosError(f"the table has {number} columns named {column!r}", where=file, advice="keep one of them")
    for column in ("path", "label"):
        if column not in names.values():
            raise PhotosError(
                f"the table has no column {column!r}; it has {', '.join(table.columns) or 'none'}",
                where=file,
                advice="start the table with the line: path,label   (optionally with ,split or ,group)",
            )
    nested = [name for name in names if table.schema[name].is_nested() or table.schema[name] == pl.Binary]
    if nested:
        raise PhotosError(
            f"the column {nested[0]!r} contains {table.schema[nested[0]]} instead of text",
            where=file,
            advice="give each photo one path and one label: multi-label classification is not supported",
        )
    known = sorted(names, key=lambda name: COLUMNS.index(names[name]))
    columns = (pl.col(name).cast(pl.String).str.strip_chars().replace("", None).alias(names[name]) for name in known)
    normalised, path_column = table.select(columns), next(name for name in known if names[name] == "path")
    raw_paths = table[path_column].cast(pl.String)
    is_stripped = (raw_paths != normalised["path"]).fill_null(False)
    if not is_stripped.any():
        return normalised
    # A file name may really begin or end with a space.
    root = str(file.parent)
    existing_paths = raw_paths.map_elements(
        lambda path: path if os.path.lexists(os.path.join(root, path)) else path.strip(), pl.String
    )
    return normalised.with_columns(pl.when(is_stripped).then(existing_paths).otherwise(pl.col("path")).alias("path"))


def _set_status(row: dict[str, str | None], root: str) -> dict[str, str | None]:
    path = row["path"]
    if not path:
        return {**row, "path": "", "status": "no path in this row"}
    if not row["label"]:
        return {**row, "status": "no label in this row"}
    try:
        return {**row, "status": check_file(os.path.join(root, path))}
    except ValueError as error:
        # The path contains a NUL.
        return {**row, "status": f"unreadable: {error}"}


def _merge_duplicate_rows(table: pl.DataFrame, file: Path) -> pl.DataFrame:
    """Merge repeated rows; refuse a photo with two labels, splits or groups."""
    root = str(file.parent)
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
            where=file,
            advice="give each photo one label: multi-label classification is not supported",
        )
    if duplicates.height:
        raise PhotosError(
            f"{duplicates['path'][0]} is in two splits or groups", where=file, advice="keep one row per photo"
        )
    return table.drop("place")


def _normalise_splits(table: pl.DataFrame, file: Path) -> pl.DataFrame:
    """Map the `split` column to the standard names; all rows have a split, or none."""
    if "split" not in table.columns:
        return table
    given = table["split"]
    if given.is_null().all():
        return table.drop("split")
    if given.is_null().any():
        raise PhotosError(
            f"{given.is_null().sum()} rows have no split, but the others have one",
            where=file,
            advice=f"use one of {', '.join(SPLITS)} in every row, or remove the split column",
        )
    unknown = sorted(set(given.str.to_lowercase()) - SPLIT_ALIASES.keys())
    if unknown:
        raise PhotosError(f"unknown split {unknown[0]!r}", where=file, advice=f"use one of {', '.join(SPLITS)}")
    return table.with_columns(given.str.to_lowercase().replace_strict(SPLIT_ALIASES).alias("split"))


def _read_parquet(file: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = _get_first_line(error)
        raise PhotosError(
            f"this Parquet file cannot be read: {reason}", where=file, advice="check that the file is complete"
        ) from None


def _read_csv(file: Path) -> pl.DataFrame:
    """Read every value as a string; commas, semicolons (European spreadsheets) or tabs.

    The first line decides which separator is used.
    """
    try:
        data = file.read_bytes().removeprefix(codecs.BOM_UTF8)
        data.decode()
    except UnicodeDecodeError as error:
        raise PhotosError(
            f"this table is not UTF-8 text (byte {error.start})", where=file, advice="save it as 'CSV UTF-8'"
        ) from None
    first_line = data[: data.find(b"\n") + 1 or None].decode()
    separator = max(SEPARATORS, key=first_line.count)
    if not first_line.strip():
        raise PhotosError("the table is empty", where=file, advice="start it with the line: path,label")
    try:
        return pl.read_csv(data, separator=separator, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        reason = _get_first_line(error)
        raise PhotosError(
            f"this CSV file cannot be read: {reason}",
            where=file,
            advice="give every line as many values as the first one has names",
        ) from None


def _get_first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
