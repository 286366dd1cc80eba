"""Reproducibility: what a run and its repetition must share to give the same bits."""

import json
import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ikebana.recipe import Recipe

# Entries of `environment.json` that affect the last digits of a sum: how many threads share it, and
# which library computes it. `fast_paths` is there only if they are off.
REPRODUCIBILITY_KEYS = (
    "device", "accelerator", "precision", "processor", "threads", "fast_paths", "processes", "ikebana",
    "libraries",
)  # fmt: skip


def describe_rerun_differences(recipe: str | Path | Recipe, environment: dict[str, Any]) -> str:
    """Describe how the environment differs from that of the run whose `recipe.json` is repeated.

    Args:
        environment: the contents of an `environment.json`.
    Returns:
        "" if there is no such run or its environment is unknown.
    """
    if isinstance(recipe, Recipe):
        return ""
    lines = _compare_environments(Path(os.path.expanduser(recipe)).parent, environment)
    if lines is None:
        return ""
    if not lines:
        return "same machine and versions as the original run: the result should be bit-identical"
    return f"{'; '.join(lines)}: the result may differ slightly from the original run"


def describe_resume_differences(run: Path, environment: dict[str, Any]) -> str:
    """Describe how the environment has changed since the run that is resumed was started.

    Args:
        run: the run's folder.
        environment: the contents of an `environment.json`.
    Returns:
        "" if nothing has changed or the run's environment is unknown.
    """
    lines = _compare_environments(run, environment)
    return f"{'; '.join(lines)}: the result may differ slightly from an uninterrupted run" if lines else ""


def _compare_environments(run: Path, environment: dict[str, Any]) -> list[str] | None:
    """List the differences from the run's own `environment.json`; None if it cannot be read."""
    try:
        before = json.loads((run / "environment.json").read_text("utf-8"))
        pairs = ((name, before.get(name), environment.get(name)) for name in REPRODUCIBILITY_KEYS)
        return [line for pair in pairs for line in _compare_entries(*pair)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _compare_entries(name: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, dict):
        return [line for key in before for line in _compare_entries(key, before[key], now.get(key))]
    return [] if before == now else [f"{name} was {before} and is {now}"]


def describe_recipe_changes(before: Recipe, now: Recipe) -> list[str]:
    """List the options that differ, as text: "epochs was 20 and is 30"."""
    pairs = ((field.name, getattr(before, field.name), getattr(now, field.name)) for field in fields(Recipe))
    return [line for pair in pairs for line in _compare_options(*pair)]


def _compare_options(name: str, before: Any, now: Any) -> list[str]:
    if is_dataclass(before) and type(before) is type(now):
        # Options of the method have unique names, as on the command line.
        prefix = "" if name == "method" else f"{name}'s "
        names = [field.name for field in fields(before)]
        pairs = ((f"{prefix}{inner}", getattr(before, inner), getattr(now, inner)) for inner in names)
        return [line for pair in pairs for line in _compare_options(*pair)]
    return [] if before == now else [f"{name} was {before!r} and is {now!r}"]
