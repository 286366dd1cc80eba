"""Confidence against photos whose chances are known by construction."""

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


def photos_with_known_confidence(seed, photos=4000, classes=4, loud=2.0):
    """Logits that mean what they say: the labels are drawn from their softmax."""
    numbers = np.random.default_rng(seed)
    logits = loud * numbers.normal(size=(photos, classes))
    labels = (softmax(logits).cumsum(1) > numbers.random((photos, 1))).argmax(1)
    return logits, labels


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_logits_that_mean_what_they_say_are_left_as_they_are():
    assert fit_temperature(*photos_with_known_confidence(seed=1)) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("k", [0.3, 2.0, 7.5])
def test_louder_logits_need_a_proportionally_higher_temperature(k):
    logits, labels = photos_with_known_confidence(seed=1)
    assert fit_temperature(k * logits, labels) == pytest.approx(k * fit_temperature(logits, labels), rel=1e-4)


def test_it_is_the_temperature_of_the_lowest_cross_entropy():
    logits, labels = photos_with_known_confidence(seed=2)
    temperature = fit_temperature(3 * logits, labels)

    def cross_entropy(candidate):
        return -np.log(softmax(3 * logits / candidate))[np.arange(len(labels)), labels].mean()

    assert cross_entropy(temperature) <= min(cross_entropy(temperature * 0.99), cross_entropy(temperature * 1.01))


@pytest.mark.parametrize("loud", [3.0, 6.0, 12.0])
def test_confidence_equals_accuracy_on_average_however_sure_the_network_is(loud):
    """The labels are drawn from the probabilities, so the true temperature is 1 and the true confidence is known."""
    temperatures, gaps = [], []
    for seed in range(60):
        logits, labels = photos_with_known_confidence(seed, photos=400, loud=loud)
        temperatures.append(fit_temperature(logits, labels))
        new_logits, _ = photos_with_known_confidence(1000 + seed, photos=400, loud=loud)
        gaps.append(softmax(new_logits / temperatures[-1]).max(1).mean() - softmax(new_logits).max(1).mean())
    assert np.mean(gaps) == pytest.approx(0, abs=0.004)
    assert np.median(temperatures) == pytest.approx(1, abs=0.06)


def test_the_assumed_error_gets_smaller_with_each_group_of_photos_that_is_wrong():
    is_wrong, groups = np.zeros(40, bool), np.repeat(np.arange(20), 2)
    rates = []
    for count in range(SUFFICIENT_ERRORS + 2):
        is_wrong[: 2 * count] = True
        rates.append(compute_assumed_error(is_wrong, groups))
    assert rates[0] == 1 / 22
    assert rates[-2:] == [0, 0]
    assert rates[:-1] == sorted(set(rates), reverse=True)


@pytest.mark.parametrize("photos", [20, 39, 500])
def test_a_network_that_was_always_right_is_not_called_infallible(photos):
    """Laplace's rule of succession: after n right answers of n, the next is right with (n + 1) / (n + 2)."""
    labels = np.arange(photos) % 2
    logits = 9.0 * np.eye(2)[labels]
    confidence = softmax(logits / fit_temperature(logits, labels)).max(1)
    np.testing.assert_allclose(confidence, (photos + 1) / (photos + 2), rtol=1e-6)


def test_an_over_confident_network_is_believed_after_calibration():
    logits, labels = photos_with_known_confidence(seed=3)
    found = calibrate(softmax(4 * logits), labels)
    fresh, truth = photos_with_known_confidence(seed=4)
    loud = softmax(4 * fresh)
    assert calibration_error(loud, truth) > 0.1
    assert calibration_error(found.apply(loud), truth) < 0.03


@given(st.floats(0.05, 20), st.integers(0, 100))
def test_no_temperature_changes_what_is_named_and_one_changes_no_bit(found, seed):
    logits, _ = photos_with_known_confidence(seed, photos=50)
    probabilities = softmax(logits).astype(np.float32)
    calibrated = Calibration(found).apply(probabilities)
    assert calibrated.dtype == np.float32
    best = probabilities.max(1, keepdims=True)
    assert np.all((probabilities == best)[np.arange(50), calibrated.argmax(1)])
    np.testing.assert_allclose(calibrated.sum(1), 1, rtol=1e-5)
    assert Calibration().apply(probabilities) is probabilities


def test_certainty_stays_certainty():
    certain = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    assert np.isfinite(Calibration(3.0).apply(certain)).all()
    np.testing.assert_allclose(Calibration(0.5).apply(certain), certain, atol=1e-6)


def test_photos_of_one_class_cannot_tell():
    logits, _ = photos_with_known_confidence(seed=1, photos=14)
    with pytest.raises(PhotosError, match="all 14 validation photos are of one class"):
        fit_temperature(logits, np.zeros(14, int))


@pytest.mark.parametrize("photos", [0, 1, MIN_CALIBRATION_GROUPS - 1])
def test_with_few_photos_confidence_is_left_alone_and_there_is_no_threshold(photos):
    logits, labels = photos_with_known_confidence(seed=1, photos=photos)
    assert calibrate(softmax(logits), labels) == Calibration(1.0, None, photos)


