"""Scores compared with scikit-learn and scipy, and laws that hold for any network."""

import json
import math
import re
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from ikebana.evaluation import metrics as ikebana_metrics
from ikebana.evaluation import statistics


def drawn(photos, classes, seed=0, sharpness=2.0):
    """Draw calibrated probabilities: the labels are drawn from them."""
    numbers = np.random.default_rng(seed)
    logits = sharpness * numbers.normal(size=(photos, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([numbers.choice(classes, p=row) for row in probabilities])
    return probabilities, labels


def names(count):
    return tuple(f"class {number:03}" for number in range(count))


@pytest.mark.slow
@given(st.integers(2, 12), st.integers(1, 60), st.integers(0, 1000))
def test_scores_are_those_of_scikit_learn(classes, photos, seed):
    probabilities, labels = drawn(photos, classes, seed)
    evaluation = ikebana_metrics.evaluate(probabilities, labels, names(classes))
    predicted = probabilities.argmax(1)
    every = np.arange(classes)
    assert evaluation.accuracy == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert np.array_equal(evaluation.confusion, metrics.confusion_matrix(labels, predicted, labels=every))
    assert evaluation.log_loss == pytest.approx(metrics.log_loss(labels, probabilities, labels=every))
    report: Any = metrics.classification_report(
        labels,
        predicted,
        labels=every,
        target_names=names(classes),
        zero_division=0.0,  # pyright: ignore[reportArgumentType]
        output_dict=True,
    )
    for name, scores in evaluation.per_class.items():
        theirs = report[name]
        assert (scores.precision, scores.recall, scores.f1, scores.support) == pytest.approx(
            (theirs["precision"], theirs["recall"], theirs["f1-score"], theirs["support"])
        )


@pytest.mark.slow
@given(
    st.lists(st.text("ab ", min_size=1, max_size=20), min_size=2, max_size=9, unique=True),
    st.integers(1, 40),
    st.integers(0, 9),
)
@example(["a", " ", "aa", "a ", " a", "aaa", "aaaa", "aaaaa"], 11, 5)  # an average of 0.375 but for the last bit
def test_the_report_equals_that_of_scikit_learn(classes, photos, seed):
    probabilities, labels = drawn(photos, len(classes), seed)
    evaluation = ikebana_metrics.evaluate(probabilities, labels, classes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
        theirs = metrics.classification_report(
            labels,
            probabilities.argmax(1),
            labels=np.arange(len(classes)),
            target_names=classes,
            zero_division=0.0,  # pyright: ignore[reportArgumentType]
        )
    # If no prediction is correct, scikit-learn counts photos in decimals.
    assert evaluation.report == re.sub(r"( *)(\d+)\.0\n", r"\1  \2\n", str(theirs))


@given(st.integers(1, 5000), st.floats(0, 1))
def test_the_interval_is_the_wilson_interval(n, share):
    right = round(share * n)
    theirs = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert statistics.wilson_interval(right, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_the_confusion_matrix_counts_every_photo_once_with_true_classes_in_rows():
    probabilities, labels = drawn(200, 4)
    evaluation = ikebana_metrics.evaluate(probabilities, labels, names(4))
    assert np.sum(evaluation.confusion) == 200
    assert np.sum(evaluation.confusion, axis=1).tolist() == np.bincount(labels, minlength=4).tolist()
    assert np.trace(evaluation.confusion) == round(evaluation.accuracy * 200)


def test_a_class_without_test_photos_is_left_out_of_balanced_accuracy():
    probabilities = np.eye(3)[[0, 0, 1]]
    evaluation = ikebana_metrics.evaluate(probabilities, np.array([0, 0, 1]), names(3))
    assert evaluation.balanced_accuracy == 1.0
    assert evaluation.per_class["class 002"].support == 0
    assert "class 002" in evaluation.report


@given(st.integers(1, 5000), st.floats(0, 1))
def test_the_interval_contains_the_accuracy_and_is_within_0_and_1(n, share):
    right = round(share * n)
    low, high = statistics.wilson_interval(right, n)
    assert 0 <= low <= right / n <= high <= 1


def test_the_interval_contains_the_true_accuracy_in_about_95_of_100_cases():
    numbers = np.random.default_rng(0)
    truth, n, trials = 0.85, 200, 2000
    counts = numbers.binomial(n, truth, trials)
    intervals = {count: statistics.wilson_interval(int(count), n) for count in set(counts.tolist())}
    caught = np.mean([intervals[count][0] <= truth <= intervals[count][1] for count in counts.tolist()])
    assert 0.93 < caught < 0.97


def test_the_calibration_error_is_small_if_calibrated_and_large_if_overconfident():
    probabilities, labels = drawn(20_000, 5)
    assert ikebana_metrics.calibration_error(probabilities, labels) < 0.02
    boasting = probabilities**4
    boasting /= boasting.sum(1, keepdims=True)
    assert ikebana_metrics.calibration_error(boasting, labels) > 0.1


def test_uniform_guessing_has_the_log_loss_of_the_number_of_classes():
    even = np.full((30, 8), 1 / 8)
    assert ikebana_metrics.log_loss(even, np.arange(30) % 8) == pytest.approx(math.log(8))


def test_a_true_class_with_probability_0_has_a_large_finite_log_loss():
    assert math.isfinite(ikebana_metrics.log_loss(np.eye(2), np.array([1, 0])))


def test_an_evaluation_survives_json():
    probabilities, labels = drawn(50, 3)
    evaluation = replace(ikebana_metrics.evaluate(probabilities, labels, names(3)), seconds={"train": 1.5})
    again = ikebana_metrics.from_json(json.loads(json.dumps(evaluation.to_json())), evaluation.report)
    assert again == evaluation


def test_a_class_without_test_photos_is_named_next_to_the_score():
    scored = ikebana_metrics.evaluate(np.eye(3)[[0, 0, 2]], np.array([0, 0, 2]), ("a", "b", "c"))
    assert "no test photos of b" in repr(scored)
    assert "no test photos" not in repr(ikebana_metrics.evaluate(np.eye(3), np.arange(3), ("a", "b", "c")))


@pytest.mark.parametrize(("groups", "photos_per_group"), [(10, 30), (20, 20), (40, 10), (30, 1)])
def test_the_interval_contains_the_truth_for_correlated_photos_of_a_group(groups, photos_per_group):
    """The accuracy within each group is drawn from Beta(9, 1), with mean 0.9."""
    numbers, caught, naive = np.random.default_rng(groups), 0, 0
    group = np.repeat(np.arange(groups), photos_per_group)
    for _ in range(1000):
        right = numbers.random(len(group)) < numbers.beta(9, 1, groups)[group]
        worth = statistics.effective_sample_size(right, group)
        low, high = statistics.wilson_interval(right.mean() * worth, worth)
        caught += low <= 0.9 <= high
        low, high = statistics.wilson_interval(int(right.sum()), len(right))
        naive += low <= 0.9 <= high
    assert 900 < caught <= 990
    assert naive < 880 or photos_per_group == 1


def test_independent_photos_count_one_each():
    right, own = np.arange(50) % 3 > 0, np.arange(50)
    assert statistics.effective_sample_size(right, own) == 50
    pairs = statistics.effective_sample_size(np.repeat(right, 2), np.repeat(own, 2))
    assert 40 < pairs <= 50.5  # duplicates add no information
    assert statistics.effective_sample_size(np.ones(60, bool), np.repeat(np.arange(6), 10)) == 6
    assert statistics.effective_sample_size(right, np.zeros(50, int)) == 1


@pytest.mark.parametrize("groups", [3, 4, 20])
def test_homogeneous_groups_count_as_one_photo_each_with_students_t(groups):
    is_right = np.arange(groups) % 2 == 0
    right, group = np.repeat(is_right, 50), np.repeat(np.arange(groups), 50)
    doubt = (stats.norm.ppf(0.975) / stats.t.ppf(0.975, groups - 1)) ** 2
    assert statistics.effective_sample_size(right, group) == pytest.approx(max(1, (groups - 1) * doubt))


def test_an_evaluation_of_grouped_photos_gives_the_number_of_independent_ones():
    labels, group = np.zeros(60, int), np.repeat(np.arange(6), 10)
    probabilities = np.eye(2)[(group == 2).astype(int)]
    evaluation = ikebana_metrics.evaluate(probabilities, labels, ("a", "b"), groups=group)
    assert evaluation.n_effective is not None
    assert evaluation.n_effective < 7
    assert "independent photos" in repr(evaluation)
    alone = ikebana_metrics.evaluate(probabilities, labels, ("a", "b"), groups=np.arange(60))
    assert "independent photos" not in repr(alone)
    assert alone.accuracy_interval == ikebana_metrics.evaluate(probabilities, labels, ("a", "b")).accuracy_interval
    assert ikebana_metrics.from_json(evaluation.to_json(), evaluation.report) == evaluation


def test_a_score_on_few_photos_is_called_meaningless():
    few, many = (ikebana_metrics.evaluate(np.eye(2)[[0, 1] * n], np.array([0, 1] * n), ("a", "b")) for n in (2, 20))
    assert "too few test photos for a meaningful score" in repr(few)
    assert "too few test photos" not in repr(many)
