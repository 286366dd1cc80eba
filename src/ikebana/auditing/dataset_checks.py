"""Findings from files, counts and duplicates: the fast checks that every `fit` runs."""

import json
import textwrap
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import polars as pl

from ikebana.auditing.findings import SEVERITIES, Finding
from ikebana.data.dataset import SPLITS, STATUS_USED, Dataset, NearDuplicate
from ikebana.data.folder_names import get_original_name
from ikebana.data.labels import find_similar_names, simplify_name
from ikebana.data.split import find_connected_components

# With fewer photos, the 95% interval of a class's own score is wider than 40 points.
MIN_PHOTOS_PER_CLASS = 20
# Largest class divided by smallest class.
MAX_IMBALANCE_RATIO = 5.0
MAX_SUMMARY_PATHS = 8
SUMMARY_COLUMNS = 100
MIN_EXAMPLE_COLUMNS = 40
MAX_EXAMPLE_LINES = 4

LEAK_ADVICE = "use --split stratified, or fix the given split: test accuracy on leaked photos is inflated"


def check_dataset(dataset: Dataset) -> list[Finding]:
    """List what files, counts and duplicates show, most severe first.

    Args:
        dataset: opened and split.
    """
    doubts = [Finding("ambiguous_folders", "warning", (), evidence, advice) for evidence, advice in dataset.doubts]
    findings = [
        *doubts,
        *_check_unreadable(dataset),
        *_check_exact_duplicates(dataset),
        *_check_near_duplicates(dataset),
        *_check_groups(dataset),
        *_check_classes(dataset),
    ]
    return sort_by_severity(findings)


def sort_by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Sort into errors, warnings, notes; the order within each stays."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def to_json(dataset: Dataset, findings: list[Finding]) -> dict[str, Any]:
    """Return the findings and the totals for `audit.json`."""
    used, paths = dataset.used_photos.height, dataset.photos.height
    reasons = dataset.set_aside_photos["status"].value_counts(sort=True)
    return {
        "source": dataset.source,
        "paths": paths,
        "used": used,
        "set_aside": paths - used,
        "ignored": dataset.ignored_count,
        "reasons": dict(sorted(reasons.iter_rows(), key=lambda row: (-row[1], row[0]))),
        "classes": dataset.count_photos(),
        "notes": list(dataset.notes),
        "findings": [asdict(finding) for finding in findings],
    }


def to_table(findings: Iterable[Finding]) -> pl.DataFrame:
    """Return one row per finding for `findings.csv`.

    Paths are a JSON list, because a file name may contain any separator.
    """
    rows = [{**asdict(finding), "paths": json.dumps(finding.paths, ensure_ascii=False)} for finding in findings]
    texts = dict.fromkeys(("kind", "severity", "paths", "evidence", "advice", "suggested_label"), pl.String)
    return pl.DataFrame(rows, schema={**texts, "confidence": pl.Float64})


def summarise(dataset: Dataset, findings: list[Finding], details: str) -> str:
    """Summarise the totals, the unused photos, and the findings per kind.

    Args:
        dataset: opened and split.
        findings: in the order to show.
        details: the file, or the command that writes it, with everything that the summary leaves out.
    """
    used, paths = dataset.used_photos, dataset.photos.height
    splits = "  ".join(f"{split} {sum(used['split'] == split):,}" for split in SPLITS)
    lines = [
        *dataset.notes,
        f"{paths:,} paths: {used.height:,} photos used, {paths - used.height:,} skipped; "
        f"{dataset.ignored_count:,} hidden or system files ignored",
        f"{len(dataset.classes)} classes; {splits}",
    ]
    lines += _summarise_kinds([finding for finding in findings if finding.kind != "unreadable"])
    unused = dataset.set_aside_photos.select("path", "status")
    # One photo per reason first: a thousand photos without labels must not hide a broken one.
    number_of_reason = pl.int_range(pl.len()).over("status")
    shown = unused.sort(number_of_reason, maintain_order=True).head(MAX_SUMMARY_PATHS)
    lines += [f"  skipped: {path}: {status}" for path, status in shown.iter_rows()]
    if unused.height > MAX_SUMMARY_PATHS:
        lines.append(f"  and {unused.height - MAX_SUMMARY_PATHS:,} more; full list: {details}")
    elif findings:
        lines.append(f"  full list: {details}")
    return "\n".join(lines)


