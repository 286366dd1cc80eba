"""A probe of how well a frozen network's features separate classes at several depths.

A network trained on ImageNet responds to edges and colours first, then textures, parts, and whole
objects last. If its last layers separate the classes best, the photos resemble ImageNet's. If an
earlier layer does, the last layers are of little use here.

Source: Yosinski et al. 2014, arXiv:1411.1792; Alain and Bengio 2016, arXiv:1610.01644.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ikebana.data.split import assign_stratified
from ikebana.evaluation.statistics import compute_design_effect
from ikebana.learning.device import DeviceSettings
from ikebana.learning.examples import PhotoExamples
from ikebana.learning.features import feature_cache
from ikebana.learning.folds import Fold
from ikebana.learning.models.assembly import Member
from ikebana.learning.regularisation import select_regularisation
from ikebana.learning.training import logistic_head
from ikebana.system import progress

# With this many an accuracy near 0.9 has a standard error of 0.7 points.
MAX_PHOTOS = 2000
# Of the sample: the same photos give the same recommendation.
SEED = 0
# Inverse L2 strengths, tried in this order until the loss rises.
REGULARISATION_GRID = (1e-3, 1e-2, 1e-1, 1.0, 10.0)

# Indices into timm's feature_info: the last maps before each halving of the size. In
# EfficientNet-Lite0 they follow blocks.1, blocks.2 and blocks.4. The first map separated classes
# worst everywhere.
INTERMEDIATE_STAGES = (1, 2, 3)
# What each depth roughly responds to.
DEPTH_NAMES = ("edges and colours", "textures", "parts of things", "whole things")


class DepthFeatures(nn.Module):
    """Images to the features of every depth, concatenated.

    Intermediate maps give their mean and standard deviation over the image: the means alone are
    near zero for textures, which differ in strength. The last map gives its mean, a head's input.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.normalise = backbone.get_submodule("normalise")
        self.network: Any = backbone.get_submodule("network")
        stages = self.network.feature_info
        # Of the intermediate stages; the remaining features are the last map's.
        self.widths = [2 * stages[number]["num_chs"] for number in INTERMEDIATE_STAGES]

    def forward(self, photos: Tensor) -> Tensor:
        """Map uint8 [images, 3, image_size, image_size] to float [images, features]."""
        normalised = self.normalise(photos)
        last, maps = self.network.forward_intermediates(normalised, indices=list(INTERMEDIATE_STAGES))
        statistics = [value for map_ in maps for value in reversed(torch.std_mean(map_.float(), (2, 3)))]
        return torch.cat([*statistics, self.network.forward_head(last).float()], 1)

    def split_by_depth(self, features: np.ndarray) -> list[np.ndarray]:
        """Split the output of `forward` by depth."""
        return np.split(features, np.cumsum(self.widths), axis=1)


