"""The columns of a table, and which of them ikebana reads."""

import os
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ikebana.data.dataset import SPLIT_ALIASES
from ikebana.data.parquet_photos import ADVICE_IMAGE_COLUMN
from ikebana.errors import PhotosError

COLUMNS = ("path", "label", "split", "group")
REQUIRED_COLUMNS = ("path", "label")
# A label column that is read as it is written, although a label is `nan` or ends with a blank.
EXACT_LABEL = "exact_label"
# Names that other tools give to a required column. They count only where it is missing, and only if
# one of them is present.
SYNONYMS = {
    "path": frozenset(("file", "file_name", "filename", "file_path", "filepath", "photo", "photo_path"))
    | frozenset(("image", "image_file", "image_filename", "image_name", "image_path", "img", "img_name", "img_path")),
    "label": frozenset(("category", "category_name", "class", "class_label", "class_name", "classname", "label_name"))
    | {EXACT_LABEL},
}
# Texts by which programs write that a value is missing: pandas and NumPy, and spreadsheets.
MISSING_VALUES = (
    "nan",
    "NaN",
    "NAN",
    "<NA>",
    "NaT",
    "#N/A",
    "#REF!",
    "#NAME?",
    "#VALUE!",
    "#DIV/0!",
    "#NULL!",
    "#NUM!",
)
# Texts that may be a missing value as well as a class, such as "None" for no disease.
AMBIGUOUS_VALUES = (
    "NA",
    "N/A",
    "n/a",
    "null",
    "NULL",
    "None",
    "inf",
    "-inf",
    "Infinity",
    "-",
    "?",
    "unknown",
    "Unknown",
)
# Names of columns that probably hold groups.
GROUP_WORDS = frozenset(
    ("group", "patient", "subject", "participant", "person", "individual", "animal", "session", "site")
)
# How tables of one column per class mark the class.
INDICATOR_VALUES = frozenset(("0", "1", "0.0", "1.0", " 0", " 1", "False", "True", "false", "true", ""))
# Larger floats do not hold every integer.
MAX_EXACT_FLOAT = 2.0**53
# Invisible characters that are not spaces: zero-width ones, directions and a byte order mark.
OUTER_BLANKS = r"^[\s\u{200B}-\u{200F}\u{2060}\u{FEFF}]+|[\s\u{200B}-\u{200F}\u{2060}\u{FEFF}]+$"
# Of the names of all columns, in an error.
MAX_SHOWN_CHARACTERS = 300
PHOTO_NAME = re.compile(r"\.(jpe?g|png|webp|gif|tiff?|bmp|heic|avif)$", re.IGNORECASE)
HEADER_ADVICE = "start the table with the line: path,label   (optionally with ,split or ,group)"
FRAME_ADVICE = "name the columns path and label (optionally also split or group)"


@dataclass(frozen=True)
class RawTable:
    """A table as it is given: names may repeat, and values have any type."""

    # The file, or what frame it is, for messages.
    source: str | Path
    names: tuple[str, ...]
    # As many as names, of equal length.
    columns: tuple[pl.Series, ...]
    # What may be wrong, for the user.
    notes: tuple[str, ...] = ()


