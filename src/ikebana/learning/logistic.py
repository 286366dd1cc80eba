"""Features + labels → a linear head: logistic regression, its regularisation chosen on photos it has not seen.

The head is scikit-learn's, to the digit that counts: the same loss, the same optimum. It is found here by reading the features
some hundred photos at a time, since a table of them that L-BFGS could have whole is what does not fit into memory.
"""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from ikebana import progress
from ikebana.learning.imbalance import log_shares
from ikebana.learning.layers import last_linear
from ikebana.learning.scaling import Table, scale

# Inverse strengths of the pull towards zero, on features so scaled that the liveliest tenth has unit variance or more; the best
# lay between 1e-2 and 3e-2 for thousands of photos, and about 1 for a dozen a class (docs/log.md).
STRENGTHS = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
STEPS = 200  # of L-BFGS at the most
GRADIENT = 1e-4  # of the mean loss, at its largest: where scikit-learn stops too
NEVER = -30.0  # the logit of a class without training photos, which is then named never
FEW = 30  # validation photos a class: with fewer the choice is made by cross-validation on the training photos
MANY = 3000  # validation photos: enough for the choice, however few some classes have
FOLDS = 5
OF_A_HANDFUL = 1.0  # one of STRENGTHS: where there are too few photos to choose by any
WORSE = 2  # strengths in a row that are worse than the best end the search: the weakest pulls take the most steps
PIECE = 512  # photos at a time
HELD = 26_000_000  # numbers that are kept in memory, scaled: 104 MB; of larger tables the pieces are read at each step


@dataclass(frozen=True)
class Linear:
    """A linear head."""

    weight: np.ndarray  # float32 [classes, features]
    bias: np.ndarray  # float32 [classes]
    strength: float  # of the regularisation that was chosen

    def fill(self, head: nn.Module) -> None:
        """Put it into the head's last layer."""
        last = last_linear(head)
        with torch.no_grad():
            last.weight.copy_(torch.from_numpy(self.weight))
            last.bias.copy_(torch.from_numpy(self.bias))


def fit(
    features: Table,
    labels: np.ndarray,
    held_out: Table,
    held_out_labels: np.ndarray,
    classes: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> Linear:
    """The head that fits the training photos, as strongly held back as the photos for choices say; it names a class as readily
    if there are few photos of it as if there are many. Memory does not grow with the photos.

    features         float [photos, features] of the training photos
    labels           class indices [photos]
    held_out         the same of photos that are set apart for choices; with few of them, folds of the training photos
                     choose instead
    classes          how many classes there are; one that has no training photo is never predicted
    groups           a number for each training photo: no fold parts those of one number, or copies would judge each other, and
                     the weakest pull would win; each photo by itself if not given
    """
    mean, spread = scale(features)
    everything = Pieces(features, labels, mean, spread)
    if groups is None:
        groups = np.arange(len(labels))
    a_class = np.bincount(held_out_labels, minlength=classes)[np.unique(labels)]
    enough = min(a_class) >= FEW or len(held_out_labels) >= MANY
    if enough:
        trials = [Trial(everything, Pieces(held_out, held_out_labels, mean, spread), classes)]
    else:
        trials = [
            Trial(everything.some(learned), everything.some(left), classes)
            for learned, left in dealt(labels, groups, seed, learned_alone=True)
        ]
    best = _chosen(trials) if trials else STRENGTHS.index(OF_A_HANDFUL)
    line = trials[0].best if enough else fitted(everything, classes, STRENGTHS[best])
    weight, bias = line[:, :-1] / spread, line[:, -1] - log_shares(labels, classes)
    return Linear(weight.astype(np.float32), (bias - weight @ mean).astype(np.float32), STRENGTHS[best])


def said_of(left: Table, features: Table, labels: np.ndarray, classes: int, strength: float) -> np.ndarray:
    """What a head that has learned from some photos says of others, classes as frequent there as among them: logits [others,
    classes].

    left      float [others, features]
    features  float [photos, features], and `labels` [photos], to learn from
    strength  the inverse of the pull towards zero, on features scaled as `scaling` does
    """
    mean, spread = scale(features)
    line = fitted(Pieces(features, labels, mean, spread), classes, strength)
    return logits(line, Pieces(left, np.zeros(len(left), np.int64), mean, spread))


class Pieces:
    """Features to scale, with their labels, a few hundred photos at a time, as often as they are asked for."""

    def __init__(self, features: Table, labels: np.ndarray, mean: np.ndarray, spread: np.ndarray):
        self.features, self.labels, self.width = features, labels, features.shape[1]
        self.mean, self.factor = mean.astype(np.float32), (1 / spread).astype(np.float32)
        self.chosen: np.ndarray | None = None  # int64, of the features; None for all
        self.scaled: np.ndarray | None = None  # float32, all of them, if memory holds them
        if len(labels) * self.width <= HELD:
            scaled = np.empty((len(labels), self.width), np.float32)
            for start in range(0, len(labels), PIECE):
                scaled[start : start + PIECE] = self._read(slice(start, start + PIECE))
            self.scaled = scaled

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(self), PIECE):
            some = slice(start, start + PIECE)
            rows = some if self.chosen is None else self.chosen[some]
            yield self._read(rows) if self.scaled is None else self.scaled[rows], self.labels[some]

    def _read(self, rows: slice | np.ndarray) -> np.ndarray:
        piece = self.features[rows].astype(np.float32, copy=False) - self.mean
        piece *= self.factor
        return piece

    def some(self, chosen: np.ndarray) -> "Pieces":
        """Some of them, int64 or bool, without another table in memory."""
        part = copy.copy(self)
        part.chosen, part.labels = chosen, self.labels[chosen]
        return part


