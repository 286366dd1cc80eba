"""Calibration, tested with photos whose class probabilities are known by construction."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikebana.errors import PhotosError
from ikebana.evaluation.calibration import (
    MIN_CALIBRATION_GROUPS,
    MIN_THRESHOLD,
    SUFFICIENT_ERRORS,
    TARGET_ACCURACY,
    Calibration,
    calibrate,
    choose_threshold,
    compute_assumed_error,
    fit_temperature,
    from_json,
)
from ikebana.evaluation.metrics import calibration_error, evaluate, score_answered


def draw_calibrated_logits(seed, photos=4000, classes=4, scale=2.0):
    """Draw calibrated logits: the labels are drawn from their softmax."""
    numbers = np.random.default_rng(seed)
    logits = scale * numbers.normal(size=(photos, classes))
    labels = (softmax(logits).cumsum(1) > numbers.random((photos, 1))).argmax(1)
    return logits, labels


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_calibrated_logits_keep_the_temperature_1():
    assert fit_temperature(*draw_calibrated_logits(seed=1)) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("k", [0.3, 2.0, 7.5])
def test_scaled_logits_have_a_proportionally_higher_temperature(k):
    logits, labels = draw_calibrated_logits(seed=1)
    assert fit_temperature(k * logits, labels) == pytest.approx(k * fit_temperature(logits, labels), rel=1e-4)


def test_the_temperature_minimises_the_cross_entropy():
    logits, labels = draw_calibrated_logits(seed=2)
    temperature = fit_temperature(3 * logits, labels)

    def cross_entropy(candidate):
        return -np.log(softmax(3 * logits / candidate))[np.arange(len(labels)), labels].mean()

    assert cross_entropy(temperature) <= min(cross_entropy(temperature * 0.99), cross_entropy(temperature * 1.01))


@pytest.mark.parametrize("scale", [3.0, 6.0, 12.0])
def test_mean_confidence_equals_accuracy_for_any_confidence(scale):
    """The labels are drawn from the probabilities, so the true temperature is 1 and the true confidence is known."""
    temperatures, gaps = [], []
    for seed in range(60):
        logits, labels = draw_calibrated_logits(seed, photos=400, scale=scale)
        temperatures.append(fit_temperature(logits, labels))
        new_logits, _ = draw_calibrated_logits(1000 + seed, photos=400, scale=scale)
        gaps.append(softmax(new_logits / temperatures[-1]).max(1).mean() - softmax(new_logits).max(1).mean())
    assert np.mean(gaps) == pytest.approx(0, abs=0.004)
    assert np.median(temperatures) == pytest.approx(1, abs=0.06)


def test_the_assumed_error_falls_with_each_misclassified_group():
    is_wrong, groups = np.zeros(40, bool), np.repeat(np.arange(20), 2)
    rates = []
    for count in range(SUFFICIENT_ERRORS + 2):
        is_wrong[: 2 * count] = True
        rates.append(compute_assumed_error(is_wrong, groups))
    assert rates[0] == 1 / 22
    assert rates[-2:] == [0, 0]
    assert rates[:-1] == sorted(set(rates), reverse=True)


@pytest.mark.parametrize("photos", [20, 39, 500])
def test_a_network_without_mistakes_does_not_get_confidence_1(photos):
    """Laplace's rule of succession gives (n + 1) / (n + 2)."""
    labels = np.arange(photos) % 2
    logits = 9.0 * np.eye(2)[labels]
    confidence = softmax(logits / fit_temperature(logits, labels)).max(1)
    np.testing.assert_allclose(confidence, (photos + 1) / (photos + 2), rtol=1e-6)


def test_an_overconfident_network_is_calibrated_afterwards():
    logits, labels = draw_calibrated_logits(seed=3)
    calibration = calibrate(softmax(4 * logits), labels)
    fresh, truth = draw_calibrated_logits(seed=4)
    scale = softmax(4 * fresh)
    assert calibration_error(scale, truth) > 0.1
    assert calibration_error(calibration.apply(scale), truth) < 0.03


@given(st.floats(0.05, 20), st.integers(0, 100))
def test_no_temperature_changes_the_predicted_class_and_1_changes_no_bit(temperature, seed):
    logits, _ = draw_calibrated_logits(seed, photos=50)
    probabilities = softmax(logits).astype(np.float32)
    calibrated = Calibration(temperature).apply(probabilities)
    assert calibrated.dtype == np.float32
    best = probabilities.max(1, keepdims=True)
    assert np.all((probabilities == best)[np.arange(50), calibrated.argmax(1)])
    np.testing.assert_allclose(calibrated.sum(1), 1, rtol=1e-5)
    assert Calibration().apply(probabilities) is probabilities


def test_probabilities_of_0_and_1_are_unchanged():
    certain = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    assert np.isfinite(Calibration(3.0).apply(certain)).all()
    np.testing.assert_allclose(Calibration(0.5).apply(certain), certain, atol=1e-6)


def test_photos_of_one_class_give_no_temperature():
    logits, _ = draw_calibrated_logits(seed=1, photos=14)
    with pytest.raises(PhotosError, match="all 14 validation photos are of one class"):
        fit_temperature(logits, np.zeros(14, int))


@pytest.mark.parametrize("photos", [0, 1, MIN_CALIBRATION_GROUPS - 1])
def test_with_few_photos_confidence_is_left_alone_and_there_is_no_threshold(photos):
    logits, labels = draw_calibrated_logits(seed=1, photos=photos)
    assert calibrate(softmax(logits), labels) == Calibration(1.0, None, photos)


