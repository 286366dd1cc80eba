"""Check candidate classes and the guarantee on wrong answers, on drawn numbers and on photos.

    python bench/candidates.py [--draws 2000]                                   (known truth)
    python bench/candidates.py --photos DIR [--splits 20] [--part selection]    (photos)

Without photos, confidences and labels are drawn, so the true coverage and the true share of wrong
answers are known. The temperature is fitted on the calibration photos too, as `fit` does.

With photos, each split has its own head on the features of `quick`. Rules are chosen on the
calibration half of the validation photos. The part that measures them is the model-selection half
(--part selection, to develop) or the test photos (--part test).
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from machine import format_header
from scipy.special import softmax

from ikebana.data import pixel_cache, sources, split
from ikebana.data.duplicates import near_duplicates
from ikebana.evaluation.calibration import Calibration, calibrate
from ikebana.evaluation.candidate_sets import are_candidates, compute_limit, score_classes, select_one_per_group
from ikebana.evaluation.metrics import score_answered
from ikebana.learning import examples
from ikebana.learning.estimate import configure_device
from ikebana.learning.examples import PhotoExamples, select_for_calibration
from ikebana.learning.features import out_of_fold
from ikebana.learning.models import networks
from ikebana.learning.models.assembly import assemble
from ikebana.learning.training import logistic_head
from ikebana.recipes import RECIPES
from ikebana.system import progress

COVERAGE = 0.9
MAX_ERRORS = (0.02, 0.05, 0.1)
# Of RAPS (Angelopoulos et al. 2020, arXiv:2009.14193): penalty per rank beyond the first ones.
RAPS_PENALTY, RAPS_FREE_RANKS = 0.1, 1

# Probabilities [photos, classes] → scores [photos, classes]; a class is a candidate if its score is low.
Score = Callable[[np.ndarray], np.ndarray]


def score_own_mass(probabilities: np.ndarray) -> np.ndarray:
    """APS without randomisation: the mass up to and including the class."""
    return score_classes(probabilities) + probabilities


def score_by_probability(probabilities: np.ndarray) -> np.ndarray:
    """LAC: 1 minus the probability."""
    return 1 - probabilities.astype(np.float64)


def score_with_penalty(probabilities: np.ndarray) -> np.ndarray:
    """RAPS without randomisation: APS and a penalty for low ranks."""
    ranks = np.argsort(np.argsort(-probabilities, axis=1, kind="stable"), axis=1)
    return score_own_mass(probabilities) + RAPS_PENALTY * np.maximum(0, ranks + 1 - RAPS_FREE_RANKS)


SCORES: dict[str, Score] = {
    "mass before (ours)": score_classes,
    "mass with own (APS)": score_own_mass,
    "1 - probability (LAC)": score_by_probability,
    "penalised mass (RAPS)": score_with_penalty,
}


@dataclass(frozen=True)
class SplitPredictions:
    """Raw probabilities and labels of one split's photos."""

    calibration: tuple[np.ndarray, np.ndarray, np.ndarray]
    # Probabilities, labels.
    measured: tuple[np.ndarray, np.ndarray]


def predict_splits(folder: Path, split_count: int, part: str) -> list[SplitPredictions]:
    """Fit a head per split on the cached features of `quick`, and predict."""
    recipe = networks.fill_defaults(RECIPES["quick"])
    decoded, cache = pixel_cache.open_pixel_cache(sources.read(folder), recipe.image_size, recipe.resize)
    photo_set = sources.assign_classes(near_duplicates.find_near_duplicates(decoded, cache), ())
    assembled = assemble(recipe, len(photo_set.classes))
    settings = configure_device(assembled)
    results = []
    for seed in range(split_count):
        splits = examples.build_split_examples(
            split.split_photos(photo_set, replace(recipe, split_seed=seed)), cache.pixels
        )
        extracted = out_of_fold.extract_labelled_features(splits, assembled.members[0], cache.folder.name, settings)
        results.append(_predict_split(splits, extracted, part))
    return results


def _predict_split(
    splits: dict[str, PhotoExamples], extracted: out_of_fold.LabelledFeatures, part: str
) -> SplitPredictions:
    def read(photos: PhotoExamples) -> np.ndarray:
        return extracted.features[np.searchsorted(extracted.rows, photos.rows)]

    train, validation = splits["train"], splits["validation"]
    selection = validation.select(np.flatnonzero(validation.for_selection))
    classes = int(extracted.labels.max()) + 1
    head = logistic_head.fit_head(
        read(train), train.labels, read(selection), selection.labels, classes, 0, train.groups
    )

    def predict(photos: PhotoExamples) -> np.ndarray:
        return softmax(read(photos) @ head.weight.T + head.bias, axis=1)

    measured = selection if part == "selection" else splits["test"]
    return SplitPredictions(select_for_calibration(splits, predict(validation)), (predict(measured), measured.labels))


def make_sets(
    score: Score, split_by_kind: bool, calibration: Calibration, known: tuple[np.ndarray, ...], new: np.ndarray
) -> np.ndarray:
    """Return which classes are candidates: bool [photos, classes]; never none."""
    probabilities, labels, groups = known
    chosen = select_one_per_group(groups, len(labels))
    scores = score(probabilities[chosen])[np.arange(len(chosen)), labels[chosen]]
    threshold = calibration.threshold or 0
    known_kind, new_kind = ((values.max(1) >= threshold) & split_by_kind for values in (probabilities[chosen], new))
    limits = np.zeros(len(new))
    for kind in np.unique(new_kind):
        limit = compute_limit(scores[known_kind == kind], COVERAGE)
        limits[new_kind == kind] = np.inf if limit is None else limit
    sets = score(new) <= limits[:, None]
    sets[np.arange(len(new)), new.argmax(1)] = True
    return sets


