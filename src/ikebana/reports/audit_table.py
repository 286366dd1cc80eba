"""The table of all photos that the audit page turns into a cleaned table."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import polars as pl

from ikebana.auditing import cleaning
from ikebana.auditing.findings import Finding
from ikebana.data.dataset import Dataset

# A page with a larger table would be slow to open.
MAX_TABLE_PHOTOS = 50_000
# Kinds that the suggested command drops, because copies and blank photos add nothing.
SUGGESTED_DROPS = ("exact_duplicate", "near_duplicate", "blank")
SUGGESTED_RELABEL = "suspect_label>0.95"


@dataclass(frozen=True)
class ReviewTable:
    """The table for `fit` as it is before any decision.

    Attributes:
        columns: path, label, others, and the reason of a change.
        root: what all paths begin with.
        rows: values per photo, without the root of its path.
        classes: labels that a photo can get.
        key: distinguishes the decisions of one collection from those of another.
    """

    columns: list[str]
    root: str
    rows: list[list[str | None]]
    classes: list[str]
    key: str


def make_review_table(dataset: Dataset, has_given_split: bool) -> ReviewTable | None:
    """List all used photos; None for an archive or too many photos."""
    if dataset.archive_prefix or dataset.locations is not None or dataset.used_photos.height > MAX_TABLE_PHOTOS:
        return None
    table = cleaning.list_used_photos(dataset, has_given_split)
    paths = table["path"].to_list()
    # Characters, not folders, because any common start saves space.
    root = os.path.commonprefix(paths) if len(paths) > 1 else ""  # noqa: RUF071
    rows = table.with_columns(pl.col("path").str.slice(len(root))).cast(pl.String).rows()
    key = f"{dataset.source} {len(paths)}"
    return ReviewTable(table.columns, root, [list(row) for row in rows], list(dataset.classes), key)


def to_json(table: ReviewTable | None) -> dict[str, object] | None:
    """Return plain values for the page."""
    return None if table is None else asdict(table)


def suggest_command(dataset: Dataset, findings: Sequence[Finding]) -> str:
    """Return the command that writes a cleaned table by kinds of findings."""
    kinds = {finding.kind for finding in findings}
    drop = ",".join(kind for kind in SUGGESTED_DROPS if kind in kinds)
    selectors = cleaning.parse_selectors(SUGGESTED_RELABEL, "--relabel")
    command = ["ikebana", "audit", dataset.command_argument, "--write", "cleaned.csv"]
    command += ["--drop", drop] if drop else []
    if any(selector.matches(finding) for selector in selectors for finding in findings):
        command += ["--relabel", SUGGESTED_RELABEL]
    return shlex.join(command)
