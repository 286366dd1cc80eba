"""Facts about the files + labels → classes that can be told without looking at what the photos show.

A network takes the easiest way. If all photos of one class have a border, or come from one camera, it learns the border or
the camera, scores high on photos from the same source, and fails on others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ikebana.trust.ties import descending

MOST = 20_000  # photos that are looked at
FEW = 12  # photos that a class needs to be judged
FOLDS = 3
TREES = 40
LEAVES, IN_A_LEAF = 12, 5  # of the small tree that judges by one fact; leaves of the forest hold as many photos
TELLING = 0.9  # area under the curve from which a class counts as told; flowers as they are gave 0.80 at most
PURE, PART = 0.95, 0.25  # or if so large a part of it can be picked out, so purely
ENOUGH = 10  # photos that can be picked out: three or four are at the top by chance
SEED = 0


@dataclass(frozen=True)
class Shortcut:
    """A class that facts about its files give away."""

    label: int
    area: float  # chance that one of its photos looks more like it than one of another class, by these facts alone
    part: float  # of its photos that can be picked out with hardly a wrong one
    picked: int  # how many these are
    fact: str  # that tells most
    area_by_fact: float  # by that fact alone


@dataclass(frozen=True)
class Judged:
    """How far the facts alone lead."""

    accuracy: float  # of naming the class by them
    majority: float  # of always naming the commonest class
    classes: tuple[Shortcut, ...]  # one for each class that has enough photos, told or not


def shortcuts(judged: Judged) -> list[Shortcut]:
    """The classes that are given away, the plainest first."""
    told = [each for each in judged.classes if each.area >= TELLING or (each.part >= PART and each.picked >= ENOUGH)]
    return sorted(told, key=lambda each: -each.area)


def judge(facts: Mapping[str, np.ndarray], labels: np.ndarray, groups: np.ndarray) -> Judged:
    """How well classes are told from facts alone, by forests that have not seen the photos they judge.

    facts   name → float [photos, columns]
    labels  class indices [photos]
    groups  a number for each photo: those of one number are never parted
    """
    chosen = enough(labels, groups)
    labels, groups = labels[chosen], groups[chosen]
    if len(np.unique(labels)) < 2:
        return Judged(0.0, 0.0, ())
    table = {name: columns[chosen] for name, columns in facts.items()}
    table = {name: columns for name, columns in table.items() if np.ptp(columns, axis=0).any()}
    if not table:
        return Judged(0.0, 0.0, ())
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    forest = RandomForestClassifier(TREES, min_samples_leaf=IN_A_LEAF, random_state=SEED, n_jobs=-1)
    tree = DecisionTreeClassifier(max_leaf_nodes=LEAVES, min_samples_leaf=IN_A_LEAF, random_state=SEED)
    folds = _dealt(labels, groups)
    said = _out_of_fold(forest, np.concatenate(list(table.values()), axis=1), labels, folds)
    by_fact = {name: _out_of_fold(tree, columns, labels, folds) for name, columns in table.items()}
    names = np.unique(labels)
    return Judged(
        accuracy=float((names[said.argmax(1)] == labels).mean()),
        majority=float(np.bincount(labels).max() / len(labels)),
        classes=tuple(_told(place, labels == name, said, by_fact, int(name)) for place, name in enumerate(names)),
    )


def _told(place: int, own: np.ndarray, said: np.ndarray, by_fact: Mapping[str, np.ndarray], label: int) -> Shortcut:
    from sklearn.metrics import roc_auc_score

    areas = {name: float(roc_auc_score(own, each[:, place])) for name, each in by_fact.items()}
    best = max(areas, key=lambda name: areas[name])
    area = float(roc_auc_score(own, said[:, place]))
    picked = _picked(said[:, place], own)
    return Shortcut(label, area, picked / int(own.sum()), picked, best, areas[best])


def _picked(said: np.ndarray, own: np.ndarray) -> int:
    """How many photos of a class can be picked out with one of twenty wrong."""
    order, ends = descending(said)
    right = np.cumsum(own[order])
    pure = (right >= PURE * np.arange(1, len(own) + 1)) & ends
    return int(right[pure].max()) if pure.any() else 0


def enough(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The photos of classes that have enough different ones, and not more in all than can be looked at soon.

    labels   class indices [photos]
    groups   a number for each photo: those of one number are one photo
    returns  int64, places of photos
    """
    different = {name: len(np.unique(groups[labels == name])) for name in np.unique(labels)}
    rows = np.flatnonzero([different[name] >= FEW for name in labels])
    if len(rows) > MOST:
        rows = np.sort(np.random.default_rng(SEED).choice(rows, MOST, replace=False))
        counted = np.bincount(labels[rows])
        rows = rows[counted[labels[rows]] >= FEW]
    return rows


def _dealt(labels: np.ndarray, groups: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The photos that models learn from and those that they judge then, in turns: dealt once, since groups take time."""
    import warnings

    from sklearn.model_selection import StratifiedGroupKFold

    dealer = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class in y has only")
        return list(dealer.split(labels[:, None], labels, groups))


def _out_of_fold(model: Any, table: np.ndarray, labels: np.ndarray, folds: list[Any]) -> np.ndarray:
    """Probabilities [photos, classes present], each photo judged once by a model that has not seen it."""
    import warnings

    from sklearn.base import clone

    present = np.unique(labels)
    said = np.zeros((len(labels), len(present)))
    for learned, left in folds:
        # A forest's threads set the filters of warnings aside at once and, now and then, leave none behind: the next forest then
        # warned of that once a tree.
        with warnings.catch_warnings():
            fitted: Any = clone(model)
            fitted.fit(table[learned], labels[learned])
        with warnings.catch_warnings():
            found = fitted.predict_proba(table[left])
        said[np.ix_(left, np.searchsorted(present, fitted.classes_))] = found
    return said
