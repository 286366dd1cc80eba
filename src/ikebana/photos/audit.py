"""What is wrong with the photos, as far as files, counts and twins tell: the cheap part that every `fit` runs."""

import json
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import polars as pl

from ikebana.photos.dataset import PARTS, USED, Dataset, Twin
from ikebana.photos.split import islands

Severity = Literal["error", "warning", "note"]
SEVERITIES = get_args(Severity)  # the gravest first

FEW_PHOTOS = 20  # of a class: with fewer, its own score has an interval wider than 40 points
IMBALANCE = 5.0  # how many times larger the largest class may be than the smallest before it is worth a word
SHOWN = 8  # photos set aside that the summary names
COLUMNS = 100  # of the summary's table
NARROW = 40  # columns that an example gets at least
LINES = 4  # that it takes at most

MEND = "use --split stratified, or mend the given parts: the score on such photos is memory"


@dataclass(frozen=True)
class Finding:
    """One thing that is odd, with its evidence and what to do about it."""

    kind: str
    severity: Severity
    paths: tuple[str, ...]
    evidence: str
    advice: str
    label: str | None = None  # what the photo shows, if somebody thinks to know better
    confidence: float | None = None  # how sure of that, 0 to 1


def findings(dataset: Dataset) -> list[Finding]:
    """What the files show, the gravest first; the dataset is opened and split."""
    found = [*_unreadable(dataset), *_copies(dataset), *_twins(dataset), *_groups(dataset), *_classes(dataset)]
    return gravest_first(found)


def gravest_first(found: Iterable[Finding]) -> list[Finding]:
    """Errors, then warnings, then notes; each in the order in which they come."""
    return sorted(found, key=lambda each: SEVERITIES.index(each.severity))


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


def as_table(found: Iterable[Finding]) -> pl.DataFrame:
    """The findings, a row each, for `findings.csv`; the paths as a JSON list, since a name may hold any separator."""
    rows = [{**asdict(each), "paths": json.dumps(each.paths, ensure_ascii=False)} for each in found]
    texts = dict.fromkeys(("kind", "severity", "paths", "evidence", "advice", "label"), pl.String)
    return pl.DataFrame(rows, schema={**texts, "confidence": pl.Float64})


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
    lines += _table([each for each in found if each.kind != "unreadable"])
    aside = dataset.set_aside.select("path", "status").rows()
    lines += [f"  set aside: {path}: {status}" for path, status in aside[:SHOWN]]
    if len(aside) > SHOWN:
        lines.append(f"  and {len(aside) - SHOWN} more: {more} names them")
    elif found:
        lines.append(f"  all of them, in full: {more}")
    return "\n".join(lines)


def _table(found: list[Finding]) -> list[str]:
    """How many findings of each kind, with the first of them as an example, in a column of its own."""
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for each in found:
        kinds.setdefault((each.severity, each.kind.replace("_", " ")), []).append(each)
    wide = max((len(kind) for _, kind in kinds), default=0)
    lines = []
    for (severity, kind), several in kinds.items():
        others = f" (the first of {len(several):,})" if len(several) > 1 else ""
        head = f"  {severity:<7}  {len(several):>5,}  {kind:<{wide}}  "
        room = max(COLUMNS - len(head), NARROW)
        example = textwrap.wrap(
            in_short(several[0]) + others, room, max_lines=LINES, placeholder=" …", break_on_hyphens=False
        ) or [""]
        lines += [f"{start}{piece}" for start, piece in zip([head, *[" " * len(head)] * LINES], example, strict=False)]
    return lines


def in_short(finding: Finding) -> str:
    """A finding's evidence, and two of its photos."""
    more = len(finding.paths) - 2
    shown = ", ".join(finding.paths[:2]) + (f" and {more} more" if more > 0 else "")
    return f"{finding.evidence}: {shown}" if shown else finding.evidence


def _unreadable(dataset: Dataset) -> Iterator[Finding]:
    for path, status in dataset.set_aside.select("path", "status").iter_rows():
        yield Finding("unreadable", "warning", (path,), status, "mend or remove the file; it was not used")


def _copies(dataset: Dataset) -> Iterator[Finding]:
    """Files with the same bytes: harmless in one part, a leak between parts, a contradiction under two labels."""
    several = dataset.used.filter(pl.col("sha256").is_duplicated())
    copies = several.group_by("sha256").agg("path", "label", "split")
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
            yield Finding("leak", "error", tuple(paths), f"the same bytes in {where}", MEND)


