"""Labels of a table: spellings that are the same text, or the same number."""

import re
import unicodedata
from collections import defaultdict

import polars as pl

NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def normalise_labels(labels: pl.Series) -> pl.Series:
    """Write labels in Unicode's composed form (NFC).

    The decomposed form looks the same, so it would be a second class of the same name.
    """
    unusual = [label for label in labels.unique().drop_nulls() if not unicodedata.is_normalized("NFC", label)]
    return labels.replace(unusual, [unicodedata.normalize("NFC", label) for label in unusual]) if unusual else labels


def describe_equal_numbers(labels: pl.Series) -> list[str]:
    """Report different classes that are the same number, such as 1 and 1.0."""
    by_number: dict[float, list[str]] = defaultdict(list)
    for label in labels.unique().drop_nulls().sort():
        if NUMBER.fullmatch(label):
            by_number[float(label)].append(label)
    return [
        f"the labels {' and '.join(map(repr, names))} are the same number but different classes"
        for names in by_number.values()
        if len(names) > 1
    ]
