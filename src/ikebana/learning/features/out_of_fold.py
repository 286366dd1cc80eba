"""Features of a dataset from a frozen backbone, and out-of-fold predictions from them."""

from dataclasses import dataclass, replace

import numpy as np

from ikebana.learning.device import DeviceSettings
from ikebana.learning.examples import PhotoExamples, concatenate
from ikebana.learning.features import depth_probe, feature_cache
from ikebana.learning.features.feature_rows import FeatureRows
from ikebana.learning.folds import Fold, make_scoring_folds
from ikebana.learning.models.assembly import Member
from ikebana.learning.regularisation import select_regularisation
from ikebana.learning.training import logistic_head
from ikebana.system import progress

# Inverse L2 strengths, selected on the first fold; wrong labels need more regularisation.
REGULARISATION_GRID = (3e-4, 3e-3, 3e-2)
# More would improve a head little and cost time.
MAX_TRAINING_PHOTOS = 20_000
# If photos are subsampled, each class keeps at least this many, or all it has.
MIN_PHOTOS_PER_CLASS = 20


@dataclass(frozen=True)
class LabelledFeatures:
    """The backbone's features with their labels, sorted by row of the dataset's table.

    Attributes:
        features: float32 [photos, features], read from disk on access.
        rows: int64 [photos], rows of the dataset's table.
        labels: int64 [photos], class indices.
    """

    features: FeatureRows
    rows: np.ndarray
    labels: np.ndarray


def extract_labelled_features(
    splits: dict[str, PhotoExamples], member: Member, pixel_cache: str, settings: DeviceSettings
) -> LabelledFeatures:
    """Extract the features of all photos with one backbone; `fit` shares their cache.

    Args:
        splits: validation and test photos are processed in float32, as in `fit`.
        pixel_cache: name of the pixel cache.
    """
    key = feature_cache.make_feature_key(pixel_cache, member.recipe, member.weights)
    extracted = [
        feature_cache.extract_features(member.backbone, key, photos, split_settings)
        for photos, split_settings in list_extractions(splits, settings)
    ]
    rows, labels = (np.concatenate([getattr(part, name) for part in extracted]) for name in ("rows", "labels"))
    order = np.argsort(rows)
    table = FeatureRows([part.array for part in extracted], [part.rows for part in extracted], order)
    return LabelledFeatures(table, rows[order], labels[order])


def list_extractions(
    splits: dict[str, PhotoExamples], settings: DeviceSettings
) -> list[tuple[PhotoExamples, DeviceSettings]]:
    """List the photos whose features are extracted together, with their settings."""
    exact = replace(settings, precision="float32")
    held_out = concatenate(splits["validation"], splits["test"])
    return [
        (photos, split_settings)
        for photos, split_settings in ((splits["train"], settings), (held_out, exact))
        if len(photos)
    ]


def predict_out_of_fold(
    examples: LabelledFeatures, groups: np.ndarray, classes: int, source: str
) -> tuple[np.ndarray, np.ndarray]:
    """Predict every photo with a logistic regression that was trained on other groups.

    Args:
        groups: a number per photo.
    Returns:
        Probabilities [photos, classes], and whether the head's training photos had the photo's
        class, bool [photos]. They lack it if the whole class is one group.
    Raises:
        PhotosError: there are too few photos to train and score.
    """
    from scipy.special import softmax

    folds = make_scoring_folds(examples.labels, groups, source)
    out_of_fold_logits, has_known_class = (
        np.zeros((len(examples.labels), classes)),
        np.zeros(len(examples.labels), bool),
    )
    for train, test in folds:
        has_known_class[test] = np.isin(examples.labels[test], examples.labels[train])
    with progress.stage("check labels", len(folds) + len(REGULARISATION_GRID) - 1, "fits") as bar:
        test = folds[0][1]

        def evaluate(inverse_l2: float) -> tuple[float, np.ndarray]:
            logits = _fit_and_predict(examples, folds[0], classes, inverse_l2)
            losses, is_known = logistic_head.compute_cross_entropy(logits, examples.labels[test]), has_known_class[test]
            bar.advance(1)
            return float((losses[is_known] if is_known.any() else losses).mean()), logits

        inverse_l2, out_of_fold_logits[test] = select_regularisation(REGULARISATION_GRID, evaluate)
        for fold in folds[1:]:
            out_of_fold_logits[fold[1]] = _fit_and_predict(examples, fold, classes, inverse_l2)
            bar.advance(1)
    return softmax(out_of_fold_logits, axis=1), has_known_class


def _fit_and_predict(examples: LabelledFeatures, fold: Fold, classes: int, inverse_l2: float) -> np.ndarray:
    """Fit a head on (a subsample of) the training photos; return test logits [photos, classes]."""
    train, test = _subsample(fold[0], examples.labels), fold[1]
    train_features, test_features = examples.features.select(train), examples.features.select(test)
    return logistic_head.fit_and_predict_logits(
        test_features, train_features, examples.labels[train], classes, inverse_l2
    )


def _subsample(train: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Subsample the training photos by class if there are too many; small classes stay whole."""
    if len(train) <= MAX_TRAINING_PHOTOS:
        return train
    rng, fraction = np.random.default_rng(depth_probe.SEED), MAX_TRAINING_PHOTOS / len(train)
    by_class = [train[labels[train] == label] for label in np.unique(labels[train])]
    counts = [max(round(fraction * len(rows)), min(len(rows), MIN_PHOTOS_PER_CLASS)) for rows in by_class]
    return np.sort(
        np.concatenate([rng.choice(rows, count, replace=False) for rows, count in zip(by_class, counts, strict=True)])
    )
