"""Compare the head of `quick` with scikit-learn's LogisticRegression on the same features.

    python bench/head.py --photos DIR [--rounds 5] [--recipe quick]

Both use the same standardised training features and the same grid of L2 strengths, each fit
starting from the previous solution. Both select the strength with the lowest validation loss.
ikebana stops once two strengths in a row are worse. Then each fits once from zero at the selected
strength. The output has the seconds, the objective of both (mean cross-entropy plus penalty, lower
is better), and log loss and accuracy on the validation photos.
"""

import argparse
import time
import warnings
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from machine import format_header, format_spread
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from ikebana.data import pixel_cache, sources, split
from ikebana.learning import examples
from ikebana.learning.estimate import configure_device
from ikebana.learning.features import out_of_fold
from ikebana.learning.features.scaling import compute_mean_and_scale
from ikebana.learning.models import networks
from ikebana.learning.models.assembly import assemble
from ikebana.learning.training import logistic_head
from ikebana.learning.training.class_priors import compute_log_priors
from ikebana.recipe import Recipe
from ikebana.recipes import RECIPES, TUTORIAL_CLASS_ORDER
from ikebana.system import progress


class Features:
    """Features in memory and labels of the training and validation photos."""

    def __init__(self, photos: Path, recipe: Recipe):
        photo_set, cache = pixel_cache.open_pixel_cache(sources.read(photos), recipe.image_size, recipe.resize)
        dataset = split.split_photos(sources.assign_classes(photo_set, recipe.class_order), recipe)
        self.classes = len(dataset.classes)
        assembled = assemble(recipe, self.classes)
        settings = configure_device(assembled)
        extracted = out_of_fold.extract_labelled_features(
            examples.build_split_examples(dataset, cache.pixels), assembled.members[0], cache.folder.name, settings
        )
        splits = dataset.photos["split"].to_numpy()[extracted.rows]
        (train, self.train_labels), (validation, self.validation_labels) = (
            (extracted.features[np.flatnonzero(splits == name)], extracted.labels[splits == name])
            for name in ("train", "validation")
        )
        self.train, self.validation = train, validation
        mean, scale = compute_mean_and_scale(train)
        self.train_scaled, self.validation_scaled = (
            ((values - mean) / scale).astype(np.float32) for values in (train, validation)
        )
        self.zero_mean, self.unit_scale = np.zeros(train.shape[1]), np.ones(train.shape[1])

    def compute_loss(self, coefficients: np.ndarray, strength: float) -> float:
        """Compute the objective that both minimise.

        Args:
            coefficients: weights for standardised features and the bias, classes x (features + 1)
            strength: the inverse L2 strength, C of scikit-learn
        """
        logits = self.train_scaled @ coefficients[:, :-1].T + coefficients[:, -1]
        penalty = np.square(coefficients[:, :-1]).sum() / (2 * strength * len(logits))
        return float(logistic_head.compute_cross_entropy(logits, self.train_labels).mean() + penalty)

    def evaluate(self, logits: np.ndarray) -> tuple[float, float]:
        """Compute log loss and accuracy on the validation photos."""
        accuracy = (logits.argmax(1) == self.validation_labels).mean()
        return float(logistic_head.compute_cross_entropy(logits, self.validation_labels).mean()), float(accuracy)


def fit_ikebana(features: Features) -> tuple[float, np.ndarray]:
    """Fit the head of ikebana.

    Returns: the selected strength, and the validation logits with the class priors added
    """
    head = logistic_head.fit_head(
        features.train, features.train_labels, features.validation, features.validation_labels, features.classes, 0
    )
    return head.inverse_l2, features.validation @ head.weight.T + head.bias + compute_log_priors(
        features.train_labels, features.classes
    )


def fit_scikit_learn(features: Features) -> tuple[float, np.ndarray]:
    """Select the strength and fit with scikit-learn."""
    mean, scale = compute_mean_and_scale(features.train)
    train, validation = (
        ((values - mean) / scale).astype(np.float32) for values in (features.train, features.validation)
    )
    peer = LogisticRegression(max_iter=logistic_head.MAX_LBFGS_STEPS, warm_start=True)
    results = []
    for strength in logistic_head.REGULARISATION_GRID:
        logits = peer.set_params(C=strength).fit(train, features.train_labels).decision_function(validation)
        results.append((features.evaluate(logits)[0], strength, logits))
    _, strength, logits = min(results, key=lambda values: values[:2])
    return strength, logits


def fit_ikebana_once(features: Features, strength: float) -> np.ndarray:
    """Fit once from zero, and return the weights followed by the bias."""
    chunks = logistic_head.ScaledChunks(
        features.train_scaled, features.train_labels, features.zero_mean, features.unit_scale
    )
    return logistic_head.fit_coefficients(chunks, features.classes, strength)


def fit_scikit_learn_once(features: Features, strength: float) -> np.ndarray:
    """Fit once with scikit-learn, and return the weights followed by the bias."""
    peer = LogisticRegression(C=strength, max_iter=logistic_head.MAX_LBFGS_STEPS).fit(
        features.train_scaled, features.train_labels
    )
    return np.concatenate([peer.coef_, peer.intercept_[:, None]], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    progress.set_reporter(progress.SilentReporter())
    warnings.simplefilter("ignore", ConvergenceWarning)
    names = {entry.name for entry in options.photos.iterdir() if entry.is_dir()}
    order = TUTORIAL_CLASS_ORDER if names == set(TUTORIAL_CLASS_ORDER) else ()
    recipe = networks.fill_defaults(replace(RECIPES[options.recipe], split="shuffle", class_order=order))
    features = Features(options.photos, recipe)
    print(format_header("scikit-learn", "numpy", "scipy"), flush=True)
    print(
        f"{len(features.train_labels):,} training photos, {len(features.validation_labels):,} validation photos",
        flush=True,
    )
    seconds: dict[str, list[float]] = defaultdict(list)
    results: dict[str, str] = {}
    for _ in range(options.rounds):
        for name, fit in (("ours", fit_ikebana), ("scikit-learn", fit_scikit_learn)):
            start = time.perf_counter()
            strength, logits = fit(features)
            seconds[name].append(time.perf_counter() - start)
            log_loss, accuracy = features.evaluate(logits)
            results[name] = f"strength {strength:g}; validation: log loss {log_loss:.4f}, accuracy {accuracy:.4f}"
        for name, fit_once in (("ours, one fit", fit_ikebana_once), ("scikit-learn, one fit", fit_scikit_learn_once)):
            start = time.perf_counter()
            coefficients = fit_once(features, strength)
            seconds[name].append(time.perf_counter() - start)
            results[name] = f"strength {strength:g}; loss {features.compute_loss(coefficients, strength):.6f}"
    for name, durations in seconds.items():
        print(f"  {name:<24} {format_spread(durations, 2)} s; {results[name]}", flush=True)


if __name__ == "__main__":
    main()
