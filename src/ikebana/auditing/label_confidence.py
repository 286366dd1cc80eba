"""The probability that a label is wrong, calibrated with planted errors.

The margin of a label is by how much another class beats it, in log odds. No photo's own label is
used to predict its class. So the margin that a photo would have with any wrong label is known at no
cost: errors are planted in every photo and class, and nothing is fitted again.

Margins of planted errors say how many of the photos with a given margin would be wrong if a share
of all labels was. The other photos with that margin are ambiguous: their label is right, and the
models are wrong. Their number falls as the margin grows, for planted errors it does not. The share
of errors and the decrease are estimated together, with few errors as the prior. Where there are
more ambiguous photos than errors, as between two classes that look alike, the probability is low.
"""

from dataclasses import dataclass, replace

import numpy as np

from ikebana.evaluation.calibration import MIN_PROBABILITY

# With fewer groups of photos, the probability is not known.
MIN_PHOTOS = 100
# With fewer, no label stands out.
MIN_PHOTOS_TO_STAND_OUT = 20
# Shares of all labels that may be wrong, and their prior on this logarithmic grid: Beta(1/2, 20). That
# is 2.4 % on average, and below 1.2 % with even odds.
ERROR_RATES = np.geomspace(3e-4, 0.3, 24)
ERROR_PRIOR = 0.5 * np.log(ERROR_RATES) + 19 * np.log1p(-ERROR_RATES)
# Decrease of ambiguous photos relative to planted errors, per unit of margin: 1 if the log odds of
# the models were calibrated in the tail. The standard deviation is of its logarithm.
SLOPES, SLOPE_STD = np.geomspace(0.15, 2.5, 12), 0.6
# Exponents of the decrease: 1 is exponential, more is faster for large margins. Both were
# seen in collections without errors.
TAIL_EXPONENTS = np.array([0.8, 1.0, 1.25, 1.5, 1.75])
TAIL_PRIOR = np.log([0.2, 0.35, 0.25, 0.15, 0.05])
# Logarithm of the number of ambiguous photos at margin 0, relative to calibrated models.
OFFSETS, OFFSET_STD = np.linspace(-1.6, 1.6, 9), 0.7
# Ambiguous photos of a pair of classes that are assumed in addition to those observed and expected.
PAIR_PRIOR_PHOTOS = 3.0
PAIR_ROUNDS = 2
# Margins that are used: the largest, and some of the others.
MAX_MARGINS = 4000
MAX_PLANTED_PER_PHOTO = 20
# Share of wrong labels that is assumed to decide which labels stand out.
REFERENCE_ERROR_RATE = 0.05
MIN_POSTERIOR = 1e-6
SEED = 0


@dataclass(frozen=True)
class ErrorEstimates:
    """How probably each label is wrong.

    Attributes:
        probabilities: float [photos]; 0 if there are too few photos to know.
        stands_out: bool [photos], whether the label would be more probably wrong than right if 5 %
            of all labels were wrong. If fewer are, most of these photos are ambiguous.
    """

    probabilities: np.ndarray
    stands_out: np.ndarray


