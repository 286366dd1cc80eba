"""What a frozen network sees in the photos + their labels → doubtful labels, and photos unlike all others.

Two witnesses that have not learned a photo's own label judge it: logistic regressions that were taught by other photos,
and the photos that look most alike. They err in different ways: a line between classes knows which features matter, the
neighbours know that classes come in several kinds. What both of them say counts as their product.
"""

from dataclasses import dataclass

import numpy as np

from ikebana.learning.scaling import Table, scale
from ikebana.trust.calibration import SMALLEST, temperature

NEIGHBOURS = 40  # photos that are asked
SHARPNESS = 0.06  # of cosine similarity: a neighbour by so much less alike counts 1/e as much
UNHEARD = 0.02  # for each class: what no neighbour says is still possible
REFERENCES = 20_000  # photos among which neighbours are sought: more photos take longer, not squared longer
CHUNK = 512  # photos compared at a time: fewer, and the product of matrices slows down
SORTED = 32  # of these, whose likenesses are sorted at a time
SURE = 0.9  # from which confidence on a label is called doubtful: docs/audit.md says how often that is right
DIRECTIONS = 64  # in which the photos of a collection mainly differ
FEW = 10  # photos, for each direction at least so many
NARROWEST = 0.01  # spread, of similarities and of logarithms: of photos that hardly differ none is odd
FEW_OF_CLASS = 20  # photos of a class, to know how much they resemble one another
LEAST = 50  # photos, to call one of them odd
FAR = 3.4  # spreads above the median from which a photo is reported
SEED = 0


@dataclass(frozen=True)
class Neighbours:
    """The photos most alike to each photo; copies and other photos of its own group are left out."""

    rows: np.ndarray  # int32 [photos, neighbours], the most alike first
    alike: np.ndarray  # float32 [photos, neighbours]: cosine similarity, -1 to 1; -2 where there is no photo left
    own_class: (
        np.ndarray
    )  # float32 [photos]: mean similarity to as many photos of the same label, or to as many as there are
    first: np.ndarray  # bool [photos]: the first of its group


@dataclass(frozen=True)
class Doubt:
    """A photo whose label is probably wrong."""

    photo: int
    label: int  # the class thought right
    confidence: float  # 0 to 1


def neighbours(features: Table, labels: np.ndarray, groups: np.ndarray) -> Neighbours:
    """The photos that a network sees most alike, for each photo.

    features  float [photos, features]
    labels    class indices [photos]
    groups    a number for each photo: those of one number are never each other's neighbours
    """
    mean, spread = scale(features)
    count = len(labels)
    chosen = np.sort(np.random.default_rng(SEED).choice(count, min(count, REFERENCES), replace=False))
    references = _directions(features, mean, spread, chosen)
    width = min(NEIGHBOURS, len(chosen))
    rows, alike = np.zeros((count, width), np.int32), np.zeros((count, width), np.float32)
    own = np.zeros(count, np.float32)
    for start in range(0, count, CHUNK):
        some = slice(start, min(start + CHUNK, count))
        similar = _directions(features, mean, spread, np.arange(some.start, some.stop)) @ references.T
        similar[groups[some, None] == groups[None, chosen]] = -2
        places, alike[some] = _most(similar, width)
        rows[some] = chosen[places]
        similar[labels[some, None] != labels[None, chosen]] = -2
        of_class = _most(similar, width)[1]
        there = of_class > -2
        own[some] = (of_class * there).sum(1) / np.maximum(there.sum(1), 1)
    first = np.zeros(count, bool)
    first[np.unique(groups, return_index=True)[1]] = True
    return Neighbours(rows, alike, own, first)


