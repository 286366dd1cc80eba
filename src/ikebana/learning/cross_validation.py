"""Cross-validation of a linear probe on the cached features of all photos.

With five folds, three train, one selects the L2 strength and one is predicted, in turn. These are
the shares of the default split, so the score is that of the same recipe on five other splits. Each
photo is predicted once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ikebana.evaluation.cross_validation import CrossValidation, score_cross_validation
from ikebana.evaluation.learning_curves import LearningCurve
from ikebana.evaluation.metrics import Evaluation
from ikebana.learning.examples import FeatureExamples
from ikebana.learning.features.feature_rows import FeatureRows
from ikebana.learning.features.learning_curves import measure_learning_curves
from ikebana.learning.features.scaling import FeatureTable, compute_mean_and_scale
from ikebana.learning.folds import make_folds
from ikebana.learning.plan import TrainingTask
from ikebana.learning.regularisation import select_regularisation
from ikebana.learning.training import logistic_head
from ikebana.learning.training.class_priors import compute_log_priors
from ikebana.learning.training.logistic_head import RegularisationTrial, ScaledChunks
from ikebana.recipe import LinearProbe
from ikebana.system import progress

# One trains, one selects and one is predicted.
MIN_FOLDS = 3
# With more photos, only the audit measures learning curves.
MAX_CURVE_PHOTOS = 1000
# A tenth of it takes more than twice as long, and gives the same accuracy.
GRADIENT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ProbePhotos:
    """Features of all photos of a run: training, validation, then test photos.

    Attributes:
        tables: one [photos, features] per network of the recipe, read from disk on access.
        labels: class indices [photos].
        groups: a number per photo.
    """

    tables: tuple[FeatureTable, ...]
    labels: np.ndarray
    groups: np.ndarray


def collect_photos(tasks: Sequence[TrainingTask]) -> ProbePhotos:
    """Collect the features that linear probes were trained and scored on."""
    tables = []
    for task in tasks:
        assert isinstance(task.train, FeatureExamples)
        assert isinstance(task.held_out, FeatureExamples)
        tables.append(FeatureRows([task.train.array, task.held_out.array], [task.train.rows, task.held_out.rows]))
    parts = (tasks[0].train, tasks[0].held_out)
    labels, groups = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "groups"))
    return ProbePhotos(tuple(tables), labels, groups)


def add_scores_of_all_photos(
    evaluation: Evaluation, tasks: Sequence[TrainingTask], classes: Sequence[str]
) -> Evaluation:
    """Add a cross-validated score and, for few photos, what more of them would bring.

    Args:
        tasks: of all networks of the recipe.
        classes: class names.
    Returns:
        The evaluation as it was, if the recipe does not fit its head to cached features, and for
        features that do not fit into memory, because fits would take long.
    """
    recipe = tasks[0].recipe
    if not isinstance(recipe.method, LinearProbe):
        return evaluation
    photos = collect_photos(tasks)
    if max(math.prod(table.shape) for table in photos.tables) > logistic_head.MAX_CACHED_VALUES:
        return evaluation
    return replace(
        evaluation,
        cross_validation=cross_validate(photos, classes, recipe.seed),
        learning_curves=_measure_accuracy_curve(photos, classes),
    )


def _measure_accuracy_curve(photos: ProbePhotos, classes: Sequence[str]) -> tuple[LearningCurve, ...] | None:
    """Measure the learning curve of all classes together, from the features of the first network."""
    if len(photos.labels) > MAX_CURVE_PHOTOS:
        return None
    counts = np.bincount(photos.labels, minlength=len(classes)).tolist()
    by_class = dict(zip(classes, counts, strict=True))
    curves = measure_learning_curves(photos.tables[0], photos.labels, photos.groups, by_class, max_class_curves=0)
    return curves or None


def cross_validate(photos: ProbePhotos, classes: Sequence[str], seed: int) -> CrossValidation | None:
    """Score a linear probe by cross-validation.

    Args:
        classes: class names.
        seed: of the folds.
    Returns:
        None if there are too few photos for three folds.
    """
    folds = [test for _, test in make_folds(photos.labels, photos.groups, seed)]
    if len(folds) < MIN_FOLDS:
        return None
    fold_numbers = np.zeros(len(photos.labels), np.int64)
    for number, rows in enumerate(folds):
        fold_numbers[rows] = number
    fits = len(photos.tables) * len(folds) * len(logistic_head.REGULARISATION_GRID)
    with progress.stage("cross-validate", fits, "fits") as bar:
        probabilities = [predict_folds(table, photos.labels, folds, len(classes), bar) for table in photos.tables]
    predicted = np.mean(probabilities, axis=0).argmax(1)
    return score_cross_validation(predicted, photos.labels, photos.groups, fold_numbers, classes)


def predict_folds(
    features: FeatureTable, labels: np.ndarray, folds: Sequence[np.ndarray], classes: int, bar: progress.Bar
) -> np.ndarray:
    """Predict each photo with a head that was fitted to other folds.

    The L2 strength of a fold's head has the lowest loss on the selection photos of all heads,
    without the fold's own photos.

    Args:
        features: float [photos, features].
        folds: rows of each fold; at least three.
        classes: number of classes; one without training photos is never predicted.
        bar: advances by one per fit, and by those that are skipped.
    Returns:
        Probabilities [photos, classes].
    """
    from scipy.special import softmax

    # The features are standardised together, without their labels.
    chunks = ScaledChunks(features, labels, *compute_mean_and_scale(features))
    trials = [_make_trial(chunks, folds, number, classes) for number in range(len(folds))]
    losses: list[list[float]] = []
    logits: list[list[np.ndarray]] = []

    def evaluate(inverse_l2: float) -> tuple[float, None]:
        losses.append([])
        logits.append([])
        for trial, rows in zip(trials, folds, strict=True):
            losses[-1].append(trial.evaluate(inverse_l2)[0])
            logits[-1].append(logistic_head.compute_logits(trial.coefficients, chunks.select(rows)))
            bar.advance(1)
        return float(np.mean(losses[-1])), None

    select_regularisation(logistic_head.REGULARISATION_GRID, evaluate, logistic_head.PATIENCE)
    bar.advance(len(folds) * (len(logistic_head.REGULARISATION_GRID) - len(losses)))
    probabilities = np.zeros((len(labels), classes))
    for number, rows in enumerate(folds):
        # The head before this one selects on the photos of this fold.
        others = [other for other in range(len(folds)) if other != (number - 1) % len(folds)]
        best = int(np.array(losses)[:, others].mean(1).argmin())
        priors = compute_log_priors(trials[number].train.labels, classes)
        probabilities[rows] = softmax(logits[best][number] - priors, axis=1)
    return probabilities


def _make_trial(chunks: ScaledChunks, folds: Sequence[np.ndarray], number: int, classes: int) -> RegularisationTrial:
    """Make the trial that predicts a fold: the next fold selects, the others train."""
    selecting = (number + 1) % len(folds)
    training = [rows for other, rows in enumerate(folds) if other not in (number, selecting)]
    train = chunks.select(np.sort(np.concatenate(training)))
    is_known = np.isin(chunks.labels[folds[selecting]], train.labels)
    selection = folds[selecting][is_known] if is_known.any() else folds[selecting]
    return RegularisationTrial(train, chunks.select(selection), classes, GRADIENT_TOLERANCE)
