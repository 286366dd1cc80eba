"""Learning curves: known laws come back, chance is inside the interval, and groups stay whole."""

import numpy as np
import pytest

from ikebana.evaluation import learning_curves
from ikebana.evaluation.learning_curves import from_json, make_learning_curve
from ikebana.learning.features.learning_curves import SubsampledProbe, measure_learning_curves
from ikebana.learning.folds import make_folds
from ikebana.system import progress

BAR = progress.SilentReporter().open("", 0, "")


def draw_answers(errors, photos, seed):
    """Whether photos are classified correctly at each size: a photo has one difficulty for all sizes."""
    difficulty = np.random.default_rng(seed).random(photos)
    return np.stack([difficulty > error for error in errors]).astype(float)


@pytest.mark.slow
@pytest.mark.parametrize(("offset", "slope", "exponent"), [(0.0, 0.1, 0.5), (0.05, 0.05, 1.0), (0.02, 0.1, 0.25)])
def test_the_interval_contains_what_a_power_law_gives_with_more_photos(offset, slope, exponent):
    def compute_error(growth):
        return offset + slope * growth**-exponent

    inside = []
    for seed in range(60):
        shares = draw_answers([compute_error(growth) for growth in (0.25, 0.5, 1.0, 2.0)], 400, seed)
        curve = make_learning_curve("rose", (100, 200, 400), shares[:3], np.arange(400), added=400)
        inside.append(curve.forecast.low <= shares[3].mean() <= curve.forecast.high)
    assert np.mean(inside) >= 0.85


def test_where_more_photos_change_nothing_little_is_promised():
    shares = draw_answers([0.1, 0.1, 0.1], 500, seed=0)
    curve = make_learning_curve("", (250, 500, 1000), shares, np.arange(500), added=1000)
    assert curve.forecast.high - curve.values[-1] < 0.01


def test_nothing_is_promised_beyond_certainty_nor_beyond_twice_the_photos():
    shares = draw_answers([0.4, 0.2, 0.0], 200, seed=0)
    curve = make_learning_curve("", (25, 50, 100), shares, np.arange(200), added=100)
    assert curve.forecast.high <= 1
    beyond = make_learning_curve("", (25, 50, 100), shares, np.arange(200), added=10_000)
    assert (beyond.forecast.low, beyond.forecast.high) == (curve.forecast.low, curve.forecast.high)


def test_photos_of_few_subjects_make_the_interval_wider():
    shares = draw_answers([0.3, 0.2, 0.15], 400, seed=1)
    order = np.argsort(shares.sum(0), kind="stable")
    apart = make_learning_curve("", (100, 200, 400), shares[:, order], np.arange(400))
    together = make_learning_curve("", (100, 200, 400), shares[:, order], np.arange(400) // 40)
    low, high = apart.intervals[-1]
    lowest, highest = together.intervals[-1]
    assert highest - lowest > 2 * (high - low)


def test_a_curve_comes_back_from_json_as_it_was_and_says_what_it_promises():
    import json
    from dataclasses import asdict

    curve = make_learning_curve("rose", (50, 100, 200), draw_answers([0.3, 0.2, 0.15], 200, 3), np.arange(200))
    assert from_json(json.loads(json.dumps(asdict(curve)))) == curve
    assert curve.forecast.added == learning_curves.MIN_ADDED_PHOTOS
    low, high = (f"{100 * value:+.1f}" for value in curve.gain)
    assert curve.describe() == f"100 more photos of rose may change its recall by {low} to {high} points"


def make_clusters(photos, classes=3, width=40, distance=0.6, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(photos) % classes
    centres = np.random.default_rng(7).normal(size=(classes, width))
    return (distance * centres[labels] + rng.normal(size=(photos, width))).astype(np.float32), labels.astype(np.int64)


def test_fewer_photos_are_less_accurate_and_the_last_point_is_all_photos():
    features, labels = make_clusters(300)
    probe = SubsampledProbe(features, labels, np.arange(300), 3, make_folds(labels, np.arange(300)))
    curves = measure_learning_curves(features, labels, np.arange(300), {"a": 200, "b": 200, "c": 200})
    everything, *by_class = curves
    assert everything.photos == (150, 300, 600)
    assert everything.values[0] < everything.values[1] < everything.values[2]
    assert everything.values[-1] == probe.is_right.mean()
    assert {curve.name for curve in by_class} == {"a", "b", "c"}
    assert [curve.values[-1] for curve in by_class] == sorted(curve.values[-1] for curve in by_class)
    assert np.mean([curve.values[0] for curve in by_class]) < np.mean([curve.values[-1] for curve in by_class])


def test_a_subsample_keeps_groups_whole_and_other_classes_complete():
    features, labels = make_clusters(240)
    groups = np.arange(240) // 12
    probe = SubsampledProbe(features, labels, groups, 3, make_folds(labels, groups))
    train = probe.folds[0][0]
    sampled = probe._subsample(train, 0.5, probe.orders[0], label=1)
    assert np.array_equal(sampled[labels[sampled] != 1], train[labels[train] != 1])
    of_class = train[labels[train] == 1]
    kept_groups = set(groups[sampled[labels[sampled] == 1]])
    assert len(kept_groups) == np.ceil(len(set(groups[of_class])) / 2)
    assert all(np.isin(of_class[groups[of_class] == group], sampled).all() for group in kept_groups)
    quarter = probe._subsample(train, 0.25, probe.orders[0], label=1)
    assert set(quarter) < set(sampled)


def test_a_class_of_few_subjects_has_no_curve_of_its_own():
    features, labels = make_clusters(120)
    labels[labels == 2] = 1
    labels[:5] = 2
    probe = SubsampledProbe(features, labels, np.arange(120), 3, make_folds(labels, np.arange(120)))
    curves = measure_learning_curves(features, labels, np.arange(120), {"a": 40, "b": 75, "c": 5})
    assert {curve.name for curve in curves} == {"", "a", "b"}
    assert probe.measure_class(2, BAR).shape == (3, 5)
