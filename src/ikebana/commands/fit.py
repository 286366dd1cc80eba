"""`ikebana fit`: photos → plan → training → evaluation → run folder."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from ikebana import recipes
from ikebana.auditing import dataset_checks, slice_properties
from ikebana.commands import robustness as run_robustness
from ikebana.commands.workers import ListPhotos, check_can_share, shared_by_processes, start_workers
from ikebana.data import sources
from ikebana.data.dataset import Dataset
from ikebana.data.pixel_cache import PixelCache
from ikebana.data.sources import PhotoSource
from ikebana.errors import IkebanaError, RecipeError
from ikebana.evaluation.calibration_photos import check_calibration_photos
from ikebana.evaluation.leakage import measure_leakage
from ikebana.evaluation.metrics import Evaluation, evaluate, score_confidence
from ikebana.evaluation.slices import score_slices
from ikebana.learning import augmentation, budget
from ikebana.learning.cross_validation import add_scores_of_all_photos
from ikebana.learning.device import collect_environment, load_settings
from ikebana.learning.estimate import get_spare_gpu_bytes, recipe_memory_errors
from ikebana.learning.examples import PhotoExamples, build_split_examples, concatenate
from ikebana.learning.familiarity import find_reference_rows, refit_familiarity
from ikebana.learning.held_out import HeldOutResults, score_held_out
from ikebana.learning.plan import (
    Plan,
    describe_refit,
    open_photos,
    prepare_tasks,
    refit_on_all,
    train_tasks,
)
from ikebana.learning.process_state import preserve_process_state
from ikebana.learning.training import checkpoint
from ikebana.learning.upgrades import suggest_upgrade
from ikebana.recipe import FitOptions, Recipe, recipe_to_json
from ikebana.reports import run_pictures
from ikebana.runs import run_writer
from ikebana.runs.earlier_split import read_earlier_split, read_own_split
from ikebana.runs.reproducibility import describe_rerun_differences, describe_resume_differences
from ikebana.runs.run import Run, open_run
from ikebana.runs.run_writer import RunWriter
from ikebana.system import progress
from ikebana.system.progress import Stopwatch
from ikebana.tracking.follow import followed

if TYPE_CHECKING:
    from torch import nn


def _list_given_photos(photos: PhotoSource, *_: Any, **__: Any) -> ListPhotos:
    return lambda recipe: sources.read(photos, recipe.class_order)


def _list_photos_of_run(run: str | Path, *, photos: PhotoSource | None = None, **_: Any) -> ListPhotos:
    writer = RunWriter(open_run(run))
    return lambda _: writer.restore_paths(writer.find_photos(photos))


@followed
@preserve_process_state()
@shared_by_processes(_list_given_photos)
def fit(
    photos: PhotoSource,
    recipe: str | Path | Recipe | None = None,
    *,
    run: str | Path | None = None,
    model: "nn.Module | None" = None,
    device: str = "auto",
    robustness: bool = False,
    split_from: str | Path | Run | None = None,
    minutes: float | None = None,
    watch: bool = False,
    log: str | Sequence[str] = (),
    **options: Unpack[FitOptions],
) -> Run:
    """Train a classifier on labelled photos and score it on photos it has never seen.

    Args:
        recipe: a recipe's name, the `recipe.json` of a run to repeat, or your own Recipe; default:
            quick, or baseline with a `model`.
        run: the run folder to create; default: `runs/<recipe>-<short hash>`.
        model: your own network, from float images [N, 3, image_size, image_size], 0 to 255, to
            logits [N, classes]. It is copied.
        device: auto for a GPU if there is one, cpu, cuda or mps.
        robustness: after scoring, measure the accuracy on changed test photos: blurred, darker, rotated, …
        split_from: an earlier run, whose photos stay in their split. New photos are for training and
            validation, so that both runs can be compared.
        minutes: choose the most accurate of quick, good and best that is expected to fit.
        watch: serve a page that shows the training while it runs, on this machine only.
        log: "tensorboard", "mlflow" or both: what also gets recipe, epochs and scores.
        options: changes to the recipe, such as epochs=5 or seed=1.
    Raises:
        PhotosError, RecipeError, RunError, MachineError: each has advice on what to try.
    """
    clock = Stopwatch()
    run_writer.check_folder_is_free(run)
    if minutes is not None:
        if recipe is not None or model is not None:
            raise RecipeError("--minutes chooses the recipe", advice="leave --minutes or the recipe out")
        recipe = budget.choose_recipe(photos, minutes, device=device, options=options)
    known = read_earlier_split(split_from) if split_from is not None else None
    run_folder = run or run_writer.DEFAULT_RUNS_FOLDER
    # Before the photos are listed and the speed is measured. A module of the user's own has training steps.
    if model is None:
        check_can_share(recipes.resolve_recipe(recipe or recipes.DEFAULT_RECIPE, **options))
    plan = Plan.from_photos(photos, recipe, model=model, run_folder=run_folder, device=device, **options)
    plan.apply_settings()
    plan.estimate.report_and_check()
    if robustness:
        run_robustness.report_cost(plan)
    environment = collect_environment(plan.settings)
    if recipe is not None and (changes := describe_rerun_differences(recipe, environment)):
        progress.message(changes)
    clock.lap("prepare")
    dataset, pixels = open_photos(plan.dataset, plan.recipe, known)
    check_calibration_photos(dataset, plan.recipe.at_most_wrong)
    start_workers(plan, dataset)
    kept_split = known.run if known is not None else ""
    writer = run_writer.create_run(run, plan.recipe, dataset, environment, split_from=kept_split)
    if robustness:
        writer = writer.request_robustness()
    clock.lap("read")
    with writer.lock_for_training(), recipe_memory_errors(plan.recipe):
        return _train_and_score(writer, plan, dataset, pixels, clock)


@followed
@preserve_process_state()
@shared_by_processes(_list_photos_of_run)
def resume(
    run: str | Path,
    *,
    photos: PhotoSource | None = None,
    model: "nn.Module | None" = None,
    robustness: bool = False,
    watch: bool = False,
    log: str | Sequence[str] = (),
) -> Run:
    """Continue a run from its last checkpoint, or add what a finished one lacks.

    Args:
        photos: where the run's photos are, if they have moved; the run records it.
        model: your own module, if the run was started with one.
        robustness: also measure the accuracy on changed test photos, as `fit` does.
        watch, log: as for `fit`.
    Raises:
        RunError: photos or recipe have changed since the run began.
    """
    clock, opened = Stopwatch(), open_run(run)
    writer = RunWriter(opened)
    if robustness:
        run_robustness.check_can_measure(opened)
        writer = writer.request_robustness()
    if writer.report_if_finished():
        return _complete(writer, photos, model)
    writer.check_same_recipe()
    check_can_share(opened.recipe)
    # Other settings would change the result.
    settings = load_settings(opened.folder / "environment.json")
    listed = writer.find_photos(photos)
    plan = Plan.from_dataset(writer.restore_paths(listed), opened.recipe, model=model, settings=settings)
    if changes := describe_resume_differences(opened.folder, collect_environment(plan.settings)):
        progress.warn(changes)
    clock.lap("prepare")
    dataset, pixels = open_photos(plan.dataset, plan.recipe, read_own_split(opened))
    writer.check_same_photos(dataset)
    if photos is not None:
        writer = writer.record_photos(listed)
    clock.lap("read")
    with writer.lock_for_training(), recipe_memory_errors(plan.recipe):
        # Another process may have finished it while the photos were read.
        if writer.report_if_finished():
            return opened
        start_workers(plan, dataset)
        return _train_and_score(writer, plan, dataset, pixels, clock)


def _train_and_score(writer: RunWriter, plan: Plan, dataset: Dataset, pixels: PixelCache, clock: Stopwatch) -> Run:
    """Train, score on the test photos once, and write the rest of the run."""
    _report_run(writer, plan.recipe, dataset)
    findings = dataset_checks.check_dataset(dataset)
    writer.write_json("audit.json", dataset_checks.to_json(dataset, findings))
    progress.message(dataset_checks.summarise(dataset, findings, str(writer.folder / "audit.json")))
    writer.write_text("layers.txt", plan.layer_table)
    # A checkpoint has all weights of a module of the user's own; only a refit starts from its initial ones.
    if plan.assembly.model is None or plan.recipe.refit_on_all or not writer.checkpoint.exists():
        writer.record_pretrained(plan.assembly.pretrained)
    gpu_bytes = get_spare_gpu_bytes(plan.assembly, plan.settings)
    splits = build_split_examples(dataset, pixels.pixels, plan.settings.device, gpu_bytes)
    tasks = prepare_tasks(plan, splits, pixels.folder.name)
    clock.lap("features")
    epochs = []
    for epoch in train_tasks(tasks, plan.settings, writer.checkpoint):
        epochs.append(epoch)
        writer.write_epochs(epochs)
        progress.event("epoch", **asdict(epoch))
    clock.lap("train", sum(epoch.seconds for epoch in epochs))
    results = score_held_out(plan, tasks, splits, dataset.classes, pixels.folder.name)
    held_out = concatenate(splits["validation"], splits["test"])
    writer.write_json("calibration.json", results.calibration)
    writer.write_predictions(dataset, held_out.rows, results.probabilities, results.familiarity)
    _write_mistakes(writer, dataset, results)
    clock.lap("score")
    network, familiarity_model = plan.network, results.familiarity_model
    if plan.recipe.refit_on_all:
        network, refit_tasks = refit_on_all(plan, splits, pixels.folder.name, writer.refit_checkpoint)
        familiarity_model = refit_familiarity(familiarity_model, refit_tasks, plan.settings)
        clock.lap("train on all")
    checkpoint.save_weights(writer.run.weights, network)
    if familiarity_model is not None:
        writer.write_familiarity(familiarity_model, dataset.photos[find_reference_rows(splits, plan.recipe)])
    evaluation = _evaluate(dataset, plan.recipe, splits, results)
    evaluation = add_scores_of_all_photos(evaluation, tasks, dataset.classes)
    clock.lap("score")
    _finish(writer, plan, dataset, pixels, evaluation, clock=clock)
    run = writer.run
    if run.wants_robustness:
        run = run_robustness.add(writer, plan.network, splits["test"], plan.settings)
    writer.name_report()
    return run


def _write_mistakes(writer: RunWriter, dataset: Dataset, results: HeldOutResults) -> None:
    """Write the training photos that the worst mistakes resemble, if they are known."""
    nearest = results.mistake_neighbours
    if nearest is not None:
        writer.write_mistake_neighbours(dataset, nearest.photos, nearest.neighbours, nearest.similarity)


def _finish(
    writer: RunWriter, plan: Plan, dataset: Dataset, pixels: PixelCache, evaluation: Evaluation, *, clock: Stopwatch
) -> None:
    """Write the scores, then the pictures, and report both."""
    # The run is finished from here on, whatever becomes of its pictures.
    writer.finish(evaluation, clock.seconds)
    advice = suggest_upgrade(dataset, plan.recipe, plan.settings, evaluation.accuracy, evaluation.accuracy_interval[0])
    if advice is not None:
        writer.write_suggestion(advice.to_json())
    _draw_pictures(writer.run, dataset, pixels, evaluation)
    clock.lap("draw")
    writer.report(evaluation, clock.seconds)
    if advice is not None:
        progress.message(str(advice))


def _report_run(writer: RunWriter, recipe: Recipe, dataset: Dataset) -> None:
    """Tell programs what is trained, and where it is written."""
    facts = {"photos": str(dataset.source), "classes": list(dataset.classes), "recipe": recipe_to_json(recipe)}
    progress.event("run", folder=str(writer.folder), **facts)


def _complete(writer: RunWriter, photos: PhotoSource | None, model: "nn.Module | None") -> Run:
    """Add the pictures and the robustness that a finished run lacks."""
    needs_robustness = writer.run.lacks_robustness
    if photos is None and not needs_robustness and run_pictures.has_photo_pictures(writer.run):
        if not run_pictures.has_all_pictures(writer.run):
            run_pictures.write_report(writer.run)
        return writer.run
    try:
        listed = writer.find_photos(photos)
        dataset, pixels = open_photos(writer.restore_paths(listed), writer.run.recipe, read_own_split(writer.run))
        writer.check_same_photos(dataset)
    except IkebanaError as error:
        if photos is not None or needs_robustness:
            raise
        progress.warn(f"its pictures cannot be drawn: {error}")
        return writer.run
    if photos is not None:
        writer = writer.record_photos(listed)
    _draw_pictures(writer.run, dataset, pixels, writer.run.evaluation)
    if needs_robustness:
        return run_robustness.add_later(writer, dataset, pixels, model)
    return writer.run


def _evaluate(
    dataset: Dataset, recipe: Recipe, splits: dict[str, PhotoExamples], results: HeldOutResults
) -> Evaluation:
    """Score the predictions of the test photos."""
    test, start = splits["test"], len(splits["validation"])
    probabilities = results.probabilities[start:]
    is_right = probabilities.argmax(1) == test.labels
    leakage = measure_leakage(dataset, recipe, is_right)
    note = describe_refit(recipe, splits)
    evaluation = evaluate(probabilities, test.labels, dataset.classes, note, leakage=leakage, groups=test.groups)
    evaluation = score_confidence(
        evaluation,
        probabilities,
        test.labels,
        test.groups,
        calibration=results.calibration,
        coverage=recipe.coverage,
        is_known=None if results.is_known is None else results.is_known[start:],
    )
    properties = slice_properties.collect_properties(dataset, test.pixels, test.rows)
    return replace(
        evaluation,
        slices=score_slices(is_right, properties, test.groups),
        unknown_objects=results.unknown_objects,
    )


def _draw_pictures(run: Run, dataset: Dataset, pixels: PixelCache, evaluation: Evaluation) -> None:
    def draw_examples(photo: np.ndarray) -> list[np.ndarray]:
        return augmentation.draw_examples(photo, run.recipe.augmentation, run.recipe.seed)

    run_pictures.draw_missing(run, dataset, pixels, evaluation, draw_examples)
