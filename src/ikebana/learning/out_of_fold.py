"""What a frozen backbone sees in all photos of a data set, and what heads that have not learned from a photo say of it."""

from dataclasses import dataclass, replace

import numpy as np

from ikebana import progress
from ikebana.learning import features, inference, logistic, probe
from ikebana.learning.device import Setting
from ikebana.learning.inference import Photos
from ikebana.learning.logistic import Fold
from ikebana.learning.rows import Rows
from ikebana.recipe import Recipe

STRENGTHS = (3e-4, 3e-3, 3e-2)  # of which the first fold chooses; wrong labels ask for stronger pulls than right ones
MOST = 20_000  # photos that a head learns from: more would teach it little and cost time
A_CLASS = 20  # of them at least of each class, or all that it has


@dataclass(frozen=True)
class Seen:
    """What the backbone saw."""

    features: Rows  # float32 [photos, features], read from the disk where they are asked for
    rows: np.ndarray  # int64 [photos]: of the dataset's table, in rising order
    labels: np.ndarray  # int64 [photos]: class indices


def seen(parts: dict[str, Photos], recipe: Recipe, pixels: str, setting: Setting) -> Seen:
    """The kept features of a recipe's one backbone for all photos, those that `fit` will use or has left behind.

    parts    the training, validation and test photos: the last two are seen in float32, as `fit` sees them
    pixels   the name of the kept pixels
    raises   RecipeError or MachineError if the backbone's weights cannot be had
    """
    see, origin = features.backbone(recipe, pixels, setting)
    exact = replace(setting, number_format="float32")
    held_out = inference.joined(parts["validation"], parts["test"])
    found = [
        features.of(see, origin, photos, its)
        for photos, its in ((parts["train"], setting), (held_out, exact))
        if len(photos)
    ]
    rows, labels = (np.concatenate([getattr(each, name) for each in found]) for name in ("rows", "labels"))
    order = np.argsort(rows)
    return Seen(Rows([each.array for each in found], [each.rows for each in found], order), rows[order], labels[order])


def probabilities(seen: Seen, groups: np.ndarray, classes: int, source: str) -> tuple[np.ndarray, np.ndarray]:
    """What logistic regressions say of photos that they have not learned from: float [photos, classes].

    groups   a number for each photo: those of one number are never on both sides
    returns  also of which photos they have learned the class at all, from others: bool [photos]. A class that lies in one
             group has nobody who could speak for it
    raises   PhotosError if there are too few photos to learn from some and judge by others
    """
    from scipy.special import softmax

    folds = probe.dealt(seen.labels, groups, source)
    said, heard = np.zeros((len(seen.labels), classes)), np.zeros(len(seen.labels), bool)
    for learned, left in folds:
        heard[left] = np.isin(seen.labels[left], seen.labels[learned])
    with progress.stage("doubt labels", len(folds) + len(STRENGTHS) - 1, "heads") as bar:
        trials = []
        for strength in STRENGTHS:
            logits = _judged(seen, folds[0], classes, strength)
            surprise, known = logistic.cross_entropy(logits, seen.labels[folds[0][1]]), heard[folds[0][1]]
            trials.append((float((surprise[known] if known.any() else surprise).mean()), strength, logits))
            bar.advance(1)
        _, strength, said[folds[0][1]] = min(trials, key=lambda each: each[:2])
        for fold in folds[1:]:
            said[fold[1]] = _judged(seen, fold, classes, strength)
            bar.advance(1)
    return softmax(said, axis=1), heard


def _judged(seen: Seen, fold: Fold, classes: int, strength: float) -> np.ndarray:
    """Logits [judged photos, classes] of a head that has learned from the others, or from as many as are enough."""
    learned, left = _enough(fold[0], seen.labels), fold[1]
    teachers, judged = seen.features.of(learned), seen.features.of(left)
    return logistic.said_of(judged, teachers, seen.labels[learned], classes, strength)


def _enough(learned: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """As many of these photos as teach enough, of each class its share, but all of a class that has few."""
    if len(learned) <= MOST:
        return learned
    dice, share = np.random.default_rng(probe.SEED), MOST / len(learned)
    by_class = [learned[labels[learned] == name] for name in np.unique(labels[learned])]
    counts = [max(round(share * len(own)), min(len(own), A_CLASS)) for own in by_class]
    return np.sort(
        np.concatenate([dice.choice(own, n, replace=False) for own, n in zip(by_class, counts, strict=True)])
    )
