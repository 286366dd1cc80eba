"""Validated records: typed fields, whose explanations become help texts, and errors for users.

pydantic validates the records. `_describe_error` maps its errors to RecipeError.
"""

from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from ikebana.errors import RecipeError
from ikebana.system.percentages import parse_share

# Strict: neither "3" nor True is a number of epochs.
CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

FractionBelowOne = Annotated[float, Field(ge=0, lt=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
# Also accepts texts such as 5%.
Share = Annotated[float, BeforeValidator(parse_share), Field(gt=0, lt=1)]
OptionalShare = Annotated[Annotated[float, Field(gt=0, lt=1)] | None, BeforeValidator(parse_share)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
LearningRate = Annotated[float, Field(gt=0, le=1e30)]
# Lists are accepted for tuples.
Pair = Annotated[tuple[float, float], Field(strict=False)]
Triple = Annotated[tuple[float, float, float], Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
PathText = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]


def option(default: Any, explanation: str, is_text: bool = False) -> Any:
    """Declare a recipe field with its explanation for the command line and the docs.

    Args:
        is_text: the command line passes its text on, which the field's type parses.
    """
    return field(default=default, metadata={"explanation": explanation, "is_text": is_text})


@dataclass(frozen=True, config=CONFIG)
class Record:
    """A validated record. An invalid value raises RecipeError, not pydantic's error."""

    @model_validator(mode="wrap")
    @classmethod
    def _convert_errors(cls, values: Any, validate: Any) -> Self:
        try:
            record = validate(values)
        except ValidationError as error:
            raise _describe_error(cls, error) from None
        for problem, advice in record._find_problems():
            raise RecipeError(problem, advice=advice)
        return record

    def _find_problems(self) -> list[tuple[str, str]]:
        """List invalid combinations of valid values, each with advice."""
        return []


def _describe_error(record: type[Record], error: ValidationError) -> RecipeError:
    """Map pydantic's first error to the error that users see."""
    first = error.errors(include_url=False)[0]
    names = [str(part) for part in first["loc"] if isinstance(part, str)]
    title = getattr(record, "kind", record.__name__.lower()).replace("_", " ")
    if len(first["loc"]) == 1 and first["type"] in {"unexpected_keyword_argument", "missing"}:
        problem = "has no option" if first["type"] != "missing" else "lacks the option"
        known = ", ".join(record_field.name for record_field in fields(record) if record_field.name != "kind")
        return RecipeError(
            f"{title} {problem} {names[-1]!r}",
            advice=f"one of: {known}; a recipe.json needs the version of ikebana in its run's environment.json",
        )
    name = names[0] if names else title
    if first["type"].startswith("union_tag"):
        kinds = first.get("ctx", {}).get("expected_tags", "").replace("'", "")
        return RecipeError(f"{title}: unknown kind of {name}", advice=f"one of: {kinds}")
    if len(first["loc"]) > 1 and first["type"] in {"missing", "unexpected_positional_argument", "too_long"}:
        return RecipeError(
            f"{title}: {name} has the wrong number of values", advice=f"as many as in {_get_default(record, name)}"
        )
    if first["type"] == "dataclass_type":
        return RecipeError(f"{title}: {name} is {first['input']!r}", advice="a record, such as ikebana.Scratch()")
    expected = first["msg"].replace("Input should be", "it must be").removeprefix("Value error, ")
    return RecipeError(f"{title}: {name} is {first['input']!r}; {expected}")


def _get_default(record: type[Record], name: str) -> Any:
    return next(record_field.default for record_field in fields(record) if record_field.name == name)
