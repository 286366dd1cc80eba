"""Messages for wrong usage, instead of those of the argument parser."""

from difflib import get_close_matches

from cyclopts.exceptions import CycloptsError, MissingArgumentError, UnknownOptionError, UnusedCliTokensError

from ikebana.errors import UsageError

# Below this similarity, a suggestion would be a guess.
MIN_SUGGESTION_SIMILARITY = 0.75


def translate_parser_error(error: CycloptsError) -> UsageError:
    """Translate an error of the parser to one that says what to try."""
    help_command = " ".join(("ikebana", *(error.command_chain or ()), "--help"))
    if isinstance(error, UnusedCliTokensError):
        return UsageError(f"unexpected argument: {' '.join(error.unused_tokens or ())}", advice=help_command)
    if isinstance(error, UnknownOptionError):
        option = (error.token.keyword or error.token.value).split("=", 1)[0]
        names = [name for argument in error.argument_collection for name in argument.names if name.startswith("--")]
        similar = get_close_matches(option, names, n=1, cutoff=MIN_SUGGESTION_SIMILARITY)
        return UsageError(
            f"there is no option {option}", advice=f"{similar[0]}, or {help_command}" if similar else help_command
        )
    if type(error) is MissingArgumentError and error.argument is not None:
        if error.keyword is None:
            return UsageError(f"{error.argument.name.lstrip('-').upper()} is missing", advice=help_command)
        return UsageError(f"{error.keyword} needs a value", advice=help_command)
    return UsageError(str(error), advice=help_command)
