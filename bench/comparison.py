"""Check the tests and intervals of `compare` on drawn predictions, whose true difference is known.

    python bench/comparison.py [--trials 1000]

Each photo has its own difficulty, which two recipes share. Runs of a recipe differ by chance. Photos
come alone or in groups that are right or wrong together. Shown are the share of trials with p of 0.05
or less where both recipes are equally good, and the share of intervals that contain the true
difference: with the half photos that are added, and as plain percentiles.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from machine import format_header

from ikebana.evaluation import paired_tests
from ikebana.evaluation.paired_tests import bootstrap_interval, compute_sign_flip_p_value, sum_by_group

LEVEL = 0.05
NO_PSEUDO_PHOTOS = ((0.0, 0.0),)


@dataclass(frozen=True)
class Scenario:
    """What is drawn.

    Attributes:
        groups: independent groups of photos.
        photos_per_group: photos that are right or wrong together.
        accuracy: of the first recipe.
        difference: accuracy of the second recipe minus that of the first.
        shared: correlation of the two recipes' errors, by the spread of the photos' difficulty.
        seeds: runs per recipe.
    """

    groups: int
    photos_per_group: int
    accuracy: float
    difference: float
    shared: float
    seeds: int


SCENARIOS = [
    *(Scenario(groups, 1, 0.93, 0.0, 0.6, 1) for groups in (100, 300, 863)),
    Scenario(863, 1, 0.99, 0.0, 0.6, 1),
    Scenario(863, 1, 0.63, 0.0, 0.6, 1),
    Scenario(863, 1, 0.93, 0.0, 0.6, 3),
    Scenario(150, 4, 0.93, 0.0, 0.6, 1),
    *(Scenario(groups, 1, 0.93, 0.02, 0.6, 1) for groups in (100, 300, 863)),
    Scenario(863, 1, 0.93, 0.02, 0.6, 3),
    Scenario(150, 4, 0.93, 0.02, 0.6, 1),
]


def draw(scenario: Scenario, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw right runs of the second recipe minus those of the first, and groups: [photos]."""
    # Probability that a run is right, beta-distributed over photos: the larger the spread, the more
    # often both recipes agree.
    strength = (1 - scenario.shared) / scenario.shared
    mean = scenario.accuracy
    first = rng.beta(mean * strength, (1 - mean) * strength, scenario.groups)
    # Of the photos that the first gets wrong, a share becomes right.
    second = first + (1 - first) * scenario.difference / (1 - mean)
    right = [(rng.random((scenario.seeds, scenario.groups)) < probability).sum(0) for probability in (first, second)]
    numbers = np.repeat(np.arange(scenario.groups), scenario.photos_per_group)
    return (right[1] - right[0])[numbers], numbers


def measure(scenario: Scenario, trials: int, rng: np.random.Generator) -> list[str]:
    """Return the columns of a row: alarms or power, coverage with and without added photos."""
    alarms, covered, plain = 0, 0, 0
    for trial in range(trials):
        values, groups = draw(scenario, rng)
        sums, sizes = sum_by_group(values, groups)
        alarms += compute_sign_flip_p_value(sums.astype(np.int64)) <= LEVEL
        covered += contains(bootstrap_interval(sums / scenario.seeds, sizes, seed=trial), scenario.difference)
        plain += contains(bootstrap_plainly(sums / scenario.seeds, sizes, trial), scenario.difference)
    return [f"{count / trials:.3f}" for count in (alarms, covered, plain)]


def contains(interval: Sequence[float], value: float) -> bool:
    """Return whether an interval contains a value."""
    return interval[0] <= value <= interval[1]


def bootstrap_plainly(sums: np.ndarray, sizes: np.ndarray, seed: int) -> tuple[float, float]:
    """Compute the interval without added photos."""
    pseudo_photos = paired_tests.PSEUDO_PHOTOS
    paired_tests.PSEUDO_PHOTOS = NO_PSEUDO_PHOTOS
    try:
        return bootstrap_interval(sums, sizes, seed)
    finally:
        paired_tests.PSEUDO_PHOTOS = pseudo_photos


def main() -> None:
    """Print a row per scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    options = parser.parse_args()
    print(format_header("numpy"))
    print("| groups x photos | accuracy | difference | seeds | p <= 0.05 | interval contains it | plain percentiles |")
    print("|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for scenario in SCENARIOS:
        cells = measure(scenario, options.trials, rng)
        size = f"{scenario.groups} x {scenario.photos_per_group}"
        columns = [size, f"{scenario.accuracy:g}", f"{scenario.difference:g}", f"{scenario.seeds}", *cells]
        print(f"| {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
