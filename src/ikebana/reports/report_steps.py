"""What to do next with a run, as commands to copy."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ikebana.data.stores import is_address
from ikebana.evaluation.metrics import MIN_USEFUL_ACCURACY, Evaluation
from ikebana.recipe import MODULE_PREFIX
from ikebana.reports.mistakes import ScoredPhoto, SuspectPhoto
from ikebana.reports.report_text import capitalise, count, get_recall, percent
from ikebana.runs.run import Run

# Recipes that start from photos of everything, and are much more accurate than the tutorial's.
STRONG_RECIPES = ("quick", "good", "best")


@dataclass(frozen=True)
class NextStep:
    """What to do next.

    Attributes:
        text: one or two sentences.
        command: to copy; empty if there is none.
        link: the id of a section of the page; empty if there is none.
    """

    text: str
    command: str = ""
    link: str = ""


def suggest_next_steps(
    run: Run, suspects: Sequence[SuspectPhoto], mistakes: Sequence[ScoredPhoto] = ()
) -> list[NextStep]:
    """List what to do next, the most useful first.

    Args:
        suspects: held-out photos whose label is suspect.
        mistakes: the worst mistakes.
    """
    photos, folder = shlex.quote(get_photos_argument(run)), shlex.quote(shorten_path(run.folder))
    if is_weak(run):
        return [*_suggest_recipe(run, photos), *_suggest_photos(run.evaluation, photos)]
    steps = []
    if suspects:
        labels = count(len(suspects), "label", "labels")
        steps.append(
            NextStep(
                f"Look at {labels} of validation and test photos that may be wrong. Correct a wrong one in your "
                "collection: move the photo to its class, or change the table. The audit checks the training photos "
                "too; it uses other evidence, so its list differs.",
                f"ikebana audit {photos} --out audit",
                "suspects",
            )
        )
    if mistakes and not (run.recipe.refit_on_all or run.recipe.network.startswith(MODULE_PREFIX)):
        steps.append(
            NextStep(
                "See why it made a mistake: which parts of the photo speak for its answer, and which training photos it "
                "resembles. This is the worst mistake; others work in the same way.",
                f"ikebana explain {folder} {shlex.quote(mistakes[0].path)} --out why",
                "mistakes",
            )
        )
    steps += _suggest_groups(run.evaluation)
    steps += _suggest_photos(run.evaluation, photos) + _suggest_recipe(run, photos)
    steps.append(NextStep("Use it: one file that predicts the same everywhere.", f"ikebana export {folder} model.onnx"))
    return steps


def _suggest_groups(evaluation: Evaluation) -> list[NextStep]:
    """Point to the group of photos that is harder than the others by most."""
    worse = evaluation.slices.worse if evaluation.slices is not None else ()
    if not worse:
        return []
    hardest = worse[0]
    return [
        NextStep(
            f"Look at photos where {hardest.name} is {hardest.value}: {percent(hardest.accuracy)} of these test photos "
            f"are classified correctly, and {percent(hardest.accuracy_of_others)} of the others. Add such photos, or "
            "check their labels.",
            link="groups",
        )
    ]


def is_weak(run: Run) -> bool:
    """Return whether the accuracy is low and another recipe is usually much better."""
    is_user_module = run.recipe.network.startswith(MODULE_PREFIX)
    return (
        run.evaluation.accuracy_interval[0] < MIN_USEFUL_ACCURACY
        and run.recipe.name not in STRONG_RECIPES
        and not is_user_module
    )


def _suggest_recipe(run: Run, photos: str) -> list[NextStep]:
    """Return what `fit` suggested at its end; for a weak network the default recipe."""
    suggestion = run.suggestion
    if suggestion.get("command"):
        note = f" ({suggestion['note']})" if suggestion.get("note") else ""
        return [NextStep(f"Try a recipe that is {suggestion.get('text', '')}{note}.", str(suggestion["command"]))]
    if suggestion.get("text"):
        return [NextStep(f"It is {suggestion['text']}.")]
    if is_weak(run):
        text = (
            "Try the default recipe, which starts from a network that knows photos. It is usually much more accurate."
        )
        return [NextStep(text, f"ikebana fit {photos} --recipe quick")]
    return []


def _suggest_photos(evaluation: Evaluation, photos: str) -> list[NextStep]:
    """Suggest photos of which class to add, as far as it is known."""
    if evaluation.learning_curves:
        text = "; ".join(curve.describe() for curve in evaluation.learning_curves)
        is_likely = any(curve.is_gain_likely for curve in evaluation.learning_curves)
        advice = "Add photos" if is_likely else "More photos of the same kind may not help"
        command = f"ikebana audit {photos} --advise" if is_likely else ""
        return [NextStep(f"{advice}. {capitalise(text)}.", command, "learning")]
    recall = get_recall(evaluation)
    if not recall or min(recall.values()) == 1:
        return []
    weakest = min(recall, key=lambda name: recall[name])
    return [
        NextStep(
            f"Add photos of {weakest}, the class that it recognises least often ({percent(recall[weakest])}). "
            "The audit measures what more photos of each class would bring.",
            f"ikebana audit {photos} --advise",
        )
    ]


def get_photos_argument(run: Run) -> str:
    """Return the photos of a run for a command; a frame has no path."""
    return "PHOTOS" if run.source.get("root") else shorten_path(run.source["photos"])


def shorten_path(path: str | Path) -> str:
    """Return a path relative to the working directory if it is inside."""
    if is_address(path):
        return str(path)
    try:
        relative = os.path.relpath(path)
    # The working directory has gone, or is on another drive.
    except (OSError, ValueError):
        return str(path)
    return str(path) if relative.split(os.sep)[0] == os.pardir else relative
