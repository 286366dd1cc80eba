"""Fitting of familiarity: the matrices of training photos, and the scores of known photos."""

from dataclasses import replace
from typing import Any

import numpy as np

from ikebana.evaluation.candidate_sets import MIN_CALIBRATION_GROUPS, select_one_per_group
from ikebana.evaluation.familiarity import (
    MAX_REJECTED_SHARE,
    MIN_SPREAD,
    FamiliarityModel,
    compute_terms,
    normalise,
)

MAX_AXES = 128
# Exponent of each axis' variance that its projection is divided by; 0.5 would whiten completely.
WHITENING_EXPONENT = 0.25
# Added to each axis' variance, of features of unit length: noise is not amplified.
MIN_VARIANCE = 1e-4
# Training photos that are compared; more would hardly change a score.
MAX_REFERENCES = 4000
CENTROIDS_PER_CLASS = 8
MAX_CENTROIDS = 400
MIN_PHOTOS_PER_CENTROID = 10
KMEANS_STEPS = 10
# Scores of known photos that a model keeps.
MAX_KNOWN_SCORES = 256
SEED = 0
# What `calibrate` adds.
CALIBRATED_FIELDS = ("term_means", "term_spreads", "known_scores", "known_shares")


def fit_references(features: np.ndarray, labels: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> FamiliarityModel:
    """Describe the training photos; the scores of known photos are still missing.

    Args:
        features: float32 [photos, features], of training photos.
        labels: class indices [photos].
        mean, scale: float [features], to standardise the features with.
    """
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    mean, scale = mean.astype(np.float32), scale.astype(np.float32)
    unit = normalise((features - mean) / scale)
    axis_count = min(MAX_AXES, features.shape[1], max(1, len(features) // 4))
    # The order of sums, and so the last digits, must not depend on the number of threads.
    with threadpool_limits(1):
        fitted: Any = PCA(axis_count, svd_solver="randomized", random_state=SEED).fit(unit)
        centroids = _find_centroids(normalise(features), len(np.unique(labels)))
    axes = (fitted.components_.T * (fitted.explained_variance_ + MIN_VARIANCE) ** -WHITENING_EXPONENT).astype(
        np.float16
    )
    centre = (fitted.mean_ @ axes.astype(np.float32)).astype(np.float32)
    chosen = select_references(len(features))
    references = normalise(unit[chosen] @ axes.astype(np.float32) - centre).astype(np.float16)
    none = np.zeros(0, np.float32)
    return FamiliarityModel(
        mean,
        scale,
        axes,
        centre,
        references,
        centroids.astype(np.float16),
        np.zeros(3, np.float32),
        np.ones(3, np.float32),
        none,
        none,
    )


def select_references(count: int) -> np.ndarray:
    """Select the training photos that others are compared with: ascending indices, at most 4,000."""
    return np.sort(np.random.default_rng(SEED).choice(count, min(count, MAX_REFERENCES), replace=False))


def calibrate(
    model: FamiliarityModel, features: np.ndarray, energy: np.ndarray, groups: np.ndarray
) -> FamiliarityModel | None:
    """Add the scores of known photos, which the network was not trained on.

    Args:
        features: float32 [photos, features], of known photos.
        energy: float32 [photos].
        groups: a number per photo; one photo of each group counts.
    Returns:
        None if there are fewer than 20 groups.
    """
    chosen = select_one_per_group(groups, len(groups))
    if len(chosen) < MIN_CALIBRATION_GROUPS:
        return None
    features, energy = features[chosen], energy[chosen]
    terms = compute_terms(model, features, energy)
    spreads = np.maximum(terms.std(0), MIN_SPREAD)
    standardised = replace(model, term_means=terms.mean(0).astype(np.float32), term_spreads=spreads.astype(np.float32))
    scores = np.sort(standardised.compute_scores(features, energy))
    ranks = _select_ranks(len(scores))
    shares = ranks / (len(scores) + 1)
    return replace(
        standardised, known_scores=scores[ranks - 1].astype(np.float32), known_shares=shares.astype(np.float32)
    )


def _select_ranks(count: int) -> np.ndarray:
    """Select the ranks, from 1, of the scores to keep, including the threshold's."""
    threshold_rank = int(MAX_REJECTED_SHARE * (count + 1))
    evenly = np.linspace(1, count, min(count, MAX_KNOWN_SCORES)).astype(int)
    return np.unique([*evenly, threshold_rank])


def _find_centroids(unit: np.ndarray, class_count: int) -> np.ndarray:
    """Cluster features of unit length: float32 [centroids, features], of unit length."""
    from sklearn.cluster import KMeans

    wanted = min(CENTROIDS_PER_CLASS * class_count, MAX_CENTROIDS)
    count = max(1, min(wanted, len(unit) // MIN_PHOTOS_PER_CENTROID))
    clusters = KMeans(count, max_iter=KMEANS_STEPS, random_state=SEED).fit(unit)
    return normalise(clusters.cluster_centers_.astype(np.float32))
