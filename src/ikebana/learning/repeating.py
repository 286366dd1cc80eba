"""The same photos and the same `recipe.json` make the same run again: what must be the same besides, and what is not."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ikebana.recipe import Recipe

# What a sum of many numbers depends on in its last digits: how many threads share it, and whose code does it.
DECIDING = ("device", "accelerator", "number_format", "processor", "threads", "ikebana", "libraries")
PROMISE = (
    "the same photos and recipe.json give the same bits on this processor with as many threads and these libraries; "
    "elsewhere sums are taken in another order, which moves last digits, and after many steps the score a little"
)


def differing(recipe: str | Path | Recipe, now: dict[str, Any]) -> str:
    """What is not as it was when the run whose `recipe.json` this is was made; nothing if all is alike, or nobody knows.

    now  the contents of an `environment.json`
    """
    if isinstance(recipe, Recipe):
        return ""
    lines = _since(Path(recipe).expanduser().parent, now)
    if lines is None:
        return ""
    if not lines:
        return "made again on the machine that it was made on: the same bits are expected"
    return f"{'; '.join(lines)}: the result may differ a little from that of the run that is made again"


def changed_since(run: Path, now: dict[str, Any]) -> str:
    """What a run that is gone on with does not find as it was; nothing if all is alike, or nobody knows.

    run  its folder
    now  the contents of an `environment.json`
    """
    lines = _since(run, now)
    return (
        f"{'; '.join(lines)}: the result may differ a little from that of a run that was never stopped" if lines else ""
    )


def _since(run: Path, now: dict[str, Any]) -> list[str] | None:
    """What decides the last digits and is not as the run's own `environment.json` says; None if there is none."""
    try:
        then = json.loads((run / "environment.json").read_text("utf-8"))
        return [line for name in DECIDING for line in _differing(name, then.get(name), now.get(name))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _differing(name: str, then: Any, now: Any) -> list[str]:
    if isinstance(then, dict):
        return [line for each in then for line in _differing(each, then[each], now.get(each))]
    return [] if then == now else [f"{name} was {then} and is {now}"]


def differences(then: Recipe, now: Recipe) -> list[str]:
    """Each choice that is not the same in both, in words: "epochs was 20 and is 30"."""
    pairs = ((each.name, getattr(then, each.name), getattr(now, each.name)) for each in fields(Recipe))
    return [line for name, one, other in pairs for line in _differences(name, one, other)]


def _differences(name: str, then: Any, now: Any) -> list[str]:
    if is_dataclass(then) and is_dataclass(now):
        inner = ((each.name, getattr(then, each.name), getattr(now, each.name)) for each in fields(then))
        return [line for each, one, other in inner for line in _differences(f"{name}'s {each}", one, other)]
    return [] if then == now else [f"{name} was {then!r} and is {now!r}"]
