"""`ikebana fit`: photos → dataset → split → network → evaluation → run."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ikebana import recipes
from ikebana.auditing import dataset_checks
from ikebana.data import sources, split
from ikebana.data.dataset import Dataset
from ikebana.data.duplicates import near_duplicates
from ikebana.data.pixel_cache import PixelCache, open_pixel_cache
from ikebana.evaluation.calibration import calibrate
from ikebana.evaluation.leakage import measure_leakage
from ikebana.evaluation.metrics import evaluate
from ikebana.learning import augmentation, device
from ikebana.learning.device import DeviceSettings
from ikebana.learning.estimate import (
    configure_device,
    estimate_cost,
    get_spare_gpu_bytes,
    recipe_memory_errors,
    suggest_upgrade,
)
from ikebana.learning.examples import build_split_examples, concatenate, select_for_calibration
from ikebana.learning.models import networks
from ikebana.learning.plan import build_plan, check_weights, describe_refit, predict_held_out, refit_on_all, train_plan
from ikebana.learning.training import checkpoint
from ikebana.recipe import Recipe, with_options
from ikebana.runs import run as runs
from ikebana.runs.reproducibility import describe_rerun_differences, describe_resume_differences
from ikebana.runs.run import Run
from ikebana.system import progress
from ikebana.system.progress import Stopwatch


def fit(
    photos: str | Path,
    recipe: str | Path | Recipe = recipes.DEFAULT_RECIPE,
    *,
    run: str | Path | None = None,
    **options: Any,
) -> Run:
    """Train a classifier on labelled photos and score it on photos it has never seen.

    Args:
        recipe: its name, the `recipe.json` of a run to repeat, or a Recipe of your own.
        run: the folder to make; `runs/<recipe>-<short hash>` if not given.
        options: of the recipe, to be changed: epochs=5, seed=1, ...
    Raises:
        PhotosError, RecipeError, RunError, MachineError: each has advice on what to try.
    """
    clock = Stopwatch()
    resolved = networks.fill_defaults(recipes.resolve_recipe(recipe, **options))
    runs.check_folder_is_free(run)
    # Missing weights are reported before any photo is read.
    check_weights(resolved)
    dataset = sources.read(photos, resolved.class_order)
    settings = configure_device(resolved, len(dataset.classes), dataset.photos.height)
    # So that recipe.json contains the measured precision.
    resolved = with_options(resolved, precision=settings.precision)
    environment = device.collect_environment(settings)
    estimate_cost(dataset, resolved, settings, Path(run or runs.DEFAULT_RUNS_FOLDER).expanduser()).report_and_check(
        resolved
    )
    if changes := describe_rerun_differences(recipe, environment):
        progress.message(changes)
    clock.lap("prepare")
    dataset, pixel_cache = _load_and_split(dataset, resolved)
    new_run = runs.create_run(run, resolved, dataset, environment)
    clock.lap("read")
    with new_run.lock_for_training(), recipe_memory_errors(resolved):
        return _train_and_score(new_run, dataset, pixel_cache, settings, clock)


def resume(run: str | Path) -> Run:
    """Continue a run from its last checkpoint; RunError if photos or recipe have changed."""
    clock, opened = Stopwatch(), runs.open_run(run)
    if opened.report_if_finished():
        return opened
    opened.check_same_recipe()
    dataset = opened.find_photos()
    settings = _restore_device(opened.folder, opened.recipe, len(dataset.classes))
    clock.lap("prepare")
    dataset, pixel_cache = _load_and_split(dataset, opened.recipe)
    opened.check_same_photos(dataset)
    clock.lap("read")
    with opened.lock_for_training(), recipe_memory_errors(opened.recipe):
        # Another process may have finished it while the photos were read.
        return (
            opened if opened.report_if_finished() else _train_and_score(opened, dataset, pixel_cache, settings, clock)
        )


def _load_and_split(dataset: Dataset, recipe: Recipe) -> tuple[Dataset, PixelCache]:
    """Decode every photo once, find duplicates, assign splits; the cache holds pixels by row."""
    decoded, pixel_cache = open_pixel_cache(dataset, recipe.image_size, recipe.resize)
    return split.split_photos(
        sources.assign_classes(near_duplicates.find_near_duplicates(decoded, pixel_cache), recipe.class_order), recipe
    ), pixel_cache


def _restore_device(run: Path, recipe: Recipe, classes: int) -> DeviceSettings:
    """Restore the settings of an interrupted run and report what differs now.

    Args:
        run: the run's folder.
    """
    settings = device.load_settings(run / "environment.json") or configure_device(recipe, classes)
    if changes := describe_resume_differences(run, device.collect_environment(settings)):
        progress.message(changes)
    return settings


def _train_and_score(
    run: Run, dataset: Dataset, pixel_cache: PixelCache, settings: DeviceSettings, clock: Stopwatch
) -> Run:
    findings, classes, pixels_id = dataset_checks.check_dataset(dataset), len(dataset.classes), pixel_cache.folder.name
    run.write_json("audit.json", dataset_checks.to_json(dataset, findings))
    progress.message(dataset_checks.summarise(dataset, findings))
    recipe, gpu_bytes = run.recipe, get_spare_gpu_bytes(run.recipe, classes, settings)
    splits = build_split_examples(dataset, pixel_cache.pixels, settings.device, gpu_bytes)
    plan = build_plan(recipe, classes, splits, pixels_id, settings)
    run.write_text("layers.txt", plan.layer_table)
    run.record_pretrained(plan.pretrained)
    clock.lap("features")
    epochs = []
    for epoch in train_plan(plan, settings, run.checkpoint):
        epochs.append(epoch)
        run.write_epochs(epochs)
        progress.event("epoch", **asdict(epoch))
    clock.lap("train", sum(epoch.seconds for epoch in epochs))
    raw, held_out = (
        predict_held_out(plan, settings),
        concatenate(splits["validation"], splits["test"]),
    )
    calibration = calibrate(*select_for_calibration(splits, raw))
    run.write_json("calibration.json", calibration)
    probabilities = calibration.apply(raw)
    run.write_predictions(dataset, held_out.rows, probabilities)
    clock.lap("score")
    if recipe.refit_on_all:
        plan = refit_on_all(recipe, classes, splits, pixels_id, settings, run.refit_checkpoint)
        clock.lap("train on all")
    checkpoint.save_weights(run.weights, plan.network)

    from ikebana.reports import run_figures

    examples = augmentation.draw_examples(pixel_cache.pixels[splits["train"].rows[0]], recipe.augmentation, recipe.seed)
    test, labels = (values[len(splits["validation"]) :] for values in (probabilities, held_out.labels))
    note, leaks = describe_refit(recipe, splits), measure_leakage(dataset, recipe, test.argmax(1) == labels)
    evaluation = evaluate(test, labels, dataset.classes, note, calibration.threshold, leaks, splits["test"].groups)
    run_figures.draw_all(run, dataset, pixel_cache.pixels, examples, evaluation)
    clock.lap("draw")
    run.finish(evaluation, clock.seconds)
    if advice := suggest_upgrade(dataset, recipe, settings, evaluation.accuracy, evaluation.accuracy_interval[0]):
        progress.message(advice)
    return run
