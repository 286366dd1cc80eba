"""What is wrong with the files, as far as bytes and counts tell: the cheap part that every `fit` runs."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import polars as pl

from ikebana.photos.dataset import PARTS, Dataset

Severity = Literal["error", "warning", "note"]

FEW_PHOTOS = 20  # of a class: with fewer, its own score has an interval wider than 40 points
IMBALANCE = 5.0  # how many times larger the largest class may be than the smallest before it is worth a word


SHOWN = 8  # photos set aside that the summary names


@dataclass(frozen=True)
class Finding:
    """One thing that is odd, with its evidence and what to do about it."""

    kind: str
    severity: Severity
    paths: tuple[str, ...]
    evidence: str
    advice: str


def findings(dataset: Dataset) -> list[Finding]:
    """What the files show, the gravest first; the dataset is opened and split."""
    found = [*_unreadable(dataset), *_copies(dataset), *_classes(dataset)]
    order = ("error", "warning", "note")
    return sorted(found, key=lambda each: order.index(each.severity))


def as_json(dataset: Dataset, found: list[Finding]) -> dict[str, Any]:
    """The findings and the sums that must add up, for `audit.json`."""
    used, paths = dataset.used.height, dataset.photos.height
    reasons = dataset.set_aside["status"].value_counts(sort=True)
    return {
        "source": dataset.source,
        "paths": paths,
        "used": used,
        "set_aside": paths - used,
        "ignored": dataset.ignored,
        "reasons": dict(sorted(reasons.iter_rows(), key=lambda each: (-each[1], each[0]))),
        "classes": dataset.counts(),
        "notes": list(dataset.notes),
        "findings": [asdict(each) for each in found],
    }


def summary(dataset: Dataset, found: list[Finding], more: str = "audit.json") -> str:
    """What came in, in a few lines: the sums, why photos were set aside, and how many findings of each kind.

    more  where to look for what would not fit
    """
    used, paths = dataset.used, dataset.photos.height
    split = "  ".join(f"{part} {sum(used['split'] == part):,}" for part in PARTS)
    lines = [
        *dataset.notes,
        f"{paths:,} paths: {used.height:,} photos used, {paths - used.height:,} set aside; "
        f"{dataset.ignored:,} hidden or system files ignored",
        f"{len(dataset.classes)} classes; {split}",
    ]
    kinds = Counter((each.severity, each.kind) for each in found if each.kind != "unreadable")
    lines += [f"{severity}: {number} {kind.replace('_', ' ')}" for (severity, kind), number in kinds.items()]
    aside = dataset.set_aside.select("path", "status").rows()
    lines += [f"  set aside: {path}: {status}" for path, status in aside[:SHOWN]]
    if len(aside) > SHOWN:
        lines.append(f"  and {len(aside) - SHOWN} more: {more} names them")
    return "\n".join(lines)


def _unreadable(dataset: Dataset) -> Iterator[Finding]:
    for path, status in dataset.set_aside.select("path", "status").iter_rows():
        yield Finding("unreadable", "warning", (path,), status, "mend or remove the file; it was not used")


def _copies(dataset: Dataset) -> Iterator[Finding]:
    """Files with the same bytes: harmless in one part, a leak between parts, a contradiction under two labels."""
    copies = dataset.used.group_by("sha256").agg("path", "label", "split").filter(pl.col("path").list.len() > 1)
    for _, paths, labels, parts in copies.sort(pl.col("path").list.first()).iter_rows():
        if len(set(labels)) > 1:
            names = " and ".join(sorted(set(labels)))
            advice = "look at the photo and keep one; until then both stay, in the same part"
            yield Finding("identical_other_label", "warning", tuple(paths), f"the same bytes as {names}", advice)
        else:
            yield Finding(
                "identical", "note", tuple(paths), "the same bytes", "keep one; they count as one photo twice"
            )
        if len(set(parts)) > 1:
            where = " and ".join(sorted(set(parts)))
            advice = "use --split stratified, or mend the given parts: the score on such photos is memory"
            yield Finding("leak", "error", tuple(paths), f"the same bytes in {where}", advice)


def _classes(dataset: Dataset) -> Iterator[Finding]:
    counts = {name: sum(parts.values()) for name, parts in dataset.counts().items()}
    for name in dataset.classes_without_photos:
        yield Finding(
            "empty_class", "warning", (), f"class {name} has no usable photo", "add photos, or remove the folder"
        )
    for name, count in counts.items():
        if count < FEW_PHOTOS:
            advice = f"at least {FEW_PHOTOS} photos, better 100: its own score means little"
            yield Finding("few", "warning", (), f"class {name} has {count} photos", advice)
    largest, smallest = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    if counts[largest] > IMBALANCE * counts[smallest]:
        evidence = f"{largest} has {counts[largest]} photos, {smallest} has {counts[smallest]}"
        yield Finding("imbalance", "note", (), evidence, "more photos of the small classes")
