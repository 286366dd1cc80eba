"""Labels of a table: spellings that are the same text, or the same number."""

import html
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

import polars as pl

NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
# Punctuation that may tell classes apart, such as C and C#. A hyphen does so at an end, as in A-.
MEANINGFUL_PUNCTUATION = "#%&*@"
# Between the pieces of several labels in one cell.
LABEL_SEPARATOR = re.compile(r"[,;|]")


def normalise_labels(labels: pl.Series) -> pl.Series:
    """Write labels in Unicode's composed form (NFC).

    The decomposed form looks the same, so it would be a second class of the same name.
    """
    unusual = [label for label in labels.unique().drop_nulls() if not unicodedata.is_normalized("NFC", label)]
    return labels.replace(unusual, [unicodedata.normalize("NFC", label) for label in unusual]) if unusual else labels


def simplify_name(name: str) -> str:
    """Reduce a name to what its spellings share: letters in lower case, digits and symbols.

    Separators between two digits stay: 1.5 is not 15. Names of punctuation alone stay too.
    """
    text = unicodedata.normalize("NFKC", html.unescape(name)).casefold()
    kinds = [(character, unicodedata.category(character)) for character in text]
    text = "".join("-" if kind == "Pd" else character for character, kind in kinds if kind not in ("Cc", "Cf"))
    unspaced = "".join(
        character
        for place, character in enumerate(text)
        if character in f"-{MEANINGFUL_PUNCTUATION}"
        or unicodedata.category(character)[0] not in "PZ"
        or (text[:place][-1:].isdigit() and text[place + 1 :][:1].isdigit())
    )
    return re.sub(r"(?<=[^\W\d])-+(?=\w)|(?<=\w)-+(?=[^\W\d])", "", unspaced) or name


def find_similar_names(names: Iterable[str]) -> list[list[str]]:
    """List names that differ only in case, spaces, punctuation or Unicode form."""
    by_key: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_key[simplify_name(name)].append(name)
    return [similar for similar in by_key.values() if len(similar) > 1]


def describe_equal_numbers(column: str, values: pl.Series) -> list[str]:
    """Report different values that are the same number, such as 1 and 1.0."""
    by_number: dict[float, list[str]] = defaultdict(list)
    for value in values.unique().drop_nulls().sort():
        if NUMBER.fullmatch(value):
            by_number[float(value)].append(value)
    kind = "classes" if column == "label" else f"{column}s"
    return [
        f"the {column}s {' and '.join(map(repr, names))} are the same number but different {kind}"
        for names in by_number.values()
        if len(names) > 1
    ]


def describe_similar_groups(groups: pl.Series) -> list[str]:
    """Report groups that are probably the same one."""
    return [
        f"the groups {' and '.join(map(repr, similar))} differ only in case, spaces, punctuation or Unicode form: "
        "if they are one group, give them the same name"
        for similar in find_similar_names(groups.unique().drop_nulls().sort())
    ]


def describe_combined_labels(labels: pl.Series) -> list[str]:
    """Report labels that join other labels, such as cat,dog beside cat and dog."""
    names = labels.unique().drop_nulls().sort().to_list()
    joined = {name: [piece.strip() for piece in LABEL_SEPARATOR.split(name)] for name in names}
    return [
        f"the label {name!r} is a class of its own, beside {' and '.join(map(repr, pieces))}: "
        "multi-label classification is not supported"
        for name, pieces in joined.items()
        if len(pieces) > 1 and set(pieces) <= set(names)
    ]
