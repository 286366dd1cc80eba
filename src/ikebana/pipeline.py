"""The whole road on one screen: photos → Dataset → pixels → split → network → Epochs → Evaluation → Run."""

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
    photos: str | Path, recipe: str | Path | Recipe = recipes.DEFAULT, *, run: str | Path | None = None, **choices: Any
) -> Run:
    """Train a classifier on a folder, an archive or a table of photos, and score it on photos it has never seen.

    recipe   a recipe's name, the `recipe.json` of a run that is to be made again, or a Recipe of your own
    run      the folder to make; `runs/<recipe>-<short hash>` if none is given
    choices  of the recipe, to be changed: epochs=5, seed=1, ...
    raises   PhotosError, RecipeError, RunError, MachineError: each says what to try
    """
    clock = Stopwatch()
    chosen = networks.settled(recipes.sought(recipe, **choices))
    runs.check_free(run)
    fitting.check_weights(chosen)  # what is missing is said before any photo is read
    found = intake.read(photos, chosen.class_order)
    setting = prepared(chosen, len(found.classes), found.photos.height)
    chosen = recipes.changed(chosen, precision=setting.number_format)  # so that recipe.json says all
    environment = device.environment(setting)
    forecast(found, chosen, setting, Path(run or runs.RUNS).expanduser()).told(chosen)
    if other := differing(recipe, environment):
        progress.say(other)
    clock.lap("prepare")
    dataset, keep = _taken_in(found, chosen)
    begun = runs.begin(run, chosen, dataset, environment)
    clock.lap("read")
    with begun.resumable(), within_memory(chosen):
        return _train_and_score(begun, dataset, keep, setting, clock)


def resume(run: str | Path) -> Run:
    """Go on where a run was interrupted: from its last checkpoint, from the start if there is none.

    raises  RunError if the photos or the recipe are not those that the run began with
    """
    clock, begun = Stopwatch(), runs.open_run(run)
    if begun.has_ended():
        return begun
    begun.check_same_recipe()
    found = begun.photos_found()
    setting = as_begun(begun.folder, begun.recipe, len(found.classes))
    clock.lap("prepare")
    dataset, keep = _taken_in(found, begun.recipe)
    begun.check_same_photos(dataset)
    clock.lap("read")
    with begun.resumable(), within_memory(begun.recipe):
        # Asked again: another process may have ended it while the photos were read.
        return begun if begun.has_ended() else _train_and_score(begun, dataset, keep, setting, clock)


def _taken_in(found: Dataset, recipe: Recipe) -> tuple[Dataset, Kept]:
    """Every photo opened once, its twins found, and given its part; the pixels row by row."""
    opened, keep = kept.opened(found, recipe.side, recipe.fit)
    return split.split(intake.with_classes(twins.found(opened, keep), recipe.class_order), recipe), keep


def _train_and_score(run: Run, dataset: Dataset, keep: Kept, setting: Setting, clock: Stopwatch) -> Run:
    findings = audit.findings(dataset)
    run.write_json("audit.json", audit.as_json(dataset, findings))
    progress.say(audit.summary(dataset, findings))

    recipe, room = run.recipe, left_on_gpu(run.recipe, len(dataset.classes), setting)
    parts = inference.parts(dataset, keep.pixels, setting.device, room)
    given = fitting.course(recipe, len(dataset.classes), parts, keep.folder.name, setting)
    run.write_text("layers.txt", given.layers)
    run.note_pretrained(given.pretrained)
    clock.lap("features")
    epochs = []
    for epoch in fitting.learn(given, setting, run.checkpoint):
        epochs.append(epoch)
        run.write_epochs(epochs)
        progress.event("epoch", **asdict(epoch))
    clock.lap("train", sum(each.seconds for each in epochs))
    said, held_out = fitting.probabilities(given, setting), inference.joined(parts["validation"], parts["test"])
    trusted = calibrate(*inference.for_calibration(parts, said))
    run.write_json("calibration.json", trusted)
    probabilities = trusted.applied(said)
    run.write_predictions(dataset, held_out.rows, probabilities)
    clock.lap("score")
    if recipe.all:
        given = fitting.once_more(recipe, len(dataset.classes), parts, keep.folder.name, setting, run.checkpoint_of_all)
        clock.lap("train on all")
    checkpoint.save_weights(run.weights, given.network)

    from ikebana.report import draw

    examples = augmentation.examples(keep.pixels[parts["train"].rows[0]], recipe.augmentation, recipe.seed)
    scored, labels = (each[len(parts["validation"]) :] for each in (probabilities, held_out.labels))
    note, leaked = fitting.note(recipe, parts), leakage(dataset, recipe, scored.argmax(1) == labels)
    groups = parts["test"].groups
    evaluation = evaluate(scored, labels, dataset.classes, note, trusted.threshold, leaked, groups)
    draw.everything(run, dataset, keep.pixels, examples, evaluation)
    clock.lap("draw")
    run.finish(evaluation, clock.seconds)
    if advice := next_step(dataset, recipe, setting, evaluation.accuracy, evaluation.accuracy_interval[0]):
        progress.say(advice)
    return run
