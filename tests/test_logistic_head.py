"""A linear head by logistic regression: it finds what can be found, and is as sure as photos it has not seen allow."""

import numpy as np
import pytest
import torch
from torch import nn

from ikebana.learning import folds
from ikebana.learning.features import scaling
from ikebana.learning.training import logistic_head


def clouds(photos, classes=3, width=12, apart=2.0, seed=0):
    """Classes as round clouds about corners; the largest feature twenty times the smallest, as a network's are."""
    numbers = np.random.default_rng(seed)
    labels = np.arange(photos) % classes
    corners = np.random.default_rng(7).normal(size=(classes, width))
    found = apart * corners[labels] + numbers.normal(size=(photos, width))
    return (found * np.geomspace(0.07, 1.4, width) + 3).astype(np.float32), labels.astype(np.int64)


def fewer_of_the_second(features, labels, one_in):
    """The same photos, but of the second class one in so many."""
    kept = (labels != 1) | (np.arange(len(labels)) // 3 % one_in == 0)
    return features[kept], labels[kept]


def head_of(found, classes, width=12):
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(width, classes)).eval()
    found.copy_to(head)
    return head


def right(head, features, labels):
    return float((head(torch.from_numpy(features)).argmax(1).numpy() == labels).mean())


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("held_out", [12, 400])  # few: folds choose
def test_it_tells_new_photos_of_its_classes_apart(classes, held_out):
    found = logistic_head.fit_head(*clouds(600, classes), *clouds(held_out, classes, seed=1), classes, seed=0)
    features, labels = clouds(500, classes, seed=2)
    assert right(head_of(found, classes), features, labels) > 0.9


def test_it_is_scikit_learns_own_answer_without_the_shares_of_the_classes():
    from sklearn.linear_model import LogisticRegression

    features, labels = fewer_of_the_second(*clouds(900, apart=0.5), one_in=3)
    found = logistic_head.fit_head(features, labels, *clouds(400, apart=0.5, seed=1), 3, seed=0)
    spread = features.std(0)
    scaled = (features - features.mean(0)) / np.maximum(spread, np.quantile(spread, scaling.SCALE_QUANTILE))
    peer = LogisticRegression(C=found.inverse_l2, max_iter=5000, tol=1e-8).fit(scaled, labels)
    ours = torch.softmax(head_of(found, 3)(torch.from_numpy(features)), 1).detach().numpy()
    without = peer.predict_proba(scaled) / np.bincount(labels)
    np.testing.assert_allclose(ours, without / without.sum(1, keepdims=True), atol=1e-3)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("strength", [3e-3, 0.1, 3.0])
def test_where_it_stops_is_where_scikit_learn_stops(classes, strength):
    from sklearn.linear_model import LogisticRegression

    features, labels = clouds(700, classes, width=20, apart=0.5)
    mean, spread = scaling.compute_mean_and_scale(features)
    photos = logistic_head.ScaledChunks(features, labels, mean, spread)
    line = logistic_head.fit_coefficients(photos, classes, strength, tolerance=logistic_head.FINAL_GRADIENT)
    peer = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit((features - mean) / spread, labels)
    ours = torch.softmax(torch.from_numpy(logistic_head.compute_logits(line, photos)), 1).numpy()
    np.testing.assert_allclose(ours, peer.predict_proba((features - mean) / spread), atol=2e-3)


def test_a_table_too_large_for_memory_gives_the_same_head(monkeypatch):
    given = (*clouds(1500), *clouds(400, seed=1), 3, 0)
    held = logistic_head.fit_head(*given)
    monkeypatch.setattr(logistic_head, "MAX_CACHED_VALUES", 0)
    read = logistic_head.fit_head(*given)
    assert read.inverse_l2 == held.inverse_l2
    np.testing.assert_array_equal(read.weight, held.weight)


@pytest.mark.slow
def test_many_photos_to_choose_by_are_enough_however_rare_a_class_is():
    held_out, labels = clouds(logistic_head.SUFFICIENT_SELECTION_PHOTOS + 600, seed=1)
    kept = (labels != 1) | (np.arange(len(labels)) < 30)
    with_folds = logistic_head.fit_head(*clouds(600), *clouds(60, seed=1), 3, seed=0)
    without = logistic_head.fit_head(*clouds(600), held_out[kept], labels[kept], 3, seed=0)
    features, truth = clouds(500, seed=2)
    assert right(head_of(without, 3), features, truth) >= right(head_of(with_folds, 3), features, truth) - 0.02


def test_the_more_the_labels_are_chance_the_more_it_is_held_back():
    features, labels = clouds(600, width=300, apart=0.05)
    loose, loose_labels = clouds(600, width=300, apart=1.0)
    chance = logistic_head.fit_head(features, labels, *clouds(400, width=300, apart=0.05, seed=1), 3, seed=0)
    clear = logistic_head.fit_head(loose, loose_labels, *clouds(400, width=300, apart=1.0, seed=1), 3, seed=0)
    assert chance.inverse_l2 < clear.inverse_l2


@pytest.mark.slow
def test_a_small_class_is_predicted_as_readily_as_a_large_one():
    features, labels = fewer_of_the_second(*clouds(3000, classes=3, width=40, apart=0.35), one_in=25)
    assert 10 < sum(labels == 1) < 50
    found = logistic_head.fit_head(features, labels, features[:0], labels[:0], 3, seed=0)
    new, truth = clouds(3000, classes=3, width=40, apart=0.35, seed=1)
    said = head_of(found, 3, width=40)(torch.from_numpy(new)).argmax(1).numpy()
    recall = [(said == truth)[truth == name].mean() for name in range(3)]
    assert recall[1] > 0.7 * max(recall)


