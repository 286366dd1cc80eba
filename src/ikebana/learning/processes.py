"""The group of processes that share one training, under torchrun or another launcher.

Process 0 is the leader: it opens the photos, decides, and writes everything. The others are workers,
which wait for it and share the training steps. Small values and long waits use gloo and the launcher's
key-value store, on the CPU. Gradients use gloo, or NCCL on GPUs.

A process that fails leaves a note in the store. The others look for notes while they wait, so that a
failure ends all of them with its reason instead of a timeout.
"""

import itertools
import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore, Store

from ikebana.errors import IkebanaError, MachineError, PeerError, get_first_line
from ikebana.system import progress
from ikebana.system.launch import Launch, read_launch
from ikebana.system.versions import find_versions

# Until all processes have started, and until all take part in one exchange.
JOIN_TIMEOUT, EXCHANGE_TIMEOUT = timedelta(minutes=5), timedelta(minutes=10)
# Between two looks for the end of an exchange, and for a key in the store.
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 2e-5, 0.05
# Between two looks for the note of a process that failed.
NOTE_INTERVAL_SECONDS = 0.5
# How long a process that ends waits until the others have noticed.
FAREWELL_SECONDS = 5.0
# Libraries whose versions change results.
COMPARED_VERSIONS = ("ikebana", "torch", "timm")
FAILURE_KEY = "failure"

_joined_group: ContextVar["ProcessGroup | None"] = ContextVar("joined_group", default=None)
# A program may train several times: each time has its own keys in the store.
_training_numbers = itertools.count(1)


def get_group() -> "ProcessGroup | None":
    """Return the group that this process has joined; None if it is alone."""
    return _joined_group.get()


def is_leader() -> bool:
    """Return whether this process decides and writes, because it leads or is alone."""
    group = get_group()
    return group is None or group.is_leader


@contextmanager
def take_turns(name: str) -> Iterator[None]:
    """Run a block that fills a cache in turns: later processes find what others computed.

    The leader comes first, then one process of each other machine, then the rest.
    """
    group = get_group()
    if group is None:
        yield
        return
    turn = 0 if group.is_leader else 1 if group.launch.local_rank == 0 else 2
    for _ in range(turn):
        group.meet(name)
    yield
    for _ in range(turn, 3):
        group.meet(name)


