"""Flags that come from the fields of records: recipes and the limits of a server."""

import csv
from dataclasses import fields, make_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import Group, Parameter

from ikebana.cli.app import CONFIDENCE, LIMITS, NETWORK, SPLIT, TRAINING, parse_integer
from ikebana.errors import UsageError
from ikebana.recipe import list_options
from ikebana.recipes import RECIPES
from ikebana.serving.limits import Limits

RecipeName = Literal[tuple(RECIPES)]  # type: ignore[valid-type]
OPTION_GROUPS = {
    **dict.fromkeys(("network", "weights", "truncate_at", "image_size", "resize", "dropout"), NETWORK),
    **dict.fromkeys(("split", "split_seed", "split_fractions", "class_order"), SPLIT),
    **dict.fromkeys(("coverage", "at_most_wrong"), CONFIDENCE),
}


def _flag_type(field: Any) -> Any:
    """Return the type of a recipe field's flag.

    Tuples and percentages are parsed from text; None keeps the recipe's value.
    """
    flag_type = _get_plain_type(field)
    return (str if get_origin(flag_type) is tuple or field.metadata["is_text"] else flag_type) | None


def _get_plain_type(field: Any) -> Any:
    """Return a field's type without pydantic's constraints."""
    return get_args(field.type)[0] if get_origin(field.type) is Annotated else field.type


def _make_flags_class(name: str, flags: list[tuple[str, Any, Any]]) -> type[Any]:
    """Make a dataclass for cyclopts from (name, type, default) per flag."""
    flags_class = make_dataclass(name, flags, frozen=True)
    # Otherwise cyclopts takes it for a class of Python's own and does not expand it.
    flags_class.__module__ = __name__
    return flags_class


def _annotate(flag_type: Any, field: Any, group: Group, **settings: Any) -> Any:
    if int in (flag_type, *get_args(flag_type)):
        settings["converter"] = parse_integer
    return Annotated[flag_type, Parameter(help=field.metadata["explanation"], group=group, **settings)]


OPTION_FIELDS = list(list_options().values())
RecipeOptions = _make_flags_class(
    "RecipeOptions",
    [
        (field.name, _annotate(_flag_type(field), field, OPTION_GROUPS.get(field.name, TRAINING), negative=()), None)
        for field in OPTION_FIELDS
    ],
)
LimitOptions = _make_flags_class(
    "LimitOptions",
    [(field.name, _annotate(_get_plain_type(field), field, LIMITS), field.default) for field in fields(Limits)],
)


def parse_options(options: Any) -> dict[str, Any]:
    """Return the flags that were given, with the recipe's types."""
    values = {field.name: getattr(options, field.name) for field in OPTION_FIELDS}
    types = {field.name: _get_plain_type(field) for field in OPTION_FIELDS}
    tuples = {name: declared for name, declared in types.items() if get_origin(declared) is tuple}
    given = {name: value for name, value in values.items() if value is not None}
    return {name: _parse_tuple(name, value, tuples[name]) if name in tuples else value for name, value in given.items()}


def _parse_tuple(name: str, text: str, declared: Any) -> tuple[Any, ...]:
    """Parse A,B,C as a CSV row, so an entry with a comma can be quoted."""
    try:
        [entries] = csv.reader([text], skipinitialspace=True)
        return tuple(declared.__args__[0](entry.strip()) for entry in entries)
    except ValueError:
        raise UsageError(
            f"--{name.replace('_', '-')} {text!r} is not a list of numbers", advice="0.6,0.2,0.2"
        ) from None
