"""What a record says of the machine it was made on."""

import datetime
import importlib.metadata
import os
import statistics
from collections.abc import Sequence

from ikebana.learning import device


def header(*libraries: str) -> str:
    """Date, processor, processors and versions, on one line."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)
    return f"{datetime.date.today()}  {device.processor()}  {os.cpu_count()} processors  {versions}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and the least and most in brackets."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
