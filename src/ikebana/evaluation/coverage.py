"""Coverage of the candidate classes on test photos: how often they contain the true class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ikebana.evaluation.calibration import Calibration
from ikebana.evaluation.candidate_sets import MIN_CALIBRATION_GROUPS, are_candidates, count_needed_groups
from ikebana.evaluation.statistics import effective_sample_size, wilson_interval
from ikebana.system.percentages import format_share


@dataclass(frozen=True)
class Coverage:
    """How often the candidates contain the true class; None without photos.

    Attributes:
        interval: Wilson's 95% interval, wider where photos of a group resemble each other.
    """

    photos: int
    covered: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class CandidateScores:
    """Coverage and size of the candidate sets of the test photos.

    Attributes:
        coverage: the requested one.
        overall: of all test photos; None if calibration had too few photos to name candidates, and then
            everything below is None or empty, too.
        mean_size: candidates per photo.
        answered, not_sure: of the photos that get a label, and of those that do not, without unknown ones.
        per_size: by number of candidates.
        per_class: by true class.
    """

    coverage: float
    overall: Coverage | None = None
    mean_size: float | None = None
    answered: Coverage | None = None
    not_sure: Coverage | None = None
    per_size: Mapping[str, Coverage] | None = None
    per_class: Mapping[str, Coverage] | None = None

    def describe(self) -> str:
        """Describe the coverage in one line, or say why there are no candidates."""
        if self.overall is None or self.overall.covered is None or self.overall.interval is None:
            needed = max(MIN_CALIBRATION_GROUPS, count_needed_groups(self.coverage))
            return (
                f"names no candidate classes: for a coverage of {format_share(self.coverage)}, "
                f"calibration needs at least {needed} independent photos, of two classes or more"
            )
        low, high = self.overall.interval
        return (
            f"names {self.mean_size:.2f} candidate classes per photo, which contain the true one for "
            f"{self.overall.covered:.1%} ({low:.1%} to {high:.1%}; at least {format_share(self.coverage)} requested)"
        )


def score_candidates(
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None,
    *,
    classes: Sequence[str],
    calibration: Calibration,
    coverage: float,
    is_known: np.ndarray | None = None,
) -> CandidateScores:
    """Score the candidates of test photos.

    Args:
        probabilities: float [photos, classes], calibrated.
        labels: class indices [photos].
        groups: int [photos]; None if all photos are independent.
        classes: class names.
        coverage: the requested coverage.
        is_known: bool [photos], whether a photo is familiar enough to be answered; None if all are.
    """
    rule = calibration.candidates
    if rule is None:
        return CandidateScores(coverage)
    groups = np.arange(len(labels)) if groups is None else groups
    is_known = np.ones(len(labels), bool) if is_known is None else is_known
    is_sure = probabilities.max(1) >= (calibration.threshold or 0)
    is_named = are_candidates(probabilities, rule, is_sure)
    sizes = is_named.sum(1)
    is_covered = is_named[np.arange(len(labels)), labels]

    def summarise(chosen: np.ndarray) -> Coverage:
        return _summarise(is_covered[chosen], groups[chosen])

    return CandidateScores(
        coverage,
        _summarise(is_covered, groups),
        float(sizes.mean()),
        summarise(is_sure & is_known),
        summarise(~is_sure & is_known),
        {str(size): summarise(sizes == size) for size in np.unique(sizes)},
        {name: summarise(labels == index) for index, name in enumerate(classes)},
    )


def _summarise(is_covered: np.ndarray, groups: np.ndarray) -> Coverage:
    if not len(is_covered):
        return Coverage(0, None, None)
    covered, n_effective = float(is_covered.mean()), effective_sample_size(is_covered, groups)
    return Coverage(len(is_covered), covered, wilson_interval(covered * n_effective, n_effective))


def from_json(values: Mapping[str, Any]) -> CandidateScores:
    """Read the scores from `evaluation.json`; TypeError or ValueError if they are damaged."""
    scores = {name: _coverage_from_json(values[name]) for name in ("overall", "answered", "not_sure")}
    groups = {
        name: values[name] and {key: _coverage_from_json(item) for key, item in values[name].items()}
        for name in ("per_size", "per_class")
    }
    return CandidateScores(**{**values, **scores, **groups})


def _coverage_from_json(values: Mapping[str, Any] | None) -> Coverage | None:
    if values is None:
        return None
    interval = values["interval"]
    return Coverage(values["photos"], values["covered"], None if interval is None else (interval[0], interval[1]))
