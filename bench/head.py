"""The head of `quick` and scikit-learn's LogisticRegression on the same kept features, in turns.

    python bench/head.py --photos DIR [--rounds 5] [--recipe quick]

Both see the features of the training photos through the same scale, try the same strengths of the pull towards zero, each
beginning where the one before ended, and take the one with the least loss on the validation photos; ours stops once two in a
row are worse. Then one fit at the chosen strength from nothing. Seconds, and what is reached: the loss that both are after
(mean cross-entropy and pull; the lower the better), log loss and accuracy on the validation photos.
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


class Tables:
    """Features in memory and labels, of the photos to learn from and of those to choose by."""

    def __init__(self, photos: Path, recipe: Recipe):
        opened, keep = pixel_cache.open_pixel_cache(sources.read(photos), recipe.image_size, recipe.resize)
        dataset = split.split_photos(sources.assign_classes(opened, recipe.class_order), recipe)
        self.classes = len(dataset.classes)
        built = assemble(recipe, self.classes)
        setting = configure_device(built)
        seen = out_of_fold.extract_labelled_features(
            examples.build_split_examples(dataset, keep.pixels), built.members[0], keep.folder.name, setting
        )
        part = dataset.photos["split"].to_numpy()[seen.rows]
        (learned, self.labels), (left, self.left_labels) = (
            (seen.features[np.flatnonzero(part == name)], seen.labels[part == name]) for name in ("train", "validation")
        )
        self.features, self.left = learned, left
        mean, factor = compute_mean_and_scale(learned)
        self.scaled, self.left_scaled = (((each - mean) / factor).astype(np.float32) for each in (learned, left))
        self.nothing, self.one = np.zeros(learned.shape[1]), np.ones(learned.shape[1])

    def loss(self, line: np.ndarray, strength: float) -> float:
        """What both make as small as they can, of weights on features to scale with the bias behind them."""
        said = self.scaled @ line[:, :-1].T + line[:, -1]
        pull = np.square(line[:, :-1]).sum() / (2 * strength * len(said))
        return float(logistic_head.compute_cross_entropy(said, self.labels).mean() + pull)

    def judged(self, said: np.ndarray) -> tuple[float, float]:
        """Log loss and accuracy on the validation photos."""
        right = (said.argmax(1) == self.left_labels).mean()
        return float(logistic_head.compute_cross_entropy(said, self.left_labels).mean()), float(right)


def ours(tables: Tables) -> tuple[float, np.ndarray]:
    """The strength that we choose, and what the head says of the validation photos, classes as frequent as they are."""
    found = logistic_head.fit_head(tables.features, tables.labels, tables.left, tables.left_labels, tables.classes, 0)
    return found.inverse_l2, tables.left @ found.weight.T + found.bias + compute_log_priors(
        tables.labels, tables.classes
    )


def theirs(tables: Tables) -> tuple[float, np.ndarray]:
    """The same with scikit-learn."""
    mean, factor = compute_mean_and_scale(tables.features)
    learned, left = (((each - mean) / factor).astype(np.float32) for each in (tables.features, tables.left))
    peer = LogisticRegression(max_iter=logistic_head.MAX_LBFGS_STEPS, warm_start=True)
    found = []
    for strength in logistic_head.REGULARISATION_GRID:
        said = peer.set_params(C=strength).fit(learned, tables.labels).decision_function(left)
        found.append((tables.judged(said)[0], strength, said))
    _, strength, said = min(found, key=lambda each: each[:2])
    return strength, said


def our_line(tables: Tables, strength: float) -> np.ndarray:
    """The weights of one fit from nothing, the bias behind them."""
    pieces = logistic_head.ScaledChunks(tables.scaled, tables.labels, tables.nothing, tables.one)
    return logistic_head.fit_coefficients(pieces, tables.classes, strength)


def their_line(tables: Tables, strength: float) -> np.ndarray:
    """The same with scikit-learn."""
    peer = LogisticRegression(C=strength, max_iter=logistic_head.MAX_LBFGS_STEPS).fit(tables.scaled, tables.labels)
    return np.concatenate([peer.coef_, peer.intercept_[:, None]], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    progress.set_reporter(progress.SilentReporter())
    warnings.simplefilter("ignore", ConvergenceWarning)
    names = {each.name for each in options.photos.iterdir() if each.is_dir()}
    order = TUTORIAL_CLASS_ORDER if names == set(TUTORIAL_CLASS_ORDER) else ()
    recipe = networks.fill_defaults(replace(RECIPES[options.recipe], split="shuffle", class_order=order))
    tables = Tables(options.photos, recipe)
    print(format_header("scikit-learn", "numpy", "scipy"), flush=True)
    print(f"{len(tables.labels):,} photos to learn from, {len(tables.left_labels):,} to choose by", flush=True)
    seconds: dict[str, list[float]] = defaultdict(list)
    told: dict[str, str] = {}
    for _ in range(options.rounds):
        for name, way in (("ours", ours), ("scikit-learn", theirs)):
            start = time.perf_counter()
            strength, said = way(tables)
            seconds[name].append(time.perf_counter() - start)
            log_loss, right = tables.judged(said)
            told[name] = f"strength {strength:g}; validation: log loss {log_loss:.4f}, accuracy {right:.4f}"
        for name, line_of in (("ours, one fit", our_line), ("scikit-learn, one fit", their_line)):
            start = time.perf_counter()
            line = line_of(tables, strength)
            seconds[name].append(time.perf_counter() - start)
            told[name] = f"strength {strength:g}; loss {tables.loss(line, strength):.6f}"
    for name, took in seconds.items():
        print(f"  {name:<24} {format_spread(took, 2)} s; {told[name]}", flush=True)


if __name__ == "__main__":
    main()
