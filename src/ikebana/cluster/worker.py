"""What runs on the nodes of a cluster for `ikebana predict`."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RaySystemError

from ikebana.cluster import jobs
from ikebana.cluster.jobs import JobHandle
from ikebana.cluster.node_checks import inspect_photo
from ikebana.data import listing
from ikebana.errors import IkebanaError, get_first_line
from ikebana.inference.classifier import Classifier
from ikebana.inference.shard_plan import ShardPlan
from ikebana.inference.shards import compute_shard, predict_listed
from ikebana.system.files import atomic_write
from ikebana.system.threads import limit_threads

# CPUs, and threads, per task.
CPUS_PER_TASK = 1


@dataclass(frozen=True)
class Job:
    """What each worker needs."""

    plan: ShardPlan
    # Pickled as the bytes of its model file.
    classifier: Classifier


def compute(handle: JobHandle, number: int, crashed: Mapping[int, str]) -> IkebanaError | None:
    """Compute a shard; return the error that ends the command, or None.

    Args:
        crashed: the status of photos that are not opened, by their position in the shard.
    """

    def work() -> None:
        with limit_threads(CPUS_PER_TASK):
            job = _open_job(handle)
            compute_shard(job.classifier, job.plan, number, unusable=crashed)

    return jobs.return_error(work)


def try_photos(handle: JobHandle, number: int, start: int, stop: int) -> None:
    """Predict some photos of a shard, to see whether the process crashes."""
    with limit_threads(CPUS_PER_TASK):
        job = _open_job(handle)
        for _ in predict_listed(job.classifier, job.plan.read_photos(number)[start:stop]):
            pass


def _open_job(handle: JobHandle) -> Job:
    """Open a job; MachineError if this node would compute other rows than the driver."""
    return jobs.fetch_job(handle, jobs.describe_versions, _require_plan)


def _require_plan(job: Job) -> None:
    job.plan.require(str(job.classifier.metadata.get("sha256")), job.classifier)


def inspect(handle: JobHandle, photo: Sequence[Any] | None, target: str) -> list[str]:
    """Describe why this node cannot compute the shards; an empty list if it can.

    Args:
        photo: a row of the plan that the driver can read, as a plain tuple.
        target: the folder of the shards, as the user knows it.
    """
    differences = jobs.compare_versions(handle.versions, jobs.describe_versions())
    if differences:
        return differences
    try:
        with limit_threads(CPUS_PER_TASK):
            job = _open_job(handle)
    except IkebanaError as error:
        return [error.what]
    # A plan in a store is opened when the job is received.
    except RaySystemError as error:
        return [f"{target} cannot be used: {get_first_line(error).removeprefix('System error: ')}"]
    problems = _inspect_target(job.plan)
    if photo is not None:
        row = listing.ListedPhoto(*photo)
        problems += inspect_photo(row.address, lambda: listing.read_photo(row))
    return problems


def _inspect_target(plan: ShardPlan) -> list[str]:
    """Check that the folder has the driver's plan and can be written."""
    target, trial = plan.describe_target(), f".trial-{secrets.token_hex(4)}"
    try:
        opened = plan.reopen()
        if opened is None or opened.names != plan.names:
            return [f"{target} is not the folder of the driver, which has the plan"]
        with atomic_write(plan.folder / trial, create_parent=False) as partial_file:
            partial_file.write_bytes(b"trial")
        plan.publish(trial)
        plan.remove(trial)
    except IkebanaError as error:
        return [f"{target} cannot be used: {get_first_line(error)}"]
    return []
