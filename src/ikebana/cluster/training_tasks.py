"""Runs of a sweep as tasks on a Ray cluster, one per node or GPU.

The run folders are on a disk that all nodes share, and are the state: a run that was interrupted
continues from its checkpoint on any node.
"""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from ikebana.cluster import jobs, training_worker
from ikebana.cluster.node_checks import find_readable_photo, inspect_node, mark_folder
from ikebana.cluster.nodes import check_nodes, choose_resources
from ikebana.commands.sweep import PlannedRun, TrainedRun, train_run
from ikebana.data import sources
from ikebana.data.sources import PhotoSource
from ikebana.data.stores import is_address
from ikebana.errors import MachineError, get_first_line
from ikebana.runs.run import open_run

MAX_ATTEMPTS = 3
WAIT_SECONDS = 1.0
# Ray ends the processes of a node that was cut off within 60 s. Before that, they may still write
# into the run's folder.
CUT_OFF_SECONDS = 90.0


@dataclass
class TrainingTask:
    """A run that is not finished."""

    planned: PlannedRun
    attempts: int = 0
    # By the monotonic clock: not to be started before.
    not_before: float = 0.0


def train_runs(photos: PhotoSource, runs: Sequence[PlannedRun], folder: Path, device: str) -> Iterator[TrainedRun]:
    """Train runs on the connected cluster, and yield each as it ends.

    Args:
        photos: at an address or a path that is the same on all nodes, or a table in memory.
        folder: of the run folders, on a disk that all nodes share.
    Raises:
        MachineError: a node differs from this machine, or the cluster has ended.
    """
    missing = []
    for run in runs:
        if (folder / run.name / "evaluation.json").exists():
            yield train_run(photos, run, folder, device)
        else:
            missing.append(run)
    if not missing:
        return
    if isinstance(photos, str | os.PathLike) and not is_address(photos):
        photos = os.path.abspath(os.path.expanduser(photos))
    try:
        _check_nodes(photos, folder.absolute())
        yield from _run_tasks(photos, missing, folder, device)
    except RayError as error:
        raise MachineError(
            f"the Ray cluster failed: {get_first_line(error)}", advice=f"repeat the command with --out {folder}"
        ) from error


def _check_nodes(photos: PhotoSource, folder: Path) -> None:
    """Refuse nodes that cannot read the photos or the folder of this machine."""
    with mark_folder(folder) as mark:
        check_nodes(inspect_node, jobs.describe_all_versions(), find_readable_photo(sources.read(photos)), mark)


def _run_tasks(photos: PhotoSource, runs: Sequence[PlannedRun], folder: Path, device: str) -> Iterator[TrainedRun]:
    remote = ray.remote(training_worker.train).options(
        max_retries=0, scheduling_strategy="SPREAD", **choose_resources(device)
    )
    versions, waiting = jobs.describe_all_versions(), deque(TrainingTask(run) for run in runs)
    tasks: dict[Any, TrainingTask] = {}
    try:
        while waiting or tasks:
            now = time.monotonic()
            for task in [task for task in waiting if task.not_before <= now]:
                waiting.remove(task)
                place = os.path.abspath(folder / task.planned.name)
                arguments = (photos, task.planned.recipe, place, device)
                tasks[remote.remote(versions, *arguments)] = task
            if not tasks:
                time.sleep(WAIT_SECONDS)
                continue
            ready, _ = ray.wait(list(tasks), timeout=WAIT_SECONDS)
            for reference in ready:
                task = tasks.pop(reference)
                ended = _receive(reference, task, folder)
                if ended is None:
                    waiting.append(task)
                else:
                    yield ended
    finally:
        for reference in tasks:
            with suppress(RayError):
                ray.cancel(reference)


def _receive(reference: Any, task: TrainingTask, folder: Path) -> TrainedRun | None:
    """Return how a run ended, or None if it has to be continued."""
    task.attempts += 1
    try:
        error, seconds = ray.get(reference)
    except (NodeDiedError, WorkerCrashedError, OutOfMemoryError) as crash:
        if isinstance(crash, NodeDiedError):
            task.not_before = time.monotonic() + CUT_OFF_SECONDS
        if task.attempts < MAX_ATTEMPTS:
            return None
        what = f"the process of this run ended {task.attempts} times: {get_first_line(crash)}"
        return TrainedRun(task.planned, MachineError(what, advice="more memory on the nodes"))
    except RayTaskError as failure:
        return TrainedRun(task.planned, failure.cause or failure)
    if error is not None:
        return TrainedRun(task.planned, error, seconds)
    return TrainedRun(task.planned, open_run(folder / task.planned.name), seconds)
