"""The switch of all fast paths: the environment variable IKEBANA_FAST."""

import os

from ikebana.errors import RecipeError

VARIABLE = "IKEBANA_FAST"


def is_enabled() -> bool:
    """Return whether fast paths may be used; `IKEBANA_FAST=off` disables all of them.

    The variable is read at each call.

    Raises:
        RecipeError: its value is neither on nor off.
    """
    value = os.environ.get(VARIABLE) or "on"
    if value not in ("on", "off"):
        raise RecipeError(f"{VARIABLE} is {value!r}; it must be on or off", advice=f"{VARIABLE}=off, or unset it")
    return value == "on"
