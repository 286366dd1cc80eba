"""The columns of a prediction table, and its formats: CSV, JSON lines and Parquet."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ikebana.inference.prediction import Prediction

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")
# A millionth is less than the difference between two processors.
PROBABILITY_DECIMALS = 6
# The columns before those of the probabilities.
FIXED_COLUMNS = ("path", "label", "confidence", "status", "candidates", "familiarity")
# Between two candidates in a CSV; in their names, `\` precedes `;` and `\`.
CANDIDATE_SEPARATOR = "; "


def get_column_names(classes: Sequence[str]) -> list[str]:
    """List the table's columns."""
    return [*FIXED_COLUMNS, *(f"p:{name}" for name in classes)]


def to_row(prediction: Prediction, classes: Sequence[str]) -> list[Any]:
    """Make the row of a prediction; unknown values are None."""
    numbers = [
        round(prediction.probabilities[name], PROBABILITY_DECIMALS) if prediction.is_usable else None
        for name in classes
    ]
    confidence = round(prediction.confidence, PROBABILITY_DECIMALS) if prediction.is_usable else None
    familiarity = None if prediction.familiarity is None else round(prediction.familiarity, PROBABILITY_DECIMALS)
    candidates = list(prediction.candidates)
    return [prediction.path, prediction.label, confidence, prediction.status, candidates, familiarity, *numbers]


def join_candidates(names: Sequence[str]) -> str:
    """Join class names to one text, such as `tulip; rose`."""
    return CANDIDATE_SEPARATOR.join(name.replace("\\", "\\\\").replace(";", "\\;") for name in names)


def get_parquet_schema(classes: Sequence[str]) -> dict[str, Any]:
    """Get the type of each column in polars."""
    import polars as pl

    return {
        **dict.fromkeys(get_column_names(classes), pl.Float64),
        **dict.fromkeys(("path", "label", "status"), pl.String),
        "candidates": pl.List(pl.String),
    }


def write_table(file: Path, suffix: str, classes: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as `to_row` makes them, in the format of the suffix.

    Args:
        rows: read once, and never all in memory.
    """
    write = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}[suffix.lower()]
    write(file, classes, rows)


def _write_csv(file: Path, classes: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(get_column_names(classes))
        writer.writerows(map(format_row, rows))


def _write_jsonl(file: Path, classes: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for fields in rows:
            row: dict[str, Any] = dict(zip(FIXED_COLUMNS, fields, strict=False))
            row["probabilities"] = dict(zip(classes, fields[len(FIXED_COLUMNS) :], strict=True))
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(file: Path, classes: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write with polars, which streams the rows."""
    import polars as pl

    names, flat = get_column_names(classes), file.with_name(f"{file.name}.flat")
    try:
        with flat.open("w", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n")
        pl.scan_ndjson(flat, schema=get_parquet_schema(classes)).sink_parquet(file)
    finally:
        flat.unlink(missing_ok=True)


def format_row(row: Sequence[Any]) -> list[str]:
    """Format a row for CSV: probabilities with a fixed number of decimals, None as ""."""
    return [_format_value(value) for value in row]


def _format_value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return join_candidates(value)
    return f"{value:.{PROBABILITY_DECIMALS}f}" if isinstance(value, float) else str(value)
