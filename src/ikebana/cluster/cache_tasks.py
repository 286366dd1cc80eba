"""The caches of an audit, filled by tasks on a Ray cluster.

An audit then finds everything in its caches. So its result is that of one machine, and whatever was
computed before an interruption is used by the next command.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError

from ikebana.cluster import cache_worker, jobs
from ikebana.cluster.cache_worker import CPUS_PER_DECODING_TASK, CompleteCache, SearchJob
from ikebana.cluster.jobs import JobHandle
from ikebana.cluster.node_checks import find_readable_photo, inspect_node, mark_folder
from ikebana.cluster.nodes import check_nodes, choose_cpus, choose_resources, count_gpus, count_slots
from ikebana.cluster.shard_driver import run_shards
from ikebana.commands.audit import CacheFiller
from ikebana.data import pixel_cache, pixel_cache_parts
from ikebana.data.dataset import Dataset
from ikebana.data.duplicates import near_duplicates
from ikebana.data.duplicates.search import list_pairs
from ikebana.data.parts import Parts, prepare_parts
from ikebana.data.pixel_cache import PixelCache
from ikebana.errors import MachineError, RecipeError, get_first_line
from ikebana.recipe import Recipe
from ikebana.system import progress

if TYPE_CHECKING:
    from ikebana.learning.device import DeviceSettings
    from ikebana.learning.examples import PhotoExamples
    from ikebana.learning.models.assembly import Member
    from ikebana.learning.plan import Plan

# Parts per task that runs at a time: enough that no node waits long for the last one.
PARTS_PER_SLOT = 8
MIN_PART_PHOTOS, MAX_PART_PHOTOS = 8, 512
# Each process that searches describes all photos first, so there are fewer parts.
SEARCH_PARTS_PER_SLOT = 4
# Photos on which the backbone with fused layers is compared with the original.
TRIAL_PHOTOS = 16
# Until a network disk shows a machine what another one has written.
MAX_VISIBILITY_SECONDS = 60.0
SHARED = "cache (IKEBANA_CACHE=DIR on a disk that all nodes share)"


@dataclass(frozen=True)
class PartsJob:
    """The parts of a cache as shards."""

    handle: JobHandle
    parts: Parts
    resources: Mapping[str, float]
    compute: Callable[..., Any]
    try_photos: Callable[..., Any] | None = None
    noun: str = "part"
    crash_advice: str = "more memory per CPU on the nodes: ray start --num-cpus=N"

    def get_arguments(self, number: int) -> tuple[Any, ...]:
        """Return the arguments of both functions."""
        return self.handle, number

    def count_photos(self, number: int) -> int:
        """Count the photos of a part."""
        return len(self.parts.get_rows(number))

    def is_done(self, number: int) -> bool:
        """Return whether a part is complete."""
        return self.parts.is_done(number)

    def get_place(self, number: int) -> Path | str:
        """Return the file of a part."""
        return self.parts.get_path(number)


@dataclass(frozen=True)
class DecodingJob(PartsJob):
    """The parts of a pixel cache; each task gets the paths of its photos."""

    dataset: Dataset | None = None

    def get_arguments(self, number: int) -> tuple[Any, ...]:
        """Return the arguments of both functions."""
        assert self.dataset is not None
        return self.handle, number, pixel_cache_parts.select_photos(self.dataset, self.parts.get_rows(number))


class ClusterCaches(CacheFiller):
    """Fills the caches of an audit on the connected cluster."""

    def __init__(self) -> None:
        self._versions = jobs.describe_all_versions()
        self._are_nodes_checked = False

    def prepare(self, dataset: Dataset, recipe: Recipe) -> None:
        """Refuse nodes that differ from this machine, unless the photos were decoded earlier.

        Raises:
            MachineError: as in `decode`.
        """
        target = pixel_cache.get_cache_path(dataset, recipe.image_size, recipe.resize)
        if not target.exists():
            with _cluster_errors():
                self._check_nodes(dataset, target)

    def decode(self, dataset: Dataset, recipe: Recipe) -> None:
        """Decode the photos into the pixel cache.

        Raises:
            MachineError: a node differs from this machine, the disk is full, or the cluster has ended.
        """
        size, resize = recipe.image_size, recipe.resize
        target = pixel_cache.get_cache_path(dataset, size, resize).absolute()
        if pixel_cache.load_current(dataset, size, resize, target) is not None:
            return
        with _cluster_errors():
            self._check_nodes(dataset, target)
            resources = {"num_cpus": CPUS_PER_DECODING_TASK}
            part_photos = _choose_part_photos(dataset.photos.height, PARTS_PER_SLOT * count_slots(resources))
            pixel_parts = pixel_cache_parts.prepare(dataset, target, size, resize, part_photos)
            handle = jobs.put_job(pixel_parts, self._versions)
            functions = {"compute": cache_worker.decode, "try_photos": cache_worker.try_photos}
            _run(DecodingJob(handle, pixel_parts.parts, resources, **functions, dataset=dataset), "read photos")
            pixel_cache_parts.join(pixel_parts, dataset)

    def search(self, dataset: Dataset, opened: PixelCache, recipe: Recipe) -> None:
        """Search for near-duplicates.

        Raises:
            MachineError: as in `decode`.
        """
        rows = near_duplicates.get_unique_rows(dataset)
        if not len(rows) or near_duplicates.load_pairs(dataset, opened) is not None:
            return
        with _cluster_errors():
            self._check_nodes(dataset, opened.folder)
            resources = {"num_cpus": choose_cpus()}
            part_photos = _choose_part_photos(len(rows), SEARCH_PARTS_PER_SLOT * count_slots(resources), len(rows))
            parts = prepare_parts(near_duplicates.get_parts_folder(dataset, opened).absolute(), len(rows), part_photos)
            job = SearchJob(_describe_cache(dataset, opened, recipe), rows, parts, resources["num_cpus"])
            _run(PartsJob(jobs.put_job(job, self._versions), parts, resources, cache_worker.search), "find duplicates")
        contents = parts.read_all()
        if contents is not None:
            near_duplicates.save_pairs(dataset, opened, list_pairs(map(cache_worker.decode_matches, contents)))
            parts.remove()

    def extract(self, dataset: Dataset, opened: PixelCache, plan: "Plan") -> None:
        """Extract the features that the checks of labels need.

        Args:
            dataset: opened and split.
        Raises:
            MachineError: as in `decode`.
        """
        from ikebana.learning.examples import build_split_examples
        from ikebana.learning.features import out_of_fold

        if plan.settings.device == "cuda" and not count_gpus():
            progress.message("no node of the Ray cluster has a GPU: features are extracted on this machine")
            return
        (member,) = plan.assembly.members
        splits = build_split_examples(dataset, opened.pixels)
        cache = _describe_cache(dataset, opened, plan.recipe)
        for photos, settings in out_of_fold.list_extractions(splits, plan.settings):
            # If features are NaN, the audit itself finds that and reports it.
            with _cluster_errors(), suppress(RecipeError):
                self._extract(dataset, cache, member, photos, settings)

    def _extract(
        self,
        dataset: Dataset,
        cache: CompleteCache,
        member: "Member",
        photos: "PhotoExamples",
        settings: "DeviceSettings",
    ) -> None:
        from ikebana.cluster import feature_worker
        from ikebana.learning.features import feature_cache, feature_parts

        # As many threads as on one machine, because their number may change the last digits.
        is_cpu = settings.device == "cpu"
        resources = {"num_cpus": min(settings.threads, choose_cpus())} if is_cpu else choose_resources(settings.device)
        part_photos = _choose_part_photos(len(photos), PARTS_PER_SLOT * count_slots(resources))
        key = feature_cache.make_feature_key(cache.folder.name, member.recipe, member.weights)
        prepared = feature_parts.prepare(member.backbone, key, photos, settings, part_photos)
        if prepared is None:
            return
        self._check_nodes(dataset, cache.folder)
        settings = replace(settings, threads=int(resources["num_cpus"]))
        job = feature_worker.FeatureJob(cache, prepared, member.backbone, settings, photos.rows[:TRIAL_PHOTOS])
        handle = jobs.put_job(job, self._versions)
        _run(PartsJob(handle, prepared.parts, resources, feature_worker.extract), "extract features")
        feature_parts.join(prepared)

    def _check_nodes(self, dataset: Dataset, cache: Path) -> None:
        """Refuse nodes that differ from this machine, before the first part.

        Args:
            cache: a folder of the pixel cache.
        """
        if self._are_nodes_checked:
            return
        with mark_folder(cache.absolute().parent) as mark:
            check_nodes(inspect_node, self._versions, find_readable_photo(dataset), mark, shared=SHARED)
        self._are_nodes_checked = True


@contextmanager
def _cluster_errors() -> Iterator[None]:
    """Turn errors of Ray into MachineError."""
    try:
        yield
    except RayError as error:
        raise MachineError(
            f"the Ray cluster failed: {get_first_line(error)}", advice="run the same command again to resume"
        ) from error


def _run(job: PartsJob, name: str) -> None:
    """Compute the missing parts of a cache.

    Args:
        name: of the stage.
    """
    missing = job.parts.list_missing()
    done = len(job.parts.numbers) - len(missing)
    if done:
        progress.message(f"{name}: {done} of {len(job.parts.numbers)} parts were computed earlier")
    with progress.stage(name, sum(map(job.count_photos, missing))) as bar:
        run_shards(job, missing, bar.advance)
    deadline = time.monotonic() + MAX_VISIBILITY_SECONDS
    while not all(map(job.is_done, missing)) and time.monotonic() < deadline:
        time.sleep(1)


def _choose_part_photos(photos: int, parts: int, max_photos: int = MAX_PART_PHOTOS) -> int:
    """Choose the photos per part, so that there are at least so many parts."""
    return max(MIN_PART_PHOTOS, min(-(-photos // max(1, parts)), max_photos))


def _describe_cache(dataset: Dataset, opened: PixelCache, recipe: Recipe) -> CompleteCache:
    everywhere = pixel_cache_parts.select_photos(dataset, None)
    return CompleteCache(opened.folder.absolute(), len(opened.pixels), recipe.image_size, recipe.resize, everywhere)
