"""Candidate classes against photos whose chances are known by construction, and against the law of conformal sets."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ikebana.evaluation.calibration import Calibration, calibrate
from ikebana.evaluation.candidate_sets import (
    CandidateRule,
    are_candidates,
    choose_rule,
    compute_limit,
    count_needed_groups,
    from_json,
    score_classes,
    select_one_per_group,
)
from ikebana.evaluation.coverage import score_candidates
from ikebana.evaluation.metrics import evaluate, score_confidence
from ikebana.evaluation.metrics import from_json as read_evaluation

DRAWS = 400


def draw_photos(seed, photos, classes=6, loud=1.5):
    """Probabilities that mean what they say: the labels are drawn from them."""
    rng = np.random.default_rng(seed)
    powers = np.exp(loud * rng.normal(size=(photos, classes)))
    probabilities = powers / powers.sum(1, keepdims=True)
    return probabilities, (probabilities.cumsum(1) > rng.random((photos, 1))).argmax(1)


def true_scores(probabilities, labels):
    return score_classes(probabilities)[np.arange(len(labels)), labels]


# --- the law ---


@pytest.mark.parametrize(("photos", "coverage"), [(30, 0.9), (200, 0.9), (99, 0.99)])
def test_the_coverage_of_new_photos_follows_its_beta_binomial_law(photos, coverage):
    """Vovk 2012: with k the rank of the limit among n scores, the coverage is drawn from Beta(k, n + 1 - k)."""
    new_photos, rng = 300, np.random.default_rng(0)
    k = int(np.ceil(round((photos + 1) * coverage, 6)))
    law = stats.betabinom(new_photos, k, photos + 1 - k)
    ranks = []
    for seed in range(DRAWS):
        scores = true_scores(*draw_photos(seed, photos + new_photos))
        limit = compute_limit(scores[:photos], coverage)
        assert limit is not None
        covered = int((scores[photos:] <= limit).sum())
        # Uniform if `covered` follows the law, which is discrete.
        ranks.append(rng.uniform(law.cdf(covered - 1), law.cdf(covered)))
    assert stats.kstest(ranks, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_photos_with_and_without_an_answer_are_covered_as_often_as_was_asked(coverage):
    threshold, covered = 0.5, {True: [], False: []}
    for seed in range(DRAWS // 2):
        probabilities, labels = draw_photos(seed, 700)
        rule = choose_rule(probabilities[:400], labels[:400], None, threshold, coverage)
        assert rule is not None
        for row, label in zip(probabilities[400:], labels[400:], strict=True):
            is_sure = bool(row.max() >= threshold)
            covered[is_sure].append(label in rule.select(row.tolist(), is_sure))
    for kind in (True, False):
        # At least the coverage, and at most one photo of the calibration more; photos of one draw share a limit.
        error = 3 * np.sqrt(coverage * (1 - coverage) * (1 / len(covered[kind]) + 1 / (DRAWS // 2 * 100)))
        assert coverage - error < np.mean(covered[kind]) < coverage + 0.02 + error


def test_a_network_that_is_right_more_often_than_was_asked_names_one_class():
    probabilities, labels = draw_photos(1, 400, loud=20)
    assert (probabilities.argmax(1) == labels).mean() > 0.9
    rule = choose_rule(probabilities, labels, None, None, 0.8)
    assert rule is not None
    assert rule == CandidateRule(0.8, 0.0, 0.0)
    assert all(len(rule.select(row.tolist(), True)) == 1 for row in probabilities)


def test_a_new_photo_of_a_new_group_is_covered_although_photos_of_a_group_resemble_each_other():
    rng, coverage, covered = np.random.default_rng(0), 0.8, []
    for seed in range(DRAWS):
        probabilities, labels = draw_photos(seed, 60)
        # Some subjects have many photos, and those with many are the difficult ones.
        difficulty = true_scores(probabilities, labels)
        copies = np.repeat(np.arange(50), 1 + 20 * (difficulty[:50] < 0.2))
        rule = choose_rule(probabilities[copies], labels[copies], copies, None, coverage)
        assert rule is not None
        new = rng.integers(50, 60)
        covered.append(labels[new] in rule.select(probabilities[new].tolist(), True))
    assert abs(np.mean(covered) - coverage) < 3 * np.sqrt(coverage * (1 - coverage) / DRAWS) + 1 / 50


# --- the sets ---


probability_rows = st.lists(st.integers(0, 20), min_size=2, max_size=12).filter(any)


@given(probability_rows, st.floats(0, 1), st.floats(0, 1))
def test_a_set_begins_with_the_best_class_and_grows_with_the_limit(weights, first, second):
    probabilities = (np.array(weights) / sum(weights)).astype(np.float32).tolist()
    small, large = (CandidateRule(0.9, limit, 1).select(probabilities, True) for limit in sorted((first, second)))
    assert small[0] == int(np.argmax(probabilities))
    assert large[: len(small)] == small
    assert len(set(large)) == len(large)


@given(probability_rows, st.floats(0, 1))
def test_one_photo_and_many_photos_get_the_same_sets(weights, limit):
    row = (np.array(weights) / sum(weights)).astype(np.float32)
    for is_sure in (True, False):
        rule = CandidateRule(0.9, limit, limit / 2)
        expected = np.flatnonzero(are_candidates(row[None], rule, np.array([is_sure]))[0])
        assert sorted(rule.select(row.tolist(), is_sure)) == expected.tolist()


@given(probability_rows, st.floats(0, 1))
def test_a_photo_that_is_not_sure_has_two_candidates_or_more_and_they_contain_those_of_the_limit(weights, limit):
    row = (np.array(weights) / sum(weights)).astype(np.float32)
    within_limit = CandidateRule(0.9, limit, 0).select(row.tolist(), True)
    unsure = CandidateRule(0.9, 0, limit).select(row.tolist(), False)
    assert len(unsure) == max(2, len(within_limit))
    assert unsure[: len(within_limit)] == within_limit


def test_of_each_group_one_photo_counts_and_copies_change_nothing():
    probabilities, labels = draw_photos(3, 80)
    groups = np.repeat(np.arange(80), 7)
    chosen = select_one_per_group(groups, len(groups))
    assert groups[chosen].tolist() == list(range(80))
    assert len(set(chosen % 7)) == 7
    once = choose_rule(probabilities, labels, None, 0.5, 0.9)
    assert choose_rule(probabilities[groups], labels[groups], groups, 0.5, 0.9) == once


@pytest.mark.parametrize(("coverage", "photos"), [(0.9, 9), (0.95, 19), (0.99, 99), (0.5, 1)])
def test_with_fewer_photos_than_the_coverage_needs_there_is_no_limit(coverage, photos):
    assert count_needed_groups(coverage) == photos
    scores = np.linspace(0, 0.9, photos)
    assert compute_limit(scores[1:], coverage) is None
    assert compute_limit(scores, coverage) == scores[-1]


def test_with_few_photos_there_are_no_candidates_and_with_few_unsure_ones_both_kinds_share_a_limit():
    probabilities, labels = draw_photos(4, 100)
    assert choose_rule(probabilities[:8], labels[:8], None, 0.5, 0.9) is None
    shared = choose_rule(probabilities, labels, None, float(probabilities.max(1).min()), 0.9)
    assert shared is not None
    assert shared.limit == shared.unsure_limit


# --- calibration and scores ---


def test_calibration_has_the_rule_for_the_requested_coverage():
    probabilities, labels = draw_photos(5, 400)
    calibration = calibrate(probabilities, labels, coverage=0.8)
    assert calibration.candidates == choose_rule(
        calibration.apply(probabilities), labels, None, calibration.threshold, 0.8
    )
    assert calibrate(probabilities[:19], labels[:19]).candidates is None


def test_the_evaluation_reports_coverage_for_all_photos_kinds_sizes_and_classes():
    probabilities, labels = draw_photos(6, 900)
    classes = tuple("abcdef")
    calibration = Calibration(1.0, 0.5, 400, CandidateRule(0.9, 0.1, 0.7))
    scored = score_candidates(probabilities, labels, None, classes=classes, calibration=calibration, coverage=0.9)
    assert calibration.candidates is not None
    assert scored.overall is not None
    assert scored.answered is not None
    assert scored.not_sure is not None
    assert scored.per_size is not None
    assert scored.per_class is not None
    sets = [calibration.candidates.select(row.tolist(), row.max() >= 0.5) for row in probabilities]
    is_covered = np.array([label in names for label, names in zip(labels, sets, strict=True)])
    assert scored.overall.covered == is_covered.mean()
    assert scored.mean_size == np.mean([len(names) for names in sets])
    for parts in ((scored.answered, scored.not_sure), scored.per_size.values(), scored.per_class.values()):
        assert sum(part.photos for part in parts) == 900
        assert sum(part.photos * (part.covered or 0) for part in parts) == pytest.approx(is_covered.sum())
    low, high = scored.overall.interval or (0, 0)
    assert low < is_covered.mean() < high
    assert f"{is_covered.mean():.1%}" in scored.describe()
    assert "at least 90% requested" in scored.describe()


def test_unknown_photos_are_neither_answered_nor_not_sure():
    probabilities, labels = draw_photos(6, 900)
    is_known = np.arange(900) % 3 > 0
    scored = score_candidates(
        probabilities,
        labels,
        None,
        classes=tuple("abcdef"),
        calibration=Calibration(1.0, 0.5, 400, CandidateRule(0.9, 0.1, 0.7)),
        coverage=0.9,
        is_known=is_known,
    )
    assert scored.overall is not None
    assert scored.answered is not None
    assert scored.not_sure is not None
    assert scored.overall.photos == 900
    assert scored.answered.photos == ((probabilities.max(1) >= 0.5) & is_known).sum()
    assert scored.not_sure.photos == ((probabilities.max(1) < 0.5) & is_known).sum()


@pytest.mark.parametrize("rule", [CandidateRule(0.9, 0.1, 0.7), None])
def test_scores_with_and_without_candidates_come_back_from_json_as_they_were(rule):
    probabilities, labels = draw_photos(7, 60)
    scored = score_confidence(
        evaluate(probabilities, labels, tuple("abcdef")),
        probabilities,
        labels,
        calibration=Calibration(1.0, 0.5, 60, rule),
        coverage=0.9,
    )
    assert ("candidate classes" in repr(scored)) == (scored.threshold is not None)
    assert read_evaluation(json.loads(json.dumps(scored.to_json())), scored.report) == scored


def test_too_few_photos_for_a_high_coverage_are_reported():
    scored = score_candidates(
        *draw_photos(8, 60), None, classes=tuple("abcdef"), calibration=Calibration(1.0, 0.5, 60), coverage=0.99
    )
    assert "for a coverage of 99%, calibration needs at least 99 independent photos" in scored.describe()


def test_a_rule_comes_back_from_json_and_a_damaged_one_is_refused():
    rule = CandidateRule(0.9, 0.0, 0.75)
    assert from_json(json.loads(json.dumps(asdict(rule)))) == rule
    assert from_json(None) is None
    for damaged in (
        {},
        [],
        0.9,
        asdict(rule) | {"limit": -1},
        asdict(rule) | {"limit": "0"},
        asdict(rule) | {"coverage": 1},
    ):
        with pytest.raises(ValueError, match=r"\w"):
            from_json(damaged)  # pyright: ignore[reportArgumentType]