class Trial:
    """Photos to learn from and photos to choose by: the head that was best so far as the pull gets weaker."""

    def __init__(self, learned: Pieces, left: Pieces, classes: int):
        self.learned, self.left, self.classes = learned, left, classes
        self.line = self.best = np.zeros((classes, learned.width + 1))

    def loss(self, strength: float) -> tuple[float, float]:
        """Mean cross-entropy and accuracy on what was left out; each fit begins where the last one ended."""
        self.line = fitted(self.learned, self.classes, strength, self.line)
        said = logits(self.line, self.left)
        right = (said.argmax(1) == self.left.labels).mean()
        return float(cross_entropy(said, self.left.labels).mean()), float(right)

    def keep(self) -> None:
        """The last fit is the best so far."""
        self.best = self.line


def _chosen(trials: list[Trial]) -> int:
    """The place of the strength with the least loss over all trials, which then hold its fits as their best."""
    best, least, accuracy, number = 0, np.inf, 0.0, 0
    with progress.stage("choose the head", len(STRENGTHS) * len(trials), "strengths") as bar:
        for number, strength in enumerate(STRENGTHS):
            found = []
            for trial in trials:
                found.append(trial.loss(strength))
                bar.advance(1)
            loss, right = (float(each) for each in np.mean(found, 0))
            if loss < least:
                best, least, accuracy = number, loss, right
                for trial in trials:
                    trial.keep()
            elif number - best >= WORSE:  # the others need not be tried
                break
        bar.advance((len(STRENGTHS) - 1 - number) * len(trials), loss=least, accuracy=accuracy)
    return best


Fold: TypeAlias = tuple[
    np.ndarray, np.ndarray
]  # the photos that a head learns from, and those that it is judged by: int64


