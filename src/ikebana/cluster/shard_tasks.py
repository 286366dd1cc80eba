"""Shards of predictions as tasks on a Ray cluster.

The files are the state: a shard that exists and checks out is done, whatever Ray knows about its
task. So the driver may be killed, a node may disappear, and a second copy of a task is harmless.

Neither photos nor predictions pass through Ray: a worker reads the photos and writes the file.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from ikebana.cluster import worker
from ikebana.cluster.crash_search import CrashSearch, Work
from ikebana.cluster.nodes import check_nodes, count_cpus
from ikebana.cluster.worker import CPUS_PER_TASK, Job, JobHandle
from ikebana.data import listing
from ikebana.errors import MachineError, UnreadablePhoto, get_first_line
from ikebana.inference.classifier import Classifier
from ikebana.inference.shard_plan import ShardPlan
from ikebana.inference.shards import check_shard
from ikebana.system import progress

# One computes while the next waits.
TASKS_PER_CPU = 2
# Seconds between looks at the files, and at the number of CPUs.
WATCH_SECONDS = 5.0
WAIT_SECONDS = 1.0
# A shard that takes this many times the longest one, and at least so long, is computed a second time.
SLOW_FACTOR, MIN_SLOW_SECONDS = 5, 120.0
# Photos of the plan that the driver tries, to find a readable one.
MAX_TRIED_PHOTOS = 20


class Task(NamedTuple):
    """A task in flight."""

    number: int
    work: Work
    started: float


def compute_shards(
    classifier: Classifier, plan: ShardPlan, numbers: Sequence[int], advance: Callable[[int], object]
) -> None:
    """Compute shards on the Ray cluster to which this process is connected.

    Args:
        numbers: the shards to compute.
        advance: called with the number of photos of each shard that is done.
    Raises:
        MachineError: a node differs from this machine, a shard cannot be written, or the cluster
            has ended.
        ModelError: the classifier is that of a run, which cannot be sent.
    """
    job = Job(plan, classifier)
    try:
        handle = JobHandle((ray.put(job),), job.key, worker.describe_versions())
        check_nodes(worker.inspect, handle, _find_readable_photo(plan))
        driver = ShardDriver(handle, plan, advance)
        try:
            driver.run(numbers)
        finally:
            driver.cancel_all()
    except RayError as error:
        raise MachineError(
            f"the Ray cluster failed: {get_first_line(error)}", advice="run the same command again to resume"
        ) from error


def _find_readable_photo(plan: ShardPlan) -> tuple[Any, ...] | None:
    """Find a photo that this machine can read; None if none of the first."""
    for photo in plan.read_photos(0)[:MAX_TRIED_PHOTOS]:
        with suppress(UnreadablePhoto):
            listing.read_photo(photo)
            return tuple(photo)
    return None


class ShardDriver:
    """Keeps a window of tasks in flight until all shards are done."""

    def __init__(self, handle: JobHandle, plan: ShardPlan, advance: Callable[[int], object]):
        # Ray would retry tasks that ran out of memory forever, so the driver retries them itself.
        options = {"num_cpus": CPUS_PER_TASK, "max_retries": 0, "scheduling_strategy": "SPREAD"}
        self.handle, self.plan, self.advance = handle, plan, advance
        self.compute = ray.remote(worker.compute).options(**options)
        self.try_photos = ray.remote(worker.try_photos).options(**options)
        self.tasks: dict[Any, Task] = {}
        # Before new shards.
        self.urgent: deque[tuple[int, Work]] = deque()
        self.unfinished: set[int] = set()
        self.searches: dict[int, CrashSearch] = {}
        self.copied: set[int] = set()
        self.longest_seconds = 0.0
        self.window = TASKS_PER_CPU

    def run(self, numbers: Iterable[int]) -> None:
        """Compute the shards with these numbers."""
        waiting = deque(numbers)
        self.unfinished.update(waiting)
        next_watch = 0.0
        while self.unfinished:
            if time.monotonic() >= next_watch:
                self._watch()
                next_watch = time.monotonic() + WATCH_SECONDS
            while len(self.tasks) < self.window and (self.urgent or waiting):
                self._submit(*(self.urgent.popleft() if self.urgent else (waiting.popleft(), None)))
            if self.tasks:
                ready, _ = ray.wait(list(self.tasks), timeout=WAIT_SECONDS, fetch_local=False)
                for reference in ready:
                    self._receive(reference)

    def cancel_all(self) -> None:
        """Cancel all tasks in flight; half-written files keep their temporary names."""
        self._cancel(self.tasks)

    def _cancel(self, references: Iterable[Any]) -> None:
        for reference in list(references):
            del self.tasks[reference]
            with suppress(RayError):
                ray.cancel(reference)

    def _submit(self, number: int, work: Work) -> None:
        if number not in self.unfinished:
            return
        if work is None:
            search = self.searches.get(number)
            reference = self.compute.remote(self.handle, number, search.statuses if search is not None else {})
        else:
            reference = self.try_photos.remote(self.handle, number, work.start, work.stop)
        self.tasks[reference] = Task(number, work, time.monotonic())

    def _receive(self, reference: Any) -> None:
        """Handle a task that has ended."""
        task = self.tasks.pop(reference, None)
        # It was cancelled because another task has written the same shard.
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
            if error is not None:
                raise error
            self._record_success(task)

    def _record_success(self, task: Task) -> None:
        if task.work is None:
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - task.started)
            self._finish(task.number)
        else:
            self._extend(task.number, self.searches[task.number].record_trial(task.work, has_crashed=False))

    def _record_crash(self, task: Task, crash: Exception) -> None:
        search = self.searches.setdefault(task.number, CrashSearch(self.plan.count_photos(task.number)))
        if task.work is not None:
            self._extend(task.number, search.record_trial(task.work, has_crashed=True))
            return
        self._extend(task.number, search.record_shard_crash())
        if search.is_hopeless:
            raise MachineError(
                f"the worker of shard {task.number} crashes, but with none of its photos alone: {get_first_line(crash)}",
                where=self.plan.get_place(task.number),
                advice="more memory per CPU on the nodes, or fewer photos per shard: --replan --shard-photos 100",
            )

    def _extend(self, number: int, works: Iterable[Work]) -> None:
        self.urgent.extend((number, work) for work in works)

    def _finish(self, number: int) -> None:
        """Count a shard as done."""
        self.unfinished.discard(number)
        self._cancel([reference for reference, task in self.tasks.items() if task.number == number])
        self.advance(self.plan.count_photos(number))

    def _watch(self) -> None:
        """Adapt the window to the CPUs, and look at files of silent tasks."""
        cpus = count_cpus()
        if not cpus:
            progress.warn("no node of the Ray cluster has CPUs: waiting for one to join")
        self.window = TASKS_PER_CPU * max(1, cpus)
        now = time.monotonic()
        ages = {task.number: now - task.started for task in self.tasks.values() if task.work is None}
        for number, age in ages.items():
            if age < WATCH_SECONDS:
                continue
            if not self.plan.list_missing([number]):
                # The last step notices and repairs a damaged file.
                if not isinstance(check_shard(self.plan, number), str):
                    self._finish(number)
            elif age > max(MIN_SLOW_SECONDS, SLOW_FACTOR * self.longest_seconds):
                self._copy(number)

    def _copy(self, number: int) -> None:
        """Compute a shard a second time, because its node may have been cut off."""
        if number not in self.copied and number not in self.searches:
            self.copied.add(number)
            self.urgent.append((number, None))
            progress.message(f"shard {number} takes long: computing it on another node too")
