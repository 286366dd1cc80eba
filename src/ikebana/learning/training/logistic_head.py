"""Linear heads by logistic regression, with regularisation selected on held-out photos.

The loss and its optimum are scikit-learn's. The features are read in chunks of some hundred photos,
since the whole table may not fit into memory.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ikebana.learning.features.scaling import FeatureTable, compute_mean_and_scale
from ikebana.learning.folds import make_folds
from ikebana.learning.models.layers import get_last_linear
from ikebana.learning.regularisation import select_regularisation
from ikebana.learning.training.class_priors import compute_log_priors
from ikebana.system import progress

# Inverse L2 strengths (scikit-learn's C), for features scaled with `scaling.compute_mean_and_scale`.
# The best were 1e-2 to 3e-2 for thousands of photos, and about 1 for a dozen per class (docs/log.md).
REGULARISATION_GRID = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
MAX_LBFGS_STEPS = 200
# L-BFGS stops where the largest gradient of the mean loss is this small, as scikit-learn does by default.
GRADIENT_TOLERANCE = 1e-4
# The head that ships is fitted further: at 1e-4 a probability can be 0.006 away from the optimum, at 1e-5 0.0005.
# float32 chunks leave a gradient of some 3e-6.
FINAL_GRADIENT = 1e-5
# The logit of a class without training photos, so that it is never predicted.
ABSENT_CLASS_LOGIT = -30.0
# With fewer in a class, regularisation is selected by cross-validation on the training photos...
MIN_SELECTION_PHOTOS_PER_CLASS = 30
# ...unless there are this many in all.
SUFFICIENT_SELECTION_PHOTOS = 3000
# Used where the photos are too few to select by.
DEFAULT_REGULARISATION = 1.0
# The search ends after this many worse values in a row: weak regularisation takes the most steps.
PATIENCE = 2
CHUNK_PHOTOS = 512
# 104 MB of scaled features are cached in memory; larger tables are read again at each step.
MAX_CACHED_VALUES = 26_000_000


@dataclass(frozen=True)
class LinearHead:
    """A linear head: weight float32 [classes, features], bias float32 [classes].

    Attributes:
        inverse_l2: the selected inverse L2 strength.
    """

    weight: np.ndarray
    bias: np.ndarray
    inverse_l2: float

    def copy_to(self, head: nn.Module) -> None:
        """Copy it into the head's last layer."""
        layer = get_last_linear(head)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(self.weight))
            layer.bias.copy_(torch.from_numpy(self.bias))


