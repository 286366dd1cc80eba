"""Recommendation of how much of a network to train, from the evidence of a probe.

The rules follow the tutorial's chapter on transfer learning: are there many photos, and do they
resemble ImageNet? Fewer photos never lead to training more of the network.

                 unlike ImageNet's      like ImageNet's
few photos       head                   head
some             last stages            last stages
many             all                    last stages
"""

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ikebana.evaluation.learning_curves import LearningCurve
from ikebana.learning.estimate import format_duration
from ikebana.learning.features.depth_probe import AccuracyEstimate, ProbeResult
from ikebana.learning.upgrades import (
    FEW_PHOTOS_EVIDENCE,
    MIN_PHOTOS_PER_CLASS_FOR_FINE_TUNING,
    MIN_PHOTOS_PER_CLASS_FOR_MEASURED_GAIN,
)
from ikebana.recipe import Trainable

# Training photos per class from which larger networks help; with 80 they did not (docs/log.md).
MIN_PHOTOS_PER_CLASS_FOR_ALL = 200
# Accuracy lead of the last cut over the best earlier one, up to which photos are unlike ImageNet's.
MAX_UNLIKE_LEAD = 0.02
# Accuracy of a head from which no further gain can be measured.
CEILING_ACCURACY = 0.99
# Chance seldom exceeds this many standard errors.
STANDARD_ERRORS = 2
# A gain of less is not worth collecting photos for.
MIN_WORTHWHILE_GAIN = 0.01
# Classes for which the gain of more photos is stated.
MAX_STATED_CLASSES = 3
# With fewer scored photos, an accuracy is known to five points at best.
MIN_SCORED_PHOTOS = 100
# Within this factor of a threshold, the choice of the side is uncertain.
NEAR_THRESHOLD_FACTOR = 1.5
LINE_COLUMNS = 100
LABEL_COLUMNS = 13

# The recipe that comes closest.
RECIPES_BY_TRAINABLE: dict[Trainable, str] = {"head": "quick", "last_stages": "good", "all": "best"}
SENTENCES: dict[Trainable, str] = {
    "head": "train only a new head on the frozen network",
    "last_stages": "also fine-tune the last stages of the network",
    "all": "fine-tune larger networks, and for longer",
}


@dataclass(frozen=True)
class PhotoCounts:
    """Numbers of photos for training.

    Attributes:
        photos: training photos, and validation photos for model selection.
        test_photos: photos that the probe does not use.
        median_per_class: median of the training photos per class.
        smallest: the class with the fewest training photos, and their number.
    """

    photos: int
    test_photos: int
    median_per_class: int
    smallest: tuple[str, int]


@dataclass(frozen=True)
class Recommendation:
    """How much of the network to train on these photos, and why.

    Attributes:
        caveats: reasons to be unsure; none if the recommendation is fairly sure.
        more_photos: whether more photos would help, and of which classes.
        photos: their path, for the command.
        costs: estimated seconds per recipe on this machine, if known.
        learning_curves: of all classes together, then of those with the lowest recall.
    """

    trainable: Trainable
    reasons: tuple[str, ...]
    caveats: tuple[str, ...]
    more_photos: tuple[str, ...]
    photo_counts: PhotoCounts
    evidence: ProbeResult
    photos: str = ""
    costs: dict[str, float] = field(default_factory=dict)
    learning_curves: tuple[LearningCurve, ...] = ()

    @property
    def recipe(self) -> str:
        """Name of the recommended recipe."""
        return RECIPES_BY_TRAINABLE[self.trainable]

    @property
    def command(self) -> str:
        """Command line that trains it."""
        return f"ikebana fit {shlex.quote(self.photos or 'PHOTOS')} --recipe {self.recipe}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"recipe": self.recipe, "command": self.command}

    def __repr__(self) -> str:
        cost = f"    (about {format_duration(self.costs[self.recipe])} here)" if self.recipe in self.costs else ""
        items = [
            *(("why", reason) for reason in self.reasons),
            *(("data", sentence) for sentence in self.more_photos),
            *(("caveat", caveat) for caveat in self.caveats),
            ("confidence", "low" if self.caveats else "fairly high"),
        ]
        lines = [line for name, text in items for line in _wrap(name, text)]
        # Never wrapped, because users copy it.
        run = f"  {'run':<{LABEL_COLUMNS}}{self.command}{cost}"
        return "\n".join([f"Advice: {SENTENCES[self.trainable]}", "", *_format_table(self), "", *lines, run])


