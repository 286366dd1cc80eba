"""Rare classes are predicted as readily as the others."""

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from scipy.special import softmax
from torch import nn

from ikebana import recipes
from ikebana.data.dataset import SCHEMA, STATUS_USED, Dataset
from ikebana.evaluation.calibration import calibrate
from ikebana.learning import device, examples
from ikebana.learning.training.class_priors import compute_log_priors
from ikebana.learning.training.trainer import Trainer, plan_phases


def test_the_priors_of_all_classes_add_up_to_1():
    labels = np.array([0, 0, 0, 2, 2, 1])
    assert np.exp(compute_log_priors(labels, 3)).sum() == pytest.approx(1)


def test_classes_of_equal_size_change_no_prediction():
    shares = compute_log_priors(np.arange(12) % 4, 4)
    assert np.ptp(shares) == 0


def test_twice_the_photos_give_a_factor_of_two():
    shares = compute_log_priors(np.array([0, 1, 1]), 2)
    assert shares[1] - shares[0] == pytest.approx(np.log(2))


def test_a_class_without_photos_is_left_alone():
    assert compute_log_priors(np.array([0, 2]), 3)[1] == 0


def draw_two_classes(photos, seed):
    """Draw two overlapping classes; where they overlap, only their frequencies decide."""
    labels = np.arange(photos) % 2
    features = np.random.default_rng(seed).normal(size=(photos, 4)) + 1.2 * labels[:, None] - 0.6
    return torch.from_numpy(features.astype(np.float32)), labels


def measure_rare_recall(counts_known: bool) -> float:
    """Fine-tune with a class ratio of 1 to 12, and return the recall.

    The test set is balanced.
    """
    recipe = recipes.get_recipe("good", epochs=60, batch_size=64, learning_rate=0.05)
    features, labels = draw_two_classes(1300, seed=0)
    is_kept = (labels == 0) | (np.arange(1300) // 2 % 12 == 0)
    features, labels = features[is_kept], labels[is_kept]
    torch.manual_seed(0)
    learner = Trainer(nn.Sequential(nn.Linear(4, 2)), recipe, plan_phases(recipe)[-1], labels)
    if not counts_known:
        learner.log_priors = torch.zeros(2)
    order = torch.Generator().manual_seed(0)
    for _ in range(60):
        for chosen in torch.randperm(len(labels), generator=order).split(64):
            learner.step(
                features[chosen], torch.from_numpy(labels)[chosen], device.DeviceSettings("cpu", "float32", 1, "")
            )
    new, truth = draw_two_classes(2000, seed=1)
    predicted = learner.evaluated_network(new).argmax(1).numpy()
    return float((predicted == truth)[truth == 1].mean())


@pytest.mark.slow
def test_fine_tuning_predicts_a_rare_class_as_readily_as_a_frequent_one():
    assert measure_rare_recall(counts_known=True) > 0.8  # 0.88 is the best possible for both
    assert measure_rare_recall(counts_known=False) < 0.7


def test_a_class_without_training_photos_is_left_out_of_the_loss():
    recipe, labels = recipes.get_recipe("good", batch_size=8), np.array([0, 2, 2, 0, 3, 3, 3, 0])
    network = nn.Linear(4, 4)
    with torch.no_grad():
        network.bias[1] = -30.0
    features, step = (
        torch.randn(8, 4, generator=torch.Generator().manual_seed(0)),
        device.DeviceSettings("cpu", "float32", 1, ""),
    )
    learner = Trainer(nn.Sequential(network), recipe, plan_phases(recipe)[-1], labels)
    loss, _ = learner.step(features, torch.from_numpy(labels), step)
    assert loss < 5  # label smoothing would add 0.1 / 4 * 30
    assert network.bias.grad is not None
    assert network.bias.grad[1] == 0
    assert (network.bias.grad[[0, 2, 3]] != 0).all()


def test_calibration_and_selection_use_trained_classes_only():
    """Validation photos of an untrained class are no evidence for calibration."""
    truth, rng = np.arange(400) % 4, np.random.default_rng(0)
    table = {
        "path": [f"{row}.jpg" for row in range(400)], "label": [f"class {index}" for index in truth],
        "split": ["train" if row < 200 and truth[row] != 3 else "validation" for row in range(400)],
        "status": [STATUS_USED] * 400,
        "sha256": [hashlib.sha256(bytes([row % 256, row // 256])).hexdigest() for row in range(400)],
    }  # fmt: skip
    empty = {name: [None] * 400 for name in SCHEMA if name not in table}
    photos = pl.DataFrame({**table, **empty}, schema_overrides=SCHEMA).select(list(SCHEMA))
    splits = examples.build_split_examples(
        Dataset("drawn", Path(), photos, tuple(f"class {index}" for index in range(4))),
        np.zeros((400, 8, 8, 3), np.uint8),
    )
    validation = splits["validation"]
    assert not validation.for_selection[validation.labels == 3].any()
    assert validation.for_selection[validation.labels != 3].any()
    logits = rng.normal(0, 1, (len(validation), 4)) + 4 * np.eye(4)[validation.labels] * (
        rng.random((len(validation), 1)) < 0.9
    )
    logits[:, 3] = -30
    probabilities = softmax(logits, axis=1)
    given, labels, groups = examples.select_for_calibration(splits, probabilities)
    rest = np.flatnonzero(~validation.for_selection & (validation.labels != 3))
    np.testing.assert_allclose(given, probabilities[rest][:, :3])
    assert (labels == validation.labels[rest]).all()
    assert (groups == validation.groups[rest]).all()
    plain = calibrate(softmax(logits[rest][:, :3], axis=1), validation.labels[rest])
    assert calibrate(given, labels).temperature == pytest.approx(plain.temperature, rel=1e-3)