def fit_head(
    train_features: FeatureTable,
    train_labels: np.ndarray,
    selection_features: FeatureTable,
    selection_labels: np.ndarray,
    classes: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> LinearHead:
    """Fit a head, its L2 strength selected on the model-selection photos.

    It predicts rare and common classes alike. Memory does not grow with the photos.

    Args:
        train_features: float [photos, features].
        train_labels: class indices [photos].
        selection_features, selection_labels: of photos held out for model selection; if they are
            few, folds of the training photos select instead.
        classes: number of classes; one without training photos is never predicted.
        groups: a number per training photo; folds keep groups whole, since copies on both sides
            would favour the weakest regularisation. By default each photo is its own group.
    """
    mean, spread = compute_mean_and_scale(train_features)
    all_chunks = ScaledChunks(train_features, train_labels, mean, spread)
    if groups is None:
        groups = np.arange(len(train_labels))
    photos_per_class = np.bincount(selection_labels, minlength=classes)[np.unique(train_labels)]
    has_selection_photos = (
        min(photos_per_class) >= MIN_SELECTION_PHOTOS_PER_CLASS or len(selection_labels) >= SUFFICIENT_SELECTION_PHOTOS
    )
    if has_selection_photos:
        trials = [
            RegularisationTrial(all_chunks, ScaledChunks(selection_features, selection_labels, mean, spread), classes)
        ]
    else:
        trials = [
            RegularisationTrial(all_chunks.select(train_rows), all_chunks.select(test_rows), classes)
            for train_rows, test_rows in make_folds(train_labels, groups, seed, known_classes_only=True)
        ]
    inverse_l2, initial = DEFAULT_REGULARISATION, None
    if trials:
        inverse_l2, fits = _select_regularisation(trials)
        initial = fits[0] if has_selection_photos else None
    coefficients = fit_coefficients(all_chunks, classes, inverse_l2, initial, FINAL_GRADIENT)
    weight, bias = coefficients[:, :-1] / spread, coefficients[:, -1] - compute_log_priors(train_labels, classes)
    return LinearHead(weight.astype(np.float32), (bias - weight @ mean).astype(np.float32), inverse_l2)


def fit_and_predict_logits(
    test_features: FeatureTable, train_features: FeatureTable, train_labels: np.ndarray, classes: int, inverse_l2: float
) -> np.ndarray:
    """Fit a head and predict other photos.

    Their class frequencies are assumed to be the same.

    Args:
        test_features: float [test photos, features].
        train_features: float [photos, features].
        inverse_l2: for features scaled with `scaling.compute_mean_and_scale`.
    Returns:
        Logits [test photos, classes].
    """
    mean, spread = compute_mean_and_scale(train_features)
    coefficients = fit_coefficients(ScaledChunks(train_features, train_labels, mean, spread), classes, inverse_l2)
    return compute_logits(
        coefficients, ScaledChunks(test_features, np.zeros(len(test_features), np.int64), mean, spread)
    )


class ScaledChunks:
    """Scaled features with their labels, iterable in chunks any number of times."""

    def __init__(self, features: FeatureTable, labels: np.ndarray, mean: np.ndarray, spread: np.ndarray):
        self.features, self.labels, self.width = features, labels, features.shape[1]
        self.mean, self.factor = mean.astype(np.float32), (1 / spread).astype(np.float32)
        # Row indices into the features, int64; None for all.
        self.rows: np.ndarray | None = None
        # All scaled features, float32, if memory holds them.
        self.cached: np.ndarray | None = None
        if len(labels) * self.width <= MAX_CACHED_VALUES:
            cached = np.empty((len(labels), self.width), np.float32)
            for start in range(0, len(labels), CHUNK_PHOTOS):
                cached[start : start + CHUNK_PHOTOS] = self._read(slice(start, start + CHUNK_PHOTOS))
            self.cached = cached

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(self), CHUNK_PHOTOS):
            chunk = slice(start, start + CHUNK_PHOTOS)
            rows = chunk if self.rows is None else self.rows[chunk]
            yield self._read(rows) if self.cached is None else self.cached[rows], self.labels[chunk]

    def _read(self, rows: slice | np.ndarray) -> np.ndarray:
        chunk = self.features[rows].astype(np.float32, copy=False) - self.mean
        chunk *= self.factor
        return chunk

    def select(self, rows: np.ndarray) -> "ScaledChunks":
        """Select rows, int64 or bool, without copying the features."""
        selection = copy.copy(self)
        selection.rows, selection.labels = rows, self.labels[rows]
        return selection


class RegularisationTrial:
    """Training and selection photos, with the head last fitted as regularisation gets weaker."""

    def __init__(
        self, train: ScaledChunks, selection: ScaledChunks, classes: int, tolerance: float = GRADIENT_TOLERANCE
    ):
        self.train, self.selection, self.classes, self.tolerance = train, selection, classes, tolerance
        self.coefficients = np.zeros((classes, train.width + 1))

    def evaluate(self, inverse_l2: float) -> tuple[float, float]:
        """Fit, starting from the last fit; return cross-entropy and accuracy on selection photos."""
        self.coefficients = fit_coefficients(self.train, self.classes, inverse_l2, self.coefficients, self.tolerance)
        selection_logits = compute_logits(self.coefficients, self.selection)
        accuracy = (selection_logits.argmax(1) == self.selection.labels).mean()
        return float(compute_cross_entropy(selection_logits, self.selection.labels).mean()), float(accuracy)


def _select_regularisation(trials: list[RegularisationTrial]) -> tuple[float, list[np.ndarray]]:
    """Return the inverse L2 strength with the lowest loss, and the fits at it.

    The loss is the mean over all trials. There is one fit per trial.
    """
    scores: list[tuple[float, float]] = []
    with progress.stage("select regularisation", len(REGULARISATION_GRID) * len(trials), "fits") as bar:

        def evaluate(inverse_l2: float) -> tuple[float, list[np.ndarray]]:
            trial_scores = []
            for trial in trials:
                trial_scores.append(trial.evaluate(inverse_l2))
                bar.advance(1)
            loss, accuracy = (float(score) for score in np.mean(trial_scores, 0))
            scores.append((loss, accuracy))
            return loss, [trial.coefficients for trial in trials]

        inverse_l2, fits = select_regularisation(REGULARISATION_GRID, evaluate, PATIENCE)
        lowest_loss, accuracy = min(scores, key=lambda score: score[0])
        skipped = len(REGULARISATION_GRID) - len(scores)
        bar.advance(skipped * len(trials), loss=lowest_loss, accuracy=accuracy)
    return inverse_l2, fits