def recommend(
    evidence: ProbeResult,
    supply: PhotoCounts,
    photos: str,
    costs: dict[str, float],
    learning_curves: Sequence[LearningCurve] = (),
) -> Recommendation:
    """Recommend how much of the network to train.

    Args:
        evidence: of the probe.
        supply: numbers of photos.
        photos: their path, for the command.
        costs: estimated seconds per recipe on this machine.
        learning_curves: of all classes together, then of single classes; empty if not measured.
    """
    trained = choose_trainable(evidence, supply)
    return Recommendation(
        trained,
        tuple(_list_reasons(evidence, supply, trained)),
        tuple(_list_caveats(evidence, supply)),
        tuple(_describe_more_photos(evidence, learning_curves)),
        supply,
        evidence,
        photos,
        costs,
        tuple(learning_curves),
    )


def choose_trainable(evidence: ProbeResult, supply: PhotoCounts) -> Trainable:
    """Apply the rules: fewer photos, or weaker evidence, never train more of the network."""
    if supply.median_per_class < MIN_PHOTOS_PER_CLASS_FOR_FINE_TUNING or _is_at_ceiling(evidence):
        return "head"
    return (
        "all"
        if _is_unlike_imagenet(evidence) and supply.median_per_class >= MIN_PHOTOS_PER_CLASS_FOR_ALL
        else "last_stages"
    )


def _is_at_ceiling(evidence: ProbeResult) -> bool:
    """Return whether a head is so accurate that these photos could not show a gain."""
    best = evidence.last_depth_accuracy
    return best.value >= CEILING_ACCURACY or best.value + STANDARD_ERRORS * best.standard_error >= 1


def _is_unlike_imagenet(evidence: ProbeResult) -> bool:
    """Return whether an earlier cut is significantly as good as the last one."""
    return evidence.last_depth_gain.value + STANDARD_ERRORS * evidence.last_depth_gain.standard_error <= MAX_UNLIKE_LEAD


def _list_reasons(evidence: ProbeResult, supply: PhotoCounts, trained: Trainable) -> list[str]:
    resemblance, per_class = (
        _describe_resemblance(evidence),
        f"the median class has {_format_count(supply.median_per_class)}",
    )
    minimum = MIN_PHOTOS_PER_CLASS_FOR_FINE_TUNING
    if supply.median_per_class < minimum:
        return [
            f"{per_class}, fewer than {minimum}: with so few of the flowers, fine-tuning was no better than a head",
            resemblance,
        ]
    if trained == "head":
        wrong = round((1 - evidence.last_depth_accuracy.value) * evidence.scored_photos)
        return [
            f"a head alone misclassifies only {wrong} of {evidence.scored_photos:,} photos: too few to measure a gain"
        ]
    if trained == "all":
        return [
            resemblance,
            f"{per_class}, enough ({MIN_PHOTOS_PER_CLASS_FOR_ALL} or more) to fine-tune larger networks for longer",
        ]
    more = f"; fine-tuning all of it takes {MIN_PHOTOS_PER_CLASS_FOR_ALL}" if _is_unlike_imagenet(evidence) else ""
    return [
        resemblance,
        f"{per_class}, enough ({minimum} or more) to fine-tune the last stages{more}",
    ]


def _format_count(count: int) -> str:
    return f"{count:,} training photo{'s' * (count != 1)}"


def _describe_resemblance(evidence: ProbeResult) -> str:
    """Describe whether the photos resemble ImageNet's, with the evidence."""
    earlier = max(list(evidence.accuracy_by_depth)[:-1], key=lambda name: evidence.accuracy_by_depth[name].value)
    lead = f"{100 * evidence.last_depth_gain.value:+.1f} points compared with {earlier}"
    if _is_unlike_imagenet(evidence):
        return f"the photos do not resemble ImageNet's: the last layers separate the classes no better than earlier ones ({lead})"
    if _is_close(evidence):
        limit = f"{100 * MAX_UNLIKE_LEAD:+.0f}"
        return f"whether the photos resemble ImageNet's is too close to call ({lead}; the limit is {limit})"
    return f"the photos resemble ImageNet's: the last layers separate the classes best ({lead})"


def _is_close(evidence: ProbeResult) -> bool:
    """Return whether chance may have decided between like and unlike ImageNet."""
    lead = evidence.last_depth_gain
    return abs(lead.value - MAX_UNLIKE_LEAD) <= STANDARD_ERRORS * lead.standard_error


