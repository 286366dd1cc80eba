"""Suspect labels and outliers, from the features of a frozen network and the given labels.

Two estimates that did not use a photo's own label predict its class: logistic regressions trained on
other photos, and the nearest neighbours. They make different errors. A linear model knows which
features matter, the neighbours know that a class has several modes. Their product is used.
"""

from dataclasses import dataclass

import numpy as np

from ikebana.auditing.label_confidence import ErrorEstimates
from ikebana.evaluation.calibration import MIN_PROBABILITY
from ikebana.learning.features.scaling import FeatureTable, compute_mean_and_scale

NEIGHBOUR_COUNT = 40
# A neighbour whose cosine similarity is lower by this much has 1/e of the weight.
SIMILARITY_SCALE = 0.06
# Added to the vote for each class, because neighbours may miss a class.
VOTE_SMOOTHING = 0.02
# Neighbours are searched among this many photos: time then grows linearly, not quadratically.
MAX_REFERENCE_PHOTOS = 20_000
# Photos compared at a time: with fewer, the matrix product slows down.
CHUNK_PHOTOS = 512
# Of a chunk, photos whose similarities are sorted at a time.
SORT_PHOTOS = 32
# Probability of an error from which it is stated.
MIN_ERROR_PROBABILITY = 0.1
MAX_PRINCIPAL_AXES = 64
MIN_PHOTOS_PER_AXIS = 10
# Of similarities and of logarithms: among photos that hardly differ there is no outlier.
MIN_SPREAD = 0.01
# With fewer photos, the similarity within a class is not known.
MIN_PHOTOS_PER_CLASS = 20
MIN_OUTLIER_PHOTOS = 50
# Robust z-score from which a photo is reported.
MIN_OUTLIER_SCORE = 3.4
SEED = 0


@dataclass(frozen=True)
class Neighbours:
    """Nearest neighbours of each photo outside its own group.

    Attributes:
        rows: int32 [photos, neighbours], most similar first.
        similarity: float32 [photos, neighbours], cosine similarity; -2 if no photo is left.
        own_class_similarity: float32 [photos], mean similarity to at most as many photos with the
            same label.
        first: bool [photos], whether the photo is the first of its group.
    """

    rows: np.ndarray
    similarity: np.ndarray
    own_class_similarity: np.ndarray
    first: np.ndarray


@dataclass(frozen=True)
class SuspectLabel:
    """A photo whose label is probably wrong.

    Attributes:
        photo: its row.
        suggested_label: index of the class that the models suggest.
        confidence: the probability that the label is wrong; None if it is small or not known.
    """

    photo: int
    suggested_label: int
    confidence: float | None


def find_neighbours(features: FeatureTable, labels: np.ndarray, groups: np.ndarray) -> Neighbours:
    """Find the nearest neighbours of each photo.

    Args:
        features: float [photos, features].
        labels: class indices [photos].
        groups: a number per photo; photos of one group are not each other's neighbours.
    """
    mean, spread = compute_mean_and_scale(features)
    count = len(labels)
    rng = np.random.default_rng(SEED)
    references = np.sort(rng.choice(count, min(count, MAX_REFERENCE_PHOTOS), replace=False))
    reference_features = _normalise(features, mean, spread, references)
    width = min(NEIGHBOUR_COUNT, len(references))
    rows, similarities = np.zeros((count, width), np.int32), np.zeros((count, width), np.float32)
    own_class = np.zeros(count, np.float32)
    for start in range(0, count, CHUNK_PHOTOS):
        chunk = slice(start, min(start + CHUNK_PHOTOS, count))
        chunk_features = _normalise(features, mean, spread, np.arange(chunk.start, chunk.stop))
        similarity = chunk_features @ reference_features.T
        similarity[groups[chunk, None] == groups[None, references]] = -2
        columns, similarities[chunk] = _take_largest(similarity, width)
        rows[chunk] = references[columns]
        similarity[labels[chunk, None] != labels[None, references]] = -2
        of_class = _take_largest(similarity, width)[1]
        exists = of_class > -2
        own_class[chunk] = (of_class * exists).sum(1) / np.maximum(exists.sum(1), 1)
    first = np.zeros(count, bool)
    first[np.unique(groups, return_index=True)[1]] = True
    return Neighbours(rows, similarities, own_class, first)


