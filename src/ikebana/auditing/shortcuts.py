"""Shortcuts: classes that facts about the files reveal, without the image content.

A network learns the easiest feature. If all photos of one class have a border or come from one
camera, it learns the border or the camera. It scores high on photos from the same source and fails
on others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ikebana.evaluation.statistics import sort_descending
from ikebana.learning.folds import Fold, make_folds

MAX_PHOTOS = 20_000
MIN_PHOTOS_PER_CLASS = 12
FOLD_COUNT = 3
TREE_COUNT = 40
# Leaves of the small tree that uses one fact, and photos per leaf, there and in the forest.
MAX_LEAVES, MIN_PHOTOS_PER_LEAF = 12, 5
# Area under the ROC curve from which a class has a shortcut; flower photos gave 0.80 at most.
MIN_SHORTCUT_AUC = 0.9
# A class also has one if this share of it can be picked out with this precision,
MIN_PRECISION, MIN_PICKED_SHARE = 0.95, 0.25
# and at least this many photos: three or four come first by chance.
MIN_PICKED_PHOTOS = 10
# A fact that tells a class by so much less than the best one may be the cause of its shortcut, too.
MAX_CAUSE_AUC_LOSS = 0.03
SEED = 0


@dataclass(frozen=True)
class Shortcut:
    """How well facts about the files distinguish one class from the rest.

    Attributes:
        label: class index.
        auc: area under the ROC curve, from all facts.
        picked_share: share of its photos that can be picked out with hardly an error.
        picked_count: number of these photos.
        fact_aucs: area under the ROC curve from each fact alone.
    """

    label: int
    auc: float
    picked_share: float
    picked_count: int
    fact_aucs: Mapping[str, float]

    @property
    def fact(self) -> str:
        """The most telling fact."""
        return max(self.fact_aucs, key=lambda name: self.fact_aucs[name])

    @property
    def fact_auc(self) -> float:
        """Area under the ROC curve from the most telling fact alone."""
        return self.fact_aucs[self.fact]


@dataclass(frozen=True)
class Cause:
    """One fact that reveals one or several classes.

    Attributes:
        fact: what reveals each of these classes on its own, or nearly as well as its most telling fact.
        shortcuts: of these classes, the clearest first.
    """

    fact: str
    shortcuts: tuple[Shortcut, ...]


@dataclass(frozen=True)
class FactsEvaluation:
    """How well file facts alone predict the classes.

    Attributes:
        accuracy: from the facts alone.
        majority_accuracy: of always predicting the most frequent class.
        per_class: one result per class.
    """

    accuracy: float
    majority_accuracy: float
    per_class: tuple[Shortcut, ...]


def find_shortcuts(evaluation: FactsEvaluation) -> list[Shortcut]:
    """List the classes that have a shortcut, the clearest first."""
    revealed = [
        result
        for result in evaluation.per_class
        if result.auc >= MIN_SHORTCUT_AUC
        or (result.picked_share >= MIN_PICKED_SHARE and result.picked_count >= MIN_PICKED_PHOTOS)
    ]
    return sorted(revealed, key=lambda result: -result.auc)


def group_by_cause(revealed: Sequence[Shortcut]) -> list[Cause]:
    """Group the classes that the same fact reveals.

    If each class is from a camera of its own, that is one cause. The fact that explains the most
    classes comes first, then the one that explains most of the others.

    Args:
        revealed: as `find_shortcuts` returns them.
    """
    remaining, causes = list(revealed), []
    while remaining:
        explained = {
            fact: [result for result in remaining if _is_explained_by(fact, result)] for fact in remaining[0].fact_aucs
        }
        fact = max(explained, key=lambda name: (len(explained[name]), _sum_aucs(name, explained[name])))
        causes.append(Cause(fact, tuple(explained[fact])))
        remaining = [result for result in remaining if result not in explained[fact]]
    return causes


def _is_explained_by(fact: str, result: Shortcut) -> bool:
    return result.fact_aucs[fact] >= min(MIN_SHORTCUT_AUC, result.fact_auc - MAX_CAUSE_AUC_LOSS)


def _sum_aucs(fact: str, results: Sequence[Shortcut]) -> float:
    return sum(result.fact_aucs[fact] for result in results)


def evaluate_facts(facts: Mapping[str, np.ndarray], labels: np.ndarray, groups: np.ndarray) -> FactsEvaluation:
    """Predict classes from facts alone, by cross-validated random forests.

    Args:
        facts: name → float [photos, columns].
        labels: class indices [photos].
        groups: a number per photo; folds do not divide a group.
    """
    selection = select_photos(labels, groups)
    labels, groups = labels[selection], groups[selection]
    if len(np.unique(labels)) < 2:
        return FactsEvaluation(0.0, 0.0, ())
    table = {name: columns[selection] for name, columns in facts.items()}
    table = {name: columns for name, columns in table.items() if np.ptp(columns, axis=0).any()}
    if not table:
        return FactsEvaluation(0.0, 0.0, ())
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    forest = RandomForestClassifier(TREE_COUNT, min_samples_leaf=MIN_PHOTOS_PER_LEAF, random_state=SEED, n_jobs=-1)
    tree = DecisionTreeClassifier(max_leaf_nodes=MAX_LEAVES, min_samples_leaf=MIN_PHOTOS_PER_LEAF, random_state=SEED)
    folds = make_folds(labels, groups, SEED, FOLD_COUNT)
    by_all = _predict_out_of_fold(forest, np.concatenate(list(table.values()), axis=1), labels, folds)
    by_fact = {name: _predict_out_of_fold(tree, columns, labels, folds) for name, columns in table.items()}
    present = np.unique(labels)
    return FactsEvaluation(
        accuracy=float((present[by_all.argmax(1)] == labels).mean()),
        majority_accuracy=float(np.bincount(labels).max() / len(labels)),
        per_class=tuple(
            _evaluate_class(column, int(label), labels == label, by_all, by_fact)
            for column, label in enumerate(present)
        ),
    )


def _evaluate_class(
    column: int, label: int, is_own: np.ndarray, by_all: np.ndarray, by_fact: Mapping[str, np.ndarray]
) -> Shortcut:
    from sklearn.metrics import roc_auc_score

    aucs = {name: float(roc_auc_score(is_own, scores[:, column])) for name, scores in by_fact.items()}
    auc = float(roc_auc_score(is_own, by_all[:, column]))
    picked_count = _count_picked(by_all[:, column], is_own)
    return Shortcut(label, auc, picked_count / int(is_own.sum()), picked_count, aucs)


def _count_picked(scores: np.ndarray, is_own: np.ndarray) -> int:
    """Count the photos of a class that can be picked out with few errors.

    At most one in twenty of the picked photos is of another class.
    """
    order, is_end = sort_descending(scores)
    hits = np.cumsum(is_own[order])
    is_precise = (hits >= MIN_PRECISION * np.arange(1, len(is_own) + 1)) & is_end
    return int(hits[is_precise].max()) if is_precise.any() else 0


def select_photos(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Select photos of classes with enough distinct photos, at most MAX_PHOTOS.

    Args:
        labels: class indices [photos].
        groups: a number per photo; photos of one group count as one.
    Returns:
        int64, positions of the selected photos.
    """
    distinct = {label: len(np.unique(groups[labels == label])) for label in np.unique(labels)}
    rows = np.flatnonzero([distinct[label] >= MIN_PHOTOS_PER_CLASS for label in labels])
    if len(rows) > MAX_PHOTOS:
        rows = np.sort(np.random.default_rng(SEED).choice(rows, MAX_PHOTOS, replace=False))
        counts = np.bincount(labels[rows])
        rows = rows[counts[labels[rows]] >= MIN_PHOTOS_PER_CLASS]
    return rows


def _predict_out_of_fold(model: Any, table: np.ndarray, labels: np.ndarray, folds: list[Fold]) -> np.ndarray:
    """Return out-of-fold probabilities: [photos, classes present]."""
    import warnings

    from sklearn.base import clone

    present = np.unique(labels)
    result = np.zeros((len(labels), len(present)))
    for training, held_out in folds:
        # The threads of a forest change the global warning filters concurrently and sometimes
        # leave none behind. The next forest would then warn once per tree.
        with warnings.catch_warnings():
            fitted: Any = clone(model)
            fitted.fit(table[training], labels[training])
        with warnings.catch_warnings():
            probabilities = fitted.predict_proba(table[held_out])
        result[np.ix_(held_out, np.searchsorted(present, fitted.classes_))] = probabilities
    return result