class ProcessGroup:
    """The processes of one training, and what they exchange.

    All processes make the same calls in the same order.
    """

    def __init__(self, launch: Launch, store: Store):
        self.launch, self.store = launch, store
        # Of values on the CPU.
        self.host_group: Any = dist.new_group(backend="gloo", timeout=EXCHANGE_TIMEOUT)
        # Of values on GPUs, once `use_device` has chosen one.
        self.gpu_group: Any = None
        # How often each name was used: all processes count alike, so each use has its own key.
        self._uses: Counter[str] = Counter()

    @property
    def is_leader(self) -> bool:
        return self.launch.is_leader

    def sum_(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        self._exchange(lambda group: dist.all_reduce(values, group=group, async_op=True), values)
        return values

    def max_(self, values: Tensor) -> Tensor:
        """Take the maxima over all processes, in place."""
        self._exchange(lambda group: dist.all_reduce(values, dist.ReduceOp.MAX, group, async_op=True), values)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Stack the values of all processes, in the order of ranks: [processes, ...]."""
        stacked = values.new_empty((self.launch.size, *values.shape))
        parts = list(stacked.unbind())
        self._exchange(lambda group: dist.all_gather(parts, values.contiguous(), group, async_op=True), values)
        return torch.stack(parts)

    def send(self, name: str, content: bytes) -> None:
        """Send bytes from the leader to all workers, which are in `receive` or will be."""
        self.store.set(self._make_key(name), str(len(content)))
        self._broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8))

    def receive(self, name: str) -> bytes:
        """Wait for what the leader sends, however long it takes."""
        key = self._make_key(name)
        self._await_key(key)
        content = torch.empty(int(self.store.get(key)), dtype=torch.uint8)
        self._broadcast(content)
        return content.numpy().tobytes()

    def meet(self, name: str) -> None:
        """Wait until every process is here, however long it takes."""
        key = self._make_key(name)
        self.store.set(f"{key} {self.launch.rank}", "")
        for rank in range(self.launch.size):
            self._await_key(f"{key} {rank}")

    def use_device(self, device: str) -> None:
        """Prepare the exchange of gradients on a device.

        Raises:
            MachineError: this process cannot use the device, or shares its GPU with another one.
        """
        if device == "mps":
            raise MachineError("several processes cannot share an Apple GPU", advice="--device cpu, or one process")
        if device == "cpu":
            return
        if not torch.cuda.is_available():
            raise MachineError(f"{self._describe()} has no GPU that PyTorch can use", advice="--device cpu")
        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        gpus = self.share_facts("gpu", {"host": socket.gethostname(), "gpu": gpu})
        if gpus.count(gpus[self.launch.rank]) > 1:
            raise MachineError(
                f"{self._describe()} has the same GPU as another process",
                advice="at most one process per GPU, such as torchrun --nproc-per-node gpu",
            )
        self.gpu_group = dist.new_group(backend="nccl", timeout=EXCHANGE_TIMEOUT)

    def share_facts(self, name: str, facts: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the facts of all processes, in the order of ranks."""
        key = self._make_key(name)
        self.store.set(f"{key} of {self.launch.rank}", json.dumps(facts))
        self.meet(key)
        return [json.loads(self.store.get(f"{key} of {rank}")) for rank in range(self.launch.size)]

    def report_failure(self, error: BaseException) -> None:
        """Leave a note for the others, and give them time to read it."""
        if isinstance(error, PeerError):
            return
        is_interrupt = isinstance(error, KeyboardInterrupt)
        note = {
            "process": self._describe(),
            "what": "it was interrupted" if is_interrupt else get_first_line(Exception(str(error) or repr(error))),
            "kind": type(error).__name__,
            "advice": (error.advice if isinstance(error, IkebanaError) else None) or "see its own output",
        }
        with suppress(RuntimeError):  # the store is in a process that has ended
            self.store.compare_set(FAILURE_KEY, "", json.dumps(note))
            if not is_interrupt:
                self._say_farewell("seen failure")

    def leave(self) -> None:
        """End the group once the leader's last message has arrived everywhere."""
        with suppress(RuntimeError):
            self._say_farewell("left")

    def _make_key(self, name: str) -> str:
        self._uses[name] += 1
        return f"{name} {self._uses[name]}"

    def _describe(self) -> str:
        return f"{self.launch} on {socket.gethostname()}"

    def _broadcast(self, content: Tensor) -> None:
        if len(content):
            self._exchange(lambda group: dist.broadcast(content, 0, group, async_op=True), content)

    def _exchange(self, start: Callable[[Any], Any], values: Tensor) -> None:
        """Exchange values with all processes.

        A wait on the CPU is a loop in Python, so that signals and the failures of others are noticed.

        Raises:
            PeerError: another process has failed or ended.
        """
        try:
            if values.device.type != "cpu":
                start(self.gpu_group).wait()
                return
            work = start(self.host_group)
            self._poll(work.is_completed)
            work.wait()
        except RuntimeError as error:
            raise self._explain(error) from None

    def _await_key(self, name: str) -> None:
        try:
            self._poll(lambda: self.store.check([name]))
        except RuntimeError as error:
            raise self._explain(error) from None

    def _poll(self, is_done: Callable[[], bool]) -> None:
        pause, looked_at = MIN_PAUSE_SECONDS, time.monotonic()
        while not is_done():
            time.sleep(pause)
            pause = min(1.5 * pause, MAX_PAUSE_SECONDS)
            if time.monotonic() - looked_at > NOTE_INTERVAL_SECONDS:
                looked_at = time.monotonic()
                if self.store.check([FAILURE_KEY]):
                    raise self._explain()

    def _explain(self, error: RuntimeError | None = None) -> PeerError:
        """Describe why an exchange failed, by the note of the process that failed."""
        try:
            # Where a connection broke, its note is on the way, unless the process was killed.
            deadline = time.monotonic() + NOTE_INTERVAL_SECONDS
            while not self.store.check([FAILURE_KEY]) and time.monotonic() < deadline:
                time.sleep(MAX_PAUSE_SECONDS)
            if self.store.check([FAILURE_KEY]):
                note = json.loads(self.store.get(FAILURE_KEY))
                self.store.set(f"seen failure {self.launch.rank}", "")
                what = f"{note['process']} has failed: {note['kind']}: {note['what']}"
                if note["kind"] == "KeyboardInterrupt":
                    what = f"{note['process']} was interrupted"
                return PeerError(what, advice=note["advice"], is_reported=not self.is_leader)
        except RuntimeError as store_error:
            error = error or store_error
        reason = f": {get_first_line(error)}" if error is not None else ""
        return PeerError(
            f"another process of this training has ended or cannot be reached{reason}",
            advice="the output of the other processes, and the network between the machines",
        )

    def _say_farewell(self, name: str) -> None:
        """Wait for a short time until every process is here."""
        self.store.set(f"{name} {self.launch.rank}", "")
        deadline = time.monotonic() + FAREWELL_SECONDS
        others = [f"{name} {rank}" for rank in range(self.launch.size)]
        while not self.store.check(others) and time.monotonic() < deadline:
            time.sleep(MAX_PAUSE_SECONDS)


@contextmanager
def join() -> Iterator[ProcessGroup | None]:
    """Join the other processes of this training within this block; None if there are none.

    Workers report nothing within it.

    Raises:
        UsageError: the launcher's variables are incomplete.
        MachineError: other processes did not start, or have other versions of ikebana or torch.
    """
    launch = read_launch()
    if not launch.has_peers or get_group() is not None:
        yield get_group()
        return
    with ExitStack() as stack:
        stack.enter_context(_use_own_gpu(launch))
        if not launch.is_leader:
            stack.enter_context(progress.use_reporter(progress.SilentReporter()))
        group = _connect(launch, stack)
        token = _joined_group.set(group)
        try:
            _compare_versions(group)
            yield group
            group.leave()
        except BaseException as error:
            group.report_failure(error)
            raise
        finally:
            _joined_group.reset(token)


@contextmanager
def _use_own_gpu(launch: Launch) -> Iterator[None]:
    """Make the GPU of this process's local rank the current one."""
    if not torch.cuda.is_available():
        yield
        return
    with torch.cuda.device(launch.local_rank % torch.cuda.device_count()):
        yield


def _connect(launch: Launch, stack: ExitStack) -> ProcessGroup:
    """Connect to the other processes, or use the connection that the program has made already."""
    try:
        if not dist.is_initialized():
            dist.init_process_group("gloo", rank=launch.rank, world_size=launch.size, timeout=JOIN_TIMEOUT)
            stack.callback(dist.destroy_process_group)
        # Its name is private, but there is no other way to the store of a program's own group.
        store = distributed_c10d._get_default_store()
        return ProcessGroup(launch, PrefixStore(f"ikebana {next(_training_numbers)}", store))
    except (RuntimeError, ValueError) as error:
        raise MachineError(
            f"{launch} cannot reach the others: {get_first_line(error)}",
            advice=f"start all {launch.size} processes, with a MASTER_ADDR and MASTER_PORT that each of them can reach",
        ) from None


def _compare_versions(group: ProcessGroup) -> None:
    """Refuse processes with other versions than the leader's; MachineError."""
    versions = group.share_facts("versions", find_versions(COMPARED_VERSIONS))
    if not group.is_leader:
        return
    for rank, others in enumerate(versions):
        for name in COMPARED_VERSIONS:
            if others[name] != versions[0][name]:
                raise MachineError(
                    f"process {rank} has {name} {others[name]}, process 0 has {versions[0][name]}",
                    advice="the same versions on every machine",
                )
