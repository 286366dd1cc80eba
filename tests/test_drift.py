"""Drift: the p-value holds its level without drift, whatever the number of calibration photos, and falls with it."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.stats import binom, ks_2samp
from support.server import GREY, encode_square, run_server

import ikebana
from ikebana.evaluation.drift import Drift, FamiliarityCounts


def compute_familiarity(known: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """Compute familiarity as `FamiliarityModel` does, from scores."""
    ranks = np.arange(len(known) + 2) / (len(known) + 1)
    return np.interp(photos, np.concatenate(([-9.0], np.sort(known), [9.0])), ranks)


def compare(familiarity: np.ndarray, known_photos: int) -> Drift:
    drift = FamiliarityCounts(familiarity.tolist()).compare(known_photos)
    assert drift is not None
    return drift


def draw_p_values(known_photos: int, photos: int, shift: float = 0.0, draws: int = 400) -> np.ndarray:
    """Draw calibration photos and new photos, and compare them."""
    p_values = []
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        known, new = rng.normal(size=known_photos), rng.normal(-shift, size=photos)
        p_values.append(compare(compute_familiarity(known, new), known_photos).p_value)
    return np.array(p_values)


@pytest.mark.parametrize(("known_photos", "photos"), [(20, 30), (60, 1000), (430, 5), (430, 60), (430, 2000)])
def test_without_drift_a_p_value_below_any_level_is_as_rare_as_the_level_says(known_photos, photos):
    p_values = draw_p_values(known_photos, photos)
    for level in (0.01, 0.05, 0.2):
        rejected = int((p_values < level).sum())
        assert binom.sf(rejected - 1, len(p_values), level) > 0.001, (level, rejected)


def test_without_drift_and_with_many_photos_p_values_are_nearly_uniform():
    p_values = draw_p_values(430, 1000)
    for level in (0.1, 0.3, 0.6):
        assert abs((p_values < level).mean() - level) < 0.09, level


@pytest.mark.parametrize(("known_photos", "photos"), [(60, 40), (430, 200), (430, 1000)])
def test_the_p_value_is_that_of_scipy_where_both_use_the_asymptotic_law(known_photos, photos):
    rng = np.random.default_rng(3)
    known, new = rng.normal(size=known_photos), rng.normal(-0.3, size=photos)
    expected = ks_2samp(new, known, alternative="greater", method="asymp")
    size = known_photos * photos / (known_photos + photos)
    # Without Hodges' correction for small samples; bins of 0.001 may miss one photo of each sample.
    largest, missed = np.exp(-2 * size * expected.statistic**2), 1 / photos + 1 / known_photos  # pyright: ignore[reportAttributeAccessIssue]
    bound = np.exp(-2 * size * (expected.statistic - missed) ** 2)  # pyright: ignore[reportAttributeAccessIssue]
    assert largest * 0.999 <= compare(compute_familiarity(known, new), known_photos).p_value <= bound


def test_drift_is_found_and_training_photos_are_not_drift():
    assert (draw_p_values(430, 200, shift=1.0, draws=50) < 0.001).all()
    # One photo in seven is unlike all others.
    mixed = np.concatenate((np.random.default_rng(1).uniform(size=850), np.zeros(150)))
    assert compare(mixed, 430).is_significant
    familiar = compare(np.full(300, 0.98), 430)
    assert not familiar.is_significant
    assert familiar.p_value > 0.5


def test_without_photos_or_calibration_nothing_is_compared():
    assert FamiliarityCounts().compare(430) is None
    assert FamiliarityCounts([0.5]).compare(None) is None
    counts = FamiliarityCounts([1.0, 0.0])
    counts.add(None)
    drift = counts.compare(430)
    assert drift is not None
    assert drift.photos == 2


def test_the_median_is_that_of_the_photos():
    values = np.random.default_rng(2).beta(2, 5, size=501)
    assert compare(values, 430).median_familiarity == pytest.approx(float(np.median(values)), abs=0.001)


def test_the_last_line_of_predict_says_that_photos_differ(paper_classifier, good_photos, caplog):
    classifier = dataclasses.replace(
        paper_classifier, threshold=0.5, familiarity_threshold=0.05, familiarity_photos=200
    )
    real = classifier.forward

    def forward_with(familiarity: float):
        return lambda photos: real(photos)._replace(familiarity=np.full(len(photos), familiarity))

    with caplog.at_level("INFO", "ikebana"):
        ikebana.predict(dataclasses.replace(classifier, forward=forward_with(0.9)), good_photos[:20])
        assert "less like the training photos" not in caplog.text
        assert '20 "unknown" (unlike the training photos)' not in caplog.text
        ikebana.predict(dataclasses.replace(classifier, forward=forward_with(0.01)), good_photos[:20])
    assert '0 with a label, 0 "not sure", 20 "unknown" (unlike the training photos)' in caplog.messages[-2]
    assert caplog.messages[-1].startswith(
        "all together, these photos are less like the training photos than the calibration photos were: their median "
        "familiarity is 0.01"
    )


def test_the_server_says_so_in_its_metrics_and_to_its_page():
    black = encode_square("black")
    with run_server() as served:
        assert math.isnan(served.get_metric("ikebana_drift_p_value"))
        assert served.client.get("/classes").json()["drift"] is None
        served.post_form(*[GREY] * 3, *[black] * 12)
        assert served.get_metric("ikebana_drift_p_value") < 0.001
        assert served.get_metric("ikebana_median_familiarity") < 0.01
        answer = served.client.get("/classes").json()
        assert answer["has_drifted"]
        assert answer["drift"]["photos"] == 15
        assert json.dumps(answer)
