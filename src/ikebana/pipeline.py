"""The whole road on one screen: photos → Dataset → pixels → split → network → Epochs → Evaluation → Run."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ikebana import progress
from ikebana import recipe as recipes
from ikebana import run as runs
from ikebana.learning import augmentation, backbones, checkpoint, device, features, fitting, inference, networks
from ikebana.learning.device import Setting
from ikebana.learning.forecast import forecast, next_step, prepared
from ikebana.photos import audit, intake, kept, split
from ikebana.photos.dataset import Dataset
from ikebana.photos.kept import Kept
from ikebana.progress import Stopwatch
from ikebana.recipe import Recipe
from ikebana.run import Run
from ikebana.trust.evaluation import evaluate


def fit(
    photos: str | Path, recipe: str | Recipe = recipes.DEFAULT, *, run: str | Path | None = None, **choices: Any
) -> Run:
    """Train a classifier on a folder, an archive or a table of photos, and score it on photos it has never seen.

    recipe   a recipe's name, or a Recipe of your own
    run      the folder to make; `runs/<recipe>-<short hash>` if none is given
    choices  of the recipe, to be changed: epochs=5, seed=1, ...
    raises   PhotosError, RecipeError, RunError, MachineError: each says what to try
    """
    clock = Stopwatch()
    chosen = recipes.named(recipe, **choices) if isinstance(recipe, str) else recipes.changed(recipe, **choices)
    runs.check_free(run)
    chosen = networks.settled(chosen)
    backbones.sought(chosen)  # what is missing is said before any photo is read
    found = intake.read(photos, chosen.class_order)
    setting = prepared(chosen, len(found.classes))
    progress.say(forecast(found, chosen, setting).text)
    clock.lap("prepare")
    dataset, keep = _taken_in(found, chosen)
    begun = runs.begin(run, chosen, dataset)
    begun.write_json("environment.json", device.environment(setting))
    clock.lap("read")
    return _interruptible(begun, dataset, keep, setting, clock)


def resume(run: str | Path) -> Run:
    """Go on where a run was interrupted: from its last checkpoint, from the start if there is none.

    raises  RunError if the photos are not those that the run began with
    """
    clock, begun = Stopwatch(), runs.open_run(run)
    if begun.finished:
        progress.say(f"{begun.folder} has finished already: nothing is left to do")
        return begun
    found = intake.read(begun.source["photos"], begun.recipe.class_order)
    setting = device.remembered(begun.folder / "environment.json") or prepared(begun.recipe, len(found.classes))
    clock.lap("prepare")
    dataset, keep = _taken_in(found, begun.recipe)
    begun.check_same_photos(dataset)
    clock.lap("read")
    return _interruptible(begun, dataset, keep, setting, clock)


def _taken_in(found: Dataset, recipe: Recipe) -> tuple[Dataset, Kept]:
    """Every photo opened once and given its part; the pixels row by row."""
    opened, keep = kept.opened(found, recipe.side, recipe.fit)
    return split.split(intake.with_classes(opened, recipe.class_order), recipe), keep


def _interruptible(run: Run, dataset: Dataset, keep: Kept, setting: Setting, clock: Stopwatch) -> Run:
    try:
        made = _train_and_score(run, dataset, keep, setting, clock)
    except KeyboardInterrupt:
        progress.say(f"stopped; nothing is lost. To go on: ikebana fit --resume {run.folder}")
        raise
    if advice := next_step(dataset, run.recipe, setting):
        progress.say(advice)
    return made


def _train_and_score(run: Run, dataset: Dataset, keep: Kept, setting: Setting, clock: Stopwatch) -> Run:
    findings = audit.findings(dataset)
    run.write_table("dataset.parquet", dataset.photos)
    run.write_json("audit.json", audit.as_json(dataset, findings))
    progress.say(audit.summary(dataset, findings))

    recipe, parts = run.recipe, inference.parts(dataset, keep.pixels)
    network = networks.build(recipe, len(dataset.classes)).to(setting.device)
    weights = backbones.fill(network, recipe)
    run.write_text("layers.txt", networks.layer_table(networks.layers(network, recipe.side), recipe.batch, recipe.side))
    if weights is not None:
        run.write_json("pretrained.json", backbones.provenance(weights))
    given = fitting.lesson(network, recipe, parts, features.origin(keep.folder.name, recipe, weights), setting)
    clock.lap("features")
    epochs = []
    for epoch in fitting.learn(given, recipe, setting, run.checkpoint):
        epochs.append(epoch)
        run.write_epochs(epochs)
        progress.event("epoch", **asdict(epoch))
    checkpoint.save_weights(run.weights, network)
    clock.lap("train")

    with progress.stage("score", len(given.held_out)) as bar:
        probabilities = inference.probabilities_of(fitting.lean(given), given.held_out, setting, bar)
    run.write_predictions(dataset, given.held_out.rows, probabilities)
    clock.lap("score")

    from ikebana.report import draw

    examples = augmentation.examples(keep.pixels[parts["train"].rows[0]], recipe.augmentation, recipe.seed)
    of_test = slice(len(parts["validation"]), None)
    scored = evaluate(probabilities[of_test], given.held_out.labels[of_test], dataset.classes, clock.seconds)
    draw.everything(run, dataset, keep.pixels, examples, scored)
    clock.lap("draw")
    return run.finish(scored, clock.seconds)
