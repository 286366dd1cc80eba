"""Checks of photo content: suspect labels, outliers, image quality and shortcuts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from ikebana.auditing import image_quality, label_errors, shortcuts
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

SUSPECT_LABEL_ADVICE = "check the photo; if it shows the other class, move it there; if neither, remove it"
OUTLIER_ADVICE = "check the photo; remove it unless the photos to classify will be like it"
SHORTCUT_ADVICE = "make the {fact} similar in all classes, or a network may learn that instead of the subject"


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
    for result in shortcuts.find_shortcuts(evaluate_file_facts(dataset, pixel_cache)):
        name = dataset.classes[result.label]
        evidence = (
            f"file properties alone, without the image content, distinguish {name} from the other classes: "
            f"ROC AUC {result.auc:.2f} from all properties, {result.fact_auc:.2f} from the {result.fact}; "
            f"{result.picked_share:.0%} of its photos are found with at least {shortcuts.MIN_PRECISION:.0%} precision"
        )
        yield Finding("shortcut", "warning", (), evidence, SHORTCUT_ADVICE.format(fact=result.fact))


@dataclass(frozen=True)
class LabelEvidence:
    """Features of all usable photos, and class probabilities independent of the photo's own label.

    Attributes:
        features: [photos, features], on disk.
        labels: class indices [photos].
        out_of_fold: float [photos, classes], from logistic regressions.
        combined: float [photos, classes], combined with the vote of the nearest neighbours.
    """

    paths: pl.Series
    features: FeatureTable
    labels: np.ndarray
    neighbours: label_errors.Neighbours
    out_of_fold: np.ndarray
    combined: np.ndarray


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
    return LabelEvidence(
        photos["path"], labelled_features.features, labelled_features.labels, neighbours, probabilities, combined
    )


def _check_labels(evidence: LabelEvidence, classes: Sequence[str]) -> Iterator[Finding]:
    """Report suspect labels, then outliers."""
    for suspect in label_errors.find_suspect_labels(evidence.combined, evidence.labels):
        given, suggested = classes[evidence.labels[suspect.photo]], classes[suspect.suggested_label]
        text = f"labelled {given}, looks like {suggested} ({min(suspect.confidence, 0.99):.0%} confident)"
        path, confidence = (evidence.paths[suspect.photo],), round(suspect.confidence, 4)
        yield Finding("suspect_label", "warning", path, text, SUSPECT_LABEL_ADVICE, suggested, confidence)
    for photo, score in label_errors.find_outliers(evidence.features, evidence.labels, evidence.neighbours):
        text = f"outlier score {score:.1f} (robust z-score)"
        yield Finding("outlier", "note", (evidence.paths[photo],), text, OUTLIER_ADVICE)
