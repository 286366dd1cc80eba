"""The plan of a run before any photo is opened, and its training.

A `Plan` has everything that is known from the recipe, the list of photos and the machine. Networks
are built once: the cost estimate, the trial of the precision and the training share them.
"""

import json
import os
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self, Unpack

from torch import nn

from ikebana import recipes
from ikebana.data import pixel_cache, sources, split
from ikebana.data.dataset import Dataset
from ikebana.data.duplicates import near_duplicates
from ikebana.data.known_split import KnownSplit, split_like
from ikebana.data.pixel_cache import PixelCache
from ikebana.data.sources import PhotoSource
from ikebana.errors import RecipeError
from ikebana.learning import device as devices
from ikebana.learning import estimate, processes, scoring
from ikebana.learning.device import DeviceSettings
from ikebana.learning.estimate import CostEstimate
from ikebana.learning.examples import (
    Examples,
    FeatureExamples,
    PhotoExamples,
    SelectableExamples,
    build_split_examples,
    concatenate,
    merge_for_refit,
)
from ikebana.learning.features import feature_cache
from ikebana.learning.features.feature_rows import FeatureRows
from ikebana.learning.models import assembly, custom, networks, weight_loading
from ikebana.learning.models.assembly import Assembly, Member
from ikebana.learning.process_state import preserve_process_state
from ikebana.learning.training import logistic_head, loop
from ikebana.learning.training.checkpoint import Epoch
from ikebana.recipe import FitOptions, LinearProbe, PretrainedMethod, Recipe, Scratch, recipe_to_json, with_options
from ikebana.system import progress
from ikebana.system.files import write_json


@dataclass(frozen=True)
class Plan:
    """A run before any photo is opened: photos, recipe, networks, device and cost.

    Attributes:
        dataset: the photos as listed, not opened yet.
        assembly: the networks with their initial weights; training changes them in place.
        settings: device, precision and threads.
        estimate: expected time, memory and disk space.
    """

    dataset: Dataset
    assembly: Assembly
    settings: DeviceSettings
    estimate: CostEstimate

    @classmethod
    @preserve_process_state()
    def from_photos(
        cls,
        photos: PhotoSource,
        recipe: str | Path | Recipe | None = None,
        *,
        model: nn.Module | None = None,
        run_folder: str | Path | None = None,
        device: str = "auto",
        **options: Unpack[FitOptions],
    ) -> Self:
        """List the photos, build the networks, and choose the device settings.

        Args:
            recipe: its name, the `recipe.json` of a run, or a Recipe; quick if not given, baseline
                with a `model`.
            model: your own network, from float images [N, 3, image_size, image_size], 0 to 255, to
                logits [N, classes]. It is copied. It needs a recipe from scratch.
            run_folder: where the run will be; counted in the estimate of disk space.
            device: auto for a GPU if there is one, cpu, cuda or mps.
            options: of the recipe, to be changed: epochs=5, seed=1, ...
        Raises:
            PhotosError, RecipeError, MachineError: each has advice on what to try.
        """
        if model is not None:
            recipe = _name_module(recipe or "baseline", model)
        resolved = recipes.resolve_recipe(recipe or recipes.DEFAULT_RECIPE, **options)
        resolved = networks.fill_defaults(resolved)
        # Missing or wrong weights are reported before the photos are listed.
        for member in resolved.members:
            weight_loading.check_weights(member)
        dataset = sources.read(photos, resolved.class_order)
        return cls.from_dataset(dataset, resolved, model=model, run_folder=run_folder, device=device)

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset,
        recipe: Recipe,
        *,
        model: nn.Module | None = None,
        run_folder: str | Path | None = None,
        settings: DeviceSettings | None = None,
        device: str = "auto",
    ) -> Self:
        """Build the networks for photos that are listed already.

        Args:
            dataset: not opened.
            recipe: with its defaults filled in.
            settings: of a run that is resumed; None to choose them.
            device: as for `from_photos`, if there are no settings.
        """
        built = assembly.assemble(recipe, len(dataset.classes), model)
        settings = settings or estimate.configure_device(built, dataset.photos.height, device)
        # So that recipe.json contains the measured precision.
        built = replace(built, recipe=with_options(recipe, precision=settings.precision))
        folder = Path(os.path.expanduser(run_folder)) if run_folder is not None else None
        return cls(dataset, built, settings, estimate.estimate_cost(dataset, built, settings, folder))

    @property
    def recipe(self) -> Recipe:
        """The recipe with its defaults and the precision filled in."""
        return self.assembly.recipe

    @property
    def network(self) -> nn.Module:
        """The network: with initial weights at first, with trained ones after training."""
        return self.assembly.network

    @property
    def layer_table(self) -> str:
        """The layers with output shapes and numbers of parameters."""
        return self.assembly.format_layer_table()

    def apply_settings(self) -> None:
        """Set threads, determinism and allocator as planned, within `preserve_process_state`.

        Planning restores the state of the process when it ends.
        """
        devices.configure(self.settings.threads, self.settings.device)

    def rebuild(self) -> "Plan":
        """Build the networks again, with the same initial weights."""
        built = assembly.assemble(self.recipe, self.assembly.classes, self.assembly.model)
        return replace(self, assembly=built)

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        photos = self.dataset.photos.height
        size = f"{photos:,} photos, {self.assembly.classes} classes; {self.recipe.network}, {parameters:,} parameters"
        return f"Plan({self.recipe.name}: {size}, {self.settings.device} in {self.settings.precision})\n{self.estimate.text}"


