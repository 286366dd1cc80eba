"""The risk-coverage curve: the share of wrong answers as the threshold falls.

Source: Geifman and El-Yaniv 2017, Selective classification for deep neural networks,
arXiv:1705.08500, section 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ikebana.evaluation import error_guarantee
from ikebana.evaluation.error_guarantee import Guarantee
from ikebana.evaluation.statistics import sort_descending

# One point per percent of the photos.
CURVE_POINTS = 100


@dataclass(frozen=True)
class RiskCoverage:
    """Points of the curve on test photos, the highest threshold first.

    Attributes:
        thresholds: confidences from which photos get a label.
        answered: share of the test photos that get one.
        wrong: share of these labels that are wrong.
        guarantee: on the share of wrong answers; None if the user asked for none.
    """

    thresholds: tuple[float, ...]
    answered: tuple[float, ...]
    wrong: tuple[float, ...]
    guarantee: Guarantee | None = None

    def describe(self) -> str:
        """Describe the guarantee in one line; empty if the user asked for none."""
        return self.guarantee.describe() if self.guarantee is not None else ""


def trace_curve(probabilities: np.ndarray, labels: np.ndarray, guarantee: Guarantee | None = None) -> RiskCoverage:
    """Compute the curve of test photos, at most one point per percent of them.

    Args:
        probabilities: float [photos, classes], calibrated.
        labels: class indices [photos].
        guarantee: of the threshold that the run uses.
    """
    confidence = probabilities.max(1)
    order, is_end = sort_descending(confidence)
    count = len(order)
    wrong = np.cumsum((probabilities.argmax(1) != labels)[order])
    # The first point of each percent that does not separate equal confidences.
    ends = np.flatnonzero(is_end)
    wanted = np.ceil(np.arange(1, CURVE_POINTS + 1) * count / CURVE_POINTS).astype(int) - 1
    chosen = np.unique(ends[np.searchsorted(ends, wanted)])
    return RiskCoverage(
        tuple(confidence[order[chosen]].astype(float).tolist()),
        tuple(((chosen + 1) / count).tolist()),
        tuple((wrong[chosen] / (chosen + 1)).tolist()),
        guarantee,
    )


def from_json(values: Mapping[str, Any]) -> RiskCoverage:
    """Read the curve from `evaluation.json`; TypeError or ValueError if it is damaged."""
    points = {name: tuple(map(float, values[name])) for name in ("thresholds", "answered", "wrong")}
    return RiskCoverage(**points, guarantee=error_guarantee.from_json(values.get("guarantee")))
