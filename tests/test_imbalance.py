"""Classes of which there are few photos: they are named as readily as the others."""

import numpy as np
import pytest
import torch
from torch import nn

from ikebana import recipe as recipes
from ikebana.learning import device
from ikebana.learning.imbalance import log_shares
from ikebana.learning.learner import Learner, phases


def test_the_shares_of_all_classes_make_a_whole():
    labels = np.array([0, 0, 0, 2, 2, 1])
    assert np.exp(log_shares(labels, 3)).sum() == pytest.approx(1)


def test_classes_of_equal_size_change_nothing_that_is_said():
    shares = log_shares(np.arange(12) % 4, 4)
    assert np.ptp(shares) == 0


def test_twice_the_photos_are_one_factor_of_two():
    shares = log_shares(np.array([0, 1, 1]), 2)
    assert shares[1] - shares[0] == pytest.approx(np.log(2))


def test_a_class_without_photos_is_left_alone():
    assert log_shares(np.array([0, 2]), 3)[1] == 0


def two_clouds(photos, seed):
    """Two classes that overlap; where they meet, only how frequent they are decides."""
    labels = np.arange(photos) % 2
    features = np.random.default_rng(seed).normal(size=(photos, 4)) + 1.2 * labels[:, None] - 0.6
    return torch.from_numpy(features.astype(np.float32)), labels


def recall_of_the_rare_class(counts_known: bool) -> float:
    """Fine-tune on one photo of the second class to twelve of the first; then look at as many of each."""
    recipe = recipes.named("good", epochs=60, batch=64, learning_rate=0.05)
    features, labels = two_clouds(1300, seed=0)
    kept = (labels == 0) | (np.arange(1300) // 2 % 12 == 0)
    features, labels = features[kept], labels[kept]
    torch.manual_seed(0)
    learner = Learner(nn.Sequential(nn.Linear(4, 2)), recipe, phases(recipe)[-1], labels)
    if not counts_known:
        learner.shares = torch.zeros(2)
    order = torch.Generator().manual_seed(0)
    for _ in range(60):
        for chosen in torch.randperm(len(labels), generator=order).split(64):
            learner.step(features[chosen], torch.from_numpy(labels)[chosen], device.Setting("cpu", "float32", 1, ""))
    new, truth = two_clouds(2000, seed=1)
    said = learner.scored(new).argmax(1).numpy()
    return float((said == truth)[truth == 1].mean())


def test_fine_tuning_names_a_rare_class_as_readily_as_a_frequent_one():
    assert recall_of_the_rare_class(counts_known=True) > 0.8  # 0.88 is the best that can be for both
    assert recall_of_the_rare_class(counts_known=False) < 0.7
