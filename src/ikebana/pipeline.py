"""The flow of `fit`: photos → dataset → split → network → evaluation → run."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ikebana import progress
from ikebana import recipe as recipes
from ikebana import run as runs
from ikebana.learning import augmentation, checkpoint, device, fitting, inference, networks
from ikebana.learning.device import Setting
from ikebana.learning.forecast import as_begun, forecast, left_on_gpu, next_step, prepared, within_memory
from ikebana.learning.repeating import differing
from ikebana.photos import audit, intake, kept, split, twins
from ikebana.photos.dataset import Dataset
from ikebana.photos.kept import Kept
from ikebana.progress import Stopwatch
from ikebana.recipe import Recipe
from ikebana.run import Run
from ikebana.trust.calibration import calibrate
from ikebana.trust.evaluation import evaluate
from ikebana.trust.leakage import leakage


def fit(
    photos: str | Path, recipe: str | Path | Recipe = recipes.DEFAULT, *, run: str | Path | None = None, **options: Any
) -> Run:
    """Train a classifier on labelled photos and score it on photos it has never seen.

    Args:
        recipe: its name, the `recipe.json` of a run to repeat, or a Recipe of your own.
        run: the folder to make; `runs/<recipe>-<short hash>` if not given.
        options: of the recipe, to be changed: epochs=5, seed=1, ...
    Raises:
        PhotosError, RecipeError, RunError, MachineError: each tells what to try.
    """
    clock = Stopwatch()
    resolved = networks.settled(recipes.sought(recipe, **options))
    runs.check_free(run)
    # Missing weights are reported before any photo is read.
    fitting.check_weights(resolved)
    dataset = intake.read(photos, resolved.class_order)
    settings = prepared(resolved, len(dataset.classes), dataset.photos.height)
    # So that recipe.json contains the measured precision.
    resolved = recipes.changed(resolved, precision=settings.number_format)
    environment = device.environment(settings)
    forecast(dataset, resolved, settings, Path(run or runs.RUNS).expanduser()).told(resolved)
    if changes := differing(recipe, environment):
        progress.say(changes)
    clock.lap("prepare")
    dataset, pixel_cache = _load_and_split(dataset, resolved)
    new_run = runs.begin(run, resolved, dataset, environment)
    clock.lap("read")
    with new_run.resumable(), within_memory(resolved):
        return _train_and_score(new_run, dataset, pixel_cache, settings, clock)


def resume(run: str | Path) -> Run:
    """Continue a run from its last checkpoint; RunError if photos or recipe have changed."""
    clock, opened = Stopwatch(), runs.open_run(run)
    if opened.has_ended():
        return opened
    opened.check_same_recipe()
    dataset = opened.photos_found()
    settings = as_begun(opened.folder, opened.recipe, len(dataset.classes))
    clock.lap("prepare")
    dataset, pixel_cache = _load_and_split(dataset, opened.recipe)
    opened.check_same_photos(dataset)
    clock.lap("read")
    with opened.resumable(), within_memory(opened.recipe):
        # Another process may have finished it while the photos were read.
        return opened if opened.has_ended() else _train_and_score(opened, dataset, pixel_cache, settings, clock)


def _load_and_split(dataset: Dataset, recipe: Recipe) -> tuple[Dataset, Kept]:
    """Decode every photo once, find duplicates, assign splits; the cache holds pixels by row."""
    decoded, pixel_cache = kept.opened(dataset, recipe.side, recipe.fit)
    return split.split(intake.with_classes(twins.found(decoded, pixel_cache), recipe.class_order), recipe), pixel_cache


def _train_and_score(run: Run, dataset: Dataset, pixel_cache: Kept, settings: Setting, clock: Stopwatch) -> Run:
    findings, classes, pixels_id = audit.findings(dataset), len(dataset.classes), pixel_cache.folder.name
    run.write_json("audit.json", audit.as_json(dataset, findings))
    progress.say(audit.summary(dataset, findings))
    recipe, gpu_bytes = run.recipe, left_on_gpu(run.recipe, classes, settings)
    splits = inference.parts(dataset, pixel_cache.pixels, settings.device, gpu_bytes)
    plan = fitting.course(recipe, classes, splits, pixels_id, settings)
    run.write_text("layers.txt", plan.layers)
    run.note_pretrained(plan.pretrained)
    clock.lap("features")
    epochs = []
    for epoch in fitting.learn(plan, settings, run.checkpoint):
        epochs.append(epoch)
        run.write_epochs(epochs)
        progress.event("epoch", **asdict(epoch))
    clock.lap("train", sum(epoch.seconds for epoch in epochs))
    raw, held_out = fitting.probabilities(plan, settings), inference.joined(splits["validation"], splits["test"])
    calibration = calibrate(*inference.for_calibration(splits, raw))
    run.write_json("calibration.json", calibration)
    probabilities = calibration.applied(raw)
    run.write_predictions(dataset, held_out.rows, probabilities)
    clock.lap("score")
    if recipe.all:
        plan = fitting.once_more(recipe, classes, splits, pixels_id, settings, run.checkpoint_of_all)
        clock.lap("train on all")
    checkpoint.save_weights(run.weights, plan.network)

    from ikebana.report import draw

    examples = augmentation.examples(pixel_cache.pixels[splits["train"].rows[0]], recipe.augmentation, recipe.seed)
    test, labels = (values[len(splits["validation"]) :] for values in (probabilities, held_out.labels))
    note, leaks = fitting.note(recipe, splits), leakage(dataset, recipe, test.argmax(1) == labels)
    evaluation = evaluate(test, labels, dataset.classes, note, calibration.threshold, leaks, splits["test"].groups)
    draw.everything(run, dataset, pixel_cache.pixels, examples, evaluation)
    clock.lap("draw")
    run.finish(evaluation, clock.seconds)
    if advice := next_step(dataset, recipe, settings, evaluation.accuracy, evaluation.accuracy_interval[0]):
        progress.say(advice)
    return run
