"""Versions of installed libraries."""

import importlib.metadata
from collections.abc import Iterable


def find_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Find the version of each library by its name; None where it is not installed."""
    return {name: _find_version(name) for name in names}


def _find_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