def _name_module(recipe: str | Path | Recipe, model: nn.Module) -> Recipe:
    """Let a recipe name the user's own network, which has no dropout of ikebana's."""
    resolved = recipes.resolve_recipe(recipe)
    changes: FitOptions = {"network": custom.name_network(model)}
    if isinstance(resolved.method, Scratch):
        changes["dropout"] = 0.0
    return with_options(resolved, **changes)


@dataclass(frozen=True)
class TrainingTask:
    """A network or its head, and the examples that train and evaluate it."""

    # Of this network alone.
    recipe: Recipe
    network: nn.Module
    train: SelectableExamples
    validation: SelectableExamples
    # Validation photos, then test photos.
    held_out: Examples
    # Of training and validation photos, for a linear probe; None in a process that gets the fitted head.
    head_features: tuple[FeatureExamples, FeatureExamples] | None = None


def open_photos(dataset: Dataset, recipe: Recipe, known: KnownSplit | None = None) -> tuple[Dataset, PixelCache]:
    """Decode every photo once, find duplicates, assign splits; the cache holds pixels by row.

    Args:
        known: the split of an earlier run, to be kept.
    Raises:
        PhotosError: the photos cannot be split, or not so that a network can learn the classes.
        MachineError: the disk is full.
    """
    decoded, pixels = pixel_cache.open_pixel_cache(dataset, recipe.image_size, recipe.resize)
    labelled = sources.assign_classes(near_duplicates.find_near_duplicates(decoded, pixels), recipe.class_order)
    divided = split.split_photos(labelled, recipe) if known is None else split_like(labelled, recipe, known)
    split.check_training_classes(divided)
    return divided, pixels


def prepare_tasks(plan: Plan, splits: dict[str, PhotoExamples], pixel_cache_name: str) -> tuple[TrainingTask, ...]:
    """Make the training task of each network; features that it trains on are extracted here.

    Workers wait until the leader has extracted them. They need none for a head that the leader fits.

    Raises:
        RecipeError: features are NaN or infinite.
        MachineError: the disk is too small.
    """
    plan.network.to(plan.settings.device)
    with processes.take_turns("features"):
        return tuple(_prepare_task(member, splits, pixel_cache_name, plan.settings) for member in plan.assembly.members)