def _summarise_kinds(findings: list[Finding]) -> list[str]:
    """Return the number of findings per kind, each with its first finding as an example."""
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.severity, finding.kind.replace("_", " ")), []).append(finding)
    width = max((len(kind) for _, kind in kinds), default=0)
    lines = []
    for (severity, kind), of_kind in kinds.items():
        others = f" (first of {len(of_kind):,})" if len(of_kind) > 1 else ""
        head = f"  {severity:<7}  {len(of_kind):>5,}  {kind:<{width}}  "
        columns = max(SUMMARY_COLUMNS - len(head), MIN_EXAMPLE_COLUMNS)
        example = textwrap.wrap(
            describe(of_kind[0]) + others,
            columns,
            max_lines=MAX_EXAMPLE_LINES,
            placeholder=" …",
            break_on_hyphens=False,
        ) or [""]
        starts = [head, *[" " * len(head)] * MAX_EXAMPLE_LINES]
        lines += [f"{start}{text}" for start, text in zip(starts, example, strict=False)]
    return lines


def describe(finding: Finding) -> str:
    """Describe a finding by its evidence and at most two of its paths."""
    more = len(finding.paths) - 2
    shown = ", ".join(finding.paths[:2]) + (f" and {more} more" if more > 0 else "")
    return f"{finding.evidence}: {shown}" if shown else finding.evidence


def _check_unreadable(dataset: Dataset) -> Iterator[Finding]:
    for path, status in dataset.set_aside_photos.select("path", "status").iter_rows():
        yield Finding("unreadable", "warning", (path,), status, "repair or remove the file; it was skipped")


def _check_exact_duplicates(dataset: Dataset) -> Iterator[Finding]:
    """Report files with the same bytes.

    Within one split they are harmless, across splits a leak, under two labels a conflict.
    """
    duplicated = dataset.used_photos.filter(pl.col("sha256").is_duplicated())
    by_hash = duplicated.group_by("sha256").agg("path", "label", "split")
    for _, paths, labels, splits in by_hash.sort(pl.col("path").list.first()).iter_rows():
        if len(set(labels)) > 1:
            names = " and ".join(sorted(set(labels)))
            advice = "keep the file with the right label, and remove the others; until then all stay, in the same split"
            yield Finding(
                "exact_duplicate_conflicting_label",
                "warning",
                tuple(paths),
                f"identical files labelled {names}",
                advice,
            )
        else:
            advice = "keep one, and remove the others: a copy adds no information"
            yield Finding("exact_duplicate", "note", tuple(paths), "identical files", advice)
        if len(set(splits)) > 1:
            where = " and ".join(sorted(set(splits)))
            yield Finding("leakage", "error", tuple(paths), f"identical files in {where}", LEAK_ADVICE)


def _check_near_duplicates(dataset: Dataset) -> Iterator[Finding]:
    """Report near-duplicates: photos that were resized, saved again, cropped, mirrored or rotated."""
    hashes = dataset.photos["sha256"]
    components = find_connected_components((pair.first, pair.second) for pair in dataset.near_duplicates)
    rows_of_hash: dict[str, list[int]] = {hashes[row]: [] for rows in components for row in rows}
    # A copy that could not be read is in no split.
    used = dataset.photos["status"] == STATUS_USED
    for row, (sha256, is_used) in enumerate(zip(hashes, used, strict=True) if rows_of_hash else ()):
        if is_used and sha256 in rows_of_hash:
            rows_of_hash[sha256].append(row)
    component_of = {row: number for number, rows in enumerate(components) for row in rows}
    pairs: list[list[NearDuplicate]] = [[] for _ in components]
    for pair in dataset.near_duplicates:
        pairs[component_of[pair.first]].append(pair)
    for rows, pairs_of_component in zip(components, pairs, strict=True):
        photos = dataset.photos[sorted(copy for row in rows for copy in rows_of_hash[hashes[row]])]
        yield from _check_component(photos, pairs_of_component)