def compare_scores(results: list[SplitPredictions]) -> None:
    """Print coverage and size of the sets of each score."""
    print(f"\ncoverage {COVERAGE:.0%}, {len(results)} splits: mean (standard deviation)")
    for split_by_kind in (False, True):
        for name, score in SCORES.items():
            rows = []
            for result in results:
                calibration = calibrate(*result.calibration)
                probabilities, labels, groups = result.calibration
                known = (calibration.apply(probabilities), labels, groups)
                new, truth = calibration.apply(result.measured[0]), result.measured[1]
                sets = make_sets(score, split_by_kind, calibration, known, new)
                is_covered, sizes = sets[np.arange(len(truth)), truth], sets.sum(1)
                unsure = new.max(1) < (calibration.threshold or 0)
                rows.append(
                    (is_covered.mean(), is_covered[unsure].mean(), sizes.mean(), sizes[unsure].mean(), sizes.max())
                )
            means, deviations = np.mean(rows, 0), np.std(rows, 0, ddof=1)
            kind = "per kind" if split_by_kind else "shared  "
            print(
                f"{kind} {name:<22} covered {means[0]:.3f} ({deviations[0]:.3f}), of not sure {means[1]:.3f} "
                f"({deviations[1]:.3f}); classes {means[2]:.2f}, of not sure {means[3]:.2f}, most {means[4]:.1f}",
                flush=True,
            )


def check_guarantee(results: list[SplitPredictions]) -> None:
    """Print how many splits keep each guarantee, and how many photos get an answer."""
    for max_error in (None, *MAX_ERRORS):
        rows = []
        for result in results:
            calibration = calibrate(*result.calibration, at_most_wrong=max_error)
            if max_error is not None and (calibration.guarantee is None or not calibration.guarantee.holds):
                continue
            new, truth = calibration.apply(result.measured[0]), result.measured[1]
            answered, right = score_answered(new, truth, calibration.threshold or 0)
            rows.append((answered, 1 - (right or 0), calibration.threshold))
        title = "default threshold" if max_error is None else f"at most {max_error:.0%} wrong"
        if not rows:
            print(f"{title}: guaranteed on none of {len(results)} splits")
            continue
        answered, wrong, thresholds = np.array(rows).T
        broken = "" if max_error is None else f"; above the limit on {int((wrong > max_error).sum())}"
        print(
            f"{title}: on {len(rows)} of {len(results)} splits; answered {answered.mean():.3f} ({answered.min():.3f} "
            f"to {answered.max():.3f}), wrong {wrong.mean():.4f} ({wrong.min():.4f} to {wrong.max():.4f}){broken}; "
            f"threshold {thresholds.mean():.2f}",
            flush=True,
        )


def draw_photos(rng: np.random.Generator, photos: int, loudness: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits [photos, 5] and labels from their softmax; louder logits are wrong less often."""
    logits = loudness * rng.normal(size=(photos, 5))
    return logits, (softmax(logits, axis=1).cumsum(1) > rng.random((photos, 1))).argmax(1)


def simulate(draws: int) -> None:
    """Print coverage and broken guarantees where the truth is known."""
    for loudness, photos in ((2.5, 100), (2.5, 400), (6.0, 400)):
        covered: dict[str, list[float]] = defaultdict(list)
        broken, given = dict.fromkeys(MAX_ERRORS, 0), dict.fromkeys(MAX_ERRORS, 0)
        new_logits, truth = draw_photos(np.random.default_rng(10**6), 20_000, loudness)
        for seed in range(draws):
            logits, labels = draw_photos(np.random.default_rng(seed), photos, loudness)
            # Too confident by a factor of 2, which the temperature has to find.
            calibration = calibrate(softmax(2 * logits, axis=1), labels)
            new = calibration.apply(softmax(2 * new_logits, axis=1))
            rule, threshold = calibration.candidates, calibration.threshold
            assert rule is not None
            is_sure = new.max(1) >= (threshold or 0)
            is_covered = are_candidates(new, rule, is_sure)[np.arange(len(truth)), truth]
            covered["all"].append(is_covered.mean())
            covered["answered"].append(is_covered[is_sure].mean())
            covered["not sure"].append(is_covered[~is_sure].mean())
            for max_error in MAX_ERRORS:
                strict = calibrate(softmax(2 * logits, axis=1), labels, at_most_wrong=max_error)
                if strict.guarantee is not None and strict.guarantee.holds:
                    given[max_error] += 1
                    answers = calibration.apply(softmax(2 * new_logits, axis=1))
                    _, right = score_answered(answers, truth, strict.threshold or 0)
                    broken[max_error] += right is not None and 1 - right > max_error
        accuracy = (new_logits.argmax(1) == truth).mean()
        print(f"\n{photos} calibration photos, accuracy {accuracy:.3f}, {draws} draws")
        for name, values in covered.items():
            print(f"  coverage {COVERAGE:.0%}, {name}: mean {np.mean(values):.4f}, deviation {np.std(values):.4f}")
        for max_error in MAX_ERRORS:
            print(
                f"  at most {max_error:.0%} wrong: guaranteed in {given[max_error] / draws:.1%} of draws, "
                f"broken in {broken[max_error] / draws:.1%}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--part", choices=("selection", "test"), default="selection")
    parser.add_argument("--draws", type=int, default=2000)
    options = parser.parse_args()
    progress.set_reporter(progress.SilentReporter())
    print(format_header("torch", "numpy", "scipy"), flush=True)
    if options.photos is None:
        simulate(options.draws)
        return
    results = predict_splits(options.photos, options.splits, options.part)
    compare_scores(results)
    check_guarantee(results)


if __name__ == "__main__":
    main()
