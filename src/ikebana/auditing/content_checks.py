"""Checks of photo content: suspect labels, outliers, image quality and shortcuts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from ikebana.auditing import image_quality, label_confidence, label_errors, shortcuts
from ikebana.auditing.file_facts import extract_file_facts
from ikebana.auditing.findings import Finding
from ikebana.data import split
from ikebana.data.dataset import Dataset
from ikebana.data.pixel_cache import PixelCache
from ikebana.errors import MachineError, PhotosError, RecipeError
from ikebana.learning.features.scaling import FeatureTable
from ikebana.system import progress
from ikebana.system.resources import memory_errors

if TYPE_CHECKING:
    from ikebana.learning.plan import Plan

SUSPECT_LABEL_ADVICE = "look at the photo: keep its label, change it to the suggested one, or remove the photo"
OUTLIER_ADVICE = "look at the photo: keep it if the photos to classify will be like it, or remove it"
SHORTCUT_ADVICE = "make the {fact} similar in all classes, or a network may learn that instead of the subject"
# A label is a warning if it is more probably wrong than right.
MIN_WARNING_CONFIDENCE = 0.5
# No label is certainly wrong.
MAX_CONFIDENCE = 0.99
# Classes that one finding names.
MAX_SHORTCUT_NAMES = 6


def check_content(dataset: Dataset, pixel_cache: PixelCache, plan: "Plan | None") -> list[Finding]:
    """List suspect labels, outliers, poor images and shortcuts; most pronounced first per kind.

    Args:
        dataset: opened and split.
        pixel_cache: of the dataset.
        plan: its backbone extracts the features; without one, labels and outliers are not checked.
    """
    findings = [
        *image_quality.check_image_quality(dataset, pixel_cache.pixels),
        *_check_shortcuts(dataset, pixel_cache),
    ]
    if plan is None:
        return findings
    return findings + _run_if_possible(
        lambda: [*_check_labels(collect_label_evidence(dataset, pixel_cache, plan), dataset.classes)]
    )


def _run_if_possible(check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        with memory_errors():
            return check()
    except (PhotosError, RecipeError, MachineError) as error:
        reason = error.what + (f" ({error.advice})" if error.advice else "")
    progress.warn(f"labels and outliers were not checked: {reason}")
    return []


def evaluate_file_facts(dataset: Dataset, pixel_cache: PixelCache) -> shortcuts.FactsEvaluation:
    """Evaluate how well sizes, file properties and borders alone predict the classes."""
    used = dataset.used_photos
    index = {name: number for number, name in enumerate(dataset.classes)}
    labels = np.array([index[name] for name in used["label"]], np.int64)
    groups = np.array(split.find_groups(used))
    selection = shortcuts.select_photos(labels, groups)
    file_facts = extract_file_facts(dataset, pixel_cache.pixels, selection)
    return shortcuts.evaluate_facts(file_facts, labels[selection], groups[selection])


def _check_shortcuts(dataset: Dataset, pixel_cache: PixelCache) -> Iterator[Finding]:
    revealed = shortcuts.find_shortcuts(evaluate_file_facts(dataset, pixel_cache))
    for cause in shortcuts.group_by_cause(revealed):
        advice = SHORTCUT_ADVICE.format(fact=cause.fact)
        yield Finding("shortcut", "warning", (), _describe_shortcut(cause, dataset.classes), advice)


def _describe_shortcut(cause: shortcuts.Cause, classes: Sequence[str]) -> str:
    """Describe one cause and all classes that it reveals."""
    names = [classes[result.label] for result in cause.shortcuts]
    shown = names[:MAX_SHORTCUT_NAMES] + (
        [f"{len(names) - MAX_SHORTCUT_NAMES} more"] if len(names) > MAX_SHORTCUT_NAMES else []
    )
    subject = " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
    from_all = _format_range([result.auc for result in cause.shortcuts], "{:.2f}")
    from_fact = _format_range([result.fact_aucs[cause.fact] for result in cause.shortcuts], "{:.2f}")
    picked = _format_range([result.picked_share for result in cause.shortcuts], "{:.0%}")
    return (
        f"file properties alone, without the image content, distinguish {subject} from the other classes: "
        f"ROC AUC {from_all} from all properties, {from_fact} from the {cause.fact}; "
        f"{picked} of the photos are found with at least {shortcuts.MIN_PRECISION:.0%} precision"
    )


def _format_range(values: Sequence[float], number: str) -> str:
    """Format the lowest and the highest value, or one if both look the same."""
    return " to ".join(dict.fromkeys((number.format(min(values)), number.format(max(values)))))


@dataclass(frozen=True)
class LabelEvidence:
    """Features of all usable photos, and class probabilities independent of the photo's own label.

    Attributes:
        features: [photos, features], on disk.
        labels: class indices [photos].
        out_of_fold: float [photos, classes], from logistic regressions.
        combined: float [photos, classes], combined with the vote of the nearest neighbours.
        errors: how probably each label is wrong.
    """

    paths: pl.Series
    features: FeatureTable
    labels: np.ndarray
    neighbours: label_errors.Neighbours
    out_of_fold: np.ndarray
    combined: np.ndarray
    errors: label_confidence.ErrorEstimates


def collect_label_evidence(dataset: Dataset, pixel_cache: PixelCache, plan: "Plan") -> LabelEvidence:
    """Extract features of all photos and predict each photo's class from the others.

    Args:
        dataset: opened and split.
        pixel_cache: of the dataset.
        plan: its backbone extracts the features.
    Raises:
        PhotosError: there are too few photos.
    """
    from ikebana.learning import examples
    from ikebana.learning.features import out_of_fold

    splits = examples.build_split_examples(dataset, pixel_cache.pixels)
    (member,) = plan.assembly.members
    labelled_features = out_of_fold.extract_labelled_features(splits, member, pixel_cache.folder.name, plan.settings)
    photos = dataset.photos[labelled_features.rows]
    groups = np.array(split.find_groups(photos))
    class_count = len(dataset.classes)
    probabilities, is_known = out_of_fold.predict_out_of_fold(labelled_features, groups, class_count, dataset.source)
    neighbours = label_errors.find_neighbours(labelled_features.features, labelled_features.labels, groups)
    votes = label_errors.vote(neighbours, labelled_features.labels, class_count)
    combined = label_errors.combine_probabilities(probabilities, votes, labelled_features.labels, is_known)
    errors = label_confidence.estimate_errors(combined, labelled_features.labels, groups, is_known)
    return LabelEvidence(
        photos["path"],
        labelled_features.features,
        labelled_features.labels,
        neighbours,
        probabilities,
        combined,
        errors,
    )


def _check_labels(evidence: LabelEvidence, classes: Sequence[str]) -> Iterator[Finding]:
    """Report suspect labels, then outliers."""
    suspects = label_errors.find_suspect_labels(evidence.combined, evidence.labels, evidence.errors)
    for suspect in suspects:
        given, suggested = classes[evidence.labels[suspect.photo]], classes[suspect.suggested_label]
        text, confidence = f"labelled {given}, the model suggests {suggested}", suspect.confidence
        if confidence is not None:
            confidence = round(min(confidence, MAX_CONFIDENCE), 4)
            text = f"labelled {given}, looks like {suggested} (wrong with {confidence:.0%} probability)"
        severity = "warning" if confidence is not None and confidence > MIN_WARNING_CONFIDENCE else "note"
        path = (evidence.paths[suspect.photo],)
        yield Finding("suspect_label", severity, path, text, SUSPECT_LABEL_ADVICE, suggested, confidence)
    for photo, score in label_errors.find_outliers(evidence.features, evidence.labels, evidence.neighbours):
        text = f"outlier score {score:.1f} (robust z-score)"
        yield Finding("outlier", "note", (evidence.paths[photo],), text, OUTLIER_ADVICE)