def compute_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the cross-entropy per photo, float [photos], of logits [photos, classes]."""
    logits = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]


def compute_logits(coefficients: np.ndarray, chunks: ScaledChunks) -> np.ndarray:
    """Compute logits, float [photos, classes], with the coefficients of `fit_coefficients`."""
    weight, bias = coefficients[:, :-1].astype(np.float32), coefficients[:, -1]
    result = np.empty((len(chunks), len(coefficients)))
    start = 0
    for features, _ in chunks:
        result[start : start + len(features)] = _multiply(features, weight.T) + bias
        start += len(features)
    return result


def fit_coefficients(
    chunks: ScaledChunks,
    classes: int,
    inverse_l2: float,
    initial: np.ndarray | None = None,
    tolerance: float = GRADIENT_TOLERANCE,
) -> np.ndarray:
    """Fit the coefficients of a logistic regression by L-BFGS.

    For two classes scikit-learn fits one weight vector. Here there are two, with twice the penalty,
    which is equivalent.

    Args:
        initial: coefficients to start from; they change the number of steps, not the optimum.
        tolerance: the largest gradient of the mean loss at which the fit stops.
    Returns:
        float64 [classes, features + 1]: weights, with the bias in the last column.
    Source: scikit-learn, LogisticRegression(C=inverse_l2).
    """
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    coefficients = np.zeros((classes, chunks.width + 1))
    coefficients[:, -1] = ABSENT_CLASS_LOGIT
    present = np.unique(chunks.labels)
    if len(present) == 1:
        coefficients[present, -1] = 0.0
        return coefficients
    class_index = np.zeros(classes, np.int64)
    class_index[present] = np.arange(len(present))
    l2 = (2.0 if len(present) == 2 else 1.0) / (inverse_l2 * len(chunks))
    start = np.zeros((len(present), chunks.width + 1)) if initial is None else initial[present]
    # scipy and numpy each bring a BLAS whose threads spin while they wait: each step then took four times as long.
    with threadpool_limits(1, "blas"):
        result = minimize(
            lambda flat: _compute_loss_and_gradient(flat.reshape(start.shape), chunks, class_index, l2),
            start.ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": MAX_LBFGS_STEPS, "maxls": 50, "gtol": tolerance, "ftol": 64 * np.finfo(float).eps},
        )
    coefficients[present] = result.x.reshape(start.shape)
    return coefficients


def _multiply(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Multiply two matrices, one of them narrow; torch takes half of numpy's time."""
    return (torch.from_numpy(first) @ torch.from_numpy(second)).numpy()


def _compute_loss_and_gradient(
    coefficients: np.ndarray, chunks: ScaledChunks, class_index: np.ndarray, l2: float
) -> tuple[float, np.ndarray]:
    """Compute mean cross-entropy plus L2 penalty, and its flattened gradient.

    Each chunk is computed in float32, their sums in float64.
    """
    weight, bias = coefficients[:, :-1].astype(np.float32), coefficients[:, -1].astype(np.float32)
    loss, gradient = 0.0, np.zeros(coefficients.shape)
    for features, labels in chunks:
        # Logits, then their exponentials, then probabilities, then the gradient, all in one array.
        values = _multiply(features, weight.T) + bias
        true_class = (np.arange(len(features)), class_index[labels])
        values -= values.max(1, keepdims=True)
        true_logits = values[true_class]
        np.exp(values, out=values)
        sums = values.sum(1, keepdims=True)
        loss += float((np.log(sums[:, 0]) - true_logits).sum(dtype=np.float64))
        values /= sums
        values[true_class] -= 1
        gradient[:, :-1] += _multiply(values.T, features)
        gradient[:, -1] += values.sum(0, dtype=np.float64)
    gradient /= len(chunks)
    gradient[:, :-1] += l2 * coefficients[:, :-1]
    penalty = l2 / 2 * float(np.square(coefficients[:, :-1]).sum())
    return loss / len(chunks) + penalty, gradient.ravel()
