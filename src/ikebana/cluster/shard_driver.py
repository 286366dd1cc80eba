"""Tasks on a Ray cluster, kept in flight until all shards are done.

The files are the state: a shard that exists and checks out is done, whatever Ray knows about its
task. So the driver may be killed, a node may disappear, and a second copy of a task is harmless.

Neither photos nor results pass through Ray: a worker reads the photos and writes the file.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

from ikebana.cluster.crash_search import MAX_CRASHES, CrashSearch, Work
from ikebana.cluster.nodes import count_slots, list_nodes
from ikebana.errors import MachineError, get_first_line
from ikebana.system import progress

# One computes while the next waits.
TASKS_PER_SLOT = 2
# Seconds between looks at the files, and at the number of CPUs.
WATCH_SECONDS = 5.0
WAIT_SECONDS = 1.0
# A shard that takes this many times the longest one, and at least so long, is computed a second time.
SLOW_FACTOR, MIN_SLOW_SECONDS = 5, 120.0


class ShardJob(Protocol):
    """The shards of a job, and the functions that compute them on a node."""

    @property
    def resources(self) -> Mapping[str, float]: ...  # of a task: num_cpus, num_gpus

    @property
    def crash_advice(self) -> str: ...  # if a shard crashes each time
    @property
    def noun(self) -> str: ...  # what the user knows a shard as

    # compute(*arguments, statuses of photos that are not opened) returns the error that ends the command.
    @property
    def compute(self) -> Callable[..., Any]: ...

    # try_photos(*arguments, start, stop); None if a photo cannot be to blame.
    @property
    def try_photos(self) -> Callable[..., Any] | None: ...

    def get_arguments(self, number: int) -> tuple[Any, ...]: ...  # of both, for this shard
    def count_photos(self, number: int) -> int: ...
    def is_done(self, number: int) -> bool: ...
    def get_place(self, number: int) -> Path | str: ...


class Task(NamedTuple):
    """A task in flight."""

    number: int
    work: Work
    started: float


def run_shards(job: ShardJob, numbers: Iterable[int], advance: Callable[[int], object]) -> None:
    """Compute shards on the connected cluster.

    Args:
        advance: called with the number of photos of each shard that is done.
    Raises:
        MachineError: a shard cannot be written, or crashes each time.
    """
    ShardDriver(job, advance).run(numbers)


class ShardDriver:
    """Keeps a window of tasks in flight until all shards are done."""

    def __init__(self, job: ShardJob, advance: Callable[[int], object]):
        self.job, self.advance = job, advance
        # How many times nodes have left.
        self.losses = 0
        self._define_tasks()
        self.tasks: dict[Any, Task] = {}
        # Before new shards, and after them.
        self.urgent: deque[tuple[int, Work]] = deque()
        self.late: deque[tuple[int, Work]] = deque()
        # Tasks in flight that may never end, because their node may be lost. They take no place in the window.
        self.doubted: set[Any] = set()
        self.node_ids: set[str] = set()
        self.unfinished: set[int] = set()
        self.searches: dict[int, CrashSearch] = {}
        self.copied: set[int] = set()
        self.longest_seconds = 0.0
        self.window = TASKS_PER_SLOT

    def run(self, numbers: Iterable[int]) -> None:
        """Compute the shards with these numbers."""
        waiting: deque[tuple[int, Work]] = deque((number, None) for number in numbers)
        self.unfinished.update(number for number, _ in waiting)
        next_watch = 0.0
        while self.unfinished:
            if time.monotonic() >= next_watch:
                self._watch()
                next_watch = time.monotonic() + WATCH_SECONDS
            while len(self.tasks) - len(self.doubted) < self.window and (queue := self.urgent or waiting or self.late):
                self._submit(*queue.popleft())
            if self.tasks:
                ready, _ = ray.wait(list(self.tasks), timeout=WAIT_SECONDS, fetch_local=False)
                for reference in ready:
                    self._receive(reference)

    def _define_tasks(self) -> None:
        """Define the Ray tasks, anew after each loss of nodes.

        Ray requests workers per kind of task, and no more than tasks wait. Requests that were sent to
        a lost node stay unanswered until its connection times out, so tasks of the same kind wait for
        minutes. A byte of memory makes another kind.
        """
        # Ray would retry tasks that ran out of memory forever, so the driver retries them itself.
        options: dict[str, Any] = {"max_retries": 0, "scheduling_strategy": "SPREAD", **self.job.resources}
        if self.losses:
            options["memory"] = self.losses
        self.compute: Any = ray.remote(self.job.compute).options(**options)
        try_photos = self.job.try_photos
        self.try_photos: Any = None if try_photos is None else ray.remote(try_photos).options(**options)

    def _forget(self, references: Iterable[Any]) -> None:
        """Stop waiting for tasks, which may end as they like: their files are whole.

        `ray.cancel` ends the driver's process if the task completes at the same moment (Ray 2.60).
        """
        for reference in list(references):
            del self.tasks[reference]
            self.doubted.discard(reference)

    def _submit(self, number: int, work: Work) -> None:
        if number not in self.unfinished:
            return
        arguments = self.job.get_arguments(number)
        if work is None:
            search = self.searches.get(number)
            reference = self.compute.remote(*arguments, search.statuses if search is not None else {})
        else:
            reference = self.try_photos.remote(*arguments, work.start, work.stop)
        self.tasks[reference] = Task(number, work, time.monotonic())

    def _receive(self, reference: Any) -> None:
        """Handle a task that has ended."""
        task = self.tasks.pop(reference, None)
        self.doubted.discard(reference)
        # Another task has written the same shard.
        if task is None:
            return
        try:
            error: Any = ray.get(reference)
        except NodeDiedError:
            self.urgent.append((task.number, task.work))
        except (WorkerCrashedError, OutOfMemoryError) as crash:
            self._record_crash(task, crash)
        except RayTaskError as failure:
            raise failure.cause if isinstance(failure.cause, Exception) else failure from failure
        else:
            # Another process may have completed the shard meanwhile, and removed where it is written.
            if error is not None and not self.job.is_done(task.number):
                raise error
            self._record_success(task)

    def _record_success(self, task: Task) -> None:
        if task.work is None:
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - task.started)
            self._finish(task.number)
        else:
            self._extend(task.number, self.searches[task.number].record_trial(task.work, has_crashed=False))

    def _record_crash(self, task: Task, crash: Exception) -> None:
        search = self.searches.setdefault(task.number, CrashSearch(self.job.count_photos(task.number)))
        if task.work is not None:
            self._extend(task.number, search.record_trial(task.work, has_crashed=True))
            return
        next_work = search.record_shard_crash()
        if search.is_hopeless or (self.try_photos is None and next_work != [None]):
            reason = (
                "crashes, but with none of its photos alone" if search.is_hopeless else f"crashed {MAX_CRASHES} times"
            )
            raise MachineError(
                f"the worker of {self.job.noun} {task.number} {reason}: {get_first_line(crash)}",
                where=self.job.get_place(task.number),
                advice=self.job.crash_advice,
            )
        self._extend(task.number, next_work)

    def _extend(self, number: int, works: Iterable[Work]) -> None:
        self.urgent.extend((number, work) for work in works)

    def _finish(self, number: int) -> None:
        """Count a shard as done."""
        self.unfinished.discard(number)
        self._forget([reference for reference, task in self.tasks.items() if task.number == number])
        self.advance(self.job.count_photos(number))

    def _watch(self) -> None:
        """Adapt the window to the nodes, and look at files of silent tasks."""
        slots = count_slots(self.job.resources)
        if not slots:
            needed = "a GPU" if self.job.resources.get("num_gpus") else f"{self.job.resources['num_cpus']:g} CPUs"
            progress.warn(f"no node of the Ray cluster has {needed}: waiting for one to join")
        self.window = TASKS_PER_SLOT * max(1, slots)
        self._doubt_lost_nodes()
        now = time.monotonic()
        ages = {task.number: now - task.started for task in self.tasks.values() if task.work is None}
        for number, age in ages.items():
            if age < WATCH_SECONDS:
                continue
            if self.job.is_done(number):
                self._finish(number)
            # Before one shard has ended, all may be slow.
            elif self.longest_seconds and age > max(MIN_SLOW_SECONDS, SLOW_FACTOR * self.longest_seconds):
                self._copy(number)

    def _doubt_lost_nodes(self) -> None:
        """Compute the tasks in flight once more, at the end, if a node has left.

        Ray may wait for minutes for a node that was cut off before it accepted a task. Most of these
        tasks are on other nodes, and have ended when their turn comes.
        """
        node_ids = {node.node_id for node in list_nodes()}
        has_lost = bool(self.node_ids - node_ids)
        self.node_ids = node_ids
        if not has_lost:
            return
        self.losses += 1
        self._define_tasks()
        trials = [reference for reference, task in self.tasks.items() if task.work is not None]
        # Each trial is counted once.
        self.urgent.extend((self.tasks[reference].number, self.tasks[reference].work) for reference in trials)
        self._forget(trials)
        self.late.extend((task.number, None) for reference, task in self.tasks.items() if reference not in self.doubted)
        self.doubted.update(self.tasks)

    def _copy(self, number: int) -> None:
        """Compute a shard a second time, because its node may have been cut off."""
        if number not in self.copied and number not in self.searches:
            self.copied.add(number)
            self.doubted.update(reference for reference, task in self.tasks.items() if task.number == number)
            self.urgent.append((number, None))
            progress.message(f"{self.job.noun} {number} takes long: computing it on another node too")
