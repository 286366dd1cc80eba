"""The logistic head: its solution, and the regularisation that held-out photos select."""

import numpy as np
import pytest
import torch
from torch import nn

from ikebana.learning import folds
from ikebana.learning.features import scaling
from ikebana.learning.training import logistic_head


def draw_clouds(photos, classes=3, width=12, apart=2.0, seed=0):
    """Draw classes as round clusters.

    The largest feature is twenty times the smallest, as in a network.
    """
    numbers = np.random.default_rng(seed)
    labels = np.arange(photos) % classes
    corners = np.random.default_rng(7).normal(size=(classes, width))
    features = apart * corners[labels] + numbers.normal(size=(photos, width))
    return (features * np.geomspace(0.07, 1.4, width) + 3).astype(np.float32), labels.astype(np.int64)


def thin_second_class(features, labels, one_in):
    """Keep one in `one_in` photos of the second class, and all others."""
    is_kept = (labels != 1) | (np.arange(len(labels)) // 3 % one_in == 0)
    return features[is_kept], labels[is_kept]


def build_head(fitted, classes, width=12):
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(width, classes)).eval()
    fitted.copy_to(head)
    return head


def compute_accuracy(head, features, labels):
    return float((head(torch.from_numpy(features)).argmax(1).numpy() == labels).mean())


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("held_out", [12, 400])  # with few, folds select the strength
def test_the_head_classifies_new_photos_correctly(classes, held_out):
    head = logistic_head.fit_head(*draw_clouds(600, classes), *draw_clouds(held_out, classes, seed=1), classes, seed=0)
    features, labels = draw_clouds(500, classes, seed=2)
    assert compute_accuracy(build_head(head, classes), features, labels) > 0.9


def test_the_solution_is_that_of_scikit_learn_without_class_priors():
    from sklearn.linear_model import LogisticRegression

    features, labels = thin_second_class(*draw_clouds(900, apart=0.5), one_in=3)
    head = logistic_head.fit_head(features, labels, *draw_clouds(400, apart=0.5, seed=1), 3, seed=0)
    spread = features.std(0)
    scaled = (features - features.mean(0)) / np.maximum(spread, np.quantile(spread, scaling.SCALE_QUANTILE))
    peer = LogisticRegression(C=head.inverse_l2, max_iter=5000, tol=1e-8).fit(scaled, labels)
    ours = torch.softmax(build_head(head, 3)(torch.from_numpy(features)), 1).detach().numpy()
    without = peer.predict_proba(scaled) / np.bincount(labels)
    np.testing.assert_allclose(ours, without / without.sum(1, keepdims=True), atol=1e-3)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("strength", [3e-3, 0.1, 3.0])
def test_the_solver_converges_to_the_solution_of_scikit_learn(classes, strength):
    from sklearn.linear_model import LogisticRegression

    features, labels = draw_clouds(700, classes, width=20, apart=0.5)
    mean, spread = scaling.compute_mean_and_scale(features)
    photos = logistic_head.ScaledChunks(features, labels, mean, spread)
    line = logistic_head.fit_coefficients(photos, classes, strength, tolerance=logistic_head.FINAL_GRADIENT)
    peer = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit((features - mean) / spread, labels)
    ours = torch.softmax(torch.from_numpy(logistic_head.compute_logits(line, photos)), 1).numpy()
    np.testing.assert_allclose(ours, peer.predict_proba((features - mean) / spread), atol=2e-3)


def test_a_table_too_large_for_memory_gives_the_same_head(monkeypatch):
    given = (*draw_clouds(1500), *draw_clouds(400, seed=1), 3, 0)
    in_memory = logistic_head.fit_head(*given)
    monkeypatch.setattr(logistic_head, "MAX_CACHED_VALUES", 0)
    read = logistic_head.fit_head(*given)
    assert read.inverse_l2 == in_memory.inverse_l2
    np.testing.assert_array_equal(read.weight, in_memory.weight)


@pytest.mark.slow
def test_many_selection_photos_suffice_even_with_a_rare_class():
    held_out, labels = draw_clouds(logistic_head.SUFFICIENT_SELECTION_PHOTOS + 600, seed=1)
    is_kept = (labels != 1) | (np.arange(len(labels)) < 30)
    with_folds = logistic_head.fit_head(*draw_clouds(600), *draw_clouds(60, seed=1), 3, seed=0)
    without = logistic_head.fit_head(*draw_clouds(600), held_out[is_kept], labels[is_kept], 3, seed=0)
    features, truth = draw_clouds(500, seed=2)
    assert (
        compute_accuracy(build_head(without, 3), features, truth)
        >= compute_accuracy(build_head(with_folds, 3), features, truth) - 0.02
    )


def test_noisier_labels_select_stronger_regularisation():
    features, labels = draw_clouds(600, width=300, apart=0.05)
    loose, loose_labels = draw_clouds(600, width=300, apart=1.0)
    chance = logistic_head.fit_head(features, labels, *draw_clouds(400, width=300, apart=0.05, seed=1), 3, seed=0)
    clear = logistic_head.fit_head(loose, loose_labels, *draw_clouds(400, width=300, apart=1.0, seed=1), 3, seed=0)
    assert chance.inverse_l2 < clear.inverse_l2


@pytest.mark.slow
def test_a_small_class_is_predicted_as_readily_as_a_large_one():
    features, labels = thin_second_class(*draw_clouds(3000, classes=3, width=40, apart=0.35), one_in=25)
    assert 10 < sum(labels == 1) < 50
    head = logistic_head.fit_head(features, labels, features[:0], labels[:0], 3, seed=0)
    new, truth = draw_clouds(3000, classes=3, width=40, apart=0.35, seed=1)
    predicted = build_head(head, 3, width=40)(torch.from_numpy(new)).argmax(1).numpy()
    recall = [(predicted == truth)[truth == name].mean() for name in range(3)]
    assert recall[1] > 0.7 * max(recall)


