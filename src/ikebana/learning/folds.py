"""Cross-validation folds that do not divide groups."""

import warnings
from typing import TypeAlias

import numpy as np

from ikebana.errors import PhotosError

MAX_FOLDS = 5


# Row indices of training and test photos, int64.
Fold: TypeAlias = tuple[np.ndarray, np.ndarray]


def make_folds(
    labels: np.ndarray,
    groups: np.ndarray,
    seed: int = 0,
    max_folds: int = MAX_FOLDS,
    known_classes_only: bool = False,
) -> list[Fold]:
    """Make folds, five by default, stratified by class; groups are not divided.

    Each photo is tested once.

    Args:
        labels: class indices [photos].
        groups: a number per photo.
        known_classes_only: leave out test photos of a class without training photos in the fold,
            since they do not help to select regularisation.
    Returns:
        Fewer folds than `max_folds` if no class has as many groups; none if no class has two.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    max_groups = max(len(np.unique(groups[labels == label])) for label in np.unique(labels))
    if max_groups < 2:
        return []
    # Without groups of several photos the plain splitter is as good, and much faster.
    is_ungrouped = len(np.unique(groups)) == len(groups)
    splitter_class = StratifiedKFold if is_ungrouped else StratifiedGroupKFold
    splitter = splitter_class(min(max_folds, max_groups), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class in y has only")
        folds = list(splitter.split(labels[:, None], labels, None if is_ungrouped else groups))
    if known_classes_only:
        folds = [(train, test[np.isin(labels[test], labels[train])]) for train, test in folds]
    return [fold for fold in folds if all(map(len, fold))]


def make_scoring_folds(labels: np.ndarray, groups: np.ndarray, source: str) -> list[Fold]:
    """Make the folds of `make_folds` to score every photo.

    Raises:
        PhotosError: there are too few photos to train and score.
    """
    group_counts = [len(np.unique(groups[labels == label])) for label in np.unique(labels)]
    if sum(count > 1 for count in group_counts) < 2:
        raise PhotosError(
            f"{len(labels)} photos are too few to train on some and score the others",
            where=source,
            advice="at least 4 different photos in each of 2 classes, better 30 (ikebana fit may need fewer)",
        )
    return make_folds(labels, groups)
