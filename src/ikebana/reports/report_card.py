"""The data and model card of a run, and how to repeat it."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ikebana.data.dataset import SPLITS
from ikebana.errors import RunError
from ikebana.recipe import MODULE_PREFIX, recipe_to_json
from ikebana.reports.report_steps import get_photos_argument, shorten_path
from ikebana.reports.report_text import capitalise, count, describe_network, join_names, percent
from ikebana.runs.run import Run

# Test photos of a class below which its score is uncertain.
MIN_TEST_PHOTOS = 30
INTENDED_USE = (
    "To classify photos of the same kind as the training photos: the same classes, and similar subjects, cameras and "
    "places."
)
GENERAL_LIMIT = (
    "Where a wrong answer does harm, a person must check the answers. The scores hold for photos of the same kind only; "
    "other cameras, places or seasons may lower them."
)


@dataclass(frozen=True)
class Card:
    """The rows of a card: title and text."""

    title: str
    rows: tuple[tuple[str, str], ...]


def make_cards(run: Run) -> list[Card]:
    """Make the cards of the photos, the model and the training."""
    return [
        Card("Data", tuple(_describe_data(run))),
        Card("Model", tuple(_describe_model(run))),
        Card("Training", tuple(_describe_training(run))),
    ]


def _describe_data(run: Run) -> list[tuple[str, str]]:
    used = run.dataset.filter(status="used")
    splits = ", ".join(f"{split} {used.filter(split=split).height:,}" for split in SPLITS)
    recipe = run.recipe
    how = {"stratified": "the same share of each class, duplicates and groups together", "shuffle": "shuffled"}
    return [
        ("photos", str(run.source.get("root") or run.source["photos"])),
        ("used", f"{count(used.height, 'photo', 'photos')} in {count(len(run.classes), 'class', 'classes')}"),
        ("skipped", f"{run.dataset.height - used.height:,}"),
        ("split", f"{splits}; {how[recipe.split]}, split seed {recipe.split_seed}"),
        ("fingerprint", run.source["fingerprint"]),
    ]


def _describe_model(run: Run) -> list[tuple[str, str]]:
    recipe = run.recipe
    shape = "squashed to a square" if recipe.resize == "squash" else f"{recipe.resize} to a square"
    rows = [
        ("network", describe_network(recipe)),
        ("input", f"{recipe.image_size} x {recipe.image_size} pixels, {shape}"),
        ("parameters", _find_parameters(run)),
        ("weights", f"{run.weights.stat().st_size / 1e6:.1f} MB" if run.weights.exists() else ""),
    ]
    for network, source in run.pretrained.items():
        if isinstance(source, Mapping):
            licence = f", licence {source['license']}" if source.get("license") else ""
            rows.append((f"initial weights of {network}", f"{source.get('source', 'a file')}{licence}"))
    return [(name, text) for name, text in rows if text]


def _find_parameters(run: Run) -> str:
    """Return the number of parameters and of the trainable ones, as text.

    Returns:
        "" if the table of layers is missing.
    """
    totals = dict(line.rsplit(None, 1) for line in read_layer_table(run).splitlines()[-3:] if len(line.split()) > 1)
    totals = {name.strip(): number for name, number in totals.items()}
    if "parameters" not in totals:
        return ""
    return f"{totals['parameters']}, {totals.get('trainable', 'all')} of them trainable"


def read_layer_table(run: Run) -> str:
    """Return the layers as text; empty if the file is missing."""
    try:
        return run.layer_table
    except RunError:
        return ""


def _describe_training(run: Run) -> list[tuple[str, str]]:
    environment, seconds = run.environment, run.evaluation.seconds
    libraries = environment.get("libraries")
    versions = ", ".join(f"{name} {version}" for name, version in libraries.items()) if libraries else ""
    rows = [
        ("recipe", f"{run.recipe.name}, seed {run.recipe.seed}"),
        # A linear probe is fitted directly, and its history has one row.
        ("epochs", "" if run.recipe.method.kind == "linear_probe" else f"{run.history.height:,}"),
        ("seconds", ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())),
        ("processor", str(environment.get("processor") or "")),
        ("accelerator", str(environment.get("accelerator") or "")),
        ("precision", str(environment.get("precision") or "")),
        ("threads", str(environment.get("threads") or "")),
        ("system", f"{environment.get('system', '')}, Python {environment.get('python', '')}"),
        ("ikebana", str(environment.get("ikebana") or "")),
        ("libraries", versions),
    ]
    return [(name, text) for name, text in rows if text]


def list_limits(run: Run) -> list[str]:
    """List what a user of the network must know."""
    evaluation = run.evaluation
    few = [name for name, scores in evaluation.per_class.items() if scores.support < MIN_TEST_PHOTOS]
    limits = []
    if few:
        limits.append(f"Fewer than {MIN_TEST_PHOTOS} test photos, so an uncertain score: {join_names(few)}.")
    if evaluation.slices is not None:
        limits += [f"{slice_.describe().rstrip('.')}." for slice_ in evaluation.slices.worse]
    if evaluation.unknown_objects is not None:
        if evaluation.unknown_objects.left_out:
            share = percent(evaluation.unknown_objects.mean_left_out)
            limits.append(f"Of things that resemble its classes, it recognises only about {share} as unknown.")
        else:
            limits.append("How often it recognises things that resemble its classes was not measured.")
    else:
        limits.append("It names one of its classes whatever a photo shows.")
    return [*limits, GENERAL_LIMIT]


def format_recipe(run: Run) -> str:
    """Return every option as JSON."""
    return json.dumps(recipe_to_json(run.recipe), indent=2, ensure_ascii=False)


def list_commands(run: Run) -> list[tuple[str, str]]:
    """List what each command does that repeats or uses the run, and the command."""
    path = shorten_path(run.folder)
    folder, photos, recipe_file = shlex.quote(path), shlex.quote(get_photos_argument(run)), f"{path}/recipe.json"
    if run.recipe.network.startswith(MODULE_PREFIX):
        repeat = f"ikebana.fit({get_photos_argument(run)!r}, {recipe_file!r}, model=model)"
        export = f"ikebana.export({path!r}, 'model.onnx', model=model)"
    else:
        repeat = f"ikebana fit {photos} --recipe {shlex.quote(recipe_file)}"
        export = f"ikebana export {folder} model.onnx"
    return [
        ("Train it again", repeat),
        ("Make this page again", f"ikebana report {folder}"),
        ("Export it", export),
        ("Classify new photos", "ikebana predict model.onnx PHOTOS"),
    ]


def get_reproducibility(environment: Mapping[str, Any]) -> str:
    """Return what must be the same for the same bits; empty if not recorded."""
    text = str(environment.get("reproducibility") or "")
    return f"{capitalise(text).rstrip('.')}." if text else ""