def _directions(features: Table, mean: np.ndarray, spread: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Features of some photos to scale, each photo's of unit length: float32."""
    found = np.empty((len(chosen), features.shape[1]), np.float32)
    for start in range(0, len(chosen), CHUNK):
        scaled = ((features[chosen[start : start + CHUNK]] - mean) / spread).astype(np.float32)
        found[start : start + CHUNK] = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
    return found


def _most(similar: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns of the largest values of each row, and the values, in falling order."""
    places = np.empty((len(similar), width), np.int32)
    for start in range(0, len(similar), SORTED):
        some = slice(start, start + SORTED)
        places[some] = np.argpartition(-similar[some], width - 1, axis=1)[:, :width]
    values = np.take_along_axis(similar, places, 1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(places, order, 1), np.take_along_axis(values, order, 1)


def vote(near: Neighbours, labels: np.ndarray, classes: int) -> np.ndarray:
    """What the neighbours' labels say of each photo: float [photos, classes], rows add up to 1."""
    weight = np.exp((near.alike - near.alike[:, :1]) / SHARPNESS) * (near.alike > -2)
    said = np.stack([(weight * (labels[near.rows] == name)).sum(1) for name in range(classes)], axis=1)
    share = said / np.maximum(said.sum(1, keepdims=True), SMALLEST)
    return (share + UNHEARD) / (share + UNHEARD).sum(1, keepdims=True)


def both(out_of_fold: np.ndarray, neighbours_say: np.ndarray, labels: np.ndarray, heard: np.ndarray) -> np.ndarray:
    """The product of two witnesses, tempered until "80 % sure" agrees with 80 % of the labels: float [photos, classes].

    out_of_fold  float [photos, classes]: of heads that have not learned from the photo
    heard        bool [photos]: whether those heads know its class at all. Where they do not, nobody speaks for the label, and
                 it is taken as given: to contradict it would be to doubt every photo of a class that lies in one group
    """
    from scipy.special import softmax

    logits = np.log(np.maximum(out_of_fold, SMALLEST)) + np.log(np.maximum(neighbours_say, SMALLEST))
    if len(np.unique(labels[heard])) > 1:
        logits /= temperature(logits[heard], labels[heard])
    said = softmax(logits, axis=1)
    said[~heard] = np.eye(said.shape[1])[labels[~heard]]
    return said


def ranked(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The photos, the most doubtful label first, by how much likelier another label is than the given one.

    source  the normalised margin of Northcutt et al. 2021, arXiv:1911.00068, as a ratio instead of a difference: of two
            labels that are both hopeless, the more hopeless one goes first
    """
    return np.argsort(-_odds(probabilities, labels), kind="stable")


def _odds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The logarithm of the odds of the likeliest other class against the label: float [photos]."""
    logs = np.log(np.maximum(probabilities, SMALLEST))
    given = np.take_along_axis(logs, labels[:, None], 1)[:, 0]
    np.put_along_axis(logs, labels[:, None], -np.inf, 1)
    return logs.max(1) - given


def doubtful(probabilities: np.ndarray, labels: np.ndarray, sure: float = SURE) -> list[Doubt]:
    """The labels that are probably wrong, with the one thought right; the most doubtful first.

    probabilities  float [photos, classes], of witnesses that have not learned the photo's own label
    sure           the confidence in another label from which on a label is doubtful
    """
    best = probabilities.argmax(1)
    found = (best != labels) & (probabilities.max(1) >= sure)
    return [
        Doubt(int(photo), int(best[photo]), float(probabilities[photo, best[photo]]))
        for photo in ranked(probabilities, labels)
        if found[photo]
    ]


def oddness(features: Table, labels: np.ndarray, near: Neighbours) -> np.ndarray:
    """How unlike all others each photo is, in spreads above the median: float [photos].

    Added up: how little it resembles the photos of its own label, compared with how much these resemble one another; and how
    much of what the network sees in it lies outside the directions in which the collection's photos mainly differ. A photo
    of another subject shows in either. The photos of a class of fewer than 20 are judged by the second alone.
    """
    lonely = np.zeros(len(labels))
    for name in np.unique(labels):
        own = labels == name
        if (own & near.first).sum() >= FEW_OF_CLASS:
            lonely[own] = _spreads(-near.own_class[own], near.first[own])
    return lonely + _spreads(np.log(_left_over(features)), near.first)


def odd(features: Table, labels: np.ndarray, near: Neighbours, far: float = FAR) -> list[tuple[int, float]]:
    """The photos that are unlike all others, the oddest first, each with its oddness; none among too few to tell.

    features  float [photos, features]
    labels    class indices [photos]
    """
    if len(features) < LEAST:
        return []
    how = oddness(features, labels, near)
    return [(int(photo), float(how[photo])) for photo in np.argsort(-how, kind="stable") if how[photo] >= far]


def _left_over(features: Table) -> np.ndarray:
    """What the main directions do not explain of each photo: float [photos], the sum of its squares."""
    mean, spread = scale(features)
    count, width = features.shape
    directions = max(1, min(DIRECTIONS, count // FEW, width // 4))
    chosen = np.random.default_rng(SEED).choice(count, min(count, REFERENCES), replace=False)
    total, products = np.zeros(width), np.zeros((width, width))
    for start in range(0, len(chosen), CHUNK):
        # Of unit length, so that no photo has a direction of its own for being far away.
        some = _directions(features, mean, spread, chosen[start : start + CHUNK])
        total += some.sum(0, dtype=np.float64)
        products += some.T @ some
    centre = total / len(chosen)
    _, axes = np.linalg.eigh(products / len(chosen) - np.outer(centre, centre))  # the principal ones are the last
    axes = axes[:, -directions:].astype(np.float32)
    left = np.zeros(count)
    for start in range(0, count, CHUNK):
        scaled = ((features[start : start + CHUNK] - mean) / spread).astype(np.float32)
        left[start : start + CHUNK] = (scaled**2).sum(1) - ((scaled @ axes) ** 2).sum(1)
    return np.maximum(left, 1e-6)


def _spreads(values: np.ndarray, once: np.ndarray) -> np.ndarray:
    """How many spreads above the median: the upper spread, since what is odd is looked for at that side.

    once  bool [photos]: those that median and spread are taken of; copies would have none between them
    """
    middle, upper = np.percentile(values[once], (50, 84.1))
    return (values - middle) / max(float(upper - middle), NARROWEST)