def _list_caveats(evidence: ProbeResult, supply: PhotoCounts) -> list[str]:
    """List reasons to be unsure; a threshold counts only if the recommendation depends on it."""
    best, caveats = evidence.last_depth_accuracy, []
    if evidence.scored_photos < MIN_SCORED_PHOTOS:
        caveats.append(f"only {evidence.scored_photos} photos could be scored")
    if best.value - STANDARD_ERRORS * best.standard_error <= evidence.majority_accuracy:
        caveats.append(
            "no layer of this network separates the classes better than guessing: check photos and labels first"
        )
    if not _is_at_ceiling(evidence):
        limits = (
            (MIN_PHOTOS_PER_CLASS_FOR_FINE_TUNING, MIN_PHOTOS_PER_CLASS_FOR_ALL)
            if _is_unlike_imagenet(evidence)
            else (MIN_PHOTOS_PER_CLASS_FOR_FINE_TUNING,)
        )
        factor = NEAR_THRESHOLD_FACTOR
        near = [limit for limit in limits if limit / factor <= supply.median_per_class < limit * factor]
        caveats += [f"{_format_count(supply.median_per_class)} per class, near the limit of {limit}" for limit in near]
        if MIN_PHOTOS_PER_CLASS_FOR_FINE_TUNING <= supply.median_per_class < MIN_PHOTOS_PER_CLASS_FOR_MEASURED_GAIN:
            caveats.append(f"{FEW_PHOTOS_EVIDENCE}: compare with --recipe quick")
        if supply.median_per_class >= MIN_PHOTOS_PER_CLASS_FOR_ALL and _is_close(evidence):
            caveats.append("whether the photos resemble ImageNet's is too close to call")
    if _is_unlike_imagenet(evidence) and choose_trainable(evidence, supply) != "head":
        caveats.append(
            "for photos unlike ImageNet's this is the textbook rule, and it is not always right: compare with --recipe quick"
        )
    name, count = supply.smallest
    if count < min(MIN_PHOTOS_PER_CLASS_FOR_FINE_TUNING, supply.median_per_class):
        caveats.append(f"class {name} has {_format_count(count)}, too few for any recipe")
    return caveats


def _describe_more_photos(evidence: ProbeResult, learning_curves: Sequence[LearningCurve]) -> list[str]:
    """Describe whether more photos would help, and of which classes most."""
    if not learning_curves:
        gain = evidence.doubling_gain
        points = f"{100 * gain.value:+.1f} points"
        if gain.value - STANDARD_ERRORS * gain.standard_error > 0:
            return [f"more photos would help: doubling them gained {points} here"]
        return [
            f"more photos of the same kind would hardly help a head: doubling them gained {points} here, within chance"
        ]
    overall, *by_class = learning_curves
    low, high = overall.gain
    verdict = "may help"
    if high < MIN_WORTHWHILE_GAIN:
        verdict = "of the same kind would hardly help a head"
    elif low > 0:
        verdict = "would help"
    elif not overall.is_gain_likely:
        verdict = "may or may not help"
    helpful = [curve for curve in by_class if curve.gain[1] >= MIN_WORTHWHILE_GAIN]
    helpful.sort(key=lambda curve: -sum(curve.gain))
    return [
        f"more photos {verdict}: {overall.describe()}",
        *(curve.describe() for curve in helpful[:MAX_STATED_CLASSES]),
    ]


def _wrap(name: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, LINE_COLUMNS, initial_indent=f"  {name:<{LABEL_COLUMNS}}", subsequent_indent=" " * (LABEL_COLUMNS + 2)
    )


def _format_table(recommendation: Recommendation) -> list[str]:
    """Format the evidence, one line per accuracy."""
    evidence, supply = recommendation.evidence, recommendation.photo_counts
    rows: list[tuple[str, str | AccuracyEstimate]] = [
        ("most frequent class", f"{evidence.majority_accuracy:.3f}"),
        *((name, score) for name, score in evidence.accuracy_by_depth.items()),
        ("  with half of the photos", evidence.half_data_accuracy),
        ("  with a quarter", evidence.quarter_data_accuracy),
    ]
    return [
        f"  Accuracy of a linear classifier by the depth of its features in an ImageNet network, on {evidence.scored_photos:,}",
        f"  of {supply.photos:,} training and validation photos (the {supply.test_photos:,} test photos are not used):",
        "",
        *(f"    {name:<30}{score}" for name, score in rows),
    ]
