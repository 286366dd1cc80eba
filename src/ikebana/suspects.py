"""What is suspicious about photos that can all be opened: their labels, their subjects, their looks, and shortcuts in them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ikebana import progress
from ikebana.errors import MachineError, PhotosError, RecipeError
from ikebana.learning.scaling import Table
from ikebana.machine import within_memory
from ikebana.photos import facts, quality, split
from ikebana.photos.audit import Finding
from ikebana.photos.dataset import Dataset
from ikebana.photos.kept import Kept
from ikebana.recipe import Recipe
from ikebana.trust import labels as doubts
from ikebana.trust import shortcut

LOOK = "look at it; if it shows the other class, move it there; if neither, remove it"
REMOVE = "look at it; remove it if photos to come will not be like this"
SHORTCUT = "give all classes the same {fact}, or a network may learn that instead of the subject"


def found(dataset: Dataset, keep: Kept, recipe: Recipe) -> list[Finding]:
    """Doubtful labels, odd photos, poor photos, and classes that can be told without looking; each kind the plainest first.

    What needs the recipe's backbone is left out, and that is said, where the backbone cannot be had.

    dataset  opened and split
    """
    return [
        *quality.findings(dataset, keep.pixels),
        *_shortcuts(dataset, keep),
        *_unless_refused(lambda: [*_of_look(look(dataset, keep, recipe), dataset.classes)]),
    ]


def _unless_refused(work: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        with within_memory():
            return work()
    except (PhotosError, RecipeError, MachineError) as error:
        reason = error.what + (f" ({error.advice})" if error.advice else "")
    progress.say(f"labels and subjects were not looked at: {reason}")
    return []


def by_facts(dataset: Dataset, keep: Kept) -> shortcut.Judged:
    """How well the classes are told by sizes, files and borders alone."""
    used = dataset.used
    index = {name: number for number, name in enumerate(dataset.classes)}
    classes = np.array([index[name] for name in used["label"]], np.int64)
    groups = np.array(split.groups(used))
    chosen = shortcut.enough(classes, groups)
    return shortcut.judge(facts.of(dataset, keep.pixels, chosen), classes[chosen], groups[chosen])


def _shortcuts(dataset: Dataset, keep: Kept) -> Iterator[Finding]:
    for each in shortcut.shortcuts(by_facts(dataset, keep)):
        told = (
            f"{dataset.classes[each.label]} is told from the rest without a look at what the photos show: by all facts "
            f"about the files the area under the curve is {each.area:.2f}, by {each.fact} alone {each.area_by_fact:.2f}; "
            f"{each.part:.0%} of its photos can be picked out almost without fail"
        )
        yield Finding("shortcut", "warning", (), told, SHORTCUT.format(fact=each.fact))


@dataclass(frozen=True)
class Look:
    """What the recipe's backbone, and heads on it, say of all usable photos."""

    paths: pl.Series
    features: Table  # [photos, features], on disk
    labels: np.ndarray  # class indices [photos]
    near: doubts.Neighbours
    alone: np.ndarray  # float [photos, classes]: of logistic regressions that have not learned from the photo
    judged: np.ndarray  # float [photos, classes]: of these and of the photos most alike, together


def look(dataset: Dataset, keep: Kept, recipe: Recipe) -> Look:
    """See all photos once, and judge each by the others.

    dataset  opened and split
    raises   RecipeError or MachineError if the backbone cannot be had; PhotosError if there are too few photos
    """
    from ikebana.learning import inference, out_of_fold
    from ikebana.learning.forecast import prepared

    parts = inference.parts(dataset, keep.pixels)
    seen = out_of_fold.seen(parts, recipe, keep.folder.name, prepared(recipe, len(dataset.classes)))
    photos = dataset.photos[seen.rows]
    groups = np.array(split.groups(photos))
    alone, heard = out_of_fold.probabilities(seen, groups, len(dataset.classes), dataset.source)
    near = doubts.neighbours(seen.features, seen.labels, groups)
    judged = doubts.both(alone, doubts.vote(near, seen.labels, len(dataset.classes)), seen.labels, heard)
    return Look(photos["path"], seen.features, seen.labels, near, alone, judged)


def _of_look(seen: Look, classes: Sequence[str]) -> Iterator[Finding]:
    """The labels that the other photos contradict, and photos of something else."""
    for each in doubts.doubtful(seen.judged, seen.labels):
        given, thought = classes[seen.labels[each.photo]], classes[each.label]
        told = f"labelled {given}, looks like {thought}: {min(each.confidence, 0.99):.0%} sure"
        path = (seen.paths[each.photo],)
        yield Finding("doubtful_label", "warning", path, told, LOOK, thought, round(each.confidence, 4))
    for photo, how in doubts.odd(seen.features, seen.labels, seen.near):
        told = f"{how:.1f} spreads less like the others than most"
        yield Finding("odd", "note", (seen.paths[photo],), told, REMOVE)
