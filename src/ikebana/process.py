"""What a process has from the shell that began it, and owes to it: its streams, signals and working directory."""

import atexit
import gc
import io
import os
import signal
import sys
from contextlib import suppress
from errno import EIO, ENOSPC
from typing import Any, TextIO

from ikebana import progress
from ikebana.errors import MachineError

came: list[int] = []  # signals that ask for an end


def set_up() -> None:
    """Once, before any work: streams that can be written to, and signals that end the work in good order."""
    _collect_less()
    _open_what_is_closed()
    _speak_utf8()
    came.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    atexit.register(_nothing_to_stop)


def check_here() -> None:
    """Refuse to work in a folder that has gone: libraries look for their files from there, and end in words of their own.

    raises  MachineError
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise MachineError("the folder that you are in has gone", advice="go to one that is there: cd") from None


def of_output(error: Exception) -> Exception:
    """A full disk behind `> FILE` has no name of its own, since it was the shell that opened the file."""
    if isinstance(error, OSError) and error.filename is None and error.errno in (ENOSPC, EIO):
        sys.stdout = _nobody()
        progress.listen(progress.People())  # who speak on standard error
        return MachineError(f"the output cannot be written: {error.strerror}", advice="a file on another disk")
    return error


def _collect_less() -> None:
    """Libraries make half a million objects that all stay. To look through them for garbage, again and again while they load and
    once more at the end, took half a second of a command's start and more than one of its end."""
    gc.set_threshold(100_000, 50, 100)
    atexit.register(gc.freeze)


def _open_what_is_closed() -> None:
    """What is said to a stream that was closed, `>&-`, is said to nobody, and the work goes on."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, _nobody())


def _nobody() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _speak_utf8() -> None:
    """What programs read is UTF-8 everywhere: a file's name need not fit into what Windows, or an old locale, gives to a pipe."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = None if stream.isatty() else "utf-8"
            errors = "surrogateescape" if stream is sys.stdin else "backslashreplace"
            with suppress(io.UnsupportedOperation):  # who calls `main` in a program may have read from it before
                stream.reconfigure(encoding=encoding, errors=errors)


def _stop(number: int, _: Any) -> None:
    """SIGTERM is treated as Ctrl-C is. That it came is remembered: libraries in C make other errors of it, now and then."""
    came.append(number)
    raise KeyboardInterrupt


def _nothing_to_stop() -> None:
    """While the interpreter takes itself apart, with torch in it a second or so, a signal would change the status alone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