def dealt(labels: np.ndarray, groups: np.ndarray, seed: int, learned_alone: bool = False) -> list[Fold]:
    """Every photo left out once, in turns a fifth of each class; in fewer turns only where no class can be parted in five.

    labels         class indices [photos]
    groups         a number for each photo: those of one number are never on both sides
    learned_alone  leave out none of a class that is not learned then: they say nothing of how strongly to pull
    returns        none if no class can be parted
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    most = max(len(np.unique(groups[labels == label])) for label in np.unique(labels))
    if most < 2:
        return []
    alone = len(np.unique(groups)) == len(groups)  # then the dealer that keeps no groups is as good, and much quicker
    dealer = (StratifiedKFold if alone else StratifiedGroupKFold)(min(FOLDS, most), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class in y has only")
        found = list(dealer.split(labels[:, None], labels, None if alone else groups))
    if learned_alone:
        found = [(learned, left[np.isin(labels[left], labels[learned])]) for learned, left in found]
    return [fold for fold in found if all(map(len, fold))]


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How surprised a head was by each photo's class: float [photos] from logits [photos, classes]."""
    logits = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]


def logits(line: np.ndarray, photos: Pieces) -> np.ndarray:
    """What a head says of photos: float [photos, classes]; `line` as `fitted` returns it."""
    weight, bias = line[:, :-1].astype(np.float32), line[:, -1]
    said = np.empty((len(photos), len(line)))
    done = 0
    for piece, _ in photos:
        said[done : done + len(piece)] = _product(piece, weight.T) + bias
        done += len(piece)
    return said


def fitted(photos: Pieces, classes: int, strength: float, begin: np.ndarray | None = None) -> np.ndarray:
    """The weights that fit these photos best, the bias behind them: float64 [classes, features + 1]; one optimum, by L-BFGS.

    begin   near which the search starts; it ends at the same place, sooner or later
    source  scikit-learn's LogisticRegression(C=strength): two classes are there one line, for which each of two is pulled twice
    """
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    line = np.zeros((classes, photos.width + 1))
    line[:, -1] = NEVER
    present = np.unique(photos.labels)
    if len(present) == 1:
        line[present, -1] = 0.0
        return line
    place = np.zeros(classes, np.int64)
    place[present] = np.arange(len(present))
    pull = (2.0 if len(present) == 2 else 1.0) / (strength * len(photos))
    first = np.zeros((len(present), photos.width + 1)) if begin is None else begin[present]
    # scipy and numpy each bring a BLAS whose threads, once awake, wait busily for more: each step then took four times as long.
    with threadpool_limits(1, "blas"):
        found = minimize(
            lambda flat: _loss(flat.reshape(first.shape), photos, place, pull),
            first.ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": STEPS, "maxls": 50, "gtol": GRADIENT, "ftol": 64 * np.finfo(float).eps},
        )
    line[present] = found.x.reshape(first.shape)
    return line


def _product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of two matrices, of which one is narrow: in torch half of numpy's time."""
    return (torch.from_numpy(one) @ torch.from_numpy(other)).numpy()


def _loss(line: np.ndarray, photos: Pieces, place: np.ndarray, pull: float) -> tuple[float, np.ndarray]:
    """Mean cross-entropy and the pull towards zero; and the gradient of both, in one line.

    Each piece is computed in float32, their sums in float64.
    """
    weight, bias = line[:, :-1].astype(np.float32), line[:, -1].astype(np.float32)
    loss, gradient = 0.0, np.zeros(line.shape)
    for piece, labels in photos:
        said, own = _product(piece, weight.T) + bias, (np.arange(len(piece)), place[labels])
        said -= said.max(1, keepdims=True)
        given = said[own]
        np.exp(said, out=said)
        whole = said.sum(1, keepdims=True)
        loss += float((np.log(whole[:, 0]) - given).sum(dtype=np.float64))
        said /= whole
        said[own] -= 1
        gradient[:, :-1] += _product(said.T, piece)
        gradient[:, -1] += said.sum(0, dtype=np.float64)
    gradient /= len(photos)
    gradient[:, :-1] += pull * line[:, :-1]
    return loss / len(photos) + pull / 2 * float(np.square(line[:, :-1]).sum()), gradient.ravel()
