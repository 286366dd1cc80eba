"""A table of photos: `path,label[,split][,group]` as CSV or Parquet."""

import codecs
import os
from collections import Counter
from pathlib import Path

import polars as pl

from ikebana.errors import PhotosError
from ikebana.photos.dataset import PART_NAMES, PARTS, SCHEMA, Dataset, gathered
from ikebana.photos.folder import file_status

COLUMNS = ("path", "label", "split", "group")
SEPARATORS = ",;\t"


def read(file: Path) -> Dataset:
    """The photos that a table names; paths start from the table's folder, unless they are absolute.

    raises  PhotosError if columns are missing, a part's name is unknown, or a photo has two labels
    """
    table = _with_columns(_parquet(file) if file.suffix.lower() == ".parquet" else _csv(file), file)
    once = _once_each(table, file)
    again = table.height - once.height
    notes = (f"{again:,} rows say what another one says already, and count once with it",) if again else ()
    rows = (_row(row, str(file.parent)) for row in _with_parts(once, file).iter_rows(named=True))
    return Dataset(str(file), file.parent, gathered(rows, SCHEMA).sort("path"), (), notes=notes)


def _with_columns(table: pl.DataFrame, file: Path) -> pl.DataFrame:
    """The columns we know, as text, under our own names."""
    names = {name: name.strip().lower() for name in table.columns if name.strip().lower() in COLUMNS}
    for column, number in Counter(names.values()).items():
        if number > 1:
            raise PhotosError(f"the table has {number} columns {column!r}", where=file, advice="one of each")
    for column in ("path", "label"):
        if column not in names.values():
            raise PhotosError(
                f"the table has no column {column!r}; it has {', '.join(table.columns) or 'none'}",
                where=file,
                advice="a first line that reads: path,label   (and ,split or ,group if wanted)",
            )
    nested = [name for name in names if table.schema[name].is_nested() or table.schema[name] == pl.Binary]
    if nested:
        raise PhotosError(
            f"the column {nested[0]!r} does not hold texts but {table.schema[nested[0]]}",
            where=file,
            advice="one path and one label a photo: ikebana cannot learn several labels at once",
        )
    known = sorted(names, key=lambda name: COLUMNS.index(names[name]))
    text = (pl.col(name).cast(pl.String).str.strip_chars().replace("", None).alias(names[name]) for name in known)
    found, named = table.select(text), next(name for name in known if names[name] == "path")
    whole = table[named].cast(pl.String)
    spaced = (whole != found["path"]).fill_null(False)
    if not spaced.any():
        return found
    root = str(file.parent)
    kept = whole.map_elements(
        lambda path: path if os.path.lexists(os.path.join(root, path)) else path.strip(), pl.String
    )
    return found.with_columns(pl.when(spaced).then(kept).otherwise(pl.col("path")).alias("path"))


def _row(row: dict[str, str | None], root: str) -> dict[str, str | None]:
    path = row["path"]
    if not path:
        return {**row, "path": "", "status": "no path in this row"}
    if not row["label"]:
        return {**row, "status": "no label in this row"}
    try:
        return {**row, "status": file_status(os.path.join(root, path))}
    except ValueError as error:  # a NUL in the name
        return {**row, "status": f"unreadable: {error}"}


def _once_each(table: pl.DataFrame, file: Path) -> pl.DataFrame:
    """Rows said twice are one; one photo with two labels is refused: ikebana gives each photo one label."""
    root = str(file.parent)
    place = pl.col("path").map_elements(lambda path: os.path.normpath(os.path.join(root, path)), pl.String)
    table = table.with_columns(place=place)
    table = table.unique(subset=[name for name in table.columns if name != "path"], keep="first", maintain_order=True)
    labelled = table.filter(pl.col("path").is_not_null() & pl.col("label").is_not_null())
    labelled = labelled.filter(labelled["place"].is_duplicated())
    labels = labelled.group_by("place").agg(pl.col("path").first(), pl.col("label").unique().sort())
    several = labels.filter(pl.col("label").list.len() > 1).sort("path")
    if several.height:
        _, path, names = several.row(0)
        raise PhotosError(
            f"photos with more than one label: {several.height:,}; the first is {path}: {', '.join(names)}",
            where=file,
            advice="one label a photo: ikebana cannot learn several at once",
        )
    if labelled.height:
        raise PhotosError(f"{labelled['path'][0]} stands in two parts or groups", where=file, advice="one row a photo")
    return table.drop("place")


def _with_parts(table: pl.DataFrame, file: Path) -> pl.DataFrame:
    """The `split` column in our own words; all rows have one, or none."""
    if "split" not in table.columns:
        return table
    given = table["split"]
    if given.is_null().all():
        return table.drop("split")
    if given.is_null().any():
        raise PhotosError(
            f"{given.is_null().sum()} rows have no split, the others have one",
            where=file,
            advice=f"one of {', '.join(PARTS)} in each row, or no split column",
        )
    unknown = sorted(set(given.str.to_lowercase()) - PART_NAMES.keys())
    if unknown:
        raise PhotosError(f"unknown split {unknown[0]!r}", where=file, advice=f"one of {', '.join(PARTS)}")
    return table.with_columns(given.str.to_lowercase().replace_strict(PART_NAMES).alias("split"))


def _parquet(file: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        why = _first_line(error)
        raise PhotosError(
            f"this Parquet file cannot be read: {why}", where=file, advice="a copy of it that is whole"
        ) from None


def _csv(file: Path) -> pl.DataFrame:
    """Commas, semicolons (European spreadsheets) or tabs, told by the first line; every value a text."""
    try:
        data = file.read_bytes().removeprefix(codecs.BOM_UTF8)
        data.decode()
    except UnicodeDecodeError as error:
        raise PhotosError(
            f"this table is not UTF-8 text (byte {error.start})", where=file, advice="save it as 'CSV UTF-8'"
        ) from None
    first = data[: data.find(b"\n") + 1 or None].decode()
    separator = max(SEPARATORS, key=first.count)
    if not first.strip():
        raise PhotosError("the table is empty", where=file, advice="a first line that reads: path,label")
    try:
        return pl.read_csv(data, separator=separator, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        why = _first_line(error)
        raise PhotosError(
            f"this CSV file cannot be read: {why}",
            where=file,
            advice="as many values in each line as names in the first",
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
