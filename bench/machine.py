"""Describe the machine, and format the results of a benchmark."""

import datetime
import importlib.metadata
import os
import statistics
from collections.abc import Sequence

import torch

from ikebana.learning import device


def format_header(*libraries: str) -> str:
    """Format the date, the processor, its core count and library versions on one line."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)
    return f"{datetime.date.today()}  {device.describe_processor()}  {os.cpu_count()} processors  {versions}"


def synchronize(device_name: str) -> None:
    """Wait until a device has finished, because GPU kernels run asynchronously."""
    if device_name != "cpu":
        torch.get_device_module(device_name).synchronize()


def format_spread(values: Sequence[float], digits: int = 2) -> str:
    """Format the median, with the minimum and maximum in brackets."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