def _twins(dataset: Dataset) -> Iterator[Finding]:
    """Copies that are not the same to the byte: resized, saved again, cropped, mirrored, turned."""
    hashes = dataset.photos["sha256"]
    found = islands((each.first, each.second) for each in dataset.twins)
    copies: dict[str, list[int]] = {hashes[row]: [] for rows in found for row in rows}
    used = dataset.photos["status"] == USED  # a copy that could not be read is in no part
    for row, (digest, is_used) in enumerate(zip(hashes, used, strict=True) if copies else ()):
        if is_used and digest in copies:
            copies[digest].append(row)
    island_of = {row: number for number, rows in enumerate(found) for row in rows}
    done: list[list[Twin]] = [[] for _ in found]
    for each in dataset.twins:
        done[island_of[each.first]].append(each)
    for rows, how in zip(found, done, strict=True):
        yield from _island(dataset.photos[sorted(copy for row in rows for copy in copies[hashes[row]])], how)


def _island(photos: pl.DataFrame, how: list[Twin]) -> Iterator[Finding]:
    """What photos that are copies of each other mean for the score."""
    paths, labels, parts = tuple(photos["path"]), set(photos["label"]), set(photos["split"])
    evidence = f"{how[0].how}, {how[0].alike:.2f} alike"
    if len(paths) > 2:
        done = ", ".join(sorted({word for each in how for word in each.how.split(", ")}))
        evidence = f"{len(paths)} photos, each {min(each.alike for each in how):.2f} alike another or more: {done}"
    if photos["twins"].has_nulls():
        advice = (
            "more than half of a class: they cannot be kept in one part, so its score is too good; add other photos"
        )
        yield Finding("near_twin", "warning", paths, evidence, advice)
        return
    if len(labels) > 1:
        names = " and ".join(sorted(labels))
        advice = "look at them and mend a label, or keep one; until then they stay, in the same part"
        yield Finding("near_twin_other_label", "warning", paths, f"{evidence}; {names}", advice)
    else:
        yield Finding("near_twin", "note", paths, evidence, "keep the best; together they count as one photo")
    if len(parts) > 1:
        where = " and ".join(sorted(parts))
        yield Finding("leak", "error", paths, f"{evidence}, in {where}", MEND)


def _groups(dataset: Dataset) -> Iterator[Finding]:
    """Given groups that lie in several parts."""
    grouped = dataset.used.filter(pl.col("group").is_not_null()).group_by("group").agg("path", "split")
    parted = grouped.filter(pl.col("split").list.n_unique() > 1).sort("group")
    for name, paths, parts in parted.iter_rows():
        where = " and ".join(sorted(set(parts)))
        yield Finding("leak", "error", tuple(paths), f"the group {name} lies in {where}", MEND)


def _written_alike(names: Iterable[str]) -> Iterator[list[str]]:
    """Classes whose names a person would take for one."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(" ".join(unicodedata.normalize("NFC", name).casefold().split()), []).append(name)
    yield from (each for each in alike.values() if len(each) > 1)


def _classes(dataset: Dataset) -> Iterator[Finding]:
    parts = dataset.counts()
    counts = {name: sum(each.values()) for name, each in parts.items()}
    for name in [each for each in counts if counts[each] and not parts[each]["train"]]:
        alike = [each for each in counts if each != name and each.casefold() == name.casefold()]
        evidence = f"no photo of {name} is there to learn from" + (
            f", but {alike[0]} is another class" if alike else ""
        )
        yield Finding(
            "untrained", "error", (), evidence, "photos of it in the training part: it can never be named rightly"
        )
    for names in _written_alike(counts):
        evidence = f"{' and '.join(map(repr, names))} differ in capitals or blanks alone"
        yield Finding("alike_names", "warning", (), evidence, "if they are one class, give them one name")
    for name in dataset.classes_without_photos:
        yield Finding(
            "empty_class", "warning", (), f"class {name} has no usable photo", "add photos, or remove the folder"
        )
    different = dict(dataset.used.group_by("label").agg(pl.col("sha256").n_unique()).iter_rows())
    for name, count in sorted(counts.items(), key=lambda each: each[1]):
        if different.get(name, 0) < FEW_PHOTOS:
            advice = f"at least {FEW_PHOTOS} photos, better 100: its own score means little"
            copies = f", {different[name]} of them different" if different.get(name, 0) < count else ""
            yield Finding("few", "warning", (), f"class {name} has {count} photos{copies}", advice)
    largest, smallest = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    if counts[largest] > IMBALANCE * counts[smallest]:
        evidence = f"{largest} has {counts[largest]} photos, {smallest} has {counts[smallest]}"
        yield Finding("imbalance", "note", (), evidence, "more photos of the small classes")