def prepare_probe(
    plan: Plan, splits: dict[str, PhotoExamples], pixel_cache_name: str
) -> tuple[TrainingTask, ...] | None:
    """Make the tasks of a linear probe on the plan's backbones with their pretrained weights.

    Returns:
        None if the plan's networks start from random weights. No process waits for others.
    """
    if not isinstance(plan.recipe.method, PretrainedMethod):
        return None
    method = LinearProbe(weights=plan.recipe.weights, flip_tta=plan.recipe.method.flip_tta)
    probe = assembly.assemble(replace(plan.recipe, method=method), plan.assembly.classes)
    probe.network.to(plan.settings.device)
    # The measured speed is that of the plan's own recipe.
    untimed = replace(plan.settings, measurement_id="")
    return tuple(_prepare_task(member, splits, pixel_cache_name, untimed) for member in probe.members)


def _prepare_task(
    member: Member, splits: dict[str, PhotoExamples], pixel_cache_name: str, settings: DeviceSettings
) -> TrainingTask:
    """Make one task. Held-out photos are evaluated in float32, as in the exported network."""
    recipe, train, validation = member.recipe, splits["train"], splits["validation"]
    held_out = concatenate(validation, splits["test"])
    if not (recipe.caches_features or (recipe.fits_linear_probe and processes.is_leader())):
        return TrainingTask(recipe, member.network, train, validation, held_out)
    key = feature_cache.make_feature_key(pixel_cache_name, recipe, member.weights)
    if not recipe.caches_features:
        # The measured speed is that of training steps.
        untimed = replace(settings, measurement_id="")
        features = (
            feature_cache.extract_features(member.backbone, key, train, untimed),
            feature_cache.extract_features(member.backbone, key, validation, untimed),
        )
        return TrainingTask(recipe, member.network, train, validation, held_out, features)
    train_features = feature_cache.extract_features(member.backbone, key, train, settings)
    exact = replace(settings, precision="float32")
    held_out_features = feature_cache.extract_features(
        member.backbone, key, held_out, exact, "extract features (held out)"
    )
    validation_features = held_out_features.select(slice(len(validation)))
    head = nn.Sequential(OrderedDict(head=member.network.get_submodule("head")))
    return TrainingTask(
        recipe, head, train_features, validation_features, held_out_features, (train_features, validation_features)
    )


def train_tasks(
    tasks: Sequence[TrainingTask], settings: DeviceSettings, checkpoint_file: Path | None, title: str = "train"
) -> Iterator[Epoch]:
    """Train all tasks in turn; yield each epoch, numbered throughout, once it is saved.

    Args:
        checkpoint_file: of the first task; each further task has its own beside it.
        title: of the progress bar.
    """
    epochs = 0
    for number, task in enumerate(tasks, 1):
        file = checkpoint_file
        if checkpoint_file is not None and number > 1:
            file = checkpoint_file.with_stem(f"{checkpoint_file.stem}-{number}")
        task_title = title if len(tasks) == 1 else f"{title} {number}/{len(tasks)}"
        for epoch in _train_task(task, settings, file, task_title):
            epochs += 1
            yield replace(epoch, epoch=epochs)


def _train_task(
    task: TrainingTask, settings: DeviceSettings, checkpoint_file: Path | None, title: str
) -> Iterator[Epoch]:
    """Yield the epochs of one task; fitting a linear probe counts as one epoch."""
    started_at = time.perf_counter()
    is_resumed = checkpoint_file is not None and checkpoint_file.exists()
    if task.recipe.fits_linear_probe and task.head_features is not None and not is_resumed:
        _fit_linear_probe(task)
    if isinstance(task.recipe.method, LinearProbe):
        yield _score_linear_probe(task, settings, time.perf_counter() - started_at)
        return
    # A head on cached features is small: half precision would not make it faster.
    if task.recipe.caches_features:
        settings = replace(settings, precision="float32", measurement_id="")
    yield from loop.train(task.network, task.recipe, task.train, task.validation, settings, checkpoint_file, title)


def _fit_linear_probe(task: TrainingTask) -> None:
    assert task.head_features is not None
    train, validation = task.head_features
    selection = validation.for_selection
    selection_rows, labels = FeatureRows([validation.array], [validation.rows[selection]]), validation.labels[selection]
    classes, train_rows = networks.count_classes(task.network), FeatureRows([train.array], [train.rows])
    fitted = logistic_head.fit_head(
        train_rows, train.labels, selection_rows, labels, classes, task.recipe.seed, train.groups
    )
    fitted.copy_to(task.network)


