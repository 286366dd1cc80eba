"""The connection to a Ray cluster that the user has started."""

import logging
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from types import ModuleType

from ikebana.errors import MachineError, UsageError, get_first_line

# Earlier versions have no node affinity by name, or no token authentication.
MIN_RAY_VERSION = (2, 54)
ADDRESS_VARIABLE = "RAY_ADDRESS"
# Ray itself tries an unreachable address for two minutes.
CONNECT_SECONDS = 5
ADVICE_START = (
    "start one: `ray start --head` on one machine, then on each other machine "
    "`ray start --address=HEAD:6379`; or set RAY_ADDRESS=HEAD:6379"
)
ADVICE_REFUSED = "the same version of Ray on all machines; RAY_AUTH_MODE=token and the cluster's token, if it has one"
# For this process, unless the user has set it. No shorter keep-alive: workers answer pings during a long
# task with "too_many_pings" and close the connection, which looks like a crash.
DRIVER_VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def connect() -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS, or to the one that runs on this machine.

    A connection of the caller's is used and left open. No cluster is started.

    Raises:
        MachineError: Ray is missing or too old, or there is no cluster.
    """
    with _preserve_process():
        ray = _import_ray()
        is_own = not ray.is_initialized()
        if is_own:
            _require_reachable(os.environ.get(ADDRESS_VARIABLE, ""))
            try:
                ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
            except ConnectionError as error:
                raise _connection_error(error) from None
            # Another version of Ray, no token, and more.
            except (RuntimeError, ValueError, ray.exceptions.RayError) as error:
                what = f"the Ray cluster refused the connection: {get_first_line(error)}"
                raise MachineError(what, where=_describe_address(), advice=ADVICE_REFUSED) from error
    if not is_own:
        yield
        return
    # Its end prints the rest.
    with _silence(ray):
        try:
            yield
        finally:
            with _preserve_process():
                ray.shutdown()


@contextmanager
def _silence(ray: ModuleType) -> Iterator[None]:
    """Keep Ray from printing on standard output that a process of the cluster died.

    There is no public switch: `log_to_driver` is about what the workers print.
    """
    internals = ray._private.worker
    previous = getattr(internals, "_worker_logs_enabled", True)
    internals._worker_logs_enabled = False
    try:
        yield
    finally:
        internals._worker_logs_enabled = previous


def _import_ray() -> ModuleType:
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError:
        advice = "pip install 'ikebana[cluster]' on each machine"
        if sys.platform != "linux":
            advice = "a Linux machine; or --shard K/N, which needs no engine"
        raise MachineError("Ray is not installed", advice=advice) from None
    installed = version("ray")
    if tuple(int(part) for part in installed.split(".")[:2]) < MIN_RAY_VERSION:
        wanted = ".".join(map(str, MIN_RAY_VERSION))
        raise MachineError(
            f"Ray {installed} is too old; {wanted} or newer is needed", advice="pip install -U 'ikebana[cluster]'"
        )
    return ray


def _require_reachable(address: str) -> None:
    """Raise an error at once if an address HOST:PORT does not answer."""
    if address.startswith("ray://"):
        raise UsageError(
            "a connection through Ray Client is not supported",
            where=f"{ADDRESS_VARIABLE}={address}",
            advice="run the command on a machine of the cluster, with RAY_ADDRESS=HEAD:6379 or without RAY_ADDRESS",
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise _connection_error(error) from None


def _connection_error(error: OSError) -> MachineError:
    """Build the error for a missing cluster, or one that wants a token."""
    what = f"no Ray cluster found: {get_first_line(error)}"
    # Ray's own errors have no number. If an address was given, something answered there.
    is_refused = error.errno is None and ADDRESS_VARIABLE in os.environ
    return MachineError(what, where=_describe_address(), advice=ADVICE_REFUSED if is_refused else ADVICE_START)


def _describe_address() -> str:
    address = os.environ.get(ADDRESS_VARIABLE)
    return f"{ADDRESS_VARIABLE}={address}" if address else "this machine"


@contextmanager
def _preserve_process() -> Iterator[None]:
    """Restore what Ray changes: environment variables, Python's rng, and the SIGTERM handler."""
    environment, handler, rng = dict(os.environ), signal.getsignal(signal.SIGTERM), random.getstate()
    os.environ.update({name: value for name, value in DRIVER_VARIABLES.items() if name not in environment})
    try:
        yield
    finally:
        for name in set(os.environ) - set(environment):
            with suppress(KeyError):
                del os.environ[name]
        os.environ.update(environment)
        random.setstate(rng)
        # Only the main thread may set a handler, and Ray sets none elsewhere.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
