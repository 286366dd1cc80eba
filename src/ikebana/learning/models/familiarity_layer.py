"""Familiarity as a torch module, which becomes part of the exported graph."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ikebana.evaluation import familiarity
from ikebana.evaluation.familiarity import FamiliarityModel


class FamiliarityLayer(nn.Module):
    """The arithmetic of `FamiliarityModel`, on tensors."""

    mean: Tensor
    scale: Tensor
    axes: Tensor
    centre: Tensor
    references: Tensor
    centroids: Tensor
    term_means: Tensor
    term_spreads: Tensor
    known_scores: Tensor
    known_shares: Tensor

    def __init__(self, model: FamiliarityModel):
        super().__init__()
        for name, array in model.to_arrays().items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)))
        self.neighbours = min(familiarity.NEIGHBOUR_COUNT, len(model.references))
        self.spread = max(float(model.known_scores[-1] - model.known_scores[0]), familiarity.MIN_SPREAD)

    def forward(self, features: Tensor, energy: Tensor) -> Tensor:
        """Compute the familiarity of photos: float [photos], 0 to 1.

        Args:
            features: float [photos, features].
            energy: float [photos], log sum exp of the logits.
        """
        unit = _normalise((features - self.mean) / self.scale)
        projected = _normalise(unit @ self.axes.float() - self.centre)
        similarity = projected @ self.references.float().T
        nearest = torch.topk(similarity, self.neighbours, dim=1).values.mean(1)
        to_centroid = (_normalise(features) @ self.centroids.float().T).amax(1)
        terms = torch.stack([nearest, to_centroid, energy], dim=1)
        return self._to_familiarity(((terms - self.term_means) / self.term_spreads).mean(1))

    def _to_familiarity(self, scores: Tensor) -> Tensor:
        """Interpolate the share of known photos, as the sum of each interval's part."""
        low, high = self.known_scores[:-1], self.known_scores[1:]
        widths = (high - low).clamp(min=1e-9)
        parts = ((scores[:, None] - low) / widths).clamp(0, 1)
        inside = self.known_shares[0] + (parts * (self.known_shares[1:] - self.known_shares[:-1])).sum(1)
        first, last = self.known_scores[0], self.known_scores[-1]
        below = torch.exp((scores - first).clamp(max=0) / self.spread)
        above = torch.exp(-(scores - last).clamp(min=0) / self.spread)
        # Both factors are 1 between the first and the last known score.
        return 1 - (1 - inside * below) * above


def _normalise(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors, dim=1, eps=familiarity.MIN_LENGTH)