@dataclass(frozen=True)
class AccuracyEstimate:
    """An accuracy, or a difference of two, with its standard error."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.standard_error:.3f}"


@dataclass(frozen=True)
class ProbeResult:
    """The results of a probe."""

    # Number of photos scored.
    scored_photos: int
    # Accuracy of always predicting the commonest class.
    majority_accuracy: float
    # Accuracy by depth, the earliest first.
    accuracy_by_depth: dict[str, AccuracyEstimate]
    # Accuracy gained by the last depth over the best earlier one.
    last_depth_gain: AccuracyEstimate
    # Accuracy of the last depth with half and with a quarter of the training photos.
    half_data_accuracy: AccuracyEstimate
    quarter_data_accuracy: AccuracyEstimate
    # Accuracy gained by the second half of the training photos.
    doubling_gain: AccuracyEstimate

    @property
    def last_depth_accuracy(self) -> AccuracyEstimate:
        """Accuracy of the last depth: about what training only a head will give."""
        return list(self.accuracy_by_depth.values())[-1]


def sample_photos(
    photos: PhotoExamples, groups: Sequence[int], max_photos: int = MAX_PHOTOS
) -> tuple[PhotoExamples, np.ndarray]:
    """Sample about `max_photos` photos, stratified by class; groups are not divided.

    Args:
        groups: a number per photo.
    Returns:
        The photos and their groups.
    """
    selected = np.ones(len(photos), bool)
    if len(photos) > max_photos:
        fraction = max_photos / len(photos)
        labels = [str(label) for label in photos.labels]
        splits = assign_stratified(labels, groups, (fraction, 0.0, 1 - fraction), SEED)
        selected = np.array([split == "train" for split in splits], bool)
    return photos.select(selected), np.array(groups)[selected]


def extract_depth_features(
    photos: PhotoExamples, member: Member, pixel_cache: str, settings: DeviceSettings
) -> list[np.ndarray]:
    """Extract the backbone's features, one float32 [photos, features] per depth.

    Args:
        pixel_cache: name of the pixel cache.
    Raises:
        RecipeError, MachineError: the weights cannot be obtained.
    """
    depths = DepthFeatures(member.backbone).eval()
    key = feature_cache.make_feature_key(pixel_cache, member.recipe, member.weights)
    key = replace(key, intermediate_maps=f"mean and spread of stages {INTERMEDIATE_STAGES}")
    return depths.split_by_depth(feature_cache.extract_features(depths, key, photos, settings).to_array())


def evaluate_depths(
    features_by_depth: Sequence[np.ndarray], labels: np.ndarray, groups: np.ndarray, folds: list[Fold]
) -> ProbeResult:
    """Measure out-of-fold accuracies of logistic regressions on each depth.

    Args:
        features_by_depth: float [photos, features] per depth, in the order of the depth names.
        labels: class indices [photos].
        groups: a number per photo. Photos of one group are correlated, which widens the errors.
    """
    with progress.stage("compare depths", len(features_by_depth) + 2, "fits") as bar:
        results: list[np.ndarray] = []
        inverse_l2 = REGULARISATION_GRID[0]
        for depth_features in features_by_depth:
            inverse_l2, correct = _select_and_predict(depth_features, labels, folds)
            results.append(correct)
            bar.advance(1, accuracy=float(correct.mean()))
        for fraction in (0.5, 0.25):
            subsampled = _subsample(folds, labels, fraction)
            results.append(_predict_out_of_fold(features_by_depth[-1], labels, subsampled, inverse_l2)[1])
            bar.advance(1, accuracy=float(results[-1].mean()))
    *earlier, last, half, quarter = results
    return ProbeResult(
        scored_photos=len(labels),
        majority_accuracy=float(np.bincount(labels).max() / len(labels)),
        accuracy_by_depth={
            name: _estimate_accuracy(correct, groups)
            for name, correct in zip(DEPTH_NAMES, (*earlier, last), strict=True)
        },
        last_depth_gain=_estimate_difference(last, max(earlier, key=lambda correct: correct.mean()), groups),
        half_data_accuracy=_estimate_accuracy(half, groups),
        quarter_data_accuracy=_estimate_accuracy(quarter, groups),
        doubling_gain=_estimate_difference(last, half, groups),
    )


def _subsample(folds: list[Fold], labels: np.ndarray, fraction: float) -> list[Fold]:
    """Keep a fraction of each class's training photos in every fold."""
    rng = np.random.default_rng(SEED)
    # One order for every fraction: the quarter is a part of the half.
    order = rng.permutation(len(labels))
    subsampled = []
    for train, test in folds:
        shuffled = train[np.argsort(order[train])]
        by_class = [shuffled[labels[shuffled] == label] for label in np.unique(labels[train])]
        subsampled.append((np.concatenate([rows[: math.ceil(fraction * len(rows))] for rows in by_class]), test))
    return subsampled


def _select_and_predict(features: np.ndarray, labels: np.ndarray, folds: list[Fold]) -> tuple[float, np.ndarray]:
    """Return the best inverse L2 strength, and which photos are correct at it.

    The strength is selected on the scored photos: choosing one of five numbers on some hundred
    photos is optimistic for every depth alike.
    """
    return select_regularisation(
        REGULARISATION_GRID, lambda inverse_l2: _predict_out_of_fold(features, labels, folds, inverse_l2), patience=1
    )


def _predict_out_of_fold(
    features: np.ndarray, labels: np.ndarray, folds: list[Fold], inverse_l2: float
) -> tuple[float, np.ndarray]:
    """Return the mean cross-entropy, and which photos are classified correctly, bool [photos]."""
    correct, losses = np.zeros(len(labels), bool), np.zeros(len(labels))
    for train, test in folds:
        logits = logistic_head.fit_and_predict_logits(
            features[test], features[train], labels[train], int(labels.max()) + 1, inverse_l2
        )
        correct[test] = logits.argmax(1) == labels[test]
        losses[test] = logistic_head.compute_cross_entropy(logits, labels[test])
    return float(losses.mean()), correct


def _estimate_accuracy(correct: np.ndarray, groups: np.ndarray) -> AccuracyEstimate:
    """Estimate the accuracy and its error.

    The error counts one more correct and one more wrong photo: ten of ten do not prove perfection.
    """
    smoothed = (correct.sum() + 1) / (len(correct) + 2)
    variance = smoothed * (1 - smoothed) / (len(correct) + 2)
    return AccuracyEstimate(float(correct.mean()), float(np.sqrt(variance * compute_design_effect(correct, groups))))


def _estimate_difference(first: np.ndarray, second: np.ndarray, groups: np.ndarray) -> AccuracyEstimate:
    """Estimate by how much the first is more accurate than the second, paired by photo."""
    difference = first.astype(float) - second
    variance_sum = (difference.var() * len(difference) + 1) * compute_design_effect(difference, groups)
    return AccuracyEstimate(float(difference.mean()), float(np.sqrt(variance_sum) / len(difference)))
