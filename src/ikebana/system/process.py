"""Streams, signals and working directory, which a process shares with its shell."""

import atexit
import gc
import io
import os
import signal
import sys
from contextlib import suppress
from errno import EIO, ENOSPC
from typing import Any, TextIO

from ikebana.errors import MachineError
from ikebana.system import progress, terminal_size

# SIGINT and SIGTERM received so far.
received_signals: list[int] = []


def set_up() -> None:
    """Prepare streams and signal handlers, once, before any work."""
    _reduce_garbage_collection()
    _replace_closed_streams()
    _use_utf8()
    terminal_size.correct_variables()
    received_signals.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    atexit.register(_ignore_signals)


def check_working_directory() -> None:
    """Raise MachineError if the working directory no longer exists.

    Libraries look for files relative to it and would fail with errors of their own.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise MachineError(
            "the working directory no longer exists", advice="change to another folder with cd"
        ) from None


def translate_output_error(error: Exception) -> Exception:
    """Translate a full disk behind `> FILE` to a MachineError; return other errors unchanged.

    Such an error has no file name, since the shell opened the file.
    """
    if isinstance(error, OSError) and error.filename is None and error.errno in (ENOSPC, EIO):
        sys.stdout = _open_devnull()
        # Reports on standard error, which still works.
        progress.set_reporter(progress.TerminalReporter())
        return MachineError(f"the output cannot be written: {error.strerror}", advice="a file on another disk")
    return error


def translate_missing_library(error: ModuleNotFoundError) -> Exception:
    """Translate a missing library to a MachineError; return the error of a bug unchanged.

    An installation for prediction only has neither torch nor what draws and scores.
    """
    library = (error.name or "").partition(".")[0]
    if not library or library == "ikebana":
        return error
    return MachineError(
        f"this needs {library}, which is not installed; this installation may be for prediction only",
        advice="the complete installation: pip install -c requirements.lock . in ikebana's folder",
    )


def _reduce_garbage_collection() -> None:
    """Collect garbage rarely, since libraries create half a million objects that all stay.

    Scanning them took half a second of a command's start and over a second of its end.
    """
    gc.set_threshold(100_000, 50, 100)
    atexit.register(gc.freeze)


def _replace_closed_streams() -> None:
    """Send output to /dev/null where the stream is closed (`>&-`), so that the work continues."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, _open_devnull())


def _open_devnull() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _use_utf8() -> None:
    """Use UTF-8 in pipes: Windows or an old locale cannot encode all file names."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = None if stream.isatty() else "utf-8"
            errors = "surrogateescape" if stream is sys.stdin else "backslashreplace"
            # A program that calls `main` may have read from stdin before.
            with suppress(io.UnsupportedOperation):
                stream.reconfigure(encoding=encoding, errors=errors)


def _interrupt(number: int, _: Any) -> None:
    """Treat SIGTERM like Ctrl-C; record it, as C libraries may turn it into errors."""
    received_signals.append(number)
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    """Ignore signals during interpreter shutdown, where they would only change the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
