"""The stated probability of a wrong label is the share of such labels that is wrong."""

import numpy as np
import pytest
from scipy.special import softmax

from ikebana.auditing.label_confidence import MIN_PHOTOS, MIN_PHOTOS_TO_STAND_OUT, estimate_errors

CLASSES, WIDTH = 4, 6


def draw_collection(apart, error_rate, seed, count=3000, sharpness=1.0):
    """Clusters whose true class probabilities are known: what models say, the labels, and which are wrong."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, CLASSES, count)
    centres = apart * np.eye(CLASSES, WIDTH)
    features = centres[truth] + rng.normal(0, 1, (count, WIDTH))
    logits = -((features[:, None] - centres[None]) ** 2).sum(2) / 2
    is_wrong = rng.random(count) < error_rate
    labels = np.where(is_wrong, (truth + rng.integers(1, CLASSES, count)) % CLASSES, truth)
    return softmax(sharpness * logits, axis=1), softmax(logits, axis=1), labels, is_wrong


def estimate(probabilities, labels, groups=None):
    everything = np.ones(len(labels), bool)
    groups = np.arange(len(labels)) if groups is None else groups
    return estimate_errors(probabilities, labels, groups, everything).probabilities


def compute_exact_probabilities(true_probabilities, labels, error_rate):
    """Bayes' rule with the known class probabilities and the known rate of errors."""
    of_label = true_probabilities[np.arange(len(labels)), labels]
    wrong = error_rate / (CLASSES - 1) * (1 - of_label)
    return wrong / (wrong + (1 - error_rate) * of_label)


@pytest.mark.parametrize(
    ("apart", "error_rate", "sharpness"),
    [(5.0, 0.01, 1.0), (5.0, 0.1, 0.5), (3.0, 0.03, 1.0), (3.0, 0.1, 2.0), (2.0, 0.03, 2.0), (2.0, 0.1, 0.5)],
)
def test_the_probability_is_that_of_bayes_rule_whatever_the_models_confidence(apart, error_rate, sharpness):
    gaps = []
    for seed in range(3):
        predicted, true, labels, _ = draw_collection(apart, error_rate, seed, sharpness=sharpness)
        exact, estimated = compute_exact_probabilities(true, labels, error_rate), estimate(predicted, labels)
        suspects = (exact > 0.3) | (estimated > 0.3)
        gaps.extend(estimated[suspects] - exact[suspects])
    assert abs(np.mean(gaps)) < 0.15
    assert np.abs(gaps).mean() < 0.25


@pytest.mark.parametrize("apart", [2.0, 4.0])
def test_of_the_labels_with_a_stated_probability_that_share_is_wrong(apart):
    stated, wrong = [], []
    for seed in range(8):
        predicted, _, labels, is_wrong = draw_collection(apart, 0.03, seed, sharpness=1.5)
        stated.append(estimate(predicted, labels))
        wrong.append(is_wrong)
    stated, wrong = np.concatenate(stated), np.concatenate(wrong)
    for low, high in ((0.2, 0.5), (0.5, 0.8), (0.8, 1.0)):
        chosen = (stated >= low) & (stated <= high)
        if chosen.sum() >= 40:
            assert abs(stated[chosen].mean() - wrong[chosen].mean()) < 0.15, (low, high)


@pytest.mark.parametrize("apart", [0.0, 1.0, 2.0])
def test_hardly_a_right_label_of_a_hard_collection_is_called_wrong(apart):
    reported = 0
    for seed in range(10):
        predicted, _, labels, _ = draw_collection(apart, 0.0, seed, count=800, sharpness=2.0)
        reported += (estimate(predicted, labels) >= 0.5).sum()
    assert reported <= 0.001 * 10 * 800


def test_classes_that_look_alike_are_less_suspect_than_others_at_the_same_margin():
    """Two of four classes have the same appearance, so half of their photos look like the other."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 3000)
    logits = rng.normal(8, 1, (3000, 1)) * np.eye(4)[np.where(truth == 1, 0, truth)]
    logits[:, 1] = logits[:, 0] + rng.normal(0, 2, len(truth))
    labels = truth.copy()
    labels[:40] = (truth[:40] + rng.integers(1, 4, 40)) % 4
    probabilities = softmax(logits, axis=1)
    stated = estimate(probabilities, labels)
    best = probabilities.argmax(1)
    is_alike = (best != labels) & (best < 2) & (labels < 2)
    is_clear = (best != labels) & ~is_alike
    assert stated[is_alike].max() < 0.5
    assert np.median(stated[is_clear]) > stated[is_alike].max()


def test_with_few_photos_no_probability_is_stated_and_with_very_few_none_is_listed():
    predicted, _, labels, is_wrong = draw_collection(6.0, 0.03, 0, count=10 * MIN_PHOTOS)
    everything, groups = np.ones(len(labels), bool), np.arange(len(labels))
    assert estimate_errors(predicted, labels, groups, everything).probabilities.max() > 0.9
    fewer = estimate_errors(predicted, labels, groups % (MIN_PHOTOS - 1), everything)
    assert not fewer.probabilities.any()
    assert fewer.stands_out.tolist() == is_wrong.tolist()
    fewest = estimate_errors(predicted, labels, groups % (MIN_PHOTOS_TO_STAND_OUT - 1), everything)
    assert not fewest.stands_out.any()


def test_copies_count_once():
    predicted, _, labels, _ = draw_collection(3.0, 0.03, 0, count=600)
    groups = np.arange(len(labels))
    repeated = np.concatenate([np.arange(600), np.full(500, 7)])
    with_copies = estimate(predicted[repeated], labels[repeated], groups[repeated])
    np.testing.assert_allclose(with_copies[:600], estimate(predicted, labels), atol=1e-3)


def test_classes_without_a_known_photo_change_nothing():
    predicted, _, labels, _ = draw_collection(3.0, 0.03, 0, count=600)
    wider = np.concatenate([predicted, np.zeros((600, 1))], axis=1)
    wider, others = np.concatenate([wider, np.eye(5)[[4] * 9]]), np.full(9, 4)
    is_known = np.arange(609) < 600
    stated = estimate_errors(wider, np.concatenate([labels, others]), np.arange(609), is_known).probabilities
    np.testing.assert_allclose(stated[:600], estimate(predicted, labels))
    assert not stated[600:].any()


def test_many_photos_are_sampled_with_the_same_outcome(monkeypatch):
    predicted, _, labels, is_wrong = draw_collection(2.0, 0.03, 0, count=6000)
    expected = estimate(predicted, labels)
    monkeypatch.setattr("ikebana.auditing.label_confidence.MAX_MARGINS", 600)
    assert np.abs(estimate(predicted, labels) - expected)[expected > 0.2].mean() < 0.1
    assert is_wrong[expected > 0.5].mean() > 0.4


def test_labels_that_prove_nothing_among_few_errors_stand_out_without_a_probability():
    """Of a hard collection without errors, only the clearest labels are listed, and none with a high probability."""
    predicted, _, labels, _ = draw_collection(2.0, 0.0, 0)
    errors = estimate_errors(predicted, labels, np.arange(len(labels)), np.ones(len(labels), bool))
    margins = np.log(predicted.max(1) / predicted[np.arange(len(labels)), labels])
    assert 0 < errors.stands_out.sum() < 0.03 * len(labels)
    assert margins[errors.stands_out].min() > np.median(margins[margins > 0])
    assert errors.probabilities.max() < 0.5
