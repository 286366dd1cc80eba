"""Features + labels → a linear head: logistic regression, its regularisation chosen on photos it has not seen."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ikebana import progress

# Inverse strengths of the pull towards zero, on features of unit variance; the best lay between 1e-3 and 1e-2 for a
# thousand features and some thousand photos (docs/log.md).
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
STEPS = 200  # of L-BFGS at the most
FEW = 30  # validation photos a class: with fewer the choice is made by cross-validation on the training photos
FOLDS = 5


@dataclass(frozen=True)
class Tried:
    """A strength of regularisation, and how it fared."""

    strength: float
    loss: float  # mean cross-entropy on photos that it was not fitted to
    accuracy: float
    fitted: tuple[np.ndarray, np.ndarray]  # weight and bias, of the last of the folds if there are several


@dataclass(frozen=True)
class Linear:
    """A linear head."""

    weight: np.ndarray  # float32 [classes, features]
    bias: np.ndarray  # float32 [classes]
    strength: float  # of the regularisation that was chosen

    def fill(self, head: nn.Module) -> None:
        """Put it into the head's last layer."""
        *_, last = (each for each in head.modules() if isinstance(each, nn.Linear))
        with torch.no_grad():
            last.weight.copy_(torch.from_numpy(self.weight))
            last.bias.copy_(torch.from_numpy(self.bias))


def fit(
    features: np.ndarray, labels: np.ndarray, held_out: np.ndarray, held_out_labels: np.ndarray, classes: int, seed: int
) -> Linear:
    """The head that fits the training photos, as strongly held back as the photos for choices say.

    features         float [photos, features] of the training photos
    labels           class indices [photos]
    held_out         the same of photos that are set apart for choices; with few of them, folds of the training photos
                     choose instead
    classes          how many classes there are; one that has no training photo is never predicted
    """
    mean, spread = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64) + 1e-6
    scaled = ((features - mean) / spread).astype(np.float32)
    if min(np.bincount(held_out_labels, minlength=classes)) >= FEW:
        scaled_out = ((held_out - mean) / spread).astype(np.float32)
        trials = [(scaled, labels, scaled_out, held_out_labels)]
    else:
        trials = _folds(scaled, labels, seed)
    tried: list[Tried] = []
    with progress.stage("choose the head", len(STRENGTHS), "strengths") as bar:
        for strength in STRENGTHS:
            tried.append(_tried(strength, trials, classes))
            bar.advance(1, loss=tried[-1].loss, accuracy=tried[-1].accuracy)
    best = min(tried, key=lambda each: each.loss)
    weight, bias = best.fitted if len(trials) == 1 else _fitted(scaled, labels, best.strength, classes)
    weight = weight / spread
    return Linear(weight.astype(np.float32), (bias - weight @ mean).astype(np.float32), best.strength)


def _folds(scaled: np.ndarray, labels: np.ndarray, seed: int) -> list[tuple[np.ndarray, ...]]:
    """The training photos, in turns without a fifth of them, on which the choice is then made."""
    from sklearn.model_selection import StratifiedKFold

    fewest = min(count for count in np.bincount(labels) if count)
    folds = StratifiedKFold(max(2, min(FOLDS, fewest)), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class in y has only")
        parts = list(folds.split(scaled, labels))
    return [(scaled[fitted], labels[fitted], scaled[left], labels[left]) for fitted, left in parts]


def _tried(strength: float, trials: list[tuple[np.ndarray, ...]], classes: int) -> Tried:
    losses, right, count = 0.0, 0, 0
    weight = bias = np.zeros(0)
    for fitted, fitted_labels, left, left_labels in trials:
        weight, bias = _fitted(fitted, fitted_labels, strength, classes)
        logits = left @ weight.T + bias
        logits -= logits.max(1, keepdims=True)
        of_truth = logits[np.arange(len(left)), left_labels]
        losses += float((np.log(np.exp(logits).sum(1)) - of_truth).sum())
        right += int((logits.argmax(1) == left_labels).sum())
        count += len(left)
    return Tried(strength, losses / count, right / count, (weight, bias))


def _fitted(scaled: np.ndarray, labels: np.ndarray, strength: float, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight [classes, features] and bias [classes] of scikit-learn's logistic regression, in float64."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    weight, bias = np.zeros((classes, scaled.shape[1])), np.full(classes, -1e4)  # an absent class is never predicted
    present = np.unique(labels)
    if len(present) == 1:
        bias[present] = 0.0
        return weight, bias
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest strengths need not converge to be compared
        found = LogisticRegression(C=strength, max_iter=STEPS).fit(scaled, labels)
    if len(present) == 2:  # scikit-learn keeps one line for two classes
        weight[present], bias[present] = np.stack((-found.coef_[0], found.coef_[0])) / 2, 0.0
        bias[present] = np.array([-found.intercept_[0], found.intercept_[0]]) / 2
    else:
        weight[present], bias[present] = found.coef_, found.intercept_
    return weight, bias
