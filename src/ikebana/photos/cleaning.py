"""Findings become a table of photos that `fit` takes: rows dropped, labels changed, each with its reason; no file is touched.

--drop twins,unreadable,blurred       what to leave out: kinds of findings, or one of the words below
--drop 'doubtful>0.9'                 only findings that are surer than that
--relabel 'doubtful>0.95'             what gets the label that the finding thinks right
"""

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from ikebana.errors import PhotosError, RecipeError
from ikebana.photos.audit import Finding
from ikebana.photos.dataset import PARTS, USED, Dataset
from ikebana.photos.split import islands
from ikebana.places import written

# What people say, and the kinds of findings that are meant by it; any kind may be named itself.
MEANT = {
    "twins": ("identical", "near_twin"),
    "contradictions": ("identical_other_label", "near_twin_other_label"),
    "unreadable": ("unreadable",),
    "doubtful": ("doubtful_label",),
}
KEEP_ONE = MEANT["twins"]  # of several photos; of all other findings every photo is dropped
# The kinds of findings that photos can be dropped for; of the others, as `imbalance`, no single row is to blame.
OF_PHOTOS = (
    *("unreadable", "identical", "identical_other_label", "near_twin", "near_twin_other_label"),
    *("doubtful_label", "odd", "blurred", "dark", "bright", "blank", "tiny", "aspect"),
)
DOUBT = MEANT["doubtful"]  # what a network says against a label, which nobody has looked at yet
WHY = "why"


@dataclass(frozen=True)
class Choice:
    """Findings that are to be acted upon."""

    word: str  # as the user wrote it
    kinds: tuple[str, ...]
    surer_than: float | None = None  # those alone that say how sure they are, and are surer

    def takes(self, finding: Finding) -> bool:
        """Whether this finding is one of them."""
        if finding.kind not in self.kinds:
            return False
        return self.surer_than is None or (finding.confidence is not None and finding.confidence > self.surer_than)


@dataclass(frozen=True)
class Cleaned:
    """What is left of the photos, and what is not, and why."""

    kept: pl.DataFrame  # path, label, [split], [group], why: null in rows that are as they were
    dropped: pl.DataFrame  # path, label, why
    doubted: int = 0  # photos that are dropped or relabelled because a network doubts their label
    spared: int = 0  # test photos that stay as they are though their label is doubted

    @property
    def relabelled(self) -> int:
        """How many of the kept photos have another label than before."""
        return self.kept[WHY].count()


def chosen(words: Sequence[str], flag: str) -> tuple[Choice, ...]:
    """What the user wrote behind a flag: `twins`, `doubtful>0.95`; a single one may stand by itself.

    raises  RecipeError if a word is no kind that rows could be dropped or relabelled for
    """
    several = [words] if isinstance(words, str) else words
    return tuple(_choice(word.strip(), flag) for word in several if word.strip())


def _choice(word: str, flag: str) -> Choice:
    kind, _, number = (part.strip() for part in word.replace("_", "-").partition(">"))
    kind = kind.replace("-", "_")
    try:
        surer_than = float(number) if ">" in word else None
    except ValueError:
        raise RecipeError(f"{flag} {word!r}: {number!r} is not a number", advice=f"{flag} '{kind}>0.95'") from None
    if flag == "--relabel" and kind not in ("doubtful", "doubtful_label"):
        raise RecipeError(f"{flag} {word!r}: no other label is known for these", advice=f"{flag} 'doubtful>0.95'")
    known = ", ".join(dict.fromkeys([*MEANT, *OF_PHOTOS]))
    if kind not in MEANT and kind not in OF_PHOTOS:
        raise RecipeError(f"{flag} {word!r}: no photos can be dropped for that", advice=known)
    if surer_than is not None and not 0 <= surer_than < 1:
        raise RecipeError(
            f"{flag} {word!r}: {number} is no confidence, which lies between 0 and 1", advice=f"{flag} '{kind}>0.95'"
        )
    return Choice(word, MEANT.get(kind, (kind,)), surer_than)


def in_vain(choices: Sequence[Choice], found: Sequence[Finding]) -> list[str]:
    """The words for which nothing was found: there is nothing of the kind, or the word was mistyped."""
    return [choice.word for choice in choices if not any(choice.takes(each) for each in found)]


def cleaned(
    dataset: Dataset,
    found: Sequence[Finding],
    drop: Sequence[Choice] = (),
    relabel: Sequence[Choice] = (),
    split_given: bool = False,
) -> Cleaned:
    """The photos without those that are to go, and with the labels that are to change.

    Photos that cannot be read are always left out. Of twins one stays: a test photo before others, so that the score stays
    comparable, else the largest. A photo that is to be relabelled is not dropped for the same doubt. Test photos of a given
    split stay as they are whatever a network doubts: it would choose what it is scored on.

    split_given  whether the photos came with a split, which is then kept; one that was made here is made anew by `fit`
    """
    sealed = set(dataset.photos.filter(pl.col("split") == "test")["path"]) if split_given else set()
    spared = _doubted_in(sealed, found, (*drop, *relabel))
    found = _without(sealed, found)
    before = dict(dataset.used.select("path", "label").iter_rows())
    labels = {
        path: (each.label, f"was {before[path]}: {_because(each)}")
        for each in found
        if each.label is not None and any(choice.takes(each) for choice in relabel)
        for path in each.paths
    }
    # A table may name a photo twice, in a row that is used and in one that cannot be.
    gone = {path: why for path, why in dataset.set_aside.select("path", "status").iter_rows() if path not in before}
    to_drop = [each for each in found if any(choice.takes(each) for choice in drop)]
    for each in to_drop:
        if each.kind not in KEEP_ONE and not (each.label is not None and each.paths[0] in labels):
            gone |= {path: _because(each) for path in each.paths if path not in gone}
    gone |= dict(_but_one([each for each in to_drop if each.kind in KEEP_ONE], dataset, gone.keys()))
    result = _tables(dataset, gone, labels, split_given)
    for_doubt = {
        path for each in to_drop if each.kind in DOUBT for path in each.paths if gone.get(path) == _because(each)
    }
    return replace(result, doubted=len(for_doubt) + result.relabelled, spared=len(spared - gone.keys()))