def test_a_class_without_training_photos_is_never_predicted():
    features, labels = clouds(300)
    kept = labels != 1
    found = logistic_head.fit_head(features[kept], labels[kept], *clouds(200, seed=1), 3, seed=0)
    said = head_of(found, 3)(torch.from_numpy(features)).argmax(1).numpy()
    assert 1 not in said
    assert (said == labels)[kept].mean() > 0.9


def test_a_class_without_training_photos_does_not_keep_held_out_photos_from_choosing(monkeypatch):
    features, labels = clouds(300)
    kept = labels != 1
    new, truth = clouds(300, seed=1)
    known = truth != 1
    monkeypatch.setattr(
        logistic_head, "make_folds", lambda *_, **__: pytest.fail("there were photos enough to choose by")
    )
    logistic_head.fit_head(features[kept], labels[kept], new[known], truth[known], 3, seed=0)


def test_a_class_of_one_photo_does_not_drown_the_choice(monkeypatch):
    """The fold that judges it has not learned it: whatever is said of it, the loss shown is that of the others."""
    features, labels = clouds(91)
    labels[labels == 2] = 0
    labels[0] = 2
    for some, rest in folds.make_folds(labels, np.arange(91), seed=0, known_classes_only=True):
        assert set(labels[rest]) <= set(labels[some])
    shown = []
    trial = logistic_head.RegularisationTrial.evaluate
    monkeypatch.setattr(
        logistic_head.RegularisationTrial, "evaluate", lambda *given: shown.append(found := trial(*given)) or found
    )
    logistic_head.fit_head(features, labels, features[:0], labels[:0], 3, seed=0)
    assert max(loss for loss, _ in shown) < 2


def test_one_class_alone_is_always_predicted():
    features, _ = clouds(40)
    found = logistic_head.fit_head(features, np.ones(40, np.int64), features, np.ones(40, np.int64), 2, seed=0)
    assert right(head_of(found, 2), features, np.ones(40)) == 1


def test_a_class_of_one_photo_does_not_stop_it():
    features, labels = clouds(61)
    labels[:] = labels % 2
    labels[0] = 2
    found = logistic_head.fit_head(features, labels, features[:0], labels[:0], 3, seed=0)
    assert np.isfinite(found.weight).all()


@pytest.mark.parametrize("factor", [0.001, 1000.0])
def test_one_feature_of_another_size_neither_drowns_the_others_nor_is_needed(factor):
    def changed(photos, seed):
        features, labels = clouds(photos, seed=seed)
        features[:, 5] *= factor
        return features, labels

    found = logistic_head.fit_head(*changed(300, 0), *changed(200, 1), 3, seed=0)
    assert right(head_of(found, 3), *changed(500, 2)) > 0.9


@pytest.mark.slow
def test_features_that_hardly_vary_and_say_nothing_are_not_made_loud():
    """Forty that tell the classes apart among whispers of chance, and few photos: louder whispers must cost."""

    def heard(loudness):
        def among_whispers(photos, seed):
            features, labels = clouds(photos, width=40, apart=0.5, seed=seed)
            whispers = loudness * np.random.default_rng(seed + 10).normal(size=(photos, 300))
            return np.concatenate((features, whispers), 1).astype(np.float32), labels

        features, labels = among_whispers(60, 0)
        found = logistic_head.fit_head(features, labels, features[:0], labels[:0], 3, seed=0)
        return right(head_of(found, 3, 340), *among_whispers(1500, 1))

    assert heard(0.01) > heard(1.0) + 0.05


def test_features_that_are_the_same_everywhere_do_no_harm():
    features, labels = clouds(300)
    features[:, 3] = 0.25
    found = logistic_head.fit_head(features, labels, *clouds(200, seed=1), 3, seed=0)
    assert np.isfinite(found.weight).all()
    assert right(head_of(found, 3), features, labels) > 0.9


@pytest.mark.slow
def test_copies_do_not_judge_each_other_when_the_pull_is_chosen():
    """Twelve subjects a class, ten photos of each that hardly differ, and classes that chance alone tells apart."""
    numbers = np.random.default_rng(3)
    subjects = numbers.normal(size=(60, 40))
    features = (np.repeat(subjects, 10, 0) + 0.05 * numbers.normal(size=(600, 40))).astype(np.float32)
    labels, groups = np.repeat(np.arange(60) % 5, 10), np.repeat(np.arange(60), 10)
    parted = logistic_head.fit_head(features, labels, features[:0], labels[:0], 5, seed=0)
    whole = logistic_head.fit_head(features, labels, features[:0], labels[:0], 5, 0, groups)
    assert whole.inverse_l2 == min(logistic_head.REGULARISATION_GRID)  # there is nothing to learn
    assert parted.inverse_l2 > whole.inverse_l2


@pytest.mark.parametrize("groups", [[0, 1], [0, 0, 0, 1, 1, 1]])
def test_too_few_photos_to_choose_by_any_still_give_a_head(groups):
    labels = np.arange(len(groups)) * 2 // len(groups)
    features = (labels[:, None] + 0.1 * np.random.default_rng(0).normal(size=(len(groups), 8))).astype(np.float32)
    found = logistic_head.fit_head(features, labels, features[:0], labels[:0], 2, 0, np.array(groups))
    assert found.inverse_l2 == logistic_head.DEFAULT_REGULARISATION
    assert right(head_of(found, 2, width=8), features, labels) == 1
