"""Wrong labels and foreign photos, planted among points whose place is known."""

import numpy as np
import pytest

from ikebana.auditing import label_confidence
from ikebana.auditing import label_errors as trust

CLASSES, PHOTOS_PER_CLASS, WIDTH = 4, 60, 24


def clusters(apart, seed=0):
    """Points around one centre a class: features, labels, groups, and what a perfect judge says of each."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), PHOTOS_PER_CLASS)
    centres = apart * np.eye(CLASSES, WIDTH)
    features = centres[labels] + rng.normal(0, 1, (len(labels), WIDTH))
    distances = ((features[:, None] - centres[None]) ** 2).sum(2)
    logits = -distances / 2
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return features, labels, np.arange(len(labels)), powers / powers.sum(1, keepdims=True)


def judged(features, labels, groups, alone):
    near = trust.find_neighbours(features, labels, groups)
    return near, trust.combine_probabilities(
        alone, trust.vote(near, labels, CLASSES), labels, np.ones(len(labels), bool)
    )


def listed(probabilities, labels):
    everything = np.ones(len(labels), bool)
    errors = label_confidence.estimate_errors(probabilities, labels, np.arange(len(labels)), everything)
    return trust.find_suspect_labels(probabilities, labels, errors)


def with_flips(labels, count, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(labels), count, replace=False)
    wrong = labels.copy()
    wrong[rows] = (labels[rows] + rng.integers(1, CLASSES, count)) % CLASSES
    return wrong, set(rows.tolist())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_exactly_the_wrong_labels_of_well_separated_classes_are_suspects(seed):
    features, truth, groups, alone = clusters(apart=9, seed=seed)
    labels, flipped = with_flips(truth, 8, seed)
    _, probabilities = judged(features, labels, groups, alone)
    assert set(trust.rank_suspect_labels(probabilities, labels)[:8].tolist()) == flipped
    suspects = listed(probabilities, labels)
    assert {suspect.photo for suspect in suspects} == flipped
    assert all(suspect.suggested_label == truth[suspect.photo] for suspect in suspects)
    assert all(suspect.confidence is not None and 0.5 < suspect.confidence <= 1 for suspect in suspects)


def test_correct_labels_of_well_separated_classes_are_not_suspects():
    features, labels, groups, alone = clusters(apart=9)
    assert listed(judged(features, labels, groups, alone)[1], labels) == []


def test_indistinguishable_classes_have_no_suspects():
    features, labels, groups, _ = clusters(apart=0)
    is_unheard = np.full((len(labels), CLASSES), 1 / CLASSES)
    assert listed(judged(features, labels, groups, is_unheard)[1], labels) == []


def test_a_label_without_evidence_is_accepted_and_does_not_affect_others():
    features, truth, groups, alone = clusters(apart=4)
    labels, _ = with_flips(truth, 8)
    heard = labels != 3
    alone[~heard] = np.eye(CLASSES)[0]  # as sure as can be, of what it has never learned
    near = trust.find_neighbours(features, labels, groups)
    probabilities = trust.combine_probabilities(alone, trust.vote(near, labels, CLASSES), labels, heard)
    assert not [suspect for suspect in listed(probabilities, labels) if labels[suspect.photo] == 3]
    others = trust.combine_probabilities(
        alone[heard], trust.vote(near, labels, CLASSES)[heard], labels[heard], heard[heard]
    )
    np.testing.assert_allclose(probabilities[heard], others)


def test_neighbours_find_errors_that_heads_miss():
    features, truth, groups, _ = clusters(apart=9)
    labels, flipped = with_flips(truth, 8)
    is_unheard = np.full((len(labels), CLASSES), 1 / CLASSES)
    _, probabilities = judged(features, labels, groups, is_unheard)
    assert set(trust.rank_suspect_labels(probabilities, labels)[:8].tolist()) == flipped


def test_a_duplicate_does_not_vote():
    features, labels, groups, _ = clusters(apart=9)
    features[1], labels[1], groups[1] = features[0], (labels[0] + 1) % CLASSES, groups[0]
    near = trust.find_neighbours(features, labels, groups)
    assert 1 not in near.rows[0]
    assert 0 not in near.rows[1]
    apart = trust.find_neighbours(features, labels, np.arange(len(labels)))
    assert apart.rows[0, 0] == 1


def test_the_order_of_the_photos_does_not_change_the_suspects():
    features, truth, groups, alone = clusters(apart=4)
    labels, _ = with_flips(truth, 8)
    _, probabilities = judged(features, labels, groups, alone)
    order = np.random.default_rng(5).permutation(len(labels))
    _, shuffled = judged(features[order], labels[order], groups[order], alone[order])
    np.testing.assert_allclose(shuffled, probabilities[order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_comparing_photos_in_chunks_gives_the_same_result(chunk, monkeypatch):
    features, labels, groups, _ = clusters(apart=3)
    expected = trust.find_neighbours(features, labels, groups)
    monkeypatch.setattr(trust, "CHUNK_PHOTOS", chunk)
    neighbours = trust.find_neighbours(features, labels, groups)
    np.testing.assert_allclose(neighbours.similarity, expected.similarity, atol=1e-5)
    np.testing.assert_allclose(neighbours.own_class_similarity, expected.own_class_similarity, atol=1e-5)
    np.testing.assert_allclose(
        trust.score_outliers(features, labels, neighbours),
        trust.score_outliers(features, labels, expected),
        rtol=1e-3,
        atol=1e-3,
    )


def test_foreign_photos_have_the_highest_outlier_scores():
    features, labels, groups, _ = clusters(apart=6)
    before = trust.score_outliers(features, labels, trust.find_neighbours(features, labels, groups))
    features[::60, CLASSES:] += np.random.default_rng(1).normal(0, 6, (CLASSES, WIDTH - CLASSES))
    near = trust.find_neighbours(features, labels, groups)
    how = trust.score_outliers(features, labels, near)
    foreign = [0, 60, 120, 180]
    assert sorted(np.argsort(-how)[:4].tolist()) == foreign
    assert how[foreign].min() > before.max()
    listed = trust.find_outliers(features, labels, near)
    assert {photo for photo, _ in listed} >= set(foreign)
    assert [score for _, score in listed] == sorted((score for _, score in listed), reverse=True)


def test_duplicates_of_one_photo_do_not_make_other_photos_outliers():
    """Twenty copies beside ten photos: half of the class is one photo, which says nothing of how much photos differ."""
    features, labels, groups, _ = clusters(apart=6)
    copies = np.flatnonzero(labels == 0)[:1].repeat(4 * (labels == 0).sum())
    grown = np.concatenate((features, features[copies]))
    names, together = np.concatenate((labels, labels[copies])), np.concatenate((groups, groups[copies]))
    how = trust.score_outliers(grown, names, trust.find_neighbours(grown, names, together))
    assert how.max() < 10  # it was some 1e8


def test_a_greater_distance_from_all_others_has_a_higher_outlier_score():
    features, labels, groups, _ = clusters(apart=6)
    direction = np.random.default_rng(2).normal(0, 1, WIDTH)
    direction[:CLASSES] = 0
    grown = []
    for length in (1.0, 3.0, 9.0):
        moved = features.copy()
        moved[0] += length * direction
        grown.append(trust.score_outliers(moved, labels, trust.find_neighbours(moved, labels, groups))[0])
    assert grown == sorted(grown)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (1, 60)])
def test_a_few_photos_are_scored_without_an_error(sizes):
    labels = np.repeat([0, 1], sizes)
    features = np.random.default_rng(0).normal(0, 1, (len(labels), WIDTH))
    near = trust.find_neighbours(features, labels, np.arange(len(labels)))
    alone = np.full((len(labels), 2), 0.5)
    probabilities = trust.combine_probabilities(alone, trust.vote(near, labels, 2), labels, np.ones(len(labels), bool))
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (
        np.isfinite(trust.score_outliers(features, labels, near)).all()
        if len(labels) >= trust.MIN_OUTLIER_PHOTOS
        else True
    )
    assert len(trust.find_outliers(features, labels, near)) < len(labels)
