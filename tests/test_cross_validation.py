"""Cross-validated scores: every photo is predicted once, by a head that has not seen its group."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ikebana.evaluation.cross_validation import from_json, score_cross_validation
from ikebana.evaluation.statistics import wilson_interval
from ikebana.learning import cross_validation
from ikebana.learning.folds import make_folds
from ikebana.learning.training import logistic_head
from ikebana.system import progress

BAR = progress.SilentReporter().open("", 0, "")


def make_clusters(photos, classes=3, width=12, distance=1.0, seed=0):
    """Classes as round clusters: features float32 [photos, width], labels [photos]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(photos) % classes
    centres = np.random.default_rng(7).normal(size=(classes, width))
    features = distance * centres[labels] + rng.normal(size=(photos, width))
    return features.astype(np.float32), labels.astype(np.int64)


def get_test_folds(labels, groups):
    return [test for _, test in make_folds(labels, groups)]


def test_it_predicts_like_scikit_learn_with_the_same_folds_and_strength(monkeypatch):
    monkeypatch.setattr(logistic_head, "REGULARISATION_GRID", (0.1,))
    monkeypatch.setattr(cross_validation, "GRADIENT_TOLERANCE", 1e-6)
    features, labels = make_clusters(300)
    folds = get_test_folds(labels, np.arange(300))
    probabilities = cross_validation.predict_folds(features, labels, folds, 3, BAR)
    mean, spread = logistic_head.compute_mean_and_scale(features)
    scaled = (features - mean) / spread
    for number, rows in enumerate(folds):
        train = np.concatenate([folds[(number + step) % 5] for step in (2, 3, 4)])
        peer = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8).fit(scaled[train], labels[train])
        np.testing.assert_allclose(probabilities[rows], peer.predict_proba(scaled[rows]), atol=0.01)


def test_labels_without_meaning_score_as_guessing_even_if_every_photo_has_a_copy():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(150, 200)).astype(np.float32), rng.integers(0, 3, 150)
    copies, groups = np.repeat(np.arange(150), 2), np.repeat(np.arange(150), 2)
    honest = cross_validation.predict_folds(
        features[copies], labels[copies], get_test_folds(labels[copies], groups), 3, BAR
    )
    leaking = cross_validation.predict_folds(
        features[copies], labels[copies], get_test_folds(labels[copies], np.arange(300)), 3, BAR
    )
    assert (honest.argmax(1) == labels[copies]).mean() < 0.5
    assert (leaking.argmax(1) == labels[copies]).mean() > 0.6


def test_the_strength_of_a_fold_does_not_depend_on_the_labels_that_only_it_predicts():
    """Other labels of a fold change other heads, but not by being what this fold's strength is selected on."""
    features, labels = make_clusters(200)
    folds = get_test_folds(labels, np.arange(200))
    assert sorted(np.concatenate(folds)) == list(range(200))
    for number in range(5):
        chunks = logistic_head.ScaledChunks(features, labels, *logistic_head.compute_mean_and_scale(features))
        trial = cross_validation._make_trial(chunks, folds, number, 3)
        assert trial.train.rows is not None
        assert trial.selection.rows is not None
        used = np.concatenate((trial.train.rows, trial.selection.rows))
        assert sorted(np.concatenate((used, folds[number]))) == list(range(200))
        assert set(trial.selection.rows) == set(folds[(number + 1) % 5])


def test_the_score_counts_photos_and_its_interval_counts_groups():
    labels = np.arange(200) % 2
    predicted = np.where(np.arange(200) // 20 == 3, 1 - labels, labels)
    apart = score_cross_validation(predicted, labels, np.arange(200), np.arange(200) % 5, ("a", "b"))
    assert apart.accuracy == 0.9
    assert apart.accuracy_interval == pytest.approx(wilson_interval(135, 150))
    assert apart.recall == {"a": 0.9, "b": 0.9}
    assert np.mean(apart.accuracy_by_fold) == pytest.approx(0.9)
    together = score_cross_validation(predicted, labels, np.arange(200) // 20, np.arange(200) % 5, ("a", "b"))
    assert together.n_effective < 15 < apart.n_effective == pytest.approx(150)
    assert together.accuracy_interval[0] < apart.accuracy_interval[0]


def test_a_cross_validated_score_comes_back_from_json_as_it_was():
    labels = np.arange(20) % 2
    scores = score_cross_validation(labels, labels, np.arange(20), np.arange(20) % 5, ("a", "b"))
    assert from_json(json.loads(json.dumps(asdict(scores)))) == scores
    assert scores.describe().startswith("cross-validated accuracy 1.000 (")
    assert scores.describe().endswith("on all 20 photos")
