"""The terminal's size as environment variables state it, corrected where no text fits into it."""

import os
import sys
from contextlib import suppress

# With fewer columns the help never ends, or has one word per line.
MIN_COLUMNS, MAX_COLUMNS = 40, 1000
MIN_LINES, MAX_LINES = 5, 1000


def correct_variables() -> None:
    """Correct COLUMNS and LINES for this process, before a library reads them.

    Terminals, containers and scripts set them to 0, to 1 or to no number. A window that is narrower
    than the limit gets lines of that limit, which the terminal wraps.
    """
    _correct("COLUMNS", MIN_COLUMNS, MAX_COLUMNS)
    _correct("LINES", MIN_LINES, MAX_LINES)
    if "COLUMNS" not in os.environ and 0 < _measure_columns() < MIN_COLUMNS:
        os.environ["COLUMNS"] = str(MIN_COLUMNS)


def _correct(name: str, minimum: int, maximum: int) -> None:
    value = os.environ.get(name)
    if value is None:
        return
    # Other digits pass `isdigit`, and long ones are no number for `int`.
    is_number = value.isascii() and value.isdigit() and len(value) < 10
    if not is_number or not int(value):
        del os.environ[name]
    else:
        os.environ[name] = str(min(max(int(value), minimum), maximum))


def _measure_columns() -> int:
    """Return the columns of the terminal; 0 if no standard stream is one."""
    for stream in (sys.__stderr__, sys.__stdout__, sys.__stdin__):
        with suppress(OSError, ValueError, AttributeError):
            return os.get_terminal_size(stream.fileno()).columns  # type: ignore[union-attr]
    return 0
