"""Cleaned tables of photos for `fit`: findings become dropped rows and changed labels.

Each change has a reason. No file is changed.

--drop near_duplicate,blurry         kinds of findings whose photos are dropped; one of each set of duplicates is kept
--drop 'suspect_label>0.9'           only findings with a higher confidence
--relabel 'suspect_label>0.95'       which photos get the suggested label
"""

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from ikebana.auditing.findings import Finding
from ikebana.data.columns import EXACT_LABEL, clean_labels
from ikebana.data.dataset import EXTRA_PREFIX, SPLITS, STATUS_USED, Dataset
from ikebana.data.labels import normalise_labels
from ikebana.data.split import find_connected_components
from ikebana.errors import PhotosError, RecipeError
from ikebana.system.files import atomic_write

# One photo of each of these findings is kept; of other findings, every photo is dropped.
DUPLICATE_KINDS = ("exact_duplicate", "near_duplicate")
# Kinds for which photos can be dropped. The others, such as `class_imbalance`, concern no single row.
PHOTO_KINDS = (
    *(
        "unreadable",
        "exact_duplicate",
        "exact_duplicate_conflicting_label",
        "near_duplicate",
        "near_duplicate_conflicting_label",
    ),
    *("suspect_label", "outlier", "blurry", "dark", "bright", "blank", "low_resolution", "odd_aspect_ratio"),
)
# A model's opinion of a label, which no person has checked yet.
SUSPECT_LABEL_KINDS = ("suspect_label",)
# `suspect_label` alone means `suspect_label>0.5`: labels that are more probably wrong than right.
DEFAULT_CONFIDENCE = 0.5
REASON_COLUMN = "reason"


@dataclass(frozen=True)
class Selector:
    """Selection of findings to act on.

    Attributes:
        text: what the user wrote.
        above_confidence: excludes findings without a confidence; None for all findings of the kind.
    """

    text: str
    kind: str
    above_confidence: float | None = None

    def matches(self, finding: Finding) -> bool:
        """Return whether this finding is selected."""
        if finding.kind != self.kind:
            return False
        if self.above_confidence is None:
            return True
        return finding.confidence is not None and finding.confidence > self.above_confidence


@dataclass(frozen=True)
class CleaningResult:
    """Tables of the kept and the dropped photos, with reasons.

    Attributes:
        kept_photos: path, label, [split], [group], other columns and the reason, null in unchanged rows.
        dropped_photos: path, label and the reason.
        suspect_label_count: photos dropped or relabelled because of a suspect label.
        protected_count: test photos that stay unchanged although their label is suspect.
    """

    kept_photos: pl.DataFrame
    dropped_photos: pl.DataFrame
    suspect_label_count: int = 0
    protected_count: int = 0

    @property
    def relabelled_count(self) -> int:
        """Number of kept photos whose label changed."""
        return self.kept_photos[REASON_COLUMN].count()


def parse_selectors(words: Sequence[str], flag: str) -> tuple[Selector, ...]:
    """Parse the values of a flag, such as `near_duplicate` and `suspect_label>0.95`.

    A single string is allowed.

    Raises:
        RecipeError: a word is not a kind for which rows can be dropped or relabelled.
    """
    words = [words] if isinstance(words, str) else words
    return tuple(_parse_selector(word.strip(), flag) for word in words if word.strip())


def _parse_selector(word: str, flag: str) -> Selector:
    kind, _, number = (part.strip() for part in word.replace("_", "-").partition(">"))
    kind = kind.replace("-", "_")
    try:
        above_confidence = float(number) if ">" in word else None
    except ValueError:
        raise RecipeError(f"{flag} {word!r}: {number!r} is not a number", advice=f"{flag} '{kind}>0.95'") from None
    if flag == "--relabel" and kind not in SUSPECT_LABEL_KINDS:
        raise RecipeError(
            f"{flag} {word!r}: these findings suggest no other label", advice=f"{flag} 'suspect_label>0.95'"
        )
    if above_confidence is None and kind in SUSPECT_LABEL_KINDS:
        above_confidence = DEFAULT_CONFIDENCE
    if kind not in PHOTO_KINDS:
        raise RecipeError(
            f"{flag} {word!r}: photos cannot be dropped for this", advice=f"one of {', '.join(PHOTO_KINDS)}"
        )
    if above_confidence is not None and not 0 <= above_confidence < 1:
        raise RecipeError(
            f"{flag} {word!r}: {number} is not a confidence between 0 and 1", advice=f"{flag} '{kind}>0.95'"
        )
    return Selector(word, kind, above_confidence)


