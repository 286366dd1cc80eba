"""What a record says of the machine it was made on."""

import datetime
import importlib.metadata
import os
import statistics
from collections.abc import Sequence

import torch

from ikebana.learning import device


def header(*libraries: str) -> str:
    """Date, processor, processors and versions, on one line."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)
    return f"{datetime.date.today()}  {device.describe_processor()}  {os.cpu_count()} processors  {versions}"


def ended(on: str) -> None:
    """Wait for a device: a GPU is at it while the processor goes on."""
    if on != "cpu":
        torch.get_device_module(on).synchronize()


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and the least and most in brackets."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
