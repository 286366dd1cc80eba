"""Comparison of classifiers on the same test photos: which is better, and is that certain?

A contestant is one recipe on one set of photos. Its runs with several seeds are pooled: a photo
counts as the share of them that classify it correctly. So chance in training adds to the difference
of single photos, and the tests take it into account.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from ikebana.evaluation.paired_tests import (
    bootstrap_interval,
    compute_sign_flip_p_value,
    forecast_photos_needed,
    sum_by_group,
)
from ikebana.evaluation.statistics import adjust_p_values, effective_sample_size, wilson_interval

# The probability that any pair is called different although none is.
SIGNIFICANCE_LEVEL = 0.05
CLOSE_TIE_NOTE = (
    "A tie whose interval does not contain 0 is a close call: the interval is approximate, and the verdict follows "
    "the exact test. More test photos would decide."
)
Verdict = Literal["better", "worse", "tie"]


@dataclass(frozen=True)
class SplitPredictions:
    """Which test photos of one split each contestant's runs classify correctly.

    Attributes:
        name: of the split, for people.
        groups: int [photos]; photos of one group are not independent. Numbers are shared by all splits.
        is_right: by contestant: bool [runs, photos].
    """

    name: str
    groups: np.ndarray
    is_right: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Contestant:
    """One recipe on one set of photos: the mean over its runs.

    Attributes:
        runs: folders.
        accuracy_interval: Wilson's 95% interval, for other photos and groups of the same kind.
        accuracies: of its runs, in their order.
        n: test photos, of all splits together.
    """

    name: str
    runs: tuple[str, ...]
    accuracy: float
    accuracy_interval: tuple[float, float]
    accuracies: tuple[float, ...]
    n: int


@dataclass(frozen=True)
class Difference:
    """How much more accurate one contestant is than another on the same photos.

    Attributes:
        name: of the split.
        value: accuracy of the second minus that of the first.
        interval: 95%, from a bootstrap over groups.
        p_value: exact, of the hypothesis that both are equally good.
        n: test photos.
        n_groups: groups of duplicates or related photos; a single photo counts as one.
        first_ahead: photos that more of the first one's runs classify correctly.
        second_ahead: the same for the second.
    """

    name: str
    value: float
    interval: tuple[float, float]
    p_value: float
    n: int
    n_groups: int
    first_ahead: int
    second_ahead: int


@dataclass(frozen=True)
class PairComparison:
    """Two contestants, compared on all splits that both have.

    Attributes:
        verdict: what the second is, compared with the first.
        p_value: corrected by Holm's method for all pairs.
        photos_needed: test photos that would show a difference of this size; None if there is no
            difference, or none that other photos would show.
        by_split: the differences of single splits, if there are several.
    """

    first: str
    second: str
    verdict: Verdict
    difference: Difference
    p_value: float
    photos_needed: int | None
    by_split: tuple[Difference, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs compared on the same test photos.

    Attributes:
        contestants: in the order in which their first runs were given.
        pairs: each contestant compared with each one before it.
        splits: test photos by split.
        notes: how the runs were understood.
    """

    contestants: tuple[Contestant, ...]
    pairs: tuple[PairComparison, ...]
    splits: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def __repr__(self) -> str:
        from ikebana.evaluation.comparison_text import format_comparison

        return format_comparison(self)

    def _repr_html_(self) -> str:
        from ikebana.evaluation.comparison_view import render_comparison

        return render_comparison(self)


def compare_contestants(
    splits: Sequence[SplitPredictions],
    runs: Mapping[str, Sequence[str]],
    notes: Sequence[str] = (),
    *,
    differ_by_chance: bool = False,
) -> Comparison:
    """Compare every pair of contestants.

    Args:
        splits: each pair of contestants is compared on those that have both.
        runs: the folders of each contestant's runs, in the order of `is_right` of all splits.
        notes: how the runs were understood.
        differ_by_chance: whether the contestants are trainings of one recipe on the same photos. No
            number of test photos would tell which is better.
    """
    contestants = [_score_contestant(name, tuple(folders), splits) for name, folders in runs.items()]
    pairs = list(combinations(runs, 2))
    differences = [_compare_pair(first, second, splits) for first, second in pairs]
    p_values = adjust_p_values(np.array([combined.p_value for combined, *_ in differences]))
    compared = [
        PairComparison(
            first,
            second,
            _judge(combined.value, float(p_value)),
            combined,
            float(p_value),
            None if differ_by_chance else forecast_photos_needed(*sums, comparisons=len(pairs)),
            by_split,
        )
        for (first, second), (combined, sums, by_split), p_value in zip(pairs, differences, p_values, strict=True)
    ]
    sizes = {split.name: len(split.groups) for split in splits}
    all_notes = [*notes, *([CLOSE_TIE_NOTE] if any(map(_is_close_tie, compared)) else [])]
    return Comparison(tuple(contestants), tuple(compared), sizes, tuple(all_notes))


def _is_close_tie(pair: PairComparison) -> bool:
    """Return whether a pair is a tie although 0 is outside its interval."""
    low, high = pair.difference.interval
    return pair.verdict == "tie" and not low <= 0 <= high


def _judge(value: float, p_value: float) -> Verdict:
    if p_value > SIGNIFICANCE_LEVEL:
        return "tie"
    return "better" if value > 0 else "worse"


def _score_contestant(name: str, runs: tuple[str, ...], splits: Sequence[SplitPredictions]) -> Contestant:
    own = [split for split in splits if name in split.is_right]
    shares = np.concatenate([split.is_right[name].mean(0) for split in own])
    groups = np.concatenate([split.groups for split in own])
    accuracies = [float(accuracy) for split in own for accuracy in split.is_right[name].mean(1)]
    n_effective = effective_sample_size(shares, groups)
    accuracy = float(shares.mean())
    interval = wilson_interval(accuracy * n_effective, n_effective)
    return Contestant(name, runs, accuracy, interval, tuple(accuracies), len(shares))


def _compare_pair(
    first: str, second: str, splits: Sequence[SplitPredictions]
) -> tuple[Difference, tuple[np.ndarray, np.ndarray], tuple[Difference, ...]]:
    """Compare two contestants.

    Returns:
        The difference on all splits, its sums and sizes by group, and the differences by split.
    """
    shared = [split for split in splits if first in split.is_right and second in split.is_right]
    by_split = tuple(_measure_difference(first, second, [split])[0] for split in shared)
    combined, sums = _measure_difference(first, second, shared)
    return combined, sums, by_split if len(by_split) > 1 else ()


def _measure_difference(
    first: str, second: str, splits: Sequence[SplitPredictions]
) -> tuple[Difference, tuple[np.ndarray, np.ndarray]]:
    shares = [split.is_right[second].mean(0) - split.is_right[first].mean(0) for split in splits]
    # Times this number, differences of shares are whole numbers.
    scale = math.lcm(*(len(split.is_right[name]) for split in splits for name in (first, second)))
    values = np.rint(np.concatenate(shares) * scale).astype(np.int64)
    sums, sizes = sum_by_group(values, np.concatenate([split.groups for split in splits]))
    difference = Difference(
        name=splits[0].name if len(splits) == 1 else f"{len(splits)} splits",
        value=float(values.sum()) / scale / len(values),
        interval=bootstrap_interval(sums / scale, sizes),
        p_value=compute_sign_flip_p_value(np.rint(sums).astype(np.int64)),
        n=len(values),
        n_groups=len(sizes),
        first_ahead=int((values < 0).sum()),
        second_ahead=int((values > 0).sum()),
    )
    return difference, (sums / scale, sizes)