def find_unmatched(selectors: Sequence[Selector], findings: Sequence[Finding]) -> list[str]:
    """Return the selectors that match no finding, for example because of a typing error."""
    return [selector.text for selector in selectors if not any(selector.matches(finding) for finding in findings)]


def clean(
    dataset: Dataset,
    findings: Sequence[Finding],
    drop: Sequence[Selector] = (),
    relabel: Sequence[Selector] = (),
    has_given_split: bool = False,
) -> CleaningResult:
    """Drop and relabel photos as selected.

    Unreadable photos are always dropped. One of each set of duplicates is kept: a test photo if
    there is one, so that scores stay comparable, else the largest. A relabelled photo is not dropped for the same
    suspect label. Test photos of a given split are never changed because of a suspect label: the
    model would choose its own test set.

    Args:
        has_given_split: whether the photos came with a split, which is then kept. Otherwise `fit`
            splits the cleaned table itself.
    """
    protected = set(dataset.photos.filter(pl.col("split") == "test")["path"]) if has_given_split else set()
    spared = _find_protected(protected, findings, (*drop, *relabel))
    findings = _exclude_protected(protected, findings)
    before = dict(dataset.used_photos.select("path", "label").iter_rows())
    labels = {
        path: (finding.suggested_label, f"was {before[path]}: {_give_reason(finding)}")
        for finding in findings
        if finding.suggested_label is not None and any(selector.matches(finding) for selector in relabel)
        for path in finding.paths
    }
    # A table may contain a path twice, in a used and in an unused row.
    unused = dataset.set_aside_photos.select("path", "status").iter_rows()
    gone = {path: reason for path, reason in unused if path not in before}
    to_drop = [finding for finding in findings if any(selector.matches(finding) for selector in drop)]
    for finding in to_drop:
        is_relabelled = finding.suggested_label is not None and finding.paths[0] in labels
        if finding.kind not in DUPLICATE_KINDS and not is_relabelled:
            gone |= {path: _give_reason(finding) for path in finding.paths if path not in gone}
    duplicates = [finding for finding in to_drop if finding.kind in DUPLICATE_KINDS]
    gone |= dict(_drop_duplicates(duplicates, dataset, gone.keys()))
    kept_photos, dropped_photos = _make_tables(dataset, gone, labels, has_given_split)
    dropped_as_suspect = {
        path
        for finding in to_drop
        if finding.kind in SUSPECT_LABEL_KINDS
        for path in finding.paths
        if gone.get(path) == _give_reason(finding)
    }
    suspect_label_count = len(dropped_as_suspect) + kept_photos[REASON_COLUMN].count()
    return CleaningResult(kept_photos, dropped_photos, suspect_label_count, len(spared - gone.keys()))


def check_classes(result: CleaningResult, dataset: Dataset) -> None:
    """Refuse a cleaned table of fewer than two classes.

    Raises:
        PhotosError: with the most frequent reason for dropping photos.
    """
    classes = result.kept_photos["label"].unique().sort().to_list()
    if len(classes) > 1:
        return
    reasons = result.dropped_photos[REASON_COLUMN].str.extract(r"^([^:]+)").value_counts(sort=True)
    most_frequent = [f"; {count:,} were dropped for {reason}" for reason, count in reasons.head(1).iter_rows()]
    photos = f"{result.kept_photos.height:,} of {dataset.used_photos.height:,} photos"
    raise PhotosError(
        f"the cleaned table would have {photos}, of {len(classes)} class{'es' * (not classes)}"
        f"{''.join(f' ({name})' for name in classes)}{''.join(most_frequent)}: no table was written",
        where=dataset.source,
        advice="look at the findings first, with --out DIR, and drop or relabel fewer kinds of them",
    )


