"""What runs on the nodes of a cluster to extract features."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from torch import nn

from ikebana.cluster import jobs
from ikebana.cluster.cache_worker import CompleteCache
from ikebana.cluster.jobs import JobHandle
from ikebana.data.verified_array import VerifiedArray
from ikebana.errors import IkebanaError, MachineError
from ikebana.learning import device, fast
from ikebana.learning.device import DeviceSettings
from ikebana.learning.examples import make_unlabelled
from ikebana.learning.features import feature_parts
from ikebana.learning.features.feature_parts import FeatureParts
from ikebana.system.threads import limit_threads


@dataclass(frozen=True)
class FeatureJob:
    """Features of some photos by one network."""

    cache: CompleteCache
    feature_parts: FeatureParts
    # With the driver's weights: nodes need no package or file of them.
    backbone: nn.Module
    settings: DeviceSettings
    # int64: of photos on which the backbone with fused layers is compared with the original.
    trial_rows: np.ndarray


def extract(handle: JobHandle, number: int, _: Mapping[int, str]) -> IkebanaError | None:
    """Extract the features of a part; return the error that ends the command, or None."""

    def work() -> None:
        job: FeatureJob = jobs.fetch_job(handle, jobs.describe_all_versions)
        with limit_threads(job.settings.threads):
            backbone, pixels = jobs.open_once(handle, lambda: _open(job))
            feature_parts.compute_part(job.feature_parts, number, backbone, pixels, job.settings)

    return jobs.return_error(work)


@contextmanager
def _open(job: FeatureJob) -> Iterator[tuple[nn.Module, VerifiedArray]]:
    """Fuse the layers of the backbone on its device, and open the pixels."""
    settings = job.settings
    if settings.device == "cpu" and settings.precision == "bfloat16" and not device.can_convolve_bfloat16():
        raise MachineError(
            "this processor cannot compute in bfloat16, and the driver's can",
            advice="stop Ray on this node, or run the command on it",
        )
    device.configure(settings.threads, settings.device)
    pixels = job.cache.open().pixels
    yield fast.fuse_layers(job.backbone.to(settings.device), make_unlabelled(pixels, job.trial_rows)), pixels
