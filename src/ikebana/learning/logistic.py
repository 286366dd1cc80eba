"""Features + labels → a linear head: logistic regression, its regularisation chosen on photos it has not seen."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ikebana import progress
from ikebana.learning.imbalance import log_shares
from ikebana.learning.layers import last_linear
from ikebana.learning.scaling import scale

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

# Inverse strengths of the pull towards zero, on features so scaled that the liveliest tenth has unit variance or more; the best
# lay between 1e-2 and 3e-2 for thousands of photos, and about 1 for a dozen a class (docs/log.md).
STRENGTHS = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
STEPS = 200  # of L-BFGS at the most
FEW = 30  # validation photos a class: with fewer the choice is made by cross-validation on the training photos
FOLDS = 5


Trial = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # features and labels to fit, and to look at then


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
    features: np.ndarray, labels: np.ndarray, held_out: np.ndarray, held_out_labels: np.ndarray, classes: int, seed: int
) -> Linear:
    """The head that fits the training photos, as strongly held back as the photos for choices say; it names a class as readily
    if there are few photos of it as if there are many.

    features         float [photos, features] of the training photos
    labels           class indices [photos]
    held_out         the same of photos that are set apart for choices; with few of them, folds of the training photos
                     choose instead
    classes          how many classes there are; one that has no training photo is never predicted
    """
    mean, spread = scale(features)
    scaled = ((features - mean) / spread).astype(np.float32)
    if min(np.bincount(held_out_labels, minlength=classes)) >= FEW:
        scaled_out = ((held_out - mean) / spread).astype(np.float32)
        trials = [(scaled, labels, scaled_out, held_out_labels)]
    else:
        trials = _folds(scaled, labels, seed)
    with progress.stage("choose the head", len(STRENGTHS) * len(trials), "strengths") as bar:
        paths = [list(_path(*trial, classes, bar)) for trial in trials]
    losses = np.mean([[loss for _, _, loss in path] for path in paths], axis=0)
    best = int(losses.argmin())
    if len(trials) == 1:
        weight, bias, _ = paths[0][best]
    else:
        weight, bias = _fitted(_model(), STRENGTHS[best], scaled, labels, classes)
    weight, bias = weight / spread, bias - log_shares(labels, classes)
    return Linear(weight.astype(np.float32), (bias - weight @ mean).astype(np.float32), STRENGTHS[best])


def said_of(left: np.ndarray, features: np.ndarray, labels: np.ndarray, classes: int, strength: float) -> np.ndarray:
    """What a head that has learned from some photos says of others, classes as frequent there as among them: logits [others,
    classes].

    left      float [others, features]
    features  float [photos, features], and `labels` [photos], to learn from
    strength  the inverse of the pull towards zero, on features scaled as `scaling` does
    """
    mean, spread = scale(features)
    weight, bias = _fitted(_model(), strength, ((features - mean) / spread).astype(np.float32), labels, classes)
    return ((left - mean) / spread) @ weight.T + bias


def _folds(scaled: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
    """The training photos, in turns without a fifth of them, on which the choice is then made."""
    from sklearn.model_selection import StratifiedKFold

    fewest = min(count for count in np.bincount(labels) if count)
    folds = StratifiedKFold(max(2, min(FOLDS, fewest)), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class in y has only")
        parts = list(folds.split(scaled, labels))
    return [(scaled[fitted], labels[fitted], scaled[left], labels[left]) for fitted, left in parts]


def _path(
    fitted: np.ndarray, labels: np.ndarray, left: np.ndarray, left_labels: np.ndarray, classes: int, bar: progress.Bar
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Weight, bias and mean cross-entropy on what was left out, for each strength; each fit begins where the last one ended."""
    model = _model()
    for strength in STRENGTHS:
        weight, bias = _fitted(model, strength, fitted, labels, classes)
        logits = left @ weight.T + bias
        losses = cross_entropy(logits, left_labels)
        bar.advance(1, loss=float(losses.mean()), accuracy=float((logits.argmax(1) == left_labels).mean()))
        yield weight, bias, float(losses.mean())


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How surprised a head was by each photo's class: float [photos] from logits [photos, classes]."""
    logits = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]


def _model() -> "LogisticRegression":
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=STEPS, warm_start=True)


def _fitted(
    model: "LogisticRegression", strength: float, scaled: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weight [classes, features] and bias [classes] of scikit-learn's logistic regression."""
    from sklearn.exceptions import ConvergenceWarning

    weight, bias = np.zeros((classes, scaled.shape[1])), np.full(classes, -1e4)  # an absent class is never predicted
    present = np.unique(labels)
    if len(present) == 1:
        bias[present] = 0.0
        return weight, bias
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest strengths need not converge to be compared
        found = model.set_params(C=strength).fit(scaled, labels)
    if len(present) == 2:  # scikit-learn keeps one line for two classes
        weight[present] = np.stack((-found.coef_[0], found.coef_[0])) / 2
        bias[present] = np.array([-found.intercept_[0], found.intercept_[0]]) / 2
    else:
        weight[present], bias[present] = found.coef_, found.intercept_
    return weight, bias