def find_lost_classes(result: CleaningResult, dataset: Dataset) -> list[str]:
    """Return the classes that have no photo left."""
    return sorted(set(dataset.classes) - set(result.kept_photos["label"]))


def to_dataset(dataset: Dataset, result: CleaningResult) -> Dataset:
    """Return the dataset that `fit` reads from the table."""
    kept_photos = result.kept_photos
    labels = kept_photos["label"]
    splits = kept_photos["split"] if "split" in kept_photos.columns else pl.lit(None, pl.String).alias("split")
    photos = dataset.used_photos.filter(pl.col("path").is_in(kept_photos["path"].to_list()))
    return replace(dataset, photos=photos.with_columns(labels, splits), classes=tuple(labels.unique().sort()))


def list_used_photos(dataset: Dataset, has_given_split: bool) -> pl.DataFrame:
    """Return the table that `clean` makes without any change, with absolute paths.

    The second column is the label, and the last one the reason, which is empty.
    """
    table, _ = _make_tables(dataset, {}, {}, has_given_split)
    paths = [str(dataset.resolve_path(path).expanduser().absolute()) for path in table["path"]]
    return _mark_exact_labels(table.with_columns(pl.Series("path", paths, pl.String)))


def _find_protected(protected: Collection[str], findings: Sequence[Finding], selectors: Sequence[Selector]) -> set[str]:
    """Return the protected paths that would be changed because of a suspect label."""
    return {
        path
        for finding in findings
        if finding.kind in SUSPECT_LABEL_KINDS and any(selector.matches(finding) for selector in selectors)
        for path in finding.paths
        if path in protected
    }


def _exclude_protected(protected: Collection[str], findings: Sequence[Finding]) -> list[Finding]:
    """Remove the protected paths from suspect labels, and those findings that have no path left."""

    def exclude(finding: Finding) -> Finding:
        return replace(finding, paths=tuple(path for path in finding.paths if path not in protected))

    suspect = SUSPECT_LABEL_KINDS
    remaining = [exclude(finding) if finding.kind in suspect else finding for finding in findings]
    return [finding for finding in remaining if finding.paths or finding.kind not in suspect]


def _give_reason(finding: Finding) -> str:
    confidence = f", confidence {finding.confidence:.2f}" if finding.confidence is not None else ""
    return f"{finding.kind.replace('_', ' ')}: {finding.evidence}{confidence}"


