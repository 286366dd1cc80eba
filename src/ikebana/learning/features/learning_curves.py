"""Learning curves of a linear head: fits to subsamples of cached features.

All classes are reduced together, then each class alone while the others keep their photos. Each size
is scored on the same photos, by cross-validation, so that differences between sizes do not depend on
which photos are scored.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ikebana.evaluation.learning_curves import LearningCurve, make_learning_curve
from ikebana.learning.features.scaling import FeatureTable, compute_mean_and_scale
from ikebana.learning.folds import Fold, make_folds
from ikebana.learning.regularisation import select_regularisation
from ikebana.learning.training import logistic_head
from ikebana.learning.training.class_priors import compute_log_priors
from ikebana.learning.training.logistic_head import ScaledChunks
from ikebana.system import progress

# Of the photos, or of those of one class.
FRACTIONS = (0.25, 0.5)
# Subsamples of each size.
REPETITIONS = 2
# Classes with a curve of their own: those with the lowest recall.
MAX_CLASS_CURVES = 6
# With fewer groups of photos, a quarter of a class is one or two photos.
MIN_CLASS_GROUPS = 8
# Tried in this order until the loss rises twice.
REGULARISATION_GRID = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
# Fewer photos need weaker regularisation: inverse L2 strengths relative to that of twice the photos.
STRENGTH_FACTORS = (1.0, 3.0, 10.0)
SEED = 0
# A tenth of it takes more than twice as long, and gives the same accuracy.
GRADIENT_TOLERANCE = 1e-3
# With fewer, there are hardly any training photos.
MIN_FOLDS = 3
# The time grows with the photos: about three processor seconds per thousand.
MAX_PHOTOS = 8000


@dataclass(frozen=True)
class HeadFit:
    """A head that was fitted in one fold.

    Attributes:
        coefficients: float [classes, features + 1].
        is_right: bool [test photos of the fold].
        loss: mean cross-entropy of these.
    """

    coefficients: np.ndarray
    is_right: np.ndarray
    loss: float


class SubsampledProbe:
    """Linear heads on all photos and on subsamples of them, scored on the same photos.

    Args:
        features: float [photos, features].
        labels: class indices [photos].
        groups: a number per photo; subsamples keep groups whole.
        classes: number of classes.
        folds: rows of training and test photos.
    """

    def __init__(
        self, features: FeatureTable, labels: np.ndarray, groups: np.ndarray, classes: int, folds: Sequence[Fold]
    ):
        self.labels, self.classes, self.folds = labels, classes, folds
        _, self.groups = np.unique(groups, return_inverse=True)
        self.chunks = ScaledChunks(features, labels, *compute_mean_and_scale(features))
        rng = np.random.default_rng(SEED)
        # Smaller subsamples of a repetition are parts of larger ones.
        self.orders = [rng.permutation(int(self.groups.max()) + 1) for _ in range(REPETITIONS)]
        self.inverse_l2, self.fits = self._fit_all()
        self.is_right = self._merge(self.fits)

    def _fit_all(self) -> tuple[float, list[HeadFit]]:
        """Select the L2 strength on the scored photos, and fit to all photos."""
        fits: list[HeadFit | None] = [None] * len(self.folds)

        def evaluate(inverse_l2: float) -> tuple[float, list[HeadFit]]:
            for number, (train, test) in enumerate(self.folds):
                fits[number] = self._fit(train, test, inverse_l2, fits[number])
            complete = [fit for fit in fits if fit is not None]
            return float(np.mean([fit.loss for fit in complete])), complete

        return select_regularisation(REGULARISATION_GRID, evaluate, logistic_head.PATIENCE)

    def _fit(self, train: np.ndarray, test: np.ndarray, inverse_l2: float, initial: HeadFit | None) -> HeadFit:
        start = initial.coefficients if initial is not None else None
        chunks = self.chunks.select(train)
        coefficients = logistic_head.fit_coefficients(chunks, self.classes, inverse_l2, start, GRADIENT_TOLERANCE)
        logits = logistic_head.compute_logits(coefficients, self.chunks.select(test))
        loss = float(logistic_head.compute_cross_entropy(logits, self.labels[test]).mean())
        balanced = logits - compute_log_priors(chunks.labels, self.classes)
        return HeadFit(coefficients, balanced.argmax(1) == self.labels[test], loss)

    def _merge(self, fits: Sequence[HeadFit]) -> np.ndarray:
        """Merge the folds: bool [photos]."""
        is_right = np.zeros(len(self.labels), bool)
        for (_, test), fit in zip(self.folds, fits, strict=True):
            is_right[test] = fit.is_right
        return is_right

    def measure_all(self, bar: progress.Bar) -> np.ndarray:
        """Reduce all classes: float [sizes, photos], shares of repetitions with a correct answer."""
        shares, inverse_l2 = [self.is_right.astype(float)], self.inverse_l2
        for fraction in reversed(FRACTIONS):
            results = []
            for order in self.orders:
                folds = [(self._subsample(train, fraction, order), test) for train, test in self.folds]

                def evaluate(strength: float, folds: list[Fold] = folds) -> tuple[float, np.ndarray]:
                    fits = [self._fit(*fold, strength, initial) for fold, initial in zip(folds, self.fits, strict=True)]
                    return float(np.mean([fit.loss for fit in fits])), self._merge(fits)

                factors = STRENGTH_FACTORS if not results else (1.0,)
                inverse_l2, is_right = select_regularisation(
                    [factor * inverse_l2 for factor in factors], evaluate, patience=1
                )
                results.append(is_right)
                bar.advance(len(folds))
            shares.append(np.mean(results, axis=0))
        return np.stack(shares[::-1])

    def measure_class(self, label: int, bar: progress.Bar) -> np.ndarray:
        """Reduce one class: float [sizes, photos of the class], like `measure_all`."""
        rows = np.flatnonzero(self.labels == label)
        shares = []
        for fraction in FRACTIONS:
            results = []
            for order in self.orders:
                fits = []
                for (train, test), initial in zip(self.folds, self.fits, strict=True):
                    reduced = self._subsample(train, fraction, order, label)
                    fits.append(self._fit(reduced, test, self.inverse_l2, initial))
                    bar.advance(1)
                results.append(self._merge(fits)[rows])
            shares.append(np.mean(results, axis=0))
        return np.stack([*shares, self.is_right[rows].astype(float)])

    def _subsample(self, rows: np.ndarray, fraction: float, order: np.ndarray, label: int | None = None) -> np.ndarray:
        """Keep a fraction of the groups of each class, or of one class."""
        parts = []
        for name in np.unique(self.labels[rows]):
            of_class = rows[self.labels[rows] == name]
            if label is None or name == label:
                groups = np.unique(self.groups[of_class])
                count = math.ceil(fraction * len(groups))
                of_class = of_class[np.isin(self.groups[of_class], groups[np.argsort(order[groups])[:count]])]
            parts.append(of_class)
        return np.sort(np.concatenate(parts))


def measure_learning_curves(
    features: FeatureTable,
    labels: np.ndarray,
    groups: np.ndarray,
    counts: Mapping[str, int],
    max_class_curves: int = MAX_CLASS_CURVES,
) -> tuple[LearningCurve, ...]:
    """Measure the learning curve of all classes together, then of those with the lowest recall.

    Args:
        features: float [photos, features].
        labels: class indices [photos].
        groups: a number per photo.
        counts: photos of each class in the collection, to state sizes in; in the order of classes.
        max_class_curves: most classes that get a curve of their own.
    Returns:
        None at all if there are too few photos for folds, or too many for the time that it takes.
    """
    folds = make_folds(labels, groups, SEED) if len(labels) <= MAX_PHOTOS else []
    if len(folds) < MIN_FOLDS:
        return ()
    classes, total = list(counts), sum(counts.values())
    probe = SubsampledProbe(features, labels, groups, len(classes), folds)
    recall = {label: float(probe.is_right[probe.labels == label].mean()) for label in np.unique(probe.labels)}
    group_counts = {label: len(np.unique(probe.groups[probe.labels == label])) for label in recall}
    large_enough = [label for label in recall if group_counts[label] >= MIN_CLASS_GROUPS]
    lowest = sorted(large_enough, key=recall.__getitem__)[:max_class_curves]
    fits = len(FRACTIONS) * REPETITIONS * len(probe.folds)
    with progress.stage("measure learning curves", fits * (1 + len(lowest)), "fits") as bar:
        curves = [make_learning_curve("", _count_photos(total), probe.measure_all(bar), probe.groups, added=total)]
        for label in lowest:
            name, groups = classes[label], probe.groups[probe.labels == label]
            shares = probe.measure_class(int(label), bar)
            curves.append(make_learning_curve(name, _count_photos(counts[name]), shares, groups))
    return tuple(curves)


def _count_photos(count: int) -> list[int]:
    return [round(fraction * count) for fraction in (*FRACTIONS, 1.0)]
