"""`ikebana audit`: problems of the photos, and how much of a network to train."""

import json
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from ikebana.auditing import cleaning, content_checks
from ikebana.auditing import dataset_checks as files
from ikebana.auditing.dataset_checks import MAX_SUMMARY_PATHS
from ikebana.auditing.findings import Finding
from ikebana.auditing.recommendation import PhotoCounts, Recommendation, recommend
from ikebana.data import sources, split
from ikebana.data.dataset import STATUS_USED, Dataset
from ikebana.data.duplicates import near_duplicates, search
from ikebana.data.pixel_cache import PixelCache, compute_cache_bytes, open_pixel_cache
from ikebana.data.sources import PhotoSource
from ikebana.errors import MachineError, PhotosError, RecipeError
from ikebana.evaluation.learning_curves import LearningCurve
from ikebana.recipe import Recipe
from ikebana.recipes import DEFAULT_RECIPE, RECIPES
from ikebana.reports import audit_page, audit_view
from ikebana.system import progress
from ikebana.system.cache_folder import cache_folder
from ikebana.system.files import atomic_write, resolve_output_path, write_json
from ikebana.system.resources import memory_errors, require_disk

if TYPE_CHECKING:
    from ikebana.learning.examples import PhotoExamples
    from ikebana.learning.plan import Plan

CANNOT_SPLIT = "cannot_split"
# Files in the output folder.
PAGE_FILE, AUDIT_FILE, TABLE_FILE = "index.html", "audit.json", "findings.csv"


class CacheFiller:
    """Fills caches before an audit reads them; this one leaves that to the audit.

    Other machines may do it, and the result is the same.
    """

    def prepare(self, dataset: Dataset, recipe: Recipe) -> None:
        """Refuse what cannot work, before anything takes long."""

    def decode(self, dataset: Dataset, recipe: Recipe) -> None:
        """Decode the photos into the pixel cache."""

    def search(self, dataset: Dataset, opened: PixelCache, recipe: Recipe) -> None:
        """Search for near-duplicates."""

    def extract(self, dataset: Dataset, opened: PixelCache, plan: "Plan") -> None:
        """Extract the features that the checks of labels need."""


NO_FILLER = CacheFiller()


@dataclass(frozen=True)
class Audit:
    """Problems found in the photos before anything is trained.

    Attributes:
        findings: most severe first.
        page: the HTML page, if one was written.
    """

    dataset: Dataset
    findings: tuple[Finding, ...]
    recommendation: Recommendation | None = None
    page: Path | None = None

    @property
    def leaks(self) -> tuple[Finding, ...]:
        """Findings of photos in more than one split: test accuracy on them is inflated."""
        return tuple(finding for finding in self.findings if finding.kind == "leakage")

    @property
    def split_errors(self) -> tuple[Finding, ...]:
        """Findings that make `fit` refuse to split the photos."""
        return tuple(finding for finding in self.findings if finding.kind == CANNOT_SPLIT)

    def __repr__(self) -> str:
        command = f"ikebana audit {shlex.quote(self.dataset.command_argument)} --out DIR (in Python: .findings)"
        details = command if self.page is None else str(self.page)
        lines = [files.summarise(self.dataset, list(self.findings), details)]
        lines += [f"  leak: {files.describe(leak)}" for leak in self.leaks[:MAX_SUMMARY_PATHS]]
        lines += [f"  fit would refuse: {error.evidence}\n  try  {error.advice}" for error in self.split_errors]
        return "\n".join(lines + ([f"\n{self.recommendation!r}"] if self.recommendation is not None else []))

    def _repr_html_(self) -> str:
        errors = [f"fit would refuse: {error.evidence}\ntry  {error.advice}" for error in self.split_errors]
        advice = [repr(self.recommendation)] if self.recommendation is not None else []
        return audit_view.render_audit(self.dataset, self.findings, self.page, *errors, *advice)