def _check_component(photos: pl.DataFrame, pairs: list[NearDuplicate]) -> Iterator[Finding]:
    """Report one connected component of near-duplicates."""
    paths, labels, splits = tuple(photos["path"]), set(photos["label"]), set(photos["split"])
    evidence = f"{pairs[0].transformation}, similarity {pairs[0].similarity:.2f}"
    if len(paths) > 2:
        changes = ", ".join(sorted({word for pair in pairs for word in pair.transformation.split(", ")}))
        least = min(pair.similarity for pair in pairs)
        evidence = f"{len(paths)} near-duplicates (similarity {least:.2f} or more), {changes}"
    if photos["duplicate_of"].has_nulls():
        advice = "too many to keep in one split (more than half of a class), so its score is inflated; add other photos"
        yield Finding("near_duplicate", "warning", paths, evidence, advice)
        return
    if len(labels) > 1:
        names = " and ".join(sorted(labels))
        advice = (
            "keep those with the right label, and change or remove the others; until then all stay, in the same split"
        )
        yield Finding("near_duplicate_conflicting_label", "warning", paths, f"{evidence}; labelled {names}", advice)
    else:
        advice = "keep the best one, and remove the others: a copy adds little information"
        yield Finding("near_duplicate", "note", paths, evidence, advice)
    if len(splits) > 1:
        where = " and ".join(sorted(splits))
        yield Finding("leakage", "error", paths, f"{evidence}, in {where}", LEAK_ADVICE)


def _check_groups(dataset: Dataset) -> Iterator[Finding]:
    """Report given groups whose photos are in several splits."""
    grouped = dataset.used_photos.filter(pl.col("group").is_not_null()).group_by("group").agg("path", "split")
    leaking = grouped.filter(pl.col("split").list.n_unique() > 1).sort("group")
    for name, paths, splits in leaking.iter_rows():
        where = " and ".join(sorted(set(splits)))
        yield Finding("leakage", "error", tuple(paths), f"group {name} is in {where}", LEAK_ADVICE)


def _check_class_names(names: Collection[str]) -> Iterator[Finding]:
    """Report class names that probably mean the same class."""
    for similar in find_similar_names(names):
        evidence = f"{' and '.join(map(repr, similar))} differ only in case, spaces, punctuation or Unicode form"
        yield Finding("similar_class_names", "warning", (), evidence, "if they are one class, give them the same name")
    for name in names:
        original = get_original_name(name)
        if original in names:
            evidence = f"{name!r} is named like a copy of {original!r}"
            advice = "if it is a copy, remove it; if they are one class, give them the same name"
            yield Finding("similar_class_names", "warning", (), evidence, advice)


def _check_classes(dataset: Dataset) -> Iterator[Finding]:
    split_counts = dataset.count_photos()
    counts = {name: sum(of_class.values()) for name, of_class in split_counts.items()}
    for name in [name for name in counts if counts[name] and not split_counts[name]["train"]]:
        similar = [other for other in counts if other != name and simplify_name(other) == simplify_name(name)]
        evidence = f"class {name} has no training photos"
        evidence += f", but there is also a class {similar[0]}" if similar else ""
        advice = "add training photos: a network never predicts a class that it was not trained on"
        yield Finding("class_without_training_photos", "error", (), evidence, advice)
    yield from _check_class_names(counts)
    for name in dataset.empty_classes:
        advice = "add photos, or remove the folder"
        yield Finding("empty_class", "warning", (), f"class {name} has no usable photos", advice)
    distinct = dict(dataset.used_photos.group_by("label").agg(pl.col("sha256").n_unique()).iter_rows())
    for name, count in sorted(counts.items(), key=lambda item: item[1]):
        if distinct.get(name, 0) < MIN_PHOTOS_PER_CLASS:
            advice = f"add photos until it has at least {MIN_PHOTOS_PER_CLASS}, better 100: with so few, its score means little"
            copies = f", only {distinct[name]} of them distinct" if distinct.get(name, 0) < count else ""
            yield Finding("small_class", "warning", (), f"class {name} has {count} photos{copies}", advice)
    largest, smallest = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    if counts[largest] > MAX_IMBALANCE_RATIO * counts[smallest]:
        evidence = f"{largest} has {counts[largest]} photos, {smallest} has {counts[smallest]}"
        yield Finding("class_imbalance", "note", (), evidence, "add photos of the small classes")
