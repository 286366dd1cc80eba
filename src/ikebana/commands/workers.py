"""`ikebana fit` in several processes: what the leader tells the workers, and what these do."""

import functools
import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ParamSpec

import polars as pl

from ikebana.data.dataset import STATUS_USED, Dataset
from ikebana.data.pixel_cache import PixelCache, open_pixel_cache
from ikebana.errors import MachineError, PhotosError, RecipeError
from ikebana.learning import device as devices
from ikebana.learning import processes
from ikebana.learning.device import DeviceSettings
from ikebana.learning.estimate import get_spare_gpu_bytes, recipe_memory_errors
from ikebana.learning.examples import build_split_examples, merge_for_refit
from ikebana.learning.plan import Plan, prepare_tasks, train_tasks
from ikebana.learning.processes import ProcessGroup
from ikebana.recipe import GradientMethod, Recipe, recipe_from_json, recipe_to_json
from ikebana.runs.run import Run
from ikebana.system import progress
from ikebana.system.launch import read_launch

MAX_NAMED_PHOTOS = 3

Parameters = ParamSpec("Parameters")
# From the recipe to the photos as listed, not opened.
ListPhotos = Callable[[Recipe], Dataset]


def shared_by_processes(
    make_lister: Callable[..., ListPhotos],
) -> Callable[[Callable[Parameters, Run]], Callable[Parameters, Run]]:
    """Share the training of a function by the processes that a launcher started.

    The leader calls the function, workers train with it. Alone, a process only calls it.

    Args:
        make_lister: gets the function's arguments in a worker; returns how to list the photos there.
    """

    def decorate(function: Callable[Parameters, Run]) -> Callable[Parameters, Run]:
        @functools.wraps(function)
        def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Run:
            with processes.join() as group:
                if group is not None and not group.is_leader:
                    return _work(group, make_lister(*args, **kwargs), kwargs.get("model"))
                run = function(*args, **kwargs)
                if group is not None:
                    _send(group, {"task": "finish", "run": str(run.folder.absolute())})
                return run

        return call

    return decorate


def check_can_share(recipe: Recipe) -> None:
    """Refuse a recipe without training steps in several processes.

    Raises:
        RecipeError: several processes would wait for one.
    """
    launch = read_launch()
    if launch.has_peers and not isinstance(recipe.method, GradientMethod):
        raise RecipeError(
            f"recipe {recipe.name} has no training steps that {launch.size} processes could share",
            advice="run it without torchrun, or choose --recipe good",
        )


def start_workers(plan: Plan, dataset: Dataset) -> None:
    """Tell the workers what to train, and wait until they have found the same photos.

    Args:
        dataset: opened and split.
    Raises:
        MachineError: a worker has other photos, no GPU, or has failed.
    """
    group = processes.get_group()
    if group is None:
        return
    launch = group.launch
    progress.message(f"training is shared by {launch.size} processes")
    _send(
        group,
        {
            "task": "train",
            "recipe": recipe_to_json(plan.recipe),
            "settings": asdict(plan.settings),
            "classes": dataset.classes,
        },
    )
    stream = io.BytesIO()
    dataset.photos.write_ipc(stream, compression="zstd")
    group.send("photos", stream.getvalue())
    group.use_device(plan.settings.device)
    with processes.take_turns("pixels"):
        """The leader has opened them."""
    group.meet("same photos")


def _work(group: ProcessGroup, list_photos: ListPhotos, model: Any) -> Run:
    """Train with the leader until it has finished the run, and return that run."""
    while (order := json.loads(group.receive("order")))["task"] != "finish":
        recipe = recipe_from_json(order["recipe"])
        settings = replace(DeviceSettings(**order["settings"]), measurement_id="")
        table = pl.read_ipc(io.BytesIO(group.receive("photos")))
        group.use_device(settings.device)
        _apply(settings)
        dataset, pixels = _open_photos(list_photos(recipe), table, tuple(order["classes"]), recipe)
        group.meet("same photos")
        plan = Plan.from_dataset(dataset, recipe, model=model, settings=settings)
        with recipe_memory_errors(recipe):
            _train(plan, dataset, pixels)
    return Run(Path(order["run"]))


def _apply(settings: DeviceSettings) -> None:
    """Configure this process as the leader is."""
    if settings.precision == "bfloat16" and settings.device == "cpu" and not devices.can_convolve_bfloat16():
        raise MachineError(
            "this machine's processor cannot compute convolutions in bfloat16", advice="--precision float32"
        )
    devices.configure(settings.threads, settings.device)


def _open_photos(
    listed: Dataset, table: pl.DataFrame, classes: tuple[str, ...], recipe: Recipe
) -> tuple[Dataset, PixelCache]:
    """Open this machine's photos, and return the leader's split of them.

    Args:
        table: the leader's photos.
    Raises:
        PhotosError: the leader has other photos.
    """
    with processes.take_turns("pixels"):
        decoded, pixels = open_pixel_cache(listed, recipe.image_size, recipe.resize)
    paths = _find_differences(decoded.photos, table)
    if paths:
        more = f" and {len(paths) - MAX_NAMED_PHOTOS:,} more" if len(paths) > MAX_NAMED_PHOTOS else ""
        raise PhotosError(
            f"the photos of {read_launch()} are not those of process 0: {', '.join(paths[:MAX_NAMED_PHOTOS])}{more}",
            where=listed.source,
            advice="the same photos and versions of libraries on every machine",
        )
    return replace(listed, photos=table, classes=classes), pixels


def _find_differences(here: pl.DataFrame, there: pl.DataFrame) -> list[str]:
    """Find the photos that the leader uses and this process lacks: their paths."""
    if not here["path"].equals(there["path"]):
        return sorted(set(here["path"]) ^ set(there["path"])) or ["their order differs"]
    is_used = there["status"] == STATUS_USED
    differs = is_used & ((here["status"] != STATUS_USED) | here["sha256"].ne_missing(there["sha256"]))
    return there["path"].filter(differs).to_list()


def _train(plan: Plan, dataset: Dataset, pixels: PixelCache) -> None:
    """Take part in the training of the recipe, and in its refit on all photos."""
    gpu_bytes = get_spare_gpu_bytes(plan.assembly, plan.settings)
    splits = build_split_examples(dataset, pixels.pixels, plan.settings.device, gpu_bytes)
    rounds = [(plan, splits)]
    if plan.recipe.refit_on_all:
        rounds.append((plan.rebuild(), merge_for_refit(splits)))
    for round_plan, examples in rounds:
        tasks = prepare_tasks(round_plan, examples, pixels.folder.name)
        for _ in train_tasks(tasks, plan.settings, None):
            pass


def _send(group: ProcessGroup, order: dict[str, Any]) -> None:
    group.send("order", json.dumps(order).encode())