def audit(
    photos: PhotoSource,
    advise: bool = False,
    *,
    out: str | Path | None = None,
    write: str | Path | None = None,
    drop: Sequence[str] = (),
    relabel: Sequence[str] = (),
    device: str = "auto",
    caches: CacheFiller = NO_FILLER,
) -> Audit:
    """Check a folder, an archive or a table of photos for problems.

    No photo is changed.

    Args:
        photos: path of the folder, archive or table.
        advise: also recommend how much of a network to train: its head, its last stages or all of it.
        out: folder for a page, `audit.json` and `findings.csv`.
        write: table for `fit`, such as `cleaned.csv`; the dropped rows are written next to it.
        drop: kinds of findings whose photos are dropped from it, such as "near_duplicate".
        relabel: findings whose photos get the suggested label: "suspect_label>0.95".
        device: auto for a GPU if there is one, cpu, cuda or mps.
        caches: fills the caches here or on other machines.
    Raises:
        PhotosError: there are no usable photos, or with `advise` too few.
        RecipeError, MachineError: with `advise`, the backbone is not available.
    """
    to_drop, to_relabel = cleaning.parse_selectors(drop, "--drop"), cleaning.parse_selectors(relabel, "--relabel")
    _check_outputs(out, write, bool(to_drop or to_relabel))
    unopened = sources.read(photos)
    if write is not None:
        cleaning.check_not_archive(unopened)
    from ikebana.learning.models import networks
    from ikebana.learning.process_state import preserve_process_state

    # As in `fit`, so that it reuses the pixel cache and makes the same split.
    recipe = networks.fill_defaults(RECIPES[DEFAULT_RECIPE])
    page_file = Path(out).expanduser() / PAGE_FILE if out is not None else None
    with preserve_process_state():
        caches.prepare(unopened, recipe)
        plan = _make_plan(unopened, recipe, device, is_required=advise)
        result, pixel_cache = _check_photos(unopened, recipe, plan, page_file, caches)
        has_split = unopened.photos["split"].count() > 0
        _report(result, pixel_cache, recipe, has_split)
        command_photos = unopened.command_argument
        if write is not None:
            cleaned = cleaning.clean(result.dataset, result.findings, to_drop, to_relabel, has_split)
            if _write_table(Path(write), result.dataset, cleaned, recipe):
                command_photos = str(write)
            if unmatched := cleaning.find_unmatched((*to_drop, *to_relabel), result.findings):
                progress.warn(f"no finding matches {' or '.join(unmatched)}")
        if advise and plan is not None:
            result = _add_recommendation(result, pixel_cache, plan, command_photos)
    return result


def _check_photos(
    unopened: Dataset, recipe: Recipe, plan: "Plan | None", page_file: Path | None, caches: CacheFiller
) -> tuple[Audit, PixelCache]:
    """Decode and split the photos like `fit`, and look for problems."""
    caches.decode(unopened, recipe)
    opened, pixel_cache = open_pixel_cache(unopened, recipe.image_size, recipe.resize)
    caches.search(opened, pixel_cache, recipe)
    dataset, split_errors = _split(
        sources.assign_classes(near_duplicates.find_near_duplicates(opened, pixel_cache), ()), recipe
    )
    if plan is not None:
        caches.extract(dataset, pixel_cache, plan)
    findings = [
        *split_errors,
        *files.check_dataset(dataset),
        *content_checks.check_content(dataset, pixel_cache, plan),
    ]
    return Audit(dataset, tuple(files.sort_by_severity(findings)), page=page_file), pixel_cache


def _split(dataset: Dataset, recipe: Recipe) -> tuple[Dataset, list[Finding]]:
    """Split like `fit`.

    If `fit` would refuse, report that and treat photos without a split as training photos.
    """
    try:
        dataset = split.split_photos(dataset, recipe)
        split.check_training_classes(dataset)
    except PhotosError as error:
        all_train = pl.when(pl.col("status") == STATUS_USED).then(pl.col("split").fill_null("train")).alias("split")
        unsplit = dataset.with_photos(dataset.photos.with_columns(all_train))
        return unsplit, [Finding(CANNOT_SPLIT, "error", (), error.what, error.advice or "add photos")]
    return dataset, []


def _make_plan(dataset: Dataset, recipe: Recipe, device: str, *, is_required: bool) -> "Plan | None":
    """Plan as `fit` does, report the cost, and refuse what this machine cannot do.

    Returns:
        None if the backbone is not available: an audit then needs only disk space.
    Raises:
        MachineError: too little memory or disk space.
        RecipeError, MachineError: the backbone is required and not available.
    """
    from ikebana.learning.plan import Plan

    try:
        plan = Plan.from_dataset(dataset, recipe, device=device)
    except (RecipeError, MachineError) as error:
        if is_required:
            raise
        reason = error.what + (f" ({error.advice})" if error.advice else "")
        progress.message(f"labels and outliers are not checked: {reason}")
        cache_bytes = compute_cache_bytes(dataset, recipe.image_size)
        require_disk({cache_folder(): cache_bytes + search.compute_scratch_bytes(dataset.photos.height)})
        return None
    plan.estimate.report_and_check()
    return plan