@given(st.integers(0, 200), st.floats(0.5, 6))
def test_above_the_threshold_the_answers_are_as_often_right_as_was_asked(seed, loud):
    logits, labels = photos_with_known_confidence(seed, photos=300, loud=loud)
    probabilities = softmax(logits)
    found = choose_threshold(probabilities, labels)
    share, right = score_answered(probabilities, labels, found)
    assert MIN_THRESHOLD <= found <= 1
    from_the_top = np.cumsum((probabilities.argmax(1) == labels)[np.argsort(-probabilities.max(1))])
    expected = (from_the_top + 1) / np.arange(3, 303)  # of the next answer
    if found > MIN_THRESHOLD and (expected >= TARGET_ACCURACY).any():
        assert right is not None
        assert right >= TARGET_ACCURACY
        assert 18 / 300 <= share < 1


@pytest.mark.slow
@pytest.mark.parametrize("photos", [50, 100, 400])
def test_what_is_answered_later_is_right_as_often_as_was_asked_on_average(photos):
    """Were the share that was seen itself asked for, the luckiest place to stop at would be taken: 0.94 of 50, not 0.95."""
    fresh, truth = photos_with_known_confidence(seed=999, photos=20_000, loud=5)
    fresh = softmax(fresh)
    later = []
    for seed in range(150):
        logits, labels = photos_with_known_confidence(seed, photos=photos, loud=5)
        later.append(score_answered(fresh, truth, choose_threshold(softmax(logits), labels))[1])
    assert 0.948 < np.mean(later) < 0.965


def test_copies_of_photos_make_nothing_surer():
    logits, labels = photos_with_known_confidence(seed=8, photos=60)
    once = calibrate(softmax(logits), labels)
    copies = np.repeat(np.arange(60), 10)
    again = calibrate(softmax(logits[copies]), labels[copies], copies)
    assert (again.temperature, again.threshold) == (
        pytest.approx(once.temperature, rel=1e-5),
        pytest.approx(once.threshold),
    )
    assert again.photos == 600
    assert calibrate(softmax(logits[copies]), labels[copies]).threshold != again.threshold


def test_many_photos_of_few_subjects_tell_nothing_of_confidence():
    logits, labels = photos_with_known_confidence(seed=8, photos=300)
    assert calibrate(softmax(logits), labels, np.arange(300) % (MIN_CALIBRATION_GROUPS - 1)) == Calibration(
        1.0, None, 300
    )


def test_answers_of_one_confidence_are_given_together():
    """Of 100 photos at 0.8 the first 50 are right: in another order there is no reason to stop between them."""
    probabilities = np.array([[0.99, 0.01]] * 20 + [[0.8, 0.2]] * 100)
    labels = np.array([0] * 70 + [1] * 50)
    found = choose_threshold(probabilities, labels)
    assert score_answered(probabilities, labels, found) == (20 / 120, 1.0)
    assert choose_threshold(probabilities[::-1], labels[::-1]) == found


def test_one_right_answer_at_the_top_is_no_evidence():
    probabilities = np.linspace([0.9, 0.1], [0.55, 0.45], 200)
    labels = np.array([0, 1] * 100)
    share, _ = score_answered(probabilities, labels, choose_threshold(probabilities, labels))
    assert share == pytest.approx(0.5, abs=0.02)


def test_a_network_that_is_nearly_always_right_is_asked_only_to_be_more_right_than_wrong():
    logits, labels = photos_with_known_confidence(seed=5, loud=30)
    assert choose_threshold(softmax(logits), labels) == MIN_THRESHOLD


def test_a_network_that_knows_nothing_answers_seldom():
    probabilities = softmax(np.random.default_rng(0).normal(size=(1000, 4)))
    labels = np.random.default_rng(1).integers(0, 4, 1000)
    assert score_answered(probabilities, labels, choose_threshold(probabilities, labels))[0] <= 0.5


def test_the_evaluation_reports_how_often_it_answers_and_is_right():
    logits, labels = photos_with_known_confidence(seed=6)
    names = tuple("abcd")
    said = evaluate(softmax(logits), labels, names, threshold=0.9)
    sure = softmax(logits).max(1) >= 0.9
    assert said.answered_share == pytest.approx(sure.mean())
    assert said.answered_accuracy == pytest.approx((softmax(logits).argmax(1) == labels)[sure].mean())
    assert f"gives an answer for {said.answered_share:.1%} of them" in repr(said)
    assert "every photo gets a label" in repr(evaluate(softmax(logits), labels, names))
    assert "every photo gets a label" not in repr(said)


@pytest.mark.parametrize("found", [Calibration(0.5, 0.75, 400), Calibration(2.0, None, 3), Calibration()])
def test_a_calibration_comes_back_from_json_as_it_was(found):
    assert from_json(json.loads(json.dumps(asdict(found)))) == found


@pytest.mark.parametrize(
    "values",
    [
        {}, {"temperature": 1.0}, {"temperature": "hot", "threshold": None}, {"temperature": 0, "threshold": None},
        {"temperature": -1, "threshold": 0.5}, {"temperature": 1, "threshold": 1.5}, {"temperature": None, "threshold": 0.5},
    ],
)  # fmt: skip
def test_what_is_no_calibration_is_refused(values):
    with pytest.raises(ValueError, match=r"\w"):
        from_json(values)
