"""A table in memory: a frame of polars or pandas, or an Arrow table."""

from collections.abc import Hashable
from typing import Any, Protocol, TypeAlias, TypeGuard

import polars as pl

from ikebana.data.columns import RawTable
from ikebana.errors import PhotosError, get_first_line


class ArrowTable(Protocol):
    """A table of any library that has Arrow's C interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Frame: TypeAlias = pl.DataFrame | pl.LazyFrame | ArrowTable


def is_frame(photos: object) -> TypeGuard[Frame]:
    """Return whether photos are given as a frame. Neither pandas nor pyarrow is imported."""
    if isinstance(photos, pl.DataFrame | pl.LazyFrame) or _is_pandas_frame(photos):
        return True
    # A series has the interface as well, but no schema.
    return hasattr(photos, "__arrow_c_stream__") and hasattr(photos, "schema")


def describe(frame: Frame) -> str:
    """Name a frame's type, such as `polars.DataFrame`, for messages."""
    return f"{type(frame).__module__.partition('.')[0]}.{type(frame).__name__}"


def read(frame: Frame) -> RawTable:
    """Read a frame, which stays unchanged.

    Raises:
        PhotosError: a lazy frame cannot be computed.
    """
    if _is_pandas_frame(frame):
        return _read_pandas(frame)
    try:
        table = frame.collect() if isinstance(frame, pl.LazyFrame) else pl.DataFrame(frame)
    except (pl.exceptions.PolarsError, OSError) as error:
        what = f"this frame cannot be read: {get_first_line(error)}"
        raise PhotosError(what, where=describe(frame), advice="check it with frame.collect()") from None
    return RawTable(describe(frame), tuple(table.columns), tuple(table.get_columns()))


def _is_pandas_frame(photos: object) -> bool:
    """Return whether this is a pandas DataFrame or of a class derived from it."""
    return any(
        kind.__name__ == "DataFrame" and kind.__module__.partition(".")[0] == "pandas" for kind in type(photos).__mro__
    )


def _read_pandas(frame: Any) -> RawTable:
    """Read the columns and the named levels of the index, without pyarrow."""
    names = list(frame.columns)
    values = [frame.iloc[:, place] for place in range(len(names))]
    for level, name in enumerate(frame.index.names):
        if name is not None and name not in names:
            names.append(name)
            values.append(frame.index.get_level_values(level).to_series())
    return RawTable(
        describe(frame),
        tuple(_to_name(name) for name in names),
        tuple(_to_series(column, _to_name(name)) for name, column in zip(names, values, strict=True)),
    )


def _to_name(name: Hashable) -> str:
    return " ".join(map(str, name)) if isinstance(name, tuple) else str(name)


def _to_series(column: Any, name: str) -> pl.Series:
    """Take the values as Python objects: columns that are not used may hold anything."""
    objects = column.astype(object)
    values = [None if is_missing else value for value, is_missing in zip(objects, column.isna(), strict=True)]
    return pl.Series(name, values, pl.Object)
