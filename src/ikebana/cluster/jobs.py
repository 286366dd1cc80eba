"""What all tasks of a job need, sent to each node once.

Ray sends the functions of tasks by name, so each node runs its own ikebana. Arguments and results
that are compared before the versions are therefore plain values.
"""

import functools
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from socket import gethostname
from typing import Any, TypeVar

import ray

from ikebana.errors import IkebanaError, MachineError
from ikebana.system.versions import find_versions

# What decodes photos and computes features.
LIBRARIES = ("torch", "timm", "numpy", "pillow", "pillow-heif")

Opened = TypeVar("Opened")


@dataclass(frozen=True)
class JobHandle:
    """Where a worker finds a job, and the versions that it must have."""

    # Ray's reference to the job, in a list, so that Ray does not fetch it for each task.
    reference: Sequence[Any]
    # Distinguishes jobs in the cache of a worker.
    key: str
    versions: Mapping[str, str]


def put_job(job: Any, versions: Mapping[str, str]) -> JobHandle:
    """Send a job to the nodes that need it.

    Args:
        versions: what a worker must have, of `describe_versions` or `describe_all_versions`.
    """
    return JobHandle((ray.put(job),), secrets.token_hex(8), versions)


@functools.cache
def describe_versions() -> Mapping[str, str]:
    """Describe what must be equal on all nodes before anything else is compared."""
    return {"ikebana": version("ikebana"), "Python": f"{sys.version_info.major}.{sys.version_info.minor}"}


@functools.cache
def describe_all_versions() -> Mapping[str, str]:
    """Describe what must be equal on all nodes that decode photos and use torch."""
    return {**describe_versions(), **{name: str(installed) for name, installed in find_versions(LIBRARIES).items()}}


def compare_versions(versions: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    """Describe how the versions of this process differ from those of the driver."""
    return [
        f"{name} {own.get(name) or 'none'} instead of {versions.get(name) or 'none'}"
        for name in sorted({*own, *versions})
        if own.get(name) != versions.get(name)
    ]


def fetch_job(
    handle: JobHandle, describe: Callable[[], Mapping[str, str]], check: Callable[[Any], object] | None = None
) -> Any:
    """Return a job; MachineError if this process has other versions than the driver.

    Args:
        describe: the function that the driver described its versions with.
        check: called with the job once per process; raises an error if it cannot be done here.
    """
    differences = compare_versions(handle.versions, describe())
    if differences:
        raise MachineError(", ".join(differences), advice="the same versions on all nodes")
    return _get(handle.key, handle.reference[0], check)


@functools.lru_cache(maxsize=1)
def _get(_: str, reference: Any, check: Callable[[Any], object] | None) -> Any:
    job = ray.get(reference)
    if check is not None:
        check(job)
    return job


class _OpenedJob:
    """What this process has opened for a job."""

    def __init__(self) -> None:
        self.key, self.stack = "", ExitStack()
        self.value: Any = None


_opened = _OpenedJob()


def open_once(handle: JobHandle, open_job: Callable[[], AbstractContextManager[Opened]]) -> Opened:
    """Enter a context at the first task of a job in this process.

    The first task of another job leaves it.
    """
    if _opened.key != handle.key:
        _opened.stack.close()
        _opened.key = ""
        _opened.value = _opened.stack.enter_context(open_job())
        _opened.key = handle.key
    return _opened.value


def return_error(work: Callable[[], object]) -> IkebanaError | None:
    """Do the work of a task; return the error that ends the command, or None."""
    try:
        work()
    except IkebanaError as error:
        error.what = f"{error.what} (on node {gethostname()})"
        return error
    return None
