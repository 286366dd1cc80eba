"""The command line; the flags of `fit` and `serve` come from Recipe and Limits."""

import signal
import sys
from typing import Any

from cyclopts.exceptions import CycloptsError

# The commands register themselves.
from ikebana.cli import other_commands, prediction_commands, training_commands  # noqa: F401
from ikebana.cli.app import (
    EXIT_BROKEN_PIPE,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_TERMINATED,
    EXIT_WRONG_USAGE,
    app,
)
from ikebana.errors import IkebanaError, PeerError, UsageError
from ikebana.system import launch, process, progress
from ikebana.system.usage import translate_parser_error, unwrap_descriptions

for _name in app:
    if not _name.startswith("-"):
        unwrap_descriptions(app[_name].default_command)


def _report_error(error: Any) -> int:
    """Report an IkebanaError and return the exit status; raise any other error."""
    if not isinstance(error, IkebanaError):
        raise error
    if isinstance(error, PeerError) and error.is_reported:
        return EXIT_REFUSED
    progress.error(f"{type(error).__name__}: {error}")
    details = {"what": error.what, "where": str(error.where or ""), "advice": error.advice or ""}
    progress.event("error", kind=type(error).__name__, **details)
    return EXIT_WRONG_USAGE if isinstance(error, UsageError) else EXIT_REFUSED


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process.

    The exit status is 0 done, 1 refused, 2 wrong usage, 3 leakage, 130 interrupted (Ctrl-C), 141
    broken pipe, 143 interrupted (SIGTERM).
    """
    process.set_up()
    launch.silence_torch()
    previous_reporter = progress.set_reporter(progress.TerminalReporter())
    try:
        status = _run(arguments)
    finally:
        # A program that calls `main` gets back what it reported with.
        progress.set_reporter(previous_reporter)
    sys.exit(status)


def _run(arguments: list[str] | None) -> int:
    """Run a command and return the exit status."""
    try:
        process.check_working_directory()
        status = app(arguments, exit_on_error=False, print_error=False) or EXIT_DONE
    except CycloptsError as error:
        status = _report_error(translate_parser_error(error))
    # The reader of the output has ended, as in `ikebana predict … | head`.
    except BrokenPipeError:
        sys.stderr.close()
        status = EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except ModuleNotFoundError as error:
        status = _report_error(process.translate_missing_library(error))
    except Exception as error:
        status = EXIT_INTERRUPTED if process.received_signals else _report_error(process.translate_output_error(error))
    if status == EXIT_INTERRUPTED and process.received_signals[:1] == [signal.SIGTERM]:
        status = EXIT_TERMINATED
    return status
