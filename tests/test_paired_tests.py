"""Paired tests, against binomial tests, full enumeration and simulations."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ikebana.evaluation import paired_tests
from ikebana.evaluation.paired_tests import (
    bootstrap_interval,
    compute_sign_flip_p_value,
    forecast_photos_needed,
    sum_by_group,
)


@given(st.integers(0, 60), st.integers(0, 60))
def test_single_photos_give_the_p_value_of_mcnemars_exact_test(first_alone, second_alone):
    differences = np.array([-1] * first_alone + [1] * second_alone + [0] * 40)
    total = first_alone + second_alone
    expected = stats.binomtest(first_alone, total).pvalue if total else 1.0
    assert compute_sign_flip_p_value(differences) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.integers(-4, 4), max_size=10))
def test_groups_give_the_share_of_sign_assignments_that_are_as_extreme(differences):
    sums = [abs(sum(map(int.__mul__, signs, differences))) for signs in product((-1, 1), repeat=len(differences))]
    expected = np.mean([total >= abs(sum(differences)) for total in sums])
    assert compute_sign_flip_p_value(np.array(differences, np.int64)) == pytest.approx(expected)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(2, 9))
def test_a_common_factor_of_all_differences_changes_nothing(differences, factor):
    values = np.array(differences)
    assert compute_sign_flip_p_value(values) == compute_sign_flip_p_value(factor * values)


def test_many_photos_are_tested_as_by_the_binomial_distribution():
    differences = np.repeat([1, -1], [30_500, 30_000])
    expected = stats.binomtest(30_500, 60_500).pvalue
    assert compute_sign_flip_p_value(differences) == pytest.approx(expected, rel=1e-6)


def test_one_sided_differences_have_the_smallest_possible_p_value():
    assert compute_sign_flip_p_value(np.ones(80, np.int64)) == pytest.approx(2.0**-79, rel=1e-6)


def test_two_copies_of_each_photo_change_neither_p_value_nor_interval():
    values = np.repeat([1, -1, 0], [20, 8, 400])
    single = sum_by_group(values, np.arange(len(values)))
    copied = sum_by_group(np.repeat(values, 2), np.repeat(np.arange(len(values)), 2))
    p_values = [compute_sign_flip_p_value(sums.astype(np.int64)) for sums, _ in (single, copied)]
    assert p_values[0] == p_values[1]
    assert bootstrap_interval(*copied) == pytest.approx(bootstrap_interval(*single), abs=0.002)


def test_the_interval_agrees_with_the_normal_approximation_for_many_photos():
    sums, sizes = np.repeat([1.0, -1.0, 0.0], [300, 200, 4500]), np.ones(5000, int)
    error = 1.96 * sums.std() / np.sqrt(5000)
    assert bootstrap_interval(sums, sizes) == pytest.approx((0.02 - error, 0.02 + error), abs=0.0005)


def test_without_any_difference_the_interval_is_not_empty():
    low, high = bootstrap_interval(np.zeros(100), np.ones(100, int))
    assert -0.05 < low < 0 < high < 0.05
    assert forecast_photos_needed(np.zeros(100), np.ones(100, int)) is None


def test_about_80_percent_of_experiments_of_the_forecast_size_show_the_difference():
    sums, sizes = np.repeat([1.0, -1.0, 0.0], [30, 20, 450]), np.ones(500, int)
    needed = forecast_photos_needed(sums, sizes)
    assert needed is not None
    counts = np.random.default_rng(0).multinomial(needed, [0.06, 0.04, 0.9], size=400)
    shown = [stats.binomtest(first, first + second).pvalue <= 0.05 for first, second, _ in counts.tolist()]
    assert sum(map(bool, shown)) / 400 == pytest.approx(0.8, abs=0.06)


def test_a_forecast_for_several_pairs_needs_more_photos_and_has_two_digits():
    sums, sizes = np.repeat([1.0, -1.0, 0.0], [30, 20, 450]), np.ones(500, int)
    single, several = forecast_photos_needed(sums, sizes), forecast_photos_needed(sums, sizes, comparisons=21)
    assert single is not None
    assert several is not None
    assert single < several
    assert str(single).rstrip("0") in (str(single)[:2], str(single)[:1])


@pytest.mark.parametrize("photos_per_group", [1, 3])
def test_false_alarms_and_coverage_hold_in_a_simulation(photos_per_group):
    """Also in groups whose photos are all right or wrong together."""
    rng = np.random.default_rng(1)
    alarms, covered = [], []
    for trial in range(300):
        values = rng.choice([-1, 0, 1], size=300, p=[0.06, 0.88, 0.06])
        sums, sizes = sum_by_group(np.repeat(values, photos_per_group), np.repeat(np.arange(300), photos_per_group))
        alarms.append(compute_sign_flip_p_value(sums.astype(np.int64)) <= 0.05)
        if trial < 150:
            low, high = bootstrap_interval(sums, sizes, seed=trial)
            covered.append(low <= 0 <= high)
    assert np.mean(alarms) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    assert np.mean(covered) >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 150)


def test_the_quantiles_are_those_of_the_normal_distribution():
    assert pytest.approx(stats.norm.ppf(0.8)) == paired_tests.POWER_QUANTILE
    assert paired_tests._compute_quantile(21) == pytest.approx(stats.norm.ppf(1 - 0.025 / 21))
