"""The first screen of a run's report: questions of a lay reader, answered in sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ikebana.data.dataset import STATUS_USED
from ikebana.evaluation.calibration import NO_THRESHOLD_MESSAGE
from ikebana.evaluation.metrics import Evaluation
from ikebana.recipe import MODULE_PREFIX, Recipe
from ikebana.runs.run import Run
from ikebana.system.percentages import format_confidence, format_percentage

MAX_NAMED_CLASSES = 12
MAX_NAMED_PAIRS = 3
TRAINED_PARTS = {
    "scratch": "all of its weights were trained from random values",
    "linear_probe": "only its last layer was fitted to these photos, the rest was trained on ImageNet",
    "frozen_backbone": "only its head was trained on these photos, the rest was trained on ImageNet",
    "fine_tune": "it was trained on ImageNet first, and then on these photos",
}


@dataclass(frozen=True)
class Answer:
    """A question and its answer, a paragraph per entry."""

    question: str
    paragraphs: tuple[str, ...]


# One rounding everywhere on the page.
percent = format_percentage


def count(number: int, singular: str, plural: str) -> str:
    """Format a number and its noun."""
    return f"{number:,} {singular if number == 1 else plural}"


def join_names(names: Sequence[str], limit: int = MAX_NAMED_CLASSES) -> str:
    """Join names to "a, b and c"; beyond the limit, "and 88 more"."""
    if len(names) > limit:
        return f"{', '.join(names[:limit])} and {len(names) - limit} more"
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def answer_questions(run: Run) -> list[Answer]:
    """Answer what a reader asks first about a finished run."""
    evaluation = run.evaluation
    answers = [
        Answer("What does it distinguish?", _describe_task(run)),
        Answer("How often is it right?", _describe_accuracy(evaluation)),
        Answer("How sure is it?", _describe_confidence(evaluation)),
        Answer("What does it confuse?", _describe_confusion(evaluation)),
        Answer("What about other things?", _describe_unknown(evaluation)),
    ]
    return [answer for answer in answers if answer.paragraphs]


def _describe_task(run: Run) -> tuple[str, ...]:
    evaluation, learned = run.evaluation, run.dataset.filter(status=STATUS_USED, split="train").height
    first = f"It distinguishes {count(len(run.classes), 'class', 'classes')}: {join_names(run.classes)}."
    second = f"It learned from {count(learned, 'photo', 'photos')}."
    task = f"{first} {second}"
    return (task, evaluation.note) if evaluation.note else (task,)


def describe_network(recipe: Recipe) -> str:
    """Describe in a sentence which network was trained, and how much of it."""
    how = TRAINED_PARTS[recipe.method.kind]
    if recipe.network.startswith(MODULE_PREFIX):
        return f"The network is the user's own {recipe.network.removeprefix(MODULE_PREFIX)}; {how}."
    if len(recipe.networks) > 1:
        return f"The networks are {join_names(recipe.networks)}, whose answers are averaged; {how}."
    return f"The network is {recipe.network}; {how}."


def _describe_accuracy(evaluation: Evaluation) -> tuple[str, ...]:
    low, high = evaluation.accuracy_interval
    correct = sum(row[index] for index, row in enumerate(evaluation.confusion))
    most_frequent = max(scores.support for scores in evaluation.per_class.values()) / evaluation.n
    paragraphs = [
        f"It classified {correct:,} of {count(evaluation.n, 'test photo', 'test photos')} correctly: "
        f"{percent(evaluation.accuracy)}. It was not trained on any of these photos, and no choice was based on them. "
        f"For other photos of the same kind, expect {percent(low)} to {percent(high)}. "
        f"Always naming the most frequent class would be right for {percent(most_frequent)}."
    ]
    if low <= most_frequent:
        paragraphs.append("That is not clearly better than always naming the most frequent class.")
    scores = evaluation.cross_validation
    if scores is not None:
        low, high = scores.accuracy_interval
        paragraphs.append(
            f"A second test uses all {scores.n:,} photos: they are divided into {len(scores.accuracy_by_fold)} parts, and "
            "each part is predicted by a network that was trained on the others (cross-validation). "
            f"It classified {percent(scores.accuracy)} correctly ({percent(low)} to {percent(high)})."
        )
    leakage = evaluation.leakage
    if leakage is not None and leakage.photos:
        paragraphs.append(
            f"{count(len(leakage.photos), 'test photo has', 'test photos have')} a duplicate among the training or "
            "validation photos, so the accuracy is too optimistic."
        )
    return tuple(paragraphs)


def _describe_confidence(evaluation: Evaluation) -> tuple[str, ...]:
    if evaluation.threshold is None or evaluation.answered_share is None:
        return (f"{capitalise(NO_THRESHOLD_MESSAGE)}.",)
    right = evaluation.answered_accuracy
    of_those = f" and is right for {percent(right)} of those" if right is not None else ""
    paragraphs = [
        f"It gives an answer for {percent(evaluation.answered_share)} of the test photos{of_those}. For the others it "
        f"says “not sure”, because its confidence is below {format_confidence(evaluation.threshold)}, or “unknown”, "
        "because the photo is unlike the training photos."
    ]
    if evaluation.is_threshold_rough:
        paragraphs.append(
            f"That limit is a rough estimate, because only {evaluation.calibration_photos} validation photos determined it. "
            "With other photos it may be quite different."
        )
    guarantee = evaluation.risk_coverage.guarantee if evaluation.risk_coverage is not None else None
    if guarantee is not None:
        paragraphs.append(f"{capitalise(guarantee.describe())}.")
    paragraphs.append(
        f"Its stated confidence and the share of correct answers differ by "
        f"{100 * evaluation.expected_calibration_error:.1f} percentage points on average."
    )
    return tuple(paragraphs)


def find_worst_pairs(evaluation: Evaluation) -> list[tuple[str, str, int, int]]:
    """List the confused pairs, the most frequent first.

    Returns:
        Label, predicted class, number of such photos, and number of photos of the label.
    """
    pairs = [
        (label, predicted, number, sum(row))
        for label, row in zip(evaluation.classes, evaluation.confusion, strict=True)
        for predicted, number in zip(evaluation.classes, row, strict=True)
        if number and predicted != label
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[2] / -pair[3]))


def _describe_confusion(evaluation: Evaluation) -> tuple[str, ...]:
    pairs = find_worst_pairs(evaluation)
    if not pairs:
        return ("Nothing: it made no mistake on the test photos.",)
    paragraphs = [_describe_pairs(pairs)]
    recall = get_recall(evaluation)
    if len(recall) > 2:
        paragraphs.append(_describe_extremes(recall, evaluation.cross_validation is not None))
    return tuple(paragraphs)


def _describe_extremes(recall: Mapping[str, float], is_cross_validated: bool) -> str:
    """Name the hardest and the easiest classes; several if they are equally so."""
    lowest, highest = (percent(choose(recall.values())) for choose in (min, max))
    basis = "in cross-validation" if is_cross_validated else "among the test photos"
    if lowest == highest:
        return f"No class is harder than another: {lowest} of each are recognised {basis}."
    hardest, easiest = ([name for name in recall if percent(recall[name]) == share] for share in (lowest, highest))
    return f"Hardest: {join_names(hardest)} ({lowest} recognised {basis}). Easiest: {join_names(easiest)} ({highest})."


def _describe_pairs(pairs: Sequence[tuple[str, str, int, int]]) -> str:
    """Describe the most frequent confusions.

    Pairs as frequent as the last one are counted, not named.
    """
    named, others = list(pairs[:MAX_NAMED_PAIRS]), ""
    if len(pairs) > MAX_NAMED_PAIRS and pairs[MAX_NAMED_PAIRS][2] == named[-1][2]:
        least = named[-1][2]
        named = [pair for pair in named if pair[2] > least]
        tied = sum(pair[2] == least for pair in pairs)
        times = count(least, "mistake", "mistakes")
        if not named:
            return f"No pair of classes stands out: {tied} pairs have {times} each."
        others = f" {tied} other pairs have {times} each."
    (label, predicted, number, total), *rest = named
    then = join_names([f"{name} for {other} ({photos} of {all_})" for name, other, photos, all_ in rest])
    then = f", then {then}" if then else ""
    return f"Most often, {label} is mistaken for {predicted} ({number} of {total}){then}.{others}"


def get_recall(evaluation: Evaluation) -> dict[str, float]:
    """Return the recall of each class, cross-validated where that was measured.

    Cross-validation scores more photos than the test does.
    """
    if evaluation.cross_validation is not None:
        return dict(evaluation.cross_validation.recall)
    return {name: scores.recall for name, scores in evaluation.per_class.items() if scores.support}


def _describe_unknown(evaluation: Evaluation) -> tuple[str, ...]:
    scores = evaluation.unknown_objects
    if scores is None:
        return (
            "It names one of its classes whatever a photo shows: how it answers to other things was not measured, "
            "because there were too few validation photos.",
        )
    drawn = _average([detection.detected for detection in scores.drawn.values()])
    paragraphs = [
        f"It can say “unknown”. It does so for {percent(1 - scores.known_kept)} of the test photos, which it should "
        f"know, and for {percent(drawn)} of drawn images that show no object."
    ]
    if scores.left_out:
        shares = {name: detection.detected for name, detection in scores.left_out.items()}
        lowest, highest = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
        span = f", from {percent(shares[lowest])} ({lowest}) to {percent(shares[highest])} ({highest})"
        paragraphs.append(
            "Things that resemble its classes are harder: of photos of a class that was left out of training, it "
            f"recognised {percent(scores.mean_left_out)} as unknown on average{span * (len(shares) > 1)}. "
            "The others got one of its classes or “not sure”."
        )
    if scores.note:
        paragraphs.append(f"{capitalise(scores.note.strip('()'))}.")
    return tuple(paragraphs)


def capitalise(text: str) -> str:
    """Begin a text with a capital letter."""
    return f"{text[:1].upper()}{text[1:]}"


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