def _score_linear_probe(task: TrainingTask, settings: DeviceSettings, seconds: float) -> Epoch:
    exact = replace(settings, precision="float32")
    scores = [
        scoring.score(scoring.compute_logits(task.network, examples, exact), examples.labels)
        for examples in (task.train, task.validation)
    ]
    (train_loss, train_accuracy), (val_loss, val_accuracy) = scores
    return Epoch(1, train_loss or 0.0, train_accuracy or 0.0, val_loss, val_accuracy, seconds)


def training(plan: Plan, checkpoint: str | Path | None = None) -> Iterator[Epoch]:
    """Open the photos, train the plan's network and yield each epoch.

    No run folder is written. When the loop ends, or is left early, `plan.network` has the weights
    of that moment.

    Args:
        plan: from `Plan.from_photos`.
        checkpoint: a file that each epoch is saved to, with a .json file beside it that says what is
            trained. Training resumes from it where it exists: saved epochs are yielded again first.
    Raises:
        PhotosError, RecipeError, MachineError: each has advice on what to try.
    """
    epochs = _train_plan(plan, Path(os.path.expanduser(checkpoint)) if checkpoint is not None else None)
    try:
        while True:
            # The caller's code runs between two epochs: it finds its process as it left it.
            with preserve_process_state():
                plan.apply_settings()
                epoch = next(epochs, None)
            if epoch is None:
                return
            yield epoch
    finally:
        epochs.close()


def _train_plan(plan: Plan, checkpoint_file: Path | None) -> Generator[Epoch, None, None]:
    dataset, pixels = open_photos(plan.dataset, plan.recipe)
    gpu_bytes = estimate.get_spare_gpu_bytes(plan.assembly, plan.settings)
    splits = build_split_examples(dataset, pixels.pixels, plan.settings.device, gpu_bytes)
    tasks = prepare_tasks(plan, splits, pixels.folder.name)
    if checkpoint_file is not None:
        _check_same_plan(checkpoint_file, plan.recipe, split.fingerprint(dataset.used_photos["sha256"]))
    for epoch in train_tasks(tasks, plan.settings, checkpoint_file):
        progress.event("epoch", **asdict(epoch))
        yield epoch


def _check_same_plan(checkpoint_file: Path, recipe: Recipe, photos: str) -> None:
    """Record what a checkpoint trains; RecipeError if it exists and trains something else."""
    file = checkpoint_file.with_suffix(".json")
    # As JSON has it, without tuples.
    expected = json.loads(json.dumps({"recipe": recipe_to_json(recipe), "photos": photos}))
    if not checkpoint_file.exists():
        write_json(file, expected)
        return
    try:
        saved = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        saved = None
    if saved != expected:
        raise RecipeError(
            "this file is not a checkpoint of the same plan: recipe or photos differ",
            where=checkpoint_file,
            advice="another file name, or delete the file to train from the start",
        )


def refit_on_all(
    plan: Plan, splits: dict[str, PhotoExamples], pixel_cache_name: str, checkpoint_file: Path
) -> tuple[nn.Module, tuple[TrainingTask, ...]]:
    """Train the recipe from its initial weights on all photos, which leaves none for evaluation.

    Returns:
        The network, and the tasks that trained it.
    """
    plan = plan.rebuild()
    tasks = prepare_tasks(plan, merge_for_refit(splits), pixel_cache_name)
    for _ in train_tasks(tasks, plan.settings, checkpoint_file, "train on all photos"):
        pass
    return plan.network, tasks


def describe_refit(recipe: Recipe, splits: dict[str, PhotoExamples]) -> str:
    """Describe the refit beside the score; empty where the scored network is the exported one."""
    if not recipe.refit_on_all:
        return ""
    return (
        f"The exported network was retrained on all {sum(map(len, splits.values()))} photos with the same recipe.\n"
        "The score is that of the network before, which was not trained on the test photos."
    )