@dataclass(frozen=True)
class _Margins:
    """Positive margins of labels.

    Attributes:
        values: float [margins].
        pairs: int [margins], number of the pair of classes: the label, and the class that beats it.
        weights: float [margins], number of photos that each stands for.
        pair_offsets: float [margins], logarithm of how many more photos of this pair are ambiguous.
    """

    values: np.ndarray
    pairs: np.ndarray
    weights: np.ndarray
    pair_offsets: np.ndarray

    def reduce(self) -> "_Margins":
        """Keep the largest margins and evenly spaced ones of the others."""
        if len(self.values) <= MAX_MARGINS:
            return self
        order = np.argsort(-self.values, kind="stable")
        largest, others = np.split(order, [MAX_MARGINS // 2])
        sample = others[np.linspace(0, len(others) - 1, MAX_MARGINS - len(largest)).astype(int)]
        weights = self.weights.copy()
        weights[sample] *= self.weights[others].sum() / self.weights[sample].sum()
        rows = np.concatenate([largest, sample])
        return _Margins(self.values[rows], self.pairs[rows], weights[rows], self.pair_offsets[rows])

    def with_pair_offsets(self, offsets: np.ndarray) -> "_Margins":
        return replace(self, pair_offsets=offsets[self.pairs])


def estimate_errors(
    probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray, is_known: np.ndarray
) -> ErrorEstimates:
    """Estimate for each label the probability that it is wrong.

    Args:
        probabilities: float [photos, classes], of models that were not trained on the photo's label.
        labels: class indices [photos].
        groups: a number per photo; photos of one group count as one.
        is_known: bool [photos], whether the models know the photo's class; if not, the label is
            taken as right.
    """
    rows, present = np.flatnonzero(is_known), np.unique(labels[is_known])
    result = ErrorEstimates(np.zeros(len(is_known)), np.zeros(len(is_known), bool))
    group_count = len(np.unique(groups[rows]))
    if group_count < MIN_PHOTOS_TO_STAND_OUT or len(present) < 2:
        return result
    logs = np.log(np.maximum(probabilities[np.ix_(rows, present)], MIN_PROBABILITY))
    labels = np.searchsorted(present, labels[rows])
    _, group_index, group_sizes = np.unique(groups[rows], return_inverse=True, return_counts=True)
    weights = 1 / group_sizes[group_index]
    given, beaten = _measure_given(logs, labels, weights)
    if group_count < MIN_PHOTOS:
        shares = _share_errors(_compute_decrease(given, 1.0, 1.0) * (len(present) - 1), REFERENCE_ERROR_RATE)
        result.stands_out[rows[beaten]] = shares > 0.5
        return result
    given, posterior = _fit_with_pairs(given, _plant_errors(logs, labels, weights), len(present))
    result.probabilities[rows[beaten]] = _predict(given, posterior, ERROR_RATES, len(present))
    any_rate, reference_rate = posterior.sum(-1, keepdims=True), np.array([REFERENCE_ERROR_RATE])
    result.stands_out[rows[beaten]] = _predict(given, any_rate, reference_rate, len(present)) > 0.5
    return result


def _fit_with_pairs(given: _Margins, planted: _Margins, classes: int) -> tuple[_Margins, np.ndarray]:
    """Fit the margins, and how many photos of each pair of classes are ambiguous.

    Returns:
        The given margins with their pair offsets, and the posterior.
    """
    given, planted = _renumber_pairs(given, planted)
    fitted, planted = given.reduce(), planted.reduce()
    pair_count = 1 + max(given.pairs.max(initial=0), planted.pairs.max(initial=0))
    pair_offsets = np.zeros(pair_count)
    posterior = _fit(fitted, planted, classes)
    for _ in range(PAIR_ROUNDS):
        pair_offsets = _estimate_pair_offsets(fitted, planted, posterior, classes, pair_count)
        fitted, planted = fitted.with_pair_offsets(pair_offsets), planted.with_pair_offsets(pair_offsets)
        posterior = _fit(fitted, planted, classes)
    return given.with_pair_offsets(pair_offsets), posterior


def _measure_given(logs: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[_Margins, np.ndarray]:
    """Return the positive margins of the given labels, and the rows of their photos."""
    best = logs.argmax(1)
    rows = np.flatnonzero(best != labels)
    margins = logs[rows, best[rows]] - logs[rows, labels[rows]]
    pairs = _number_pairs(labels[rows], best[rows], logs.shape[1])
    return _Margins(margins, pairs, weights[rows], np.zeros(len(rows))), rows


def _plant_errors(logs: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> _Margins:
    """Return the positive margins that photos would have with wrong labels.

    The weights of all wrong labels of a photo, those with a negative margin too, add up to its own.
    """
    count, classes = logs.shape
    photos = np.repeat(np.arange(count), min(classes - 1, MAX_PLANTED_PER_PHOTO))
    if classes - 1 <= MAX_PLANTED_PER_PHOTO:
        shifts = np.tile(np.arange(1, classes), count)
    else:
        shifts = np.random.default_rng(SEED).integers(1, classes, len(photos))
    wrong = (labels[photos] + shifts) % classes
    best = logs.argmax(1)[photos]
    rows = np.flatnonzero(wrong != best)
    photos, wrong, best = photos[rows], wrong[rows], best[rows]
    margins = logs[photos, best] - logs[photos, wrong]
    planted_weights = weights[photos] / min(classes - 1, MAX_PLANTED_PER_PHOTO)
    return _Margins(margins, _number_pairs(wrong, best, classes), planted_weights, np.zeros(len(rows)))


def _number_pairs(first: np.ndarray, second: np.ndarray, classes: int) -> np.ndarray:
    return np.minimum(first, second) * classes + np.maximum(first, second)


def _renumber_pairs(first: _Margins, second: _Margins) -> tuple[_Margins, _Margins]:
    """Number the pairs that occur from 0."""
    _, numbers = np.unique(np.concatenate([first.pairs, second.pairs]), return_inverse=True)
    count = len(first.pairs)
    return replace(first, pairs=numbers[:count]), replace(second, pairs=numbers[count:])


def _compute_decrease(margins: _Margins, slope: float, exponent: float) -> np.ndarray:
    """Compute how many photos are ambiguous relative to margin 0: float [margins]."""
    return np.exp(margins.pair_offsets - (slope * margins.values) ** exponent)


def _compute_levels(classes: int) -> np.ndarray:
    """Compute how many ambiguous photos there are per planted error at margin 0: float [offsets].

    Where two classes are equally probable, calibrated models give either label to as many photos.
    A planted error has one of all other labels.
    """
    return (classes - 1) * np.exp(OFFSETS)


def _fit(given: _Margins, planted: _Margins, classes: int) -> np.ndarray:
    """Compute the posterior over the grid: float [slopes, exponent, offsets, error rates].

    Photos with a positive margin are a Poisson process. Its rate is that of planted errors, times
    the share of errors plus the number of ambiguous photos per planted error.
    """
    levels = _compute_levels(classes)[:, None]
    total = planted.weights.sum()
    log_posterior = np.empty((len(SLOPES), len(TAIL_EXPONENTS), len(OFFSETS), len(ERROR_RATES)))
    for index in np.ndindex(log_posterior.shape[:2]):
        parameters = float(SLOPES[index[0]]), float(TAIL_EXPONENTS[index[1]])
        ambiguous = _compute_decrease(given, *parameters)
        expected = ERROR_RATES * total + levels * (planted.weights @ _compute_decrease(planted, *parameters))
        log_likelihood = -expected
        for number, level in enumerate(levels[:, 0]):
            log_likelihood[number] += given.weights @ np.log(ERROR_RATES + level * ambiguous[:, None])
        log_prior = (
            TAIL_PRIOR[index[1]]
            - 0.5 * (np.log(parameters[0]) / SLOPE_STD) ** 2
            - 0.5 * (OFFSETS[:, None] / OFFSET_STD) ** 2
            + ERROR_PRIOR
        )
        log_posterior[index] = log_likelihood + log_prior
    posterior = np.exp(log_posterior - log_posterior.max())
    return posterior / posterior.sum()


def _predict(margins: _Margins, posterior: np.ndarray, error_rates: np.ndarray, classes: int) -> np.ndarray:
    """Average the probability of an error over the posterior: float [margins].

    Args:
        error_rates: of the last axis of the posterior.
    """
    result, levels = np.zeros(len(margins.values)), _compute_levels(classes)
    for slope, exponent, offset in np.argwhere(posterior.sum(-1) > MIN_POSTERIOR):
        ambiguous = levels[offset] * _compute_decrease(margins, float(SLOPES[slope]), float(TAIL_EXPONENTS[exponent]))
        shares = _share_errors(ambiguous[:, None], error_rates)
        result += shares @ posterior[slope, exponent, offset]
    return result


def _share_errors(ambiguous: np.ndarray, error_rates: np.ndarray | float) -> np.ndarray:
    """Compute the share of errors, from the number of ambiguous photos per planted error."""
    return error_rates / (error_rates + ambiguous)


def _estimate_pair_offsets(
    given: _Margins, planted: _Margins, posterior: np.ndarray, classes: int, pair_count: int
) -> np.ndarray:
    """Estimate how many more photos of each pair of classes are ambiguous: float [pairs].

    Only the lower half of the margins counts. Larger ones may be errors that were made several times,
    such as photos of one class that were copied into another folder.
    """
    limit = np.median(planted.values)
    ambiguous = (given.values < limit) * given.weights * (1 - _predict(given, posterior, ERROR_RATES, classes))
    observed = np.bincount(given.pairs, ambiguous, pair_count)
    slope, exponent, offset, _ = np.unravel_index(posterior.argmax(), posterior.shape)
    all_pairs = replace(planted, pair_offsets=np.zeros(len(planted.values)))
    unadjusted = (planted.values < limit) * _compute_decrease(
        all_pairs, float(SLOPES[slope]), float(TAIL_EXPONENTS[exponent])
    )
    level = _compute_levels(classes)[offset]
    expected = np.bincount(planted.pairs, level * planted.weights * unadjusted, pair_count)
    return np.log((observed + PAIR_PRIOR_PHOTOS) / (expected + PAIR_PRIOR_PHOTOS))