def _doubted_in(paths: Collection[str], found: Sequence[Finding], choices: Sequence[Choice]) -> set[str]:
    """Those of the photos that would be dropped or relabelled for doubt."""
    taken = [each for each in found if each.kind in DOUBT and any(choice.takes(each) for choice in choices)]
    return {path for each in taken for path in each.paths if path in paths}


def _without(paths: Collection[str], found: Sequence[Finding]) -> list[Finding]:
    """The findings, with none of these photos left in those that are doubts."""
    kept = [
        replace(each, paths=tuple(path for path in each.paths if path not in paths)) if each.kind in DOUBT else each
        for each in found
    ]
    return [each for each in kept if each.paths or each.kind not in DOUBT]


def _because(finding: Finding) -> str:
    sure = f" ({finding.confidence:.2f} sure)" if finding.confidence is not None else ""
    return f"{finding.kind.replace('_', ' ')}: {finding.evidence}{sure}"


def _but_one(found: Sequence[Finding], dataset: Dataset, gone: Collection[str]) -> Iterator[tuple[str, str]]:
    """All twins but one of each, with the reason."""
    paths = dataset.photos["path"].to_list()
    used = (dataset.photos["status"] == USED).to_list()
    row_of = {path: row for row, path in enumerate(paths) if used[row]}
    evidence = {row_of[path]: each for each in reversed(found) for path in each.paths}
    pairs = [(row_of[each.paths[0]], row_of[path]) for each in found for path in each.paths[1:]]
    left = [[row for row in island if paths[row] not in gone] for island in islands(pairs)]
    for island in filter(None, left):
        stays, *others = sorted(island, key=lambda row: _worth(dataset.photos.row(row, named=True)))
        for row in others:
            yield paths[row], f"{_because(evidence[row])}; {paths[stays]} stays"


def _worth(photo: dict[str, Any]) -> tuple[int, int, str]:
    """What makes one of several twins the one to keep: the least of these."""
    return -PARTS.index(photo["split"]), -photo["width"] * photo["height"], photo["path"]


def _tables(dataset: Dataset, gone: dict[str, str], labels: dict[str, tuple[str, str]], split_given: bool) -> Cleaned:
    photos, used = dataset.photos, pl.col("status") == USED
    stays = used & ~pl.col("path").is_in(list(gone))
    dropped = photos.filter(~stays)
    why = [gone[path] if status == USED else status for path, status in dropped.select("path", "status").iter_rows()]
    dropped = dropped.select("path", "label", pl.Series(WHY, why, pl.String))
    kept = photos.filter(stays)
    new = [labels.get(path, (label, None)) for path, label in kept.select("path", "label").iter_rows()]
    columns = ["path", "label", *(["split"] if split_given else []), *(["group"] if kept["group"].count() else [])]
    kept = kept.select(columns).with_columns(
        pl.Series("label", [label for label, _ in new], pl.String), pl.Series(WHY, [why for _, why in new], pl.String)
    )
    return Cleaned(kept, dropped)


def dropped_beside(file: Path) -> Path:
    """Where the rows go that were dropped: `cleaned-dropped.csv` beside `cleaned.csv`."""
    return file.with_name(f"{file.stem}-dropped{file.suffix}")


def check_writable(file: Path) -> None:
    """Refuse to write over a file before any photo is read.

    raises  RecipeError if it is no .csv; PhotosError if there is a file: one of ours may have been mended by hand since
    """
    if file.suffix.lower() != ".csv":
        raise RecipeError(f"the table would be written as {file.suffix or 'nothing'}", advice="--write cleaned.csv")
    for each in (file, dropped_beside(file)):
        if each.exists():
            raise PhotosError("there is a file already, and it stays", where=each, advice="another name, or remove it")


def check_within_reach(dataset: Dataset) -> None:
    """Refuse photos that no table can point to, before any is read.

    raises  PhotosError if they lie in an archive
    """
    if dataset.prefix:
        raise PhotosError(
            "the photos lie in an archive, and a table cannot point into it",
            where=dataset.source,
            advice="unpack it, and audit the folder",
        )


def write(file: Path, dataset: Dataset, result: Cleaned) -> None:
    """Both tables; paths below the table's folder start from there, all others are absolute.

    raises  PhotosError if the photos lie in an archive
    """
    check_within_reach(dataset)
    folder = file.expanduser().resolve().parent
    # What was dropped first: if only one can be written, it is not the one that would keep the same command from running again.
    for place, table in ((dropped_beside(file), result.dropped), (file, result.kept)):
        paths = [_from(folder, dataset.file(path)) if path else "" for path in table["path"]]
        with written(place.expanduser()) as beside:
            beside.write_text(_as_csv(table.with_columns(pl.Series("path", paths, pl.String))), "utf-8")


def _from(folder: Path, photo: Path) -> str:
    absolute = Path(photo).expanduser().absolute()
    resolved = absolute.parent.resolve() / absolute.name  # a link to a photo keeps its own name
    return resolved.relative_to(folder).as_posix() if resolved.is_relative_to(folder) else str(absolute)


def _as_csv(table: pl.DataFrame) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.with_columns(pl.all().fill_null("")).iter_rows())
    return stream.getvalue()