def _check_outputs(out: str | Path | None, write: str | Path | None, has_selectors: bool) -> None:
    """Refuse outputs that cannot be written, before any photo is read."""
    if has_selectors and write is None:
        raise RecipeError("--drop and --relabel need a table to write", advice="add --write cleaned.csv")
    if write is not None:
        cleaning.check_writable(resolve_output_path(write))
    if out is not None:
        folder = resolve_output_path(out)
        is_taken = folder.is_dir() and any(folder.iterdir()) and not _is_audit_folder(folder)
        if is_taken or (folder.exists() and not folder.is_dir()):
            what = "this folder exists and is not empty" if is_taken else "this is an existing file, not a folder"
            raise RecipeError(what, where=folder, advice="choose an empty or a new folder")


def _is_audit_folder(folder: Path) -> bool:
    """Return whether the folder holds only an earlier audit, which may be overwritten."""
    try:
        values = json.loads((folder / AUDIT_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    names = {file.name for file in folder.iterdir()}
    is_audit = isinstance(values, dict) and values.keys() >= {"source", "findings"}
    return is_audit and names <= {PAGE_FILE, AUDIT_FILE, TABLE_FILE}


def _report(result: Audit, pixel_cache: PixelCache, recipe: Recipe, has_given_split: bool) -> None:
    """Report the findings; if wanted, write the page, `audit.json` and `findings.csv`."""
    progress.message(repr(result))
    values = files.to_json(result.dataset, list(result.findings))
    progress.event("audit", **values)
    if result.page is None:
        return
    folder = result.page.parent
    write_json(folder / AUDIT_FILE, values)
    with atomic_write(folder / TABLE_FILE) as partial_file:
        files.to_table(result.findings).write_csv(partial_file)
    audit_page.write(
        result.page,
        result.dataset,
        result.findings,
        pixel_cache.pixels,
        recipe.resize,
        has_given_split=has_given_split,
    )
    progress.message(f"audit page: {result.page} (for programs, next to it: {AUDIT_FILE} and {TABLE_FILE})")


def _write_table(file: Path, dataset: Dataset, cleaned: cleaning.CleaningResult, recipe: Recipe) -> bool:
    """Write the table, and warn about what makes it useless or its score too high.

    Returns:
        Whether `fit` can train on the table.
    Raises:
        PhotosError: fewer than two classes would be left; nothing is written.
    """
    cleaning.check_classes(cleaned, dataset)
    cleaning.write(file, dataset, cleaned)
    _, errors = _split(cleaning.to_dataset(dataset, cleaned), recipe)
    command = f"ikebana fit {shlex.quote(str(file))}"
    advice = (
        "" if errors else f". Train on it with: {command}, to compare with an earlier run: {command} --split-from RUN"
    )
    reasons = f", with reasons in {cleaning.dropped_table_path(file)}" if cleaned.dropped_photos.height else ""
    progress.message(
        f"{file}: {cleaned.kept_photos.height:,} photos, {cleaned.relabelled_count:,} of them relabelled; "
        f"{cleaned.dropped_photos.height:,} dropped{reasons}{advice}"
    )
    for error in errors:
        progress.warn(f"fit would refuse {file}: {error.evidence} ({error.advice})")
    if lost := cleaning.find_lost_classes(cleaned, dataset):
        progress.warn(f"no photos are left of {', '.join(lost)}: a network trained on {file} never predicts that")
    _warn_about_suspect_labels(cleaned)
    return not errors


def _warn_about_suspect_labels(cleaned: cleaning.CleaningResult) -> None:
    """Warn about changes from suspect labels, which affect the score."""
    if cleaned.protected_count:
        progress.warn(
            f"{cleaned.protected_count:,} test photo{'s' * (cleaned.protected_count != 1)} with a suspect label not changed: "
            "a network must not choose its own test set"
        )
    if cleaned.suspect_label_count and "split" not in cleaned.kept_photos.columns:
        count = cleaned.suspect_label_count
        progress.warn(
            f"{count:,} photo{'s' * (count != 1)} dropped or relabelled because of a suspect label, before the split: "
            "unless you have checked them, the score will be too optimistic"
        )


def _add_recommendation(result: Audit, pixel_cache: PixelCache, plan: "Plan", photos: str) -> Audit:
    """Add a recommendation, unless `fit` would refuse the photos.

    Args:
        photos: path for the command: the cleaned table if one was written.
    """
    if result.split_errors:
        progress.warn(f"no recommendation for {result.dataset.source}: fit would refuse these photos")
        return result
    with memory_errors():
        return replace(result, recommendation=_recommend(result.dataset, pixel_cache, plan, photos))


def _recommend(dataset: Dataset, pixel_cache: PixelCache, plan: "Plan", photos: str) -> Recommendation:
    """Recommend from frozen features of training photos and model-selection photos.

    The calibration photos and the test photos stay unseen.

    Args:
        photos: path for the command: the cleaned table if one was written.
    """
    from ikebana.learning.examples import build_split_examples, concatenate
    from ikebana.learning.features import depth_probe
    from ikebana.learning.folds import make_scoring_folds

    splits = build_split_examples(dataset, pixel_cache.pixels)
    for_selection = splits["validation"].select(splits["validation"].for_selection)
    examples = concatenate(splits["train"], for_selection)
    sample, groups = depth_probe.sample_photos(examples, split.find_groups(dataset.photos[examples.rows]))
    folds = make_scoring_folds(sample.labels, groups, dataset.source)
    (member,) = plan.assembly.members
    features = depth_probe.extract_depth_features(sample, member, pixel_cache.folder.name, plan.settings)
    evidence = depth_probe.evaluate_depths(features, sample.labels, groups, folds)
    counts = {name: of_class["train"] for name, of_class in dataset.count_photos().items()}
    smallest = min(counts, key=lambda name: counts[name])
    supply = PhotoCounts(
        photos=len(examples),
        test_photos=len(splits["test"]),
        median_per_class=statistics.median_low(counts.values()),
        smallest=(smallest, counts[smallest]),
    )
    curves = _measure_learning_curves(dataset, splits, pixel_cache, plan)
    advice = recommend(evidence, supply, photos, _estimate_costs(dataset, plan), curves)
    progress.message(f"\n{advice!r}")
    progress.event("recommendation", **advice.to_json())
    return advice


def _measure_learning_curves(
    dataset: Dataset, splits: "dict[str, PhotoExamples]", pixel_cache: PixelCache, plan: "Plan"
) -> tuple[LearningCurve, ...]:
    """Measure learning curves on training photos and model-selection photos.

    Args:
        splits: photos of each split.
    """
    from ikebana.learning.features import learning_curves, out_of_fold

    (member,) = plan.assembly.members
    extracted = out_of_fold.extract_labelled_features(splits, member, pixel_cache.folder.name, plan.settings)
    validation = splits["validation"]
    unseen = np.concatenate((validation.rows[~validation.for_selection], splits["test"].rows))
    chosen = np.flatnonzero(~np.isin(extracted.rows, unseen))
    groups = np.array(split.find_groups(dataset.photos[extracted.rows[chosen]]))
    counts = {name: sum(of_class.values()) for name, of_class in dataset.count_photos().items()}
    return learning_curves.measure_learning_curves(
        extracted.features.select(chosen), extracted.labels[chosen], groups, counts
    )


def _estimate_costs(dataset: Dataset, plan: "Plan") -> dict[str, float]:
    """Estimate the seconds of the default recipe and the next better one on this machine."""
    from ikebana.learning.estimate import estimate_cost
    from ikebana.learning.precision import get_seconds_per_photo
    from ikebana.learning.upgrades import UPGRADES, estimate_upgrade_seconds

    recipe = plan.recipe
    # Estimated again: features are cached now.
    costs = {recipe.name: estimate_cost(dataset, plan.assembly, plan.settings).seconds}
    seconds_per_photo = get_seconds_per_photo(plan.settings)
    if recipe.name in UPGRADES and seconds_per_photo is not None:
        better = UPGRADES[recipe.name]
        costs[better.recipe] = estimate_upgrade_seconds(dataset, recipe, better, seconds_per_photo)
    return costs
