"""Shards of predictions as tasks on a Ray cluster."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ray.exceptions import RayError

from ikebana.cluster import jobs, worker
from ikebana.cluster.jobs import JobHandle
from ikebana.cluster.node_checks import find_readable
from ikebana.cluster.nodes import check_nodes
from ikebana.cluster.shard_driver import run_shards
from ikebana.cluster.worker import CPUS_PER_TASK, Job
from ikebana.data import listing
from ikebana.errors import MachineError, get_first_line
from ikebana.inference.classifier import Classifier
from ikebana.inference.shard_plan import ShardPlan
from ikebana.inference.shards import check_shard


class PredictionJob:
    """The shards of a plan."""

    resources: Mapping[str, float] = MappingProxyType({"num_cpus": CPUS_PER_TASK})
    noun = "shard"
    crash_advice = "more memory per CPU on the nodes, or fewer photos per shard: --replan --shard-photos 100"
    compute = staticmethod(worker.compute)
    try_photos = staticmethod(worker.try_photos)

    def __init__(self, handle: JobHandle, plan: ShardPlan):
        self.handle, self.plan = handle, plan

    def get_arguments(self, number: int) -> tuple[Any, ...]:
        """Return the arguments of both functions."""
        return self.handle, number

    def count_photos(self, number: int) -> int:
        """Count the photos of a shard."""
        return self.plan.count_photos(number)

    def is_done(self, number: int) -> bool:
        """Return whether a shard exists and checks out."""
        # The last step notices and repairs a damaged file.
        return not self.plan.list_missing([number]) and not isinstance(check_shard(self.plan, number), str)

    def get_place(self, number: int) -> Path | str:
        """Return the path or the address of a shard."""
        return self.plan.get_place(number)


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
    try:
        handle = jobs.put_job(Job(plan, classifier), jobs.describe_versions())
        photo = find_readable(plan.read_photos(0), listing.read_photo)
        check_nodes(worker.inspect, handle, None if photo is None else tuple(photo), plan.describe_target())
        run_shards(PredictionJob(handle, plan), numbers, advance)
    except RayError as error:
        raise MachineError(
            f"the Ray cluster failed: {get_first_line(error)}", advice="run the same command again to resume"
        ) from error
