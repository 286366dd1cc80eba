"""`ikebana audit`: what is wrong with the photos, and how much of a network should learn from them."""

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ikebana import progress
from ikebana.advice import Advice, Supply, advised
from ikebana.photos import audit as files
from ikebana.photos import intake, kept, split
from ikebana.photos.audit import SHOWN, Finding
from ikebana.photos.dataset import Dataset
from ikebana.photos.kept import Kept
from ikebana.recipe import BETTER, DEFAULT, RECIPES, Recipe

if TYPE_CHECKING:
    from ikebana.learning.device import Setting


@dataclass(frozen=True)
class Audit:
    """What was found out about the photos before anything is trained."""

    dataset: Dataset
    findings: tuple[Finding, ...]  # the gravest first
    advice: Advice | None = None

    @property
    def leaks(self) -> tuple[Finding, ...]:
        """Photos that lie in more than one part: the score on them would be memory."""
        return tuple(each for each in self.findings if each.kind == "leak")

    def __repr__(self) -> str:
        lines = [files.summary(self.dataset, list(self.findings), "audit(...).findings")]
        lines += [f"  leak: {', '.join(each.paths)}: {each.evidence}" for each in self.leaks[:SHOWN]]
        return "\n".join(lines + ([f"\n{self.advice!r}"] if self.advice is not None else []))


def audit(photos: str | Path, advise: bool = False) -> Audit:
    """What is wrong with a folder, an archive or a table of photos, before an hour is spent.

    advise  also find out how much of a network should learn from them: its head, its tail or all of it
    raises  PhotosError if there is nothing to learn from; with `advise` also if there are too few photos to tell, and
            RecipeError or MachineError if the network that looks at them cannot be had
    """
    found = intake.read(photos)
    from ikebana.learning import backbones, networks

    # As `fit` begins, so that it will find the pixels kept, and make the same split.
    recipe = networks.settled(RECIPES[DEFAULT])
    if advise:
        backbones.sought(recipe)  # what is missing is said before any photo is read
    opened, keep = kept.opened(found, recipe.side, recipe.fit)
    dataset = split.split(intake.with_classes(opened, ()), recipe)
    looked = Audit(dataset, tuple(files.findings(dataset)))
    progress.say(repr(looked))
    progress.event("audit", **files.as_json(dataset, list(looked.findings)))
    if advise:
        looked = replace(looked, advice=_advice(dataset, keep, recipe))
    return looked


def _advice(dataset: Dataset, keep: Kept, recipe: Recipe) -> Advice:
    """Judge by what a frozen network sees in training and validation photos. The test photos stay sealed."""
    from ikebana.learning import inference, probe
    from ikebana.learning.forecast import prepared

    parts = inference.parts(dataset, keep.pixels)
    photos = inference.joined(parts["train"], parts["validation"])
    looked_at, groups = probe.sampled(photos, split.groups(dataset.photos[photos.rows]))
    folds = probe.dealt(looked_at.labels, groups, dataset.source)
    setting = prepared(recipe, len(dataset.classes))
    evidence = probe.judged(probe.seen(looked_at, recipe, keep.folder.name, setting), looked_at.labels, folds)
    counts = {name: each["train"] for name, each in dataset.counts().items()}
    smallest = min(counts, key=lambda name: counts[name])
    supply = Supply(
        photos=len(photos),
        sealed=len(parts["test"]),
        a_class=statistics.median_low(counts.values()),
        smallest=(smallest, counts[smallest]),
    )
    advice = advised(evidence, supply, dataset.source, _costs(dataset, recipe, setting))
    progress.say(f"\n{advice!r}")
    progress.event("advice", **advice.to_json())
    return advice


def _costs(dataset: Dataset, recipe: Recipe, setting: "Setting") -> dict[str, float]:
    """About how many seconds the default recipe and the next better one take here."""
    from ikebana.learning.forecast import forecast, seconds_of_better

    costs = {recipe.name: forecast(dataset, recipe, setting).seconds}
    if recipe.name in BETTER and setting.seconds_per_photo is not None:
        better = BETTER[recipe.name]
        costs[better.recipe] = seconds_of_better(dataset, recipe, better, setting.seconds_per_photo)
    return costs
