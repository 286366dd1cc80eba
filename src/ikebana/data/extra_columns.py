"""The other columns of a table, kept if they can divide the photos.

These are columns of few different texts, and columns of numbers.
"""

import re

import polars as pl

from ikebana.data.columns import RawTable, clean_labels, find_columns, to_text
from ikebana.data.dataset import EXTRA_PREFIX
from ikebana.errors import PhotosError

# Columns beyond these are not kept: comparing more groups makes each comparison less certain.
MAX_EXTRA_COLUMNS = 20
# A text column with more values names single photos, or describes them.
MAX_EXTRA_VALUES = 20
# The row numbers that pandas writes before the first column, after the table is read and written again.
PANDAS_INDEX = re.compile(r"Unnamed: \d+")


def select_extra_columns(table: RawTable) -> pl.DataFrame:
    """Select the columns that divide the photos.

    Returns:
        One row per row of the table, EXTRA_PREFIX before each name; texts, or float64 where there are more than 20 numbers.
        Missing values are null.
    """
    known = set(find_columns(table).values())
    selected: dict[str, pl.Series] = {}
    for place, (name, values) in enumerate(zip(table.names, table.columns, strict=True)):
        shown = name.strip("\ufeff\u200b \t\r\n")
        if place in known or not shown or PANDAS_INDEX.fullmatch(shown) or f"{EXTRA_PREFIX}{shown}" in selected:
            continue
        column = _convert(name, values, table)
        if column is not None and len(selected) < MAX_EXTRA_COLUMNS:
            selected[f"{EXTRA_PREFIX}{shown}"] = column
    return pl.DataFrame(selected)


def _convert(name: str, values: pl.Series, table: RawTable) -> pl.Series | None:
    """Convert a column to texts or numbers; None if it does not divide the photos."""
    try:
        text = clean_labels(to_text(name, name, values, table.source))
    # A column that nothing needs may hold anything.
    except PhotosError:
        return None
    count = text.drop_nulls().n_unique()
    if count < 2:
        return None
    if count <= MAX_EXTRA_VALUES:
        return text
    numbers = text.cast(pl.Float64, strict=False)
    are_numbers = numbers.is_finite() | text.is_null()
    return numbers if are_numbers.all(ignore_nulls=False) else None
