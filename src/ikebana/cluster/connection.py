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

from ikebana.errors import MachineError, UsageError, advise_extra, get_first_line
from ikebana.system import progress

# Earlier versions have no node affinity by name, or no token authentication.
MIN_RAY_VERSION = (2, 54)
ADDRESS_VARIABLE = "RAY_ADDRESS"
# Ray itself tries an unreachable address for two minutes.
CONNECT_SECONDS = 5
ADVICE_START = (
    "start one: `ray start --head` on one machine, then on each other machine "
    "`ray start --address=HEAD:6379`; or set RAY_ADDRESS=HEAD:6379"
)
ADVICE_REFUSED = "the address of a Ray cluster, and the same version of Ray on all machines"
ADVICE_TOKEN = "RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token or in RAY_AUTH_TOKEN"
# For this process, unless the user has set it. No shorter keep-alive: workers answer pings during a long
# task with "too_many_pings" and close the connection, which looks like a crash.
# One attempt instead of twenty, each of which prints a line; it waits for a slow cluster.
DRIVER_VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_gcs_server_port_wait_time_s": "1"}


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
            address = _find_address(ray)
            _require_reachable(address)
            try:
                ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
            # Another version of Ray, no token, and more.
            except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise _make_refusal(error, address) from error
            _report_cluster(address)
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


def _report_cluster(address: str) -> None:
    from ikebana.cluster.nodes import list_nodes

    nodes = list_nodes()
    cpus = sum(node.cpus for node in nodes)
    progress.message(
        f"Ray cluster {address}: {len(nodes)} node{'s' * (len(nodes) != 1)}, {cpus} CPU{'s' * (cpus != 1)}"
    )


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
        advice = f"{advise_extra('cluster')} on each machine"
        if sys.platform != "linux":
            advice = "a Linux machine; or --shard K/N, which needs no engine"
        raise MachineError("Ray is not installed", advice=advice) from None
    installed = version("ray")
    if tuple(int(part) for part in installed.split(".")[:2]) < MIN_RAY_VERSION:
        wanted = ".".join(map(str, MIN_RAY_VERSION))
        raise MachineError(f"Ray {installed} is too old; {wanted} or newer is needed", advice=advise_extra("cluster"))
    return ray


def _find_address(ray: ModuleType) -> str:
    """Find the address that Ray will connect to.

    It is that of RAY_ADDRESS, or of a cluster on this machine. Ray has no public function for it.

    Raises:
        MachineError: no cluster was started on this machine.
    """
    services = ray._private.services
    # A cluster may have ended since the last call.
    services.find_gcs_addresses.cache_clear()
    is_disabled = services.logger.disabled
    # Its warning of several clusters comes again when Ray connects.
    services.logger.disabled = True
    try:
        return services.get_ray_address_from_environment("auto", None)
    except ConnectionError:
        raise MachineError("no Ray cluster found", where="this machine", advice=ADVICE_START) from None
    finally:
        services.logger.disabled = is_disabled


def _require_reachable(address: str) -> None:
    """Raise an error at once if an address HOST:PORT does not answer."""
    if address.startswith("ray://"):
        raise UsageError(
            "a connection through Ray Client is not supported",
            where=_describe_address(address),
            advice="run the command on a machine of the cluster, with RAY_ADDRESS=HEAD:6379 or without RAY_ADDRESS",
        )
    if "://" in address:
        raise UsageError(
            "the address of a Ray cluster is HOST:PORT; this is an address of its dashboard or of another service",
            where=_describe_address(address),
            advice="RAY_ADDRESS=HEAD:6379, with the port that `ray start --head` prints",
        )
    host, _, port = address.rpartition(":")
    # Ray would start a cluster for `local`.
    if not host or not port.isdecimal():
        what, advice = "the address of a Ray cluster is HOST:PORT", "for example RAY_ADDRESS=10.0.0.5:6379"
        raise UsageError(what, where=_describe_address(address), advice=advice)
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        what = f"no Ray cluster found: {get_first_line(error)}"
        advice = f"check {ADDRESS_VARIABLE}; or {ADVICE_START}" if os.environ.get(ADDRESS_VARIABLE) else ADVICE_START
        raise MachineError(what, where=_describe_address(address), advice=advice) from None


def _make_refusal(error: Exception, address: str) -> MachineError:
    """Make the error for a cluster that answers, but refuses the connection.

    It wants a token, or another version of Ray, or it is not a cluster of Ray at all.
    """
    where = _describe_address(address)
    # The text of the cause has the traceback of the first error.
    if "AuthenticationError" in f"{type(error).__name__} {error.__cause__}":
        what = "the Ray cluster refused the connection: the token is missing or wrong"
        return MachineError(what, where=where, advice=ADVICE_TOKEN)
    what = f"the Ray cluster refused the connection: {get_first_line(error)}"
    return MachineError(what, where=where, advice=ADVICE_REFUSED)


def _describe_address(address: str) -> str:
    if os.environ.get(ADDRESS_VARIABLE):
        return f"{ADDRESS_VARIABLE}={os.environ[ADDRESS_VARIABLE]}"
    return f"{address}, the latest cluster on this machine"


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
