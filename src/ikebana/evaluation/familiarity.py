"""Familiarity: how much a photo resembles the photos that a network was trained on.

Three terms are averaged, each standardised by its values for known photos:

neighbours  mean cosine similarity to the nearest training photos, along the main directions of
            their features, of which the strongest count a little less (partial whitening)
centroids   cosine similarity to the nearest of a few centroids of the training features as they are
energy      log sum exp of the logits, which is high where one class has strong evidence

The first recognises similar things, the second distant things, the third photos between the
classes. bench/records.md says how each scores alone. A photo's familiarity is the share of known
photos that score lower, so that 0.05 means: 5% of known photos resemble the training photos less.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

# Share of known photos that may be called unknown.
MAX_REJECTED_SHARE = 0.05
NEIGHBOUR_COUNT = 5
MIN_LENGTH = 1e-12
MIN_SPREAD = 1e-6


@dataclass(frozen=True)
class Projection:
    """The main directions of the training features: attributes as in `FamiliarityModel`."""

    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray
    centre: np.ndarray

    def project(self, features: np.ndarray) -> np.ndarray:
        """Project features [photos, features]: float32 [photos, axes], of unit length."""
        unit = normalise((features - self.mean) / self.scale)
        return normalise(unit @ self.axes.astype(np.float32) - self.centre)


@dataclass(frozen=True)
class FamiliarityModel:
    """The matrices that familiarity is computed with.

    Attributes:
        mean, scale: float32 [features], to standardise features.
        axes: float16 [features, axes], the main directions divided by a power of their variance.
        centre: float32 [axes], projection of the mean.
        references: float16 [photos, axes], projections of training photos, of unit length.
        centroids: float16 [centroids, features], of unit length.
        term_means, term_spreads: float32 [3], of known photos.
        known_scores: float32 [scores], ascending quantiles of the scores of known photos.
        known_shares: float32 [scores], the share of known photos below each.
    """

    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray
    centre: np.ndarray
    references: np.ndarray
    centroids: np.ndarray
    term_means: np.ndarray
    term_spreads: np.ndarray
    known_scores: np.ndarray
    known_shares: np.ndarray

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return all matrices by name."""
        return {record_field.name: getattr(self, record_field.name) for record_field in fields(self)}

    @property
    def projection(self) -> Projection:
        """The axes along which photos are compared."""
        return Projection(self.mean, self.scale, self.axes, self.centre)

    @property
    def threshold(self) -> float:
        """The familiarity below which a photo is unknown: at most 5% of known photos."""
        known = np.asarray(self.known_shares)
        return float(known[np.searchsorted(known, MAX_REJECTED_SHARE + 1e-9, side="right") - 1])

    @property
    def known_photos(self) -> int:
        """The number of calibration photos that count."""
        # The lowest of n scores has the share 1 / (n + 1).
        return round(1 / float(self.known_shares[0])) - 1

    def compute_scores(self, features: np.ndarray, energy: np.ndarray) -> np.ndarray:
        """Score photos: float [photos], higher is more familiar.

        Args:
            features: float32 [photos, features].
            energy: float32 [photos], log sum exp of the logits.
        """
        terms = compute_terms(self, features, energy)
        return ((terms - self.term_means) / self.term_spreads).mean(1)

    def to_familiarity(self, scores: np.ndarray) -> np.ndarray:
        """Return the share of known photos that score lower: float [photos], 0 to 1.

        Between two known scores the share is interpolated. Below all of them it falls to 0, above
        all of them it rises to 1, exponentially, so that the order of photos is kept.
        """
        low, high = self.known_scores[0], self.known_scores[-1]
        spread = max(float(high - low), MIN_SPREAD)
        inside = np.interp(scores, self.known_scores, self.known_shares)
        below = self.known_shares[0] * np.exp(np.minimum(scores - low, 0) / spread)
        above = 1 - (1 - self.known_shares[-1]) * np.exp(-np.maximum(scores - high, 0) / spread)
        return np.where(scores < low, below, np.where(scores > high, above, inside))


def from_arrays(arrays: Mapping[str, np.ndarray]) -> FamiliarityModel:
    """Read a model from its matrices.

    Raises:
        ValueError: a matrix is missing, not finite, or does not fit the others.
    """
    try:
        model = FamiliarityModel(
            **{record_field.name: arrays[record_field.name] for record_field in fields(FamiliarityModel)}
        )
    except KeyError as error:
        raise ValueError(f"{error} is missing") from None
    width, axes = len(model.mean), len(model.centre)
    shapes = {
        "scale": (width,),
        "axes": (width, axes),
        "references": (len(model.references), axes),
        "centroids": (len(model.centroids), width),
        "term_means": (3,),
        "term_spreads": (3,),
        "known_shares": (len(model.known_scores),),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape or not np.isfinite(arrays[name].astype(np.float32)).all():
            raise ValueError(f"{name} has the shape {arrays[name].shape} instead of {shape}, or is not finite")
    return model


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Scale each row to unit length: float32."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, MIN_LENGTH)).astype(np.float32, copy=False)


def compute_terms(model: FamiliarityModel, features: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Compute the three terms: float32 [photos, 3]."""
    references, centroids = model.references.astype(np.float32), model.centroids.astype(np.float32)
    similarity = model.projection.project(features) @ references.T
    neighbours = min(NEIGHBOUR_COUNT, len(references))
    nearest = np.partition(similarity, -neighbours, axis=1)[:, -neighbours:]
    to_centroid = (normalise(features) @ centroids.T).max(1)
    return np.stack([nearest.mean(1), to_centroid, energy], axis=1)