def _drop_duplicates(findings: Sequence[Finding], dataset: Dataset, gone: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield all duplicates but one per connected component, with the reason."""
    paths = dataset.photos["path"].to_list()
    used = (dataset.photos["status"] == STATUS_USED).to_list()
    row_of = {path: row for row, path in enumerate(paths) if used[row]}
    evidence = {row_of[path]: finding for finding in reversed(findings) for path in finding.paths}
    pairs = [(row_of[finding.paths[0]], row_of[path]) for finding in findings for path in finding.paths[1:]]
    remaining = [[row for row in component if paths[row] not in gone] for component in find_connected_components(pairs)]
    for component in filter(None, remaining):
        best, *others = sorted(component, key=lambda row: _rank(dataset.photos.row(row, named=True)))
        for row in others:
            yield paths[row], f"{_give_reason(evidence[row])}; {paths[best]} is kept"


def _rank(photo: dict[str, Any]) -> tuple[int, int, str]:
    """Rank duplicates: the lowest is kept."""
    return -SPLITS.index(photo["split"]), -photo["width"] * photo["height"], photo["path"]


def _make_tables(
    dataset: Dataset, gone: dict[str, str], labels: dict[str, tuple[str, str]], has_split: bool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the tables of kept and dropped photos."""
    photos = dataset.photos
    stays = (pl.col("status") == STATUS_USED) & ~pl.col("path").is_in(list(gone))
    dropped_photos = photos.filter(~stays)
    rows = dropped_photos.select("path", "status").iter_rows()
    reasons = [gone[path] if status == STATUS_USED else status for path, status in rows]
    dropped_photos = dropped_photos.select("path", "label", pl.Series(REASON_COLUMN, reasons, pl.String))
    kept_photos = photos.filter(stays)
    changed = [labels.get(path, (label, None)) for path, label in kept_photos.select("path", "label").iter_rows()]
    columns = ["path", "label", *(["split"] if has_split else []), *(["group"] if kept_photos["group"].count() else [])]
    others = {name: name.removeprefix(EXTRA_PREFIX) for name in photos.columns if name.startswith(EXTRA_PREFIX)}
    others.pop(f"{EXTRA_PREFIX}{REASON_COLUMN}", None)
    kept_photos = kept_photos.select(*columns, *others).rename(others)
    kept_photos = kept_photos.with_columns(
        pl.Series("label", [label for label, _ in changed], pl.String),
        pl.Series(REASON_COLUMN, [reason for _, reason in changed], pl.String),
    )
    return kept_photos, dropped_photos


def dropped_table_path(file: Path) -> Path:
    """Return the path for dropped rows: `cleaned-dropped.csv` beside `cleaned.csv`."""
    return file.with_name(f"{file.stem}-dropped{file.suffix}")


def check_writable(file: Path) -> None:
    """Refuse to overwrite a file, before any photo is read.

    The user may have edited an earlier table by hand.

    Raises:
        RecipeError: the file is not a .csv.
        PhotosError: one of the two files exists.
    """
    if file.suffix.lower() != ".csv":
        raise RecipeError(f"the table must be a .csv file, not {file.name}", advice="--write cleaned.csv")
    for table in (file, dropped_table_path(file)):
        if table.exists():
            raise PhotosError(
                "this file exists and is not overwritten", where=table, advice="use another name, or remove it"
            )


def check_not_archive(dataset: Dataset) -> None:
    """Refuse photos that a table cannot refer to: in an archive or a store.

    Raises:
        PhotosError: the photos are not files of this computer.
    """
    if dataset.locations is not None:
        raise PhotosError(
            "the photos are not files of this computer, and a table cannot refer to them",
            where=dataset.source,
            advice="download or unpack them and audit the folder",
        )
    if dataset.archive_prefix:
        raise PhotosError(
            "the photos are in an archive, and a table cannot refer to files inside it",
            where=dataset.source,
            advice="unpack it and audit the folder",
        )


def write(file: Path, dataset: Dataset, result: CleaningResult) -> None:
    """Write both tables; paths below the table's folder become relative, others absolute.

    Raises:
        PhotosError: the photos are in an archive.
    """
    check_not_archive(dataset)
    folder = file.expanduser().resolve().parent
    # Dropped rows first: if the second write fails, the same command can run again.
    for target, table in ((dropped_table_path(file), result.dropped_photos), (file, result.kept_photos)):
        paths = [_relative_to(folder, dataset.resolve_path(path)) if path else "" for path in table["path"]]
        with atomic_write(target.expanduser()) as partial_file:
            partial_file.write_text(
                _to_csv(_mark_exact_labels(table.with_columns(pl.Series("path", paths, pl.String)))), "utf-8"
            )


def _mark_exact_labels(table: pl.DataFrame) -> pl.DataFrame:
    """Rename the labels if a column `label` would be read back differently."""
    labels = table["label"].drop_nulls()
    is_changed = normalise_labels(clean_labels(labels)).ne_missing(labels).any()
    return table.rename({"label": EXACT_LABEL} if is_changed else {})


def _relative_to(folder: Path, photo: Path) -> str:
    absolute = Path(photo).expanduser().absolute()
    # A symbolic link to a photo keeps its own name.
    resolved = absolute.parent.resolve() / absolute.name
    return resolved.relative_to(folder).as_posix() if resolved.is_relative_to(folder) else str(absolute)


def _to_csv(table: pl.DataFrame) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.with_columns(pl.all().cast(pl.String).fill_null("")).iter_rows())
    return stream.getvalue()