def select_columns(table: RawTable, columns: Sequence[str] = COLUMNS) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Select the known columns, as text and under their standard names.

    Returns:
        Those of `columns` that the table has, and how they were understood, for the user.
    Raises:
        PhotosError: a required column is missing, could be several columns, or holds no text.
    """
    places, notes = find_columns(table, columns), [*table.notes]
    selected = {
        column: to_text(column, table.names[place], table.columns[place], table.source)
        for column, place in places.items()
    }
    exact = [column for column, place in places.items() if _simplify(table.names[place]) == EXACT_LABEL]
    texts = pl.DataFrame(selected).with_columns(_clear_missing(column) for column in places if column not in exact)
    for column, place in places.items():
        if _simplify(table.names[place]) != column:
            notes.append(f"the column {table.names[place]!r} is read as {column!r}")
        if column in ("label", "group") and column not in exact:
            notes += _describe_ambiguous_values(column, texts[column])
    if "split" in columns and "split" not in places:
        notes += _describe_unused_splits(table)
    if "group" in columns and "group" not in places:
        notes += _describe_unused_groups(table)
    return texts, tuple(notes)


def has_exact_labels(table: RawTable) -> bool:
    """Return whether the labels are in the column EXACT_LABEL."""
    place = find_columns(table).get("label")
    return place is not None and _simplify(table.names[place]) == EXACT_LABEL


def clean_labels(labels: pl.Series) -> pl.Series:
    """Read labels as in a column `label`: clear missing values, strip outer blanks."""
    return labels.to_frame("label").select(_clear_missing("label")).to_series()


def count_known_columns(names: Iterable[str]) -> int:
    """Count the names that stand for a known column."""
    return sum(find_standard_name(name) is not None for name in names)


def find_standard_name(name: str) -> str | None:
    """Return which column of COLUMNS a name stands for; None if none."""
    simple = _simplify(name)
    if simple in COLUMNS:
        return simple
    return next((column for column, synonyms in SYNONYMS.items() if simple in synonyms), None)


def find_columns(table: RawTable, columns: Sequence[str] = COLUMNS) -> dict[str, int]:
    """Return the place of each of these columns that the table has, in their order.

    Raises:
        PhotosError: a required column is missing, or a column could be several.
    """
    simple = [_simplify(name) for name in table.names]
    places = {}
    for column in columns:
        exact = [place for place, name in enumerate(simple) if name == column]
        if len(exact) > 1:
            what = f"the table has {len(exact)} columns named {column!r}"
            raise PhotosError(what, where=table.source, advice="keep one of them")
        place = exact[0] if exact else _find_synonym(column, simple, table)
        if place is not None:
            places[column] = place
    for column in columns:
        if column in REQUIRED_COLUMNS and column not in places:
            raise _missing_column_error(column, table)
    return places


def _simplify(name: str) -> str:
    """Write a name in lower case, with _ for spaces and hyphens inside."""
    return re.sub(r"[\s-]+", "_", name.strip("\ufeff\u200b \t\r\n").lower())


def _find_synonym(column: str, simple: Sequence[str], table: RawTable) -> int | None:
    places = [place for place, name in enumerate(simple) if name in SYNONYMS.get(column, ())]
    if len(places) > 1:
        names = " and ".join(repr(table.names[place]) for place in places)
        raise PhotosError(
            f"the table has no column {column!r}, and {names} could both be meant",
            where=table.source,
            advice=f"rename one of them to {column}",
        )
    return places[0] if places else None


def _missing_column_error(column: str, table: RawTable) -> PhotosError:
    advice = HEADER_ADVICE if isinstance(table.source, Path) else FRAME_ADVICE
    if str(table.source).lower().endswith(".parquet"):
        advice = f"{advice}; or {ADVICE_IMAGE_COLUMN}"
    shown = textwrap.shorten(", ".join(name.strip() or "(unnamed)" for name in table.names), MAX_SHOWN_CHARACTERS)
    if any(PHOTO_NAME.search(name.strip()) for name in table.names):
        return PhotosError(f"the table has no header: its first line is {shown}", where=table.source, advice=advice)
    if column == "label" and (classes := _find_indicator_columns(table)):
        shown = textwrap.shorten(", ".join(classes), MAX_SHOWN_CHARACTERS)
        return PhotosError(
            f"the table has no column 'label' but one column per class: {shown}",
            where=table.source,
            advice="add a column label with the class of each photo; for Roboflow's _classes.csv, give its folder",
        )
    return PhotosError(
        f"the table has no column {column!r}; it has {shown or 'none'}", where=table.source, advice=advice
    )


def _find_indicator_columns(table: RawTable) -> list[str]:
    """Return the columns of zeros and ones; empty if there are others, or only one."""
    others = [
        (name.strip(), values)
        for name, values in zip(table.names, table.columns, strict=True)
        if find_standard_name(name) is None
    ]
    is_indicator = [
        # Not `unique`, which polars lacks for the Python objects of a pandas frame.
        not values.dtype.is_nested() and set(map(str, values.drop_nulls())) <= INDICATOR_VALUES
        for _, values in others
    ]
    return [name for name, _ in others] if len(others) > 1 and all(is_indicator) else []


def to_text(column: str, name: str, values: pl.Series, source: str | Path) -> pl.Series:
    """Write values of any type as text; null, NaN and infinities become null."""
    if values.dtype == pl.Object:
        values = convert_objects(values, name, source)
        # As pandas writes them to a CSV file; polars writes true and false.
        if values.dtype == pl.Boolean:
            return values.cast(pl.String).str.to_titlecase()
    if values.dtype.is_nested() or values.dtype == pl.Binary:
        raise _nested_column_error(column, name, values, source)
    if values.dtype.is_float():
        values = _clean_floats(values)
    try:
        return values.cast(pl.String)
    except pl.exceptions.PolarsError:
        what = f"the column {name!r} contains {values.dtype} instead of text"
        raise PhotosError(what, where=source, advice="convert it to text") from None


def _clear_missing(column: str) -> pl.Expr:
    """Make texts that stand for a missing value null, and strip outer blanks.

    A path keeps its blanks, because a file name may begin or end with one.
    """
    text = pl.col(column)
    if column == "path":
        return pl.when(text.str.strip_chars() != "").then(text).alias(column)
    stripped = text.str.replace_all("\0", "", literal=True).str.replace_all(OUTER_BLANKS, "")
    return pl.when(~stripped.is_in(["", *MISSING_VALUES])).then(stripped).alias(column)


def _nested_column_error(column: str, name: str, values: pl.Series, source: str | Path) -> PhotosError:
    advice = (
        "save the images as files and give their paths"
        if column == "path"
        else "give each photo one path and one label: multi-label classification is not supported"
    )
    return PhotosError(f"the column {name!r} contains {values.dtype} instead of text", where=source, advice=advice)


def _clean_floats(values: pl.Series) -> pl.Series:
    """Make NaN and infinities null, and whole numbers integers.

    A frame turns integers into floats as soon as one value is missing: 1.0 then stands for 1.
    """
    finite = values.to_frame("number").select(pl.when(pl.col("number").is_finite()).then("number")).to_series()
    numbers = finite.drop_nulls()
    is_whole = ((numbers == numbers.round()) & (numbers.abs() < MAX_EXACT_FLOAT)).all()
    return finite.cast(pl.Int64) if is_whole else finite


def convert_objects(values: pl.Series, name: str, source: str | Path) -> pl.Series:
    """Convert Python objects, such as paths, to values of one type.

    Raises:
        PhotosError: the types differ.
    """
    plain = [os.fspath(value) if isinstance(value, os.PathLike) else value for value in values]
    try:
        return pl.Series(name, plain, strict=True)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        types = sorted({type(value).__name__ for value in plain if value is not None})
        raise PhotosError(
            f"the column {name!r} contains values of different types: {', '.join(types)}",
            where=source,
            advice="convert them to text",
        ) from None


def _describe_ambiguous_values(column: str, values: pl.Series) -> list[str]:
    """Report texts that look like a missing value but are taken as they are."""
    suspects = values.filter(values.is_in(AMBIGUOUS_VALUES)).unique().sort().to_list()
    return [
        f"the {column} {text!r} is taken as it is written; if it means a missing value, leave the cell empty"
        for text in suspects
    ]


def _describe_unused_splits(table: RawTable) -> list[str]:
    """Report a column of splits under another name, which is not used."""
    return [
        f"the column {name!r} contains splits but is not used; rename it to split to use them"
        for name, values in zip(table.names, table.columns, strict=True)
        if values.dtype == pl.String and _is_split_column(values)
    ]


def _describe_unused_groups(table: RawTable) -> list[str]:
    """Report unused columns that look like groups by name, with repeated values."""
    return [
        f"the column {name!r} is not used for the split; rename it to group to keep its photos in one split"
        for name, values in zip(table.names, table.columns, strict=True)
        if re.sub(r"(_?id|s|_?number|_?no)$", "", _simplify(name)) in GROUP_WORDS
        and 1 < len(set(map(str, values.drop_nulls()))) < len(values)
    ]


def _is_split_column(values: pl.Series) -> bool:
    splits = {SPLIT_ALIASES.get(value.strip().lower(), "") for value in values.unique().drop_nulls()}
    return splits <= {*SPLIT_ALIASES.values()} and "train" in splits and len(splits) > 1
