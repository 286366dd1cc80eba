"""Messages for wrong usage, instead of those of the argument parser."""

import inspect
import os
from collections.abc import Callable
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from cyclopts import App
from cyclopts.exceptions import (
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from ikebana.errors import UsageError

# Below this similarity, a suggestion would be a guess.
MIN_SUGGESTION_SIMILARITY = 0.75
# Of files that a command takes as one collection of photos, by their pattern.
PATTERN_SUFFIXES = (".tar", ".parquet")
# What other tools call the commands.
COMMANDS_OF_OTHER_TOOLS = {
    "check": "audit",
    "train": "fit",
    "resume": "fit --resume RUN",
    "infer": "predict",
    "classify": "predict",
}
# What other tools or other commands call an option; the first that the command has is suggested.
OTHER_NAMES_OF_OPTIONS = {
    "--out": ("--run",),
    "--output": ("--out", "--run"),
    "--lr": ("--learning-rate",),
    "--model": ("--network",),
}


def unwrap_descriptions(command: Callable[..., Any] | None) -> None:
    """Join the lines of each parameter's description in the docstring of a command.

    The help breaks lines to fit the terminal, and would also keep those of the docstring.
    """
    if command is None:
        return
    sections = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    command.__doc__ = "\n\n".join(_join_descriptions(section) for section in sections)


def _join_descriptions(section: str) -> str:
    """Join indented lines that follow an indented line."""
    lines: list[str] = []
    for line in section.splitlines():
        if line.startswith("    ") and lines and lines[-1].startswith("    "):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    return "\n".join(lines)


def translate_parser_error(error: CycloptsError) -> UsageError:
    """Translate an error of the parser to one that says what to try."""
    help_command = " ".join(("ikebana", *(error.command_chain or ()), "--help"))
    if isinstance(error, UnknownCommandError):
        return _translate_unknown_command((error.unused_tokens or [""])[0], error.app)
    if isinstance(error, UnusedCliTokensError):
        return _translate_unused_arguments(error.unused_tokens or [], help_command)
    if isinstance(error, UnknownOptionError):
        option = (error.token.keyword or error.token.value).split("=", 1)[0]
        names = [name for argument in error.argument_collection for name in argument.names if name.startswith("--")]
        similar = get_close_matches(option, names, n=1, cutoff=MIN_SUGGESTION_SIMILARITY)
        similar = similar or [name for name in OTHER_NAMES_OF_OPTIONS.get(option, ()) if name in names]
        return UsageError(
            f"there is no option {option}", advice=f"{similar[0]}, or {help_command}" if similar else help_command
        )
    if type(error) is MissingArgumentError and error.argument is not None:
        if error.keyword is None:
            return UsageError(f"{error.argument.name.lstrip('-').upper()} is missing", advice=help_command)
        return _translate_missing_value(error.keyword, error.root_input_tokens or [], help_command)
    return UsageError(str(error), advice=help_command)


def _translate_missing_value(option: str, arguments: list[str], help_command: str) -> UsageError:
    """Refuse a negative value, which the parser takes for an option, by its name."""
    for name, value in pairwise(arguments):
        if name == option and value.startswith("-") and value[1:2].isdigit():
            return UsageError(f"{option} cannot be negative: {value}", advice=help_command)
    return UsageError(f"{option} needs a value", advice=help_command)


def _translate_unused_arguments(arguments: list[str], help_command: str) -> UsageError:
    """Suggest to quote the pattern that the shell seems to have replaced with its files."""
    suffixes = {suffix for suffix in PATTERN_SUFFIXES if all(name.endswith(suffix) for name in arguments)}
    is_expanded = bool(suffixes) and all(map(os.path.isfile, arguments))
    pattern = os.path.join(os.path.dirname(arguments[-1]), f"*{suffixes.pop()}") if is_expanded else ""
    return UsageError(
        f"unexpected argument: {' '.join(arguments)}",
        advice=f"quote a pattern, so that the shell does not replace it: '{pattern}'" if pattern else help_command,
    )


def _translate_unknown_command(name: str, app: App | None) -> UsageError:
    """Suggest the command that was probably meant, or name all commands."""
    commands = [command for command in app or () if not command.startswith("-")]
    similar = get_close_matches(name, commands, n=1, cutoff=MIN_SUGGESTION_SIMILARITY)
    suggestion = COMMANDS_OF_OTHER_TOOLS.get(name) or "".join(similar)
    advice = f"ikebana {suggestion}, or ikebana --help" if suggestion else f"one of {', '.join(sorted(commands))}"
    return UsageError(f'there is no command "{name}"', advice=advice)
