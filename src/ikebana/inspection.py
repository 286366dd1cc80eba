"""`ikebana audit`: what is wrong with the photos, and how much of a network should learn from them."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from ikebana import progress, suspects
from ikebana.advice import Advice, Supply, advised
from ikebana.errors import MachineError, PhotosError, RecipeError
from ikebana.machine import need_disk, within_memory
from ikebana.photos import audit as files
from ikebana.photos import cleaning, intake, kept, split, twins
from ikebana.photos.audit import SHOWN, Finding
from ikebana.photos.dataset import USED, Dataset
from ikebana.photos.kept import Kept
from ikebana.places import cache_folder, to_write, written
from ikebana.recipe import DEFAULT, RECIPES, Recipe
from ikebana.report import page
from ikebana.run import write_json

if TYPE_CHECKING:
    from ikebana.learning.device import Setting

UNSPLIT = "unsplit"  # a kind of finding
PAGE, AUDIT, TABLE = "index.html", "audit.json", "findings.csv"  # in the folder that was asked for


@dataclass(frozen=True)
class Audit:
    """What was found out about the photos before anything is trained."""

    dataset: Dataset
    findings: tuple[Finding, ...]  # the gravest first
    advice: Advice | None = None
    page: Path | None = None  # where all findings are told, if one was asked for

    @property
    def leaks(self) -> tuple[Finding, ...]:
        """Photos that lie in more than one part: the score on them would be memory."""
        return tuple(each for each in self.findings if each.kind == "leak")

    @property
    def refused(self) -> tuple[Finding, ...]:
        """Why `fit` would not train on the photos, if it would not."""
        return tuple(each for each in self.findings if each.kind == UNSPLIT)

    def __repr__(self) -> str:
        more = "--out DIR (in Python: .findings)" if self.page is None else str(self.page)
        lines = [files.summary(self.dataset, list(self.findings), more)]
        lines += [f"  leak: {files.in_short(each)}" for each in self.leaks[:SHOWN]]
        lines += [f"  fit would refuse: {each.evidence}\n  try  {each.advice}" for each in self.refused]
        return "\n".join(lines + ([f"\n{self.advice!r}"] if self.advice is not None else []))


def audit(
    photos: str | Path,
    advise: bool = False,
    *,
    out: str | Path | None = None,
    write: str | Path | None = None,
    drop: Sequence[str] = (),
    relabel: Sequence[str] = (),
) -> Audit:
    """What is wrong with a folder, an archive or a table of photos, before an hour is spent. No file of theirs is changed.

    advise   also find out how much of a network should learn from them: its head, its tail or all of it
    out      a folder for a page to look at, `audit.json` and `findings.csv`
    write    a table to make of the photos, which `fit` takes: `cleaned.csv`; what was dropped, and why, lies beside it
    drop     findings whose photos are left out of that table: "twins", "unreadable", "doubtful", or a finding's kind
    relabel  findings whose photos get the label that is thought right: "doubtful>0.95"
    raises   PhotosError if there is nothing to learn from; with `advise` also if there are too few photos to tell, and
             RecipeError or MachineError if the network that looks at them cannot be had
    """
    to_drop, to_relabel = cleaning.chosen(drop, "--drop"), cleaning.chosen(relabel, "--relabel")
    _check(out, write, bool(to_drop or to_relabel))
    found = intake.read(photos)
    if write is not None:
        cleaning.check_within_reach(found)
    from ikebana.learning import backbones, networks

    # As `fit` begins, so that it will find the pixels kept, and make the same split.
    recipe = networks.settled(RECIPES[DEFAULT])
    if advise:
        backbones.sought(recipe)  # what is missing is said before any photo is read
    _check_machine(found, recipe)
    opened, keep = kept.opened(found, recipe.side, recipe.fit)
    dataset, unsplit = _split(intake.with_classes(twins.found(opened, keep), ()), recipe)
    findings = [*unsplit, *files.findings(dataset), *suspects.found(dataset, keep, recipe)]
    told_at = Path(out).expanduser() / PAGE if out is not None else None
    looked = Audit(dataset, tuple(files.gravest_first(findings)), page=told_at)
    progress.say(repr(looked))
    progress.event("audit", **files.as_json(dataset, list(looked.findings)))
    if told_at is not None:
        _write_findings(told_at, looked, keep, recipe)
    if write is not None:
        given = found.photos["split"].count() > 0
        _write_table(Path(write), dataset, cleaning.cleaned(dataset, looked.findings, to_drop, to_relabel, given))
        if vain := cleaning.in_vain((*to_drop, *to_relabel), looked.findings):
            progress.say(f"nothing was found that is {' or '.join(vain)}")
    if advise:
        with within_memory():
            looked = replace(looked, advice=_advice(dataset, keep, recipe, str(write or dataset.source)))
    return looked


def _split(dataset: Dataset, recipe: Recipe) -> tuple[Dataset, list[Finding]]:
    """As `fit` would split them. That it would refuse to is one finding more: all photos then count as training photos."""
    try:
        return split.split(dataset, recipe), []
    except PhotosError as error:
        of_training = pl.when(pl.col("status") == USED).then(pl.col("split").fill_null("train")).alias("split")
        whole = dataset.with_photos(dataset.photos.with_columns(of_training))
        return whole, [Finding(UNSPLIT, "error", (), error.what, error.advice or "more photos")]


def _check_machine(found: Dataset, recipe: Recipe) -> None:
    """Say what the audit will need, and refuse what this machine does not have; without a backbone it needs little."""
    from ikebana.learning import backbones
    from ikebana.learning.forecast import forecast, prepared

    try:
        backbones.sought(recipe)
    except (RecipeError, MachineError):
        need_disk({cache_folder(): kept.size_on_disk(found, recipe.side) + twins.scratch(found.photos.height)})
        return
    forecast(found, recipe, prepared(recipe, len(found.classes))).told(recipe)


def _check(out: str | Path | None, write: str | Path | None, acting: bool) -> None:
    """Refuse what could not be written before any photo is read."""
    if acting and write is None:
        raise RecipeError("--drop and --relabel act on a table", advice="--write cleaned.csv")
    if write is not None:
        cleaning.check_writable(to_write(write))
    if out is not None:
        folder = to_write(out)
        taken = folder.is_dir() and any(folder.iterdir()) and not _is_an_audits(folder)
        if taken or (folder.exists() and not folder.is_dir()):
            raise RecipeError("there is something else already", where=folder, advice="an empty folder, or a new one")


def _is_an_audits(folder: Path) -> bool:
    """Whether an earlier audit filled the folder, and nothing else lies in it: all of that may be written over."""
    try:
        values = json.loads((folder / AUDIT).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    names = {each.name for each in folder.iterdir()}
    return isinstance(values, dict) and values.keys() >= {"source", "findings"} and names <= {PAGE, AUDIT, TABLE}


def _write_findings(told_at: Path, looked: Audit, keep: Kept, recipe: Recipe) -> None:
    """The page, `audit.json`, and `findings.csv`, whose paths are a JSON list since names may hold anything."""
    folder = told_at.parent
    write_json(folder / AUDIT, files.as_json(looked.dataset, list(looked.findings)))
    with written(folder / TABLE) as beside:
        files.as_table(looked.findings).write_csv(beside)
    page.write(told_at, looked.dataset, looked.findings, keep.pixels, recipe.fit)
    progress.say(f"to look at: {told_at}; for programs, beside it: {AUDIT} and {TABLE}")


def _write_table(file: Path, dataset: Dataset, cleaned: cleaning.Cleaned) -> None:
    """The table, and what was done for doubt alone, since that moves the score and not only the network."""
    cleaning.write(file, dataset, cleaned)
    progress.say(
        f"{file}: {cleaned.kept.height:,} photos, {cleaned.relabelled:,} of them relabelled; "
        f"{cleaned.dropped.height:,} dropped: {cleaning.dropped_beside(file)} says why. To learn from it: ikebana fit {file}"
    )
    if cleaned.spared:
        progress.say(
            f"{cleaned.spared:,} test photo{'s' * (cleaned.spared != 1)} left alone though the label is doubted: "
            "no network may choose what it is scored on"
        )
    if cleaned.doubted and "split" not in cleaned.kept.columns:
        progress.say(
            f"{cleaned.doubted:,} photo{'s' * (cleaned.doubted != 1)} dropped or relabelled for doubt before the split: "
            "unless somebody looked at them, the score will be kinder than the truth"
        )


def _advice(dataset: Dataset, keep: Kept, recipe: Recipe, to_fit: str) -> Advice:
    """Judge by what a frozen network sees in training photos and in the validation photos for choices.

    The others of the validation photos, by which confidence is found, and the test photos stay sealed.

    to_fit  where what is to be learned from lies: the table that was made of these photos, if one was
    """
    from ikebana.learning import inference, probe
    from ikebana.learning.forecast import prepared

    parts = inference.parts(dataset, keep.pixels)
    choosing = parts["validation"].some(parts["validation"].for_choices)
    photos = inference.joined(parts["train"], choosing)
    looked_at, groups = probe.sampled(photos, split.groups(dataset.photos[photos.rows]))
    folds = probe.dealt(looked_at.labels, groups, dataset.source)
    setting = prepared(recipe, len(dataset.classes))
    evidence = probe.judged(probe.seen(looked_at, recipe, keep.folder.name, setting), looked_at.labels, groups, folds)
    counts = {name: each["train"] for name, each in dataset.counts().items()}
    smallest = min(counts, key=lambda name: counts[name])
    supply = Supply(
        photos=len(photos),
        sealed=len(parts["test"]),
        a_class=statistics.median_low(counts.values()),
        smallest=(smallest, counts[smallest]),
    )
    advice = advised(evidence, supply, to_fit, _costs(dataset, recipe, setting))
    progress.say(f"\n{advice!r}")
    progress.event("advice", **advice.to_json())
    return advice


def _costs(dataset: Dataset, recipe: Recipe, setting: "Setting") -> dict[str, float]:
    """About how many seconds the default recipe and the next better one take here."""
    from ikebana.learning.device import speed
    from ikebana.learning.forecast import BETTER, forecast, seconds_of_better

    costs = {recipe.name: forecast(dataset, recipe, setting).seconds}
    a_look = speed(setting)
    if recipe.name in BETTER and a_look is not None:
        better = BETTER[recipe.name]
        costs[better.recipe] = seconds_of_better(dataset, recipe, better, a_look)
    return costs
