"""The guarantee on the share of wrong answers, against photos whose errors are known by construction."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikebana.evaluation.calibration import Calibration, calibrate, from_json
from ikebana.evaluation.error_guarantee import (
    GUARANTEE_CONFIDENCE,
    START_SHARES,
    count_needed_answers,
    describe_shortage,
    find_guaranteed_threshold,
    find_lowest_limit,
    plan_starts,
)
from ikebana.evaluation.metrics import evaluate, score_confidence
from ikebana.evaluation.risk_coverage import CURVE_POINTS, trace_curve

DRAWS = 1000


def draw_answers(rng, photos, error_of):
    """Two classes; confidence is uniform from 0.5 to 1, and an answer is wrong with probability error_of(confidence)."""
    confidence = rng.uniform(0.5, 1, photos)
    labels = (rng.random(photos) < error_of(confidence)).astype(int)
    return np.stack([confidence, 1 - confidence], 1), labels


def share_of_broken_guarantees(error_of, max_error, photos=400):
    """In how many draws more than `max_error` of new answers are wrong, and in how many there is a threshold."""
    grid = np.linspace(0.5, 1, 20_001)[:-1]
    tail = np.cumsum(error_of(grid)[::-1])[::-1] / np.arange(len(grid), 0, -1)  # of all answers above
    broken = given = 0
    for seed in range(DRAWS):
        threshold = find_guaranteed_threshold(
            *draw_answers(np.random.default_rng(seed), photos, error_of), None, max_error
        )
        if threshold is not None:
            given += 1
            broken += bool(tail[min(np.searchsorted(grid, threshold), len(grid) - 1)] > max_error)
    return broken / DRAWS, given / DRAWS


LIMIT = (1 - GUARANTEE_CONFIDENCE) + 3 * np.sqrt(GUARANTEE_CONFIDENCE * (1 - GUARANTEE_CONFIDENCE) / DRAWS)


@pytest.mark.parametrize("max_error", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("steepness", [0.3, 1.0])
def test_more_answers_are_wrong_than_allowed_in_at_most_a_tenth_of_draws(max_error, steepness):
    broken, _ = share_of_broken_guarantees(lambda confidence: steepness * (1 - confidence), max_error)
    assert broken <= LIMIT


def test_a_network_whose_errors_do_not_depend_on_its_confidence_keeps_the_guarantee():
    broken, given = share_of_broken_guarantees(lambda confidence: np.full(confidence.shape, 0.06), 0.05)
    assert broken <= LIMIT
    assert given <= LIMIT


def test_confident_mistakes_do_not_break_the_guarantee():
    """Against the assumption: the most confident answers are wrong most often, as with wrong labels."""
    broken, _ = share_of_broken_guarantees(
        lambda confidence: np.where(confidence > 0.9, 0.08, np.where(confidence > 0.7, 0.01, 0.4)), 0.05
    )
    assert broken <= LIMIT


def test_photos_of_a_group_count_once():
    """Groups of ten copies: counted as photos, the guarantee would be broken often."""
    rng, broken = np.random.default_rng(0), {True: 0, False: 0}
    for _ in range(DRAWS // 4):
        probabilities, labels = draw_answers(rng, 100, lambda confidence: 1.0 - confidence)
        copies = np.repeat(np.arange(100), 10)
        for counts_groups in (True, False):
            threshold = find_guaranteed_threshold(
                probabilities[copies], labels[copies], copies if counts_groups else None, 0.1
            )
            # Above t, (1 - t) / 2 of the answers are wrong.
            broken[counts_groups] += threshold is not None and (1 - threshold) / 2 > 0.1
    assert broken[True] / (DRAWS // 4) <= 0.1 + 3 * np.sqrt(0.09 / (DRAWS // 4))
    assert broken[False] > 2 * broken[True]


def test_most_photos_get_an_answer_if_the_network_is_good_enough():
    """5% are wrong from confidence 0.9 on, which 20% of the photos reach; 10% are wrong from 0.8 on."""
    shares = []
    for seed in range(100):
        probabilities, labels = draw_answers(np.random.default_rng(seed), 2000, lambda confidence: 1.0 - confidence)
        threshold = find_guaranteed_threshold(probabilities, labels, None, 0.1)
        shares.append(0.0 if threshold is None else 2 * (1 - threshold))
    assert shares.count(0) <= 5
    assert 0.3 < np.mean(shares) < 0.4  # of 0.4


def test_one_wrong_label_at_the_top_does_not_end_the_search():
    probabilities = np.linspace([0.99, 0.01], [0.6, 0.4], 400)
    labels = np.zeros(400, int)
    labels[0] = 1
    assert find_guaranteed_threshold(probabilities, labels, None, 0.05) == pytest.approx(0.6)


@pytest.mark.parametrize("max_error", [0.01, 0.05, 0.1, 0.5])
def test_so_many_right_answers_are_needed_that_luck_is_improbable(max_error):
    needed = count_needed_answers(max_error)
    assert (1 - max_error) ** needed <= 0.1 < (1 - max_error) ** (needed - 1)
    probabilities = np.linspace([0.9, 0.1], [0.8, 0.2], needed)
    labels = np.zeros(needed, int)
    assert find_guaranteed_threshold(probabilities, labels, None, max_error) == pytest.approx(0.8)
    assert find_guaranteed_threshold(probabilities[1:], labels[1:], None, max_error) is None


def test_too_few_photos_are_named_with_the_number_that_is_needed():
    assert not describe_shortage(45, 0.05)
    assert "calibration has 44 independent photos and needs at least 45" in describe_shortage(44, 0.05)


@pytest.mark.parametrize("photos", [45, 58, 59, 100, 400, 5000])
def test_all_sequences_together_have_the_error_probability_of_the_guarantee(photos):
    starts = plan_starts(photos, 0.05)
    assert sum(starts.values()) == pytest.approx(1 - GUARANTEE_CONFIDENCE)
    assert len(starts) <= len(START_SHARES)
    assert min(starts) >= 45
    assert max(starts) <= photos


def test_equal_confidences_are_answered_together():
    """60 right answers at 0.99; of 100 at 0.8, the first 50 are right."""
    probabilities = np.array([[0.99, 0.01]] * 100 + [[0.8, 0.2]] * 100)
    labels = np.array([0] * 150 + [1] * 50)
    for order in (slice(None), slice(None, None, -1)):
        assert find_guaranteed_threshold(probabilities[order], labels[order], None, 0.05) == 0.99


# --- calibration and evaluation ---


def test_a_guaranteed_threshold_replaces_the_default_one_and_is_reported():
    probabilities, labels = draw_answers(np.random.default_rng(0), 2000, lambda confidence: 1.0 - confidence)
    plain, strict = calibrate(probabilities, labels), calibrate(probabilities, labels, at_most_wrong=0.1)
    assert plain.guarantee is None
    assert strict.guarantee is not None
    assert strict.guarantee.holds
    assert strict.threshold == find_guaranteed_threshold(strict.apply(probabilities), labels, None, 0.1)
    scored = score_confidence(
        evaluate(probabilities, labels, ("a", "b")), probabilities, labels, calibration=strict, coverage=0.9
    )
    assert "at most 10% of all answers are wrong, with 90% confidence" in repr(scored)
    assert from_json(json.loads(json.dumps(asdict(strict)))) == strict


def test_without_the_guarantee_the_default_threshold_stays_with_the_reason():
    probabilities, labels = draw_answers(
        np.random.default_rng(0), 600, lambda confidence: np.full(confidence.shape, 0.3)
    )
    calibration = calibrate(probabilities, labels, at_most_wrong=0.05)
    assert calibration.threshold == calibrate(probabilities, labels).threshold
    assert calibration.guarantee is not None
    assert not calibration.guarantee.holds
    assert "the 600 independent calibration photos show it for no threshold" in calibration.guarantee.describe()
    few = calibrate(probabilities[:10], labels[:10], at_most_wrong=0.05)
    assert few.threshold is None
    assert few.guarantee is not None
    assert "needs at least 45" in few.guarantee.reason
    assert calibrate(probabilities[:10], labels[:10]) == Calibration(photos=10)


# --- the curve ---


@pytest.mark.parametrize("photos", [1, 7, 100, 863])
def test_the_curve_has_the_share_of_wrong_answers_at_each_threshold(photos):
    rng = np.random.default_rng(photos)
    probabilities, labels = draw_answers(rng, photos, lambda confidence: 1.0 - confidence)
    probabilities = probabilities.round(2).astype(np.float32)  # many equal ones
    curve = trace_curve(probabilities, labels)
    assert 1 <= len(curve.thresholds) <= CURVE_POINTS
    assert curve.answered[-1] == 1
    assert list(curve.thresholds) == sorted(set(curve.thresholds), reverse=True)
    for threshold, answered, wrong in zip(curve.thresholds, curve.answered, curve.wrong, strict=True):
        is_answered = probabilities.max(1) >= threshold
        assert answered == is_answered.mean()
        assert wrong == pytest.approx((probabilities.argmax(1) != labels)[is_answered].mean())


@given(st.integers(20, 100_000))
def test_the_lowest_limit_can_be_shown_by_so_many_photos_and_a_lower_one_cannot(count):
    limit = find_lowest_limit(count)
    assert limit is not None
    assert not describe_shortage(count, limit)
    if limit > 0.001:
        assert describe_shortage(count, limit - 0.001)


def test_fewer_photos_than_calibration_needs_can_show_no_limit():
    assert find_lowest_limit(19) is None
