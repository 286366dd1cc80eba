"""How well a photo's class can be told from what a frozen network sees, at several depths: a probe, before any training.

A network trained on ImageNet sees edges and colours first, then textures, parts, and whole things last. If its last layers
tell the classes best, the photos resemble ImageNet's; if an earlier layer does, what the last ones know does not apply.
Source: Yosinski et al. 2014, arXiv:1411.1792; Alain and Bengio 2016, arXiv:1610.01644.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ikebana import progress
from ikebana.errors import PhotosError
from ikebana.learning import features, logistic
from ikebana.learning.clusters import design_effect
from ikebana.learning.device import Setting
from ikebana.learning.inference import Photos
from ikebana.learning.logistic import Fold
from ikebana.photos.split import stratified
from ikebana.recipe import Recipe

MOST = 2000  # photos that are looked at: an accuracy near 0.9 is then known to 0.7 points
SEED = 0  # of the sample and the folds: the same photos, the same advice
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # tried in this order until it gets worse: few features bear weaker pulls

# The maps that timm calls a network's features, by their place among them: the last ones before each halving of the side.
# In EfficientNet-Lite0 they follow blocks.1, blocks.2 and blocks.4. The first, before any of these, told least everywhere.
STAGES = (1, 2, 3)
CUTS = ("edges and colours", "textures", "parts of things", "whole things")  # what is seen there, roughly


class Depths(nn.Module):
    """Photo → what the network sees at each cut, side by side.

    Of the maps within, mean and spread over the photo: their means alone are near zero for textures, whose strength is what
    tells them apart. Of the last, the mean, which is all that a head sees.
    """

    def __init__(self, seer: nn.Module):
        super().__init__()
        self.normalise = seer.get_submodule("normalise")
        self.backbone: Any = seer.get_submodule("backbone")
        stages = self.backbone.feature_info
        self.widths = [2 * stages[number]["num_chs"] for number in STAGES]  # the rest belongs to the last

    def forward(self, photos: Tensor) -> Tensor:
        """photos  uint8 [photos, 3, side, side]; returns float [photos, features]"""
        last, maps = self.backbone.forward_intermediates(self.normalise(photos), indices=list(STAGES))
        seen = [each for found in maps for each in reversed(torch.std_mean(found.float(), (2, 3)))]
        return torch.cat([*seen, self.backbone.forward_head(last).float()], 1)

    def parted(self, seen: np.ndarray) -> list[np.ndarray]:
        """What `forward` laid side by side, cut by cut."""
        return np.split(seen, np.cumsum(self.widths), axis=1)


@dataclass(frozen=True)
class Score:
    """A share of photos, or a difference of two, and how far chance may have moved it."""

    value: float
    error: float  # standard error

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class Evidence:
    """What a probe has shown."""

    judged: int  # photos
    guess: float  # accuracy of always naming the commonest class
    cuts: dict[str, Score]  # accuracy from each depth, the earliest first
    lead: Score  # of the last cut over the best earlier one; below 0 if an earlier one is better
    half: Score  # accuracy of the last cut with half as many photos to learn from
    quarter: Score
    doubling: Score  # what the second half of the photos brought

    @property
    def best(self) -> Score:
        """Accuracy from the last cut: about what a head alone will give."""
        return list(self.cuts.values())[-1]


def sampled(photos: Photos, groups: Sequence[int], most: int = MOST) -> tuple[Photos, np.ndarray]:
    """The photos that are looked at, if there are many: each class by its share, and what belongs together all or not at all.

    groups   a number for each photo: those of one number are never parted
    returns  the photos and their groups
    """
    taken = np.ones(len(photos), bool)
    if len(photos) > most:
        share = most / len(photos)
        parts = stratified([str(label) for label in photos.labels], groups, (share, 0.0, 1 - share), SEED)
        taken = np.array([part == "train" for part in parts], bool)
    return photos.some(taken), np.array(groups)[taken]


def seen(photos: Photos, recipe: Recipe, pixels: str, setting: Setting) -> list[np.ndarray]:
    """What the recipe's frozen backbone sees in each photo, cut by cut: float32 [photos, features] each.

    pixels  the name of the kept pixels
    raises  RecipeError or MachineError if its weights cannot be had
    """
    seer, origin = features.backbone(recipe, pixels, setting)
    depths = Depths(seer).eval()
    origin = replace(origin, depths=f"mean and spread of stages {STAGES}")
    return depths.parted(features.of(depths, origin, photos, setting).values())


def dealt(labels: np.ndarray, groups: np.ndarray, source: str) -> list[Fold]:
    """Every photo judged once, by a head that has not seen it; classes keep their share and groups stay whole.

    labels  class indices [photos]
    groups  a number for each photo: those of one number are never on both sides
    raises  PhotosError if there are too few photos to learn from some and judge by others
    """
    held = [len(np.unique(groups[labels == label])) for label in np.unique(labels)]
    if sum(count > 1 for count in held) < 2:
        raise PhotosError(
            f"{len(labels)} photos that may be looked at are too few: some must judge what others teach",
            where=source,
            advice="at least 4 different photos of each of 2 classes, better 30; fit itself may do with fewer",
        )
    return logistic.dealt(labels, groups, SEED)


def judged(cuts: Sequence[np.ndarray], labels: np.ndarray, groups: np.ndarray, folds: list[Fold]) -> Evidence:
    """How well the classes are told apart from each cut, by logistic regressions that have not seen what they judge.

    cuts    float [photos, features] each, one for each of CUTS
    labels  class indices [photos]
    groups  a number for each photo: those of one number may fare alike, so that many of them tell less than as many others
    """
    with progress.stage("judge", len(cuts) + 2, "heads") as bar:
        right: list[np.ndarray] = []
        strength = STRENGTHS[0]
        for cut in cuts:
            found, strength = _told_apart(cut, labels, folds)
            right.append(found)
            bar.advance(1, accuracy=float(found.mean()))
        for share in (0.5, 0.25):
            right.append(_out_of_fold(cuts[-1], labels, _thinned(folds, labels, share), strength)[0])
            bar.advance(1, accuracy=float(right[-1].mean()))
    *earlier, last, half, quarter = right
    return Evidence(
        judged=len(labels),
        guess=float(np.bincount(labels).max() / len(labels)),
        cuts={name: _accuracy(each, groups) for name, each in zip(CUTS, (*earlier, last), strict=True)},
        lead=_difference(last, max(earlier, key=lambda each: each.mean()), groups),
        half=_accuracy(half, groups),
        quarter=_accuracy(quarter, groups),
        doubling=_difference(last, half, groups),
    )


def _thinned(folds: list[Fold], labels: np.ndarray, share: float) -> list[Fold]:
    """The same photos judged, by heads that learn from a share of each class alone."""
    dice = np.random.default_rng(SEED)
    chance = dice.permutation(len(labels))  # one order for every share: a quarter lies within the half
    thinned = []
    for learned, left in folds:
        shuffled = learned[np.argsort(chance[learned])]
        of_class = [shuffled[labels[shuffled] == label] for label in np.unique(labels[learned])]
        thinned.append((np.concatenate([rows[: math.ceil(share * len(rows))] for rows in of_class]), left))
    return thinned


def _told_apart(cut: np.ndarray, labels: np.ndarray, folds: list[Fold]) -> tuple[np.ndarray, float]:
    """Which photos were named rightly, bool [photos], and the strength by which that came out best.

    The strength is chosen on the very photos that are judged: one number of five for some hundred photos flatters
    every cut by the same little.
    """
    best: tuple[np.ndarray, float] | None = None
    least = np.inf
    for strength in STRENGTHS:
        right, loss = _out_of_fold(cut, labels, folds, strength)
        if best is not None and loss >= least:
            break
        best, least = (right, strength), loss
    assert best is not None
    return best


def _out_of_fold(cut: np.ndarray, labels: np.ndarray, folds: list[Fold], strength: float) -> tuple[np.ndarray, float]:
    """Which photos were named rightly, bool [photos], and the mean cross-entropy."""
    right, losses = np.zeros(len(labels), bool), np.zeros(len(labels))
    for learned, left in folds:
        logits = logistic.said_of(cut[left], cut[learned], labels[learned], int(labels.max()) + 1, strength)
        right[left] = logits.argmax(1) == labels[left]
        losses[left] = logistic.cross_entropy(logits, labels[left])
    return right, float(losses.mean())


def _accuracy(right: np.ndarray, groups: np.ndarray) -> Score:
    """One right and one wrong photo are added for the error alone: ten of ten are no proof of perfection."""
    softened = (right.sum() + 1) / (len(right) + 2)
    alone = softened * (1 - softened) / (len(right) + 2)
    return Score(float(right.mean()), float(np.sqrt(alone * design_effect(right, groups))))


def _difference(one: np.ndarray, other: np.ndarray, groups: np.ndarray) -> Score:
    """How much more often one is right than the other, on the same photos: those that both got right do not count."""
    apart = one.astype(float) - other
    return Score(
        float(apart.mean()), float(np.sqrt((apart.var() * len(apart) + 1) * design_effect(apart, groups)) / len(apart))
    )