def _normalise(features: FeatureTable, mean: np.ndarray, spread: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """Return standardised features of some photos, each of unit length: float32."""
    result = np.empty((len(photos), features.shape[1]), np.float32)
    for start in range(0, len(photos), CHUNK_PHOTOS):
        scaled = ((features[photos[start : start + CHUNK_PHOTOS]] - mean) / spread).astype(np.float32)
        length = np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
        result[start : start + CHUNK_PHOTOS] = scaled / length
    return result


def _take_largest(similarity: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns of the largest values per row, and the values, in descending order."""
    columns = np.empty((len(similarity), width), np.int32)
    for start in range(0, len(similarity), SORT_PHOTOS):
        chunk = slice(start, start + SORT_PHOTOS)
        columns[chunk] = np.argpartition(-similarity[chunk], width - 1, axis=1)[:, :width]
    values = np.take_along_axis(similarity, columns, 1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(columns, order, 1), np.take_along_axis(values, order, 1)


def vote(neighbours: Neighbours, labels: np.ndarray, class_count: int) -> np.ndarray:
    """Estimate class probabilities from the neighbours' labels: float [photos, classes]."""
    weights = np.exp((neighbours.similarity - neighbours.similarity[:, :1]) / SIMILARITY_SCALE) * (
        neighbours.similarity > -2
    )
    votes = [(weights * (labels[neighbours.rows] == label)).sum(1) for label in range(class_count)]
    totals = np.stack(votes, axis=1)
    shares = totals / np.maximum(totals.sum(1, keepdims=True), MIN_PROBABILITY)
    return (shares + VOTE_SMOOTHING) / (shares + VOTE_SMOOTHING).sum(1, keepdims=True)


def combine_probabilities(
    out_of_fold: np.ndarray, votes: np.ndarray, labels: np.ndarray, is_known: np.ndarray
) -> np.ndarray:
    """Multiply both estimates.

    The regressions alone are too unsure, because wrong labels make them choose strong
    regularisation. The product is roughly calibrated, and unlike a temperature it does not depend on
    how many labels are wrong.

    Args:
        out_of_fold: float [photos, classes], of heads that were not trained on the photo.
        votes: float [photos, classes], from the neighbours.
        labels: class indices [photos].
        is_known: bool [photos], whether those heads know the photo's class. If not, its label is
            taken as given. Otherwise every photo of a class that is one group would be suspect.
    Returns:
        float [photos, classes].
    """
    from scipy.special import softmax

    logits = np.log(np.maximum(out_of_fold, MIN_PROBABILITY)) + np.log(np.maximum(votes, MIN_PROBABILITY))
    probabilities = softmax(logits, axis=1)
    probabilities[~is_known] = np.eye(probabilities.shape[1])[labels[~is_known]]
    return probabilities


def rank_suspect_labels(
    probabilities: np.ndarray, labels: np.ndarray, errors: ErrorEstimates | None = None
) -> np.ndarray:
    """Rank photos by the probability that their label is wrong, the highest first.

    Where it is not known, or equal, they are ranked by the odds of another label.

    A ratio instead of a difference: of two very improbable labels, the less probable comes first.

    Source: normalised margin of Northcutt et al. 2021, arXiv:1911.00068.
    """
    by_odds = np.argsort(-_log_odds(probabilities, labels), kind="stable")
    return by_odds if errors is None else by_odds[np.argsort(-errors.probabilities[by_odds], kind="stable")]


def _log_odds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the log odds of the most probable other class against the label: float [photos]."""
    logs = np.log(np.maximum(probabilities, MIN_PROBABILITY))
    given = np.take_along_axis(logs, labels[:, None], 1)[:, 0]
    np.put_along_axis(logs, labels[:, None], -np.inf, 1)
    return logs.max(1) - given


def find_suspect_labels(probabilities: np.ndarray, labels: np.ndarray, errors: ErrorEstimates) -> list[SuspectLabel]:
    """List the labels that may be wrong, the most probable error first.

    After those whose probability is stated come those that stand out, without a probability.

    Args:
        probabilities: float [photos, classes], of models that were not trained on the photo's own label.
        labels: class indices [photos].
        errors: of these labels.
    """
    best, stated = probabilities.argmax(1), errors.probabilities
    is_stated = stated >= MIN_ERROR_PROBABILITY
    order = rank_suspect_labels(probabilities, labels, errors)
    listed = order[((best != labels) & (is_stated | errors.stands_out))[order]]
    return [
        SuspectLabel(int(photo), int(best[photo]), float(stated[photo]) if is_stated[photo] else None)
        for photo in listed
    ]


def score_outliers(features: FeatureTable, labels: np.ndarray, neighbours: Neighbours) -> np.ndarray:
    """Score how far each photo is from all others, as robust z-scores: float [photos].

    The score is the sum of two. The first is how little the photo resembles its own class, compared
    with the similarity within that class; only for classes of at least 20 photos. The second is the
    norm of its features outside the collection's principal axes. A photo of another subject has a
    high value in either.
    """
    isolation = np.zeros(len(labels))
    for label in np.unique(labels):
        is_own = labels == label
        if (is_own & neighbours.first).sum() >= MIN_PHOTOS_PER_CLASS:
            isolation[is_own] = _robust_z_scores(-neighbours.own_class_similarity[is_own], neighbours.first[is_own])
    return isolation + _robust_z_scores(np.log(_measure_residuals(features)), neighbours.first)


def find_outliers(
    features: FeatureTable, labels: np.ndarray, neighbours: Neighbours, min_score: float = MIN_OUTLIER_SCORE
) -> list[tuple[int, float]]:
    """List outliers and their scores, the highest first; none in a small collection.

    Args:
        features: float [photos, features].
        labels: class indices [photos].
    """
    if len(features) < MIN_OUTLIER_PHOTOS:
        return []
    scores = score_outliers(features, labels, neighbours)
    order = np.argsort(-scores, kind="stable")
    return [(int(photo), float(scores[photo])) for photo in order if scores[photo] >= min_score]


def _measure_residuals(features: FeatureTable) -> np.ndarray:
    """Return the squared norm outside the principal axes: float [photos]."""
    mean, spread = compute_mean_and_scale(features)
    count, width = features.shape
    axis_count = max(1, min(MAX_PRINCIPAL_AXES, count // MIN_PHOTOS_PER_AXIS, width // 4))
    sample = np.random.default_rng(SEED).choice(count, min(count, MAX_REFERENCE_PHOTOS), replace=False)
    total, products = np.zeros(width), np.zeros((width, width))
    for start in range(0, len(sample), CHUNK_PHOTOS):
        # Of unit length, so that no distant photo gets an axis of its own.
        unit = _normalise(features, mean, spread, sample[start : start + CHUNK_PHOTOS])
        total += unit.sum(0, dtype=np.float64)
        products += unit.T @ unit
    centre = total / len(sample)
    # `eigh` returns the principal axes last.
    _, axes = np.linalg.eigh(products / len(sample) - np.outer(centre, centre))
    axes = axes[:, -axis_count:].astype(np.float32)
    residuals = np.zeros(count)
    for start in range(0, count, CHUNK_PHOTOS):
        scaled = ((features[start : start + CHUNK_PHOTOS] - mean) / spread).astype(np.float32)
        residuals[start : start + CHUNK_PHOTOS] = (scaled**2).sum(1) - ((scaled @ axes) ** 2).sum(1)
    return np.maximum(residuals, 1e-6)


def _robust_z_scores(values: np.ndarray, is_reference: np.ndarray) -> np.ndarray:
    """Return z-scores from median and upper spread, since outliers are on that side.

    Args:
        is_reference: bool [photos], the photos from which median and spread are computed. Copies
            would have no spread between them.
    """
    median, upper = np.percentile(values[is_reference], (50, 84.1))
    return (values - median) / max(float(upper - median), MIN_SPREAD)