@given(st.integers(0, 200), st.floats(0.5, 6))
def test_accuracy_above_the_threshold_reaches_the_requested_value(seed, scale):
    logits, labels = draw_calibrated_logits(seed, photos=300, scale=scale)
    probabilities = softmax(logits)
    threshold = choose_threshold(probabilities, labels)
    share, right = score_answered(probabilities, labels, threshold)
    assert MIN_THRESHOLD <= threshold <= 1
    from_the_top = np.cumsum((probabilities.argmax(1) == labels)[np.argsort(-probabilities.max(1))])
    expected = (from_the_top + 1) / np.arange(3, 303)  # of the next prediction
    if threshold > MIN_THRESHOLD and (expected >= TARGET_ACCURACY).any():
        assert right is not None
        assert right >= TARGET_ACCURACY
        assert 18 / 300 <= share < 1


@pytest.mark.slow
@pytest.mark.parametrize("photos", [50, 100, 400])
def test_mean_accuracy_on_new_photos_reaches_the_requested_value(photos):
    """Requiring the observed accuracy itself would select lucky thresholds: 0.94 with 50 photos, not 0.95."""
    fresh, truth = draw_calibrated_logits(seed=999, photos=20_000, scale=5)
    fresh = softmax(fresh)
    later = []
    for seed in range(150):
        logits, labels = draw_calibrated_logits(seed, photos=photos, scale=5)
        later.append(score_answered(fresh, truth, choose_threshold(softmax(logits), labels))[1])
    assert 0.948 < np.mean(later) < 0.965


def test_duplicates_do_not_change_temperature_and_threshold():
    logits, labels = draw_calibrated_logits(seed=8, photos=60)
    once = calibrate(softmax(logits), labels)
    copies = np.repeat(np.arange(60), 10)
    again = calibrate(softmax(logits[copies]), labels[copies], copies)
    assert (again.temperature, again.threshold) == (
        pytest.approx(once.temperature, rel=1e-5),
        pytest.approx(once.threshold),
    )
    assert again.photos == 600
    assert calibrate(softmax(logits[copies]), labels[copies]).threshold != again.threshold


def test_many_photos_of_few_groups_give_no_calibration():
    logits, labels = draw_calibrated_logits(seed=8, photos=300)
    assert calibrate(softmax(logits), labels, np.arange(300) % (MIN_CALIBRATION_GROUPS - 1)) == Calibration(
        1.0, None, 300
    )


def test_predictions_with_equal_confidence_are_on_the_same_side_of_the_threshold():
    """The first 50 of 100 photos at 0.8 are correct, but their order is arbitrary."""
    probabilities = np.array([[0.99, 0.01]] * 20 + [[0.8, 0.2]] * 100)
    labels = np.array([0] * 70 + [1] * 50)
    threshold = choose_threshold(probabilities, labels)
    assert score_answered(probabilities, labels, threshold) == (20 / 120, 1.0)
    assert choose_threshold(probabilities[::-1], labels[::-1]) == threshold


def test_one_correct_prediction_at_the_top_gives_no_threshold():
    probabilities = np.linspace([0.9, 0.1], [0.55, 0.45], 200)
    labels = np.array([0, 1] * 100)
    share, _ = score_answered(probabilities, labels, choose_threshold(probabilities, labels))
    assert share == pytest.approx(0.5, abs=0.02)


def test_an_accurate_network_only_needs_a_confidence_above_one_half():
    logits, labels = draw_calibrated_logits(seed=5, scale=30)
    assert choose_threshold(softmax(logits), labels) == MIN_THRESHOLD


def test_a_network_that_guesses_is_rarely_confident_enough():
    probabilities = softmax(np.random.default_rng(0).normal(size=(1000, 4)))
    labels = np.random.default_rng(1).integers(0, 4, 1000)
    assert score_answered(probabilities, labels, choose_threshold(probabilities, labels))[0] <= 0.5


def test_the_evaluation_reports_coverage_and_accuracy_of_confident_predictions():
    logits, labels = draw_calibrated_logits(seed=6)
    names = tuple("abcd")
    evaluation = evaluate(softmax(logits), labels, names, threshold=0.9)
    sure = softmax(logits).max(1) >= 0.9
    assert evaluation.answered_share == pytest.approx(sure.mean())
    assert evaluation.answered_accuracy == pytest.approx((softmax(logits).argmax(1) == labels)[sure].mean())
    assert f"gives an answer for {evaluation.answered_share:.1%} of the test photos" in repr(evaluation)
    assert "every photo gets a label" in repr(evaluate(softmax(logits), labels, names))
    assert "every photo gets a label" not in repr(evaluation)


@pytest.mark.parametrize("calibration", [Calibration(0.5, 0.75, 400), Calibration(2.0, None, 3), Calibration()])
def test_a_calibration_survives_json(calibration):
    assert from_json(json.loads(json.dumps(asdict(calibration)))) == calibration


@pytest.mark.parametrize(
    "values",
    [
        {}, {"temperature": 1.0}, {"temperature": "hot", "threshold": None}, {"temperature": 0, "threshold": None},
        {"temperature": -1, "threshold": 0.5}, {"temperature": 1, "threshold": 1.5}, {"temperature": None, "threshold": 0.5},
    ],
)  # fmt: skip
def test_an_invalid_calibration_is_refused(values):
    with pytest.raises(ValueError, match=r"\w"):
        from_json(values)