def test_a_class_without_training_photos_is_never_predicted():
    features, labels = draw_clouds(300)
    is_kept = labels != 1
    head = logistic_head.fit_head(features[is_kept], labels[is_kept], *draw_clouds(200, seed=1), 3, seed=0)
    predicted = build_head(head, 3)(torch.from_numpy(features)).argmax(1).numpy()
    assert 1 not in predicted
    assert (predicted == labels)[is_kept].mean() > 0.9


def test_a_class_without_training_photos_does_not_prevent_selection_on_held_out_photos(monkeypatch):
    features, labels = draw_clouds(300)
    is_kept = labels != 1
    new, truth = draw_clouds(300, seed=1)
    known = truth != 1
    monkeypatch.setattr(
        logistic_head, "make_folds", lambda *_, **__: pytest.fail("there were photos enough to choose by")
    )
    logistic_head.fit_head(features[is_kept], labels[is_kept], new[known], truth[known], 3, seed=0)


def test_a_class_of_one_photo_does_not_dominate_the_selection(monkeypatch):
    """No head can learn its class, so the loss must be that of others."""
    features, labels = draw_clouds(91)
    labels[labels == 2] = 0
    labels[0] = 2
    for some, rest in folds.make_folds(labels, np.arange(91), seed=0, known_classes_only=True):
        assert set(labels[rest]) <= set(labels[some])
    shown = []
    trial = logistic_head.RegularisationTrial.evaluate
    monkeypatch.setattr(
        logistic_head.RegularisationTrial, "evaluate", lambda *given: shown.append(losses := trial(*given)) or losses
    )
    logistic_head.fit_head(features, labels, features[:0], labels[:0], 3, seed=0)
    assert max(loss for loss, _ in shown) < 2


def test_a_single_class_is_always_predicted():
    features, _ = draw_clouds(40)
    head = logistic_head.fit_head(features, np.ones(40, np.int64), features, np.ones(40, np.int64), 2, seed=0)
    assert compute_accuracy(build_head(head, 2), features, np.ones(40)) == 1


def test_a_class_of_one_photo_is_not_an_error():
    features, labels = draw_clouds(61)
    labels[:] = labels % 2
    labels[0] = 2
    head = logistic_head.fit_head(features, labels, features[:0], labels[:0], 3, seed=0)
    assert np.isfinite(head.weight).all()


@pytest.mark.parametrize("factor", [0.001, 1000.0])
def test_the_scale_of_one_feature_does_not_matter(factor):
    def scale_feature(photos, seed):
        features, labels = draw_clouds(photos, seed=seed)
        features[:, 5] *= factor
        return features, labels

    head = logistic_head.fit_head(*scale_feature(300, 0), *scale_feature(200, 1), 3, seed=0)
    assert compute_accuracy(build_head(head, 3), *scale_feature(500, 2)) > 0.9


@pytest.mark.slow
def test_nearly_constant_noise_features_are_not_amplified():
    """Forty informative features among small noise, and few photos: larger noise must lower the accuracy."""

    def measure_accuracy(loudness):
        def add_small_noise(photos, seed):
            features, labels = draw_clouds(photos, width=40, apart=0.5, seed=seed)
            whispers = loudness * np.random.default_rng(seed + 10).normal(size=(photos, 300))
            return np.concatenate((features, whispers), 1).astype(np.float32), labels

        features, labels = add_small_noise(60, 0)
        head = logistic_head.fit_head(features, labels, features[:0], labels[:0], 3, seed=0)
        return compute_accuracy(build_head(head, 3, 340), *add_small_noise(1500, 1))

    assert measure_accuracy(0.01) > measure_accuracy(1.0) + 0.05


def test_constant_features_do_no_harm():
    features, labels = draw_clouds(300)
    features[:, 3] = 0.25
    head = logistic_head.fit_head(features, labels, *draw_clouds(200, seed=1), 3, seed=0)
    assert np.isfinite(head.weight).all()
    assert compute_accuracy(build_head(head, 3), features, labels) > 0.9


@pytest.mark.slow
def test_duplicates_are_in_one_fold_when_regularisation_is_selected():
    """Random labels of twelve subjects per class, with ten nearly equal photos each."""
    numbers = np.random.default_rng(3)
    subjects = numbers.normal(size=(60, 40))
    features = (np.repeat(subjects, 10, 0) + 0.05 * numbers.normal(size=(600, 40))).astype(np.float32)
    labels, groups = np.repeat(np.arange(60) % 5, 10), np.repeat(np.arange(60), 10)
    parted = logistic_head.fit_head(features, labels, features[:0], labels[:0], 5, seed=0)
    with_groups = logistic_head.fit_head(features, labels, features[:0], labels[:0], 5, 0, groups)
    assert with_groups.inverse_l2 == min(logistic_head.REGULARISATION_GRID)  # there is nothing to learn
    assert parted.inverse_l2 > with_groups.inverse_l2


@pytest.mark.parametrize("groups", [[0, 1], [0, 0, 0, 1, 1, 1]])
def test_too_few_photos_for_selection_still_give_a_head(groups):
    labels = np.arange(len(groups)) * 2 // len(groups)
    features = (labels[:, None] + 0.1 * np.random.default_rng(0).normal(size=(len(groups), 8))).astype(np.float32)
    head = logistic_head.fit_head(features, labels, features[:0], labels[:0], 2, 0, np.array(groups))
    assert head.inverse_l2 == logistic_head.DEFAULT_REGULARISATION
    assert compute_accuracy(build_head(head, 2, width=8), features, labels) == 1
