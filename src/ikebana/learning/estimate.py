"""Estimates of the time, disk and memory of a run before it begins."""

import functools
import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ikebana import recipes
from ikebana.data import pixel_cache
from ikebana.data.dataset import STATUS_UNOPENED, STATUS_USED, Dataset
from ikebana.data.duplicates import near_duplicates, search
from ikebana.learning import device
from ikebana.learning.device import DeviceSettings
from ikebana.learning.features import feature_cache
from ikebana.learning.models import layer_table, parameter_groups
from ikebana.learning.models.assembly import Assembly, Member
from ikebana.learning.precision import select_precision
from ikebana.learning.training import loop
from ikebana.learning.training.trainer import plan_phases
from ikebana.recipe import MIDDLE_STAGE, FineTune, GradientMethod, LinearProbe, Recipe, with_options
from ikebana.system import progress, resources
from ikebana.system.cache_folder import cache_folder
from ikebana.system.launch import read_launch
from ikebana.system.threads import count_threads

# A machine with less than this fraction of the estimated memory never has enough.
MIN_MEMORY_FRACTION = 0.75
# Its path, label, hash and split, and copies of these while tables are joined.
MEMORY_BYTES_PER_PHOTO = 900
TABLE_BYTES_PER_PHOTO = 200
# Per pixel of a thumbnail, and the overhead of any small file.
THUMBNAIL_BYTES_PER_PIXEL, SMALL_FILE_BYTES = 0.25, 3000
# Python, torch and polars before the first photo; scikit-learn and matplotlib at the end.
LIBRARIES_BYTES = 0.55e9
# Per thread, for a photo of a quarter of a megapixel; large photos take up to ten times as long.
DECODE_SECONDS_PER_PHOTO = 0.0015
# Of dense layers in training; each weight takes six operations per photo.
HEAD_OPERATIONS_PER_SECOND = 1e11
# Held-out photos are computed in float32, which is slower where bfloat16 was selected.
FLOAT32_TIME_FACTOR = 1.4
# Independent of the number of photos: building networks, the head, drawn images, figures.
FIXED_SECONDS = 5.0
# After training, per photo of the collection: its features are compared with others, per class that is left
# out again. Fits of a linear probe to cached features then predict each photo once more. Measured with 1,280
# features, five classes and two processors.
COMPARE_SECONDS_PER_PHOTO = 0.0007
CROSS_VALIDATE_SECONDS_PER_PHOTO = 0.0006
# Training photos that new ones are compared with, at most: their features fit into memory.
MAX_COMPARED_PHOTOS = 10_000


@dataclass(frozen=True)
class CostEstimate:
    """Approximate cost of a run.

    Attributes:
        cache_bytes: upper bound of the cache's growth; 0 if everything is cached.
        run_bytes: upper bound of the run folder's size.
        memory_bytes: upper bound of the process's memory.
        run_folder: None for an audit, which creates none.
        advice: what to try when memory is too small.
    """

    seconds: float
    cache_bytes: float
    run_bytes: float
    memory_bytes: float
    text: str
    run_folder: Path | None
    advice: str

    def report_and_check(self) -> None:
        """Report the estimate, then require the disk space and memory, before any photo is opened.

        Raises:
            MachineError: too little disk space or memory.
        """
        progress.message(self.text)
        resources.require_disk(
            {cache_folder(): self.cache_bytes}
            | ({self.run_folder: self.run_bytes} if self.run_folder is not None else {})
        )
        resources.require_memory(MIN_MEMORY_FRACTION * self.memory_bytes, self.advice)


def _suggest_smaller(recipe: Recipe) -> str:
    """Suggest what to try when memory is too small."""
    has_batches = isinstance(recipe.method, GradientMethod) and not recipe.caches_features
    batch_hint = f" or --batch-size (now {recipe.gradient_method.batch_size})" if has_batches else ""
    return f"a smaller --image-size (now {recipe.image_size}){batch_hint}, or a machine with more memory"


def recipe_memory_errors(recipe: Recipe) -> AbstractContextManager[None]:
    """Wrap `resources.memory_errors`, suggesting options of this recipe that need less memory.

    Raises:
        MachineError: out of memory.
    """
    return resources.memory_errors(f"run again with {_suggest_smaller(recipe)}")


def configure_device(assembly: Assembly, photo_count: int | None = None, device_name: str = "auto") -> DeviceSettings:
    """Configure device and precision for these networks; the first time takes some seconds.

    Args:
        photo_count: number of photos if known; no batch is larger.
        device_name: auto, cpu, cuda or mps.
    Raises:
        MachineError: too little memory for the measurement, or torch cannot use the device.
    """
    settings, recipe = device.configure(device=device_name), assembly.recipe
    method = recipe.method
    if isinstance(method, GradientMethod) and photo_count:
        recipe = with_options(recipe, batch_size=min(method.batch_size, photo_count))
    if recipe.caches_features:
        name = f"features of {recipe.network} {recipe.truncate_at} {recipe.image_size} px{_make_key_suffix(recipe)}"
        measure = functools.partial(feature_cache.measure_seconds_per_photo, image_size=recipe.image_size)
    else:
        augmentation = "augmented" if recipe.augmentation is not None else "plain"
        batch = f"batch {recipe.gradient_method.batch_size}"
        options = f"{recipe.image_size} px, {batch}, {augmentation}{_make_key_suffix(recipe)}"
        name = f"{recipe.name} {recipe.network} {recipe.truncate_at} {options}"
        measure = functools.partial(loop.measure_seconds_per_photo, recipe=recipe, classes=assembly.classes)

    def trial(candidate: DeviceSettings) -> float:
        with recipe_memory_errors(recipe):
            _require_step_memory(assembly, recipe, candidate)
            # Members of an ensemble are timed one by one.
            return sum(measure(member.network, settings=candidate) for member in assembly.members)

    selected = select_precision(settings, recipe.precision, name, trial)
    # The time of an ensemble is the sum over its members, which are trained one by one.
    return selected if len(assembly.members) == 1 else replace(selected, measurement_id="")


def _make_key_suffix(recipe: Recipe) -> str:
    """Distinguish the recipe from the preset of its name, if their speed may differ."""
    preset = recipes.RECIPES.get(recipe.name)
    described = _describe_method(recipe)
    if preset is not None and described == _describe_method(preset):
        return ""
    return f", {hashlib.sha256(described.encode()).hexdigest()[:8]}"


def _describe_method(recipe: Recipe) -> str:
    """Describe the method, but for what changes no speed or is in the key already."""
    neutral = {"weights": "", "epochs": 1, "learning_rate": 1.0, "batch_size": 1, "augmentation": None}
    names = {method_field.name for method_field in fields(recipe.method)}
    return repr(replace(recipe.method, **{name: value for name, value in neutral.items() if name in names}))


def _require_step_memory(assembly: Assembly, recipe: Recipe, settings: DeviceSettings) -> None:
    """Make sure that memory holds a step of the largest network in this precision.

    Raises:
        MachineError: it does not. Without this check the kernel would kill the process silently.
    """
    photos = _get_batch_size(recipe, settings)
    advice = _suggest_smaller(recipe)
    resources.require_memory(MIN_MEMORY_FRACTION * _estimate_memory(photos, assembly, settings), advice)
    if settings.device == "cuda":
        gpu_bytes = MIN_MEMORY_FRACTION * _estimate_step_memory(photos, assembly, settings)
        resources.require_memory(gpu_bytes, advice, device.get_free_gpu_bytes(), "the GPU's memory")


def _get_batch_size(recipe: Recipe, settings: DeviceSettings) -> int:
    return recipe.method.batch_size if isinstance(recipe.method, GradientMethod) else settings.inference_batch_size


def get_spare_gpu_bytes(assembly: Assembly, settings: DeviceSettings) -> int:
    """Estimate the GPU memory in bytes that a training step leaves free; 0 without CUDA."""
    if settings.device != "cuda":
        return 0
    step_bytes = _estimate_step_memory(_get_batch_size(assembly.recipe, settings), assembly, settings)
    return max(0, device.get_free_gpu_bytes() - int(step_bytes))


def estimate_cost(
    dataset: Dataset, assembly: Assembly, settings: DeviceSettings, run_folder: Path | None = None
) -> CostEstimate:
    """Estimate the cost of a run on these photos, to within a factor of two.

    Args:
        run_folder: None for an audit, which creates none.
    """
    recipe, photos = assembly.recipe, dataset.photos.height
    # Computed once, because it reads the metadata of every file.
    pixels = pixel_cache.get_cache_path(dataset, recipe.image_size, recipe.resize)
    has_pixels = pixels.exists()
    features_bytes, missing_photos = _estimate_missing_features(photos, assembly, settings, pixels.name)
    # Photos without a label have rows in the caches, but take no time.
    usable = dataset.photos.filter(dataset.photos["status"].is_in((STATUS_UNOPENED, STATUS_USED))).height
    seconds, work = _estimate_seconds(usable, min(missing_photos, usable), assembly, settings)
    seconds += _estimate_score_seconds(usable, assembly, settings)
    seconds += FIXED_SECONDS + (0.0 if has_pixels else usable * DECODE_SECONDS_PER_PHOTO / count_threads())
    cache_bytes = _estimate_cache_bytes(dataset, recipe, pixels, features_bytes)
    run_bytes = _estimate_run_bytes(dataset, assembly) if run_folder is not None else 0.0
    memory_bytes = _estimate_memory(photos, assembly, settings)
    # The trial of a rejected precision may have used more, and the C library keeps that memory.
    peak_bytes = max(memory_bytes, resources.memory_in_use())
    disk_bytes = cache_bytes + run_bytes
    disk = f", {disk_bytes / 1e9:.2f} GB of disk" if disk_bytes else ""
    text = f"about {format_duration(seconds)} ({work}), {peak_bytes / 1e9:.1f} GB of memory{disk}"
    text += "".join(map(_describe_substituted_stage, assembly.members))
    return CostEstimate(seconds, cache_bytes, run_bytes, memory_bytes, text, run_folder, _suggest_smaller(recipe))


def _describe_substituted_stage(member: Member) -> str:
    """Report the stage that training starts from, if it is not the recipe's."""
    method = member.recipe.method
    if not isinstance(method, FineTune) or method.train_from in ("", MIDDLE_STAGE):
        return ""
    stage = parameter_groups.resolve_first_trained_stage(
        member.network.get_submodule("backbone.network"), method.train_from
    )
    if stage == method.train_from:
        return ""
    return f"\n{member.recipe.network} has no stage {method.train_from}: training starts at its middle stage, {stage}"


def _estimate_seconds(
    photos: int, missing_photos: int, assembly: Assembly, settings: DeviceSettings
) -> tuple[float, str]:
    """Estimate the time after decoding, and describe what most of it is spent on.

    Args:
        missing_photos: photos without cached features.
    """
    recipe, seconds_per_photo = assembly.recipe, settings.seconds_per_photo or 0.0
    if recipe.caches_features:
        return _estimate_head_seconds(photos, missing_photos, assembly, settings)
    train_fraction, validation_fraction, _ = recipe.split_fractions
    processes = read_launch().size
    epoch_fraction = train_fraction + loop.FORWARD_TIME_FRACTION * validation_fraction
    epoch_seconds = photos * seconds_per_photo * epoch_fraction / processes
    epochs, members = plan_phases(recipe)[-1].last_epoch, len(assembly.members)
    refit_factor = 1 + 1 / train_fraction if recipe.refit_on_all else 1.0
    work = _describe_epochs(epochs, epoch_seconds / members, members)
    shared = f" in {processes} processes" if processes > 1 else ""
    return epochs * epoch_seconds * refit_factor, f"{work}{shared}"


def _estimate_head_seconds(
    photos: int, missing_photos: int, assembly: Assembly, settings: DeviceSettings
) -> tuple[float, str]:
    """Estimate the same for a recipe that trains its head on cached features."""
    recipe, seconds_per_photo = assembly.recipe, settings.seconds_per_photo or 0.0
    # Fitting a linear probe takes about as long as an epoch.
    epochs = 1 if isinstance(recipe.method, LinearProbe) else plan_phases(recipe)[-1].last_epoch
    train_photos = photos * recipe.split_fractions[0]
    heads = [member.network.get_submodule("head") for member in assembly.members]
    head_weights = sum(parameter.numel() for head in heads for parameter in head.parameters())
    head_seconds = epochs * train_photos * 6 * head_weights / HEAD_OPERATIONS_PER_SECOND
    work = f"extracting features of {_count_photos(missing_photos)}" if missing_photos else "features are cached"
    seconds = missing_photos * seconds_per_photo * FLOAT32_TIME_FACTOR + head_seconds
    if recipe.refit_on_all:  # held-out photos then also need features in the precision of training
        refit_seconds = 0.0 if settings.precision == "float32" else (photos - train_photos) * seconds_per_photo
        seconds += head_seconds / recipe.split_fractions[0] + refit_seconds
    return seconds, work


def _estimate_score_seconds(photos: int, assembly: Assembly, settings: DeviceSettings) -> float:
    """Estimate the time of the scores after training, beside that of the figures."""
    seconds = min(photos, MAX_COMPARED_PHOTOS) * COMPARE_SECONDS_PER_PHOTO
    if isinstance(assembly.recipe.method, LinearProbe):
        seconds += photos * CROSS_VALIDATE_SECONDS_PER_PHOTO
    if not assembly.recipe.caches_features:  # the trained network sees each photo once more
        forward_seconds = loop.FORWARD_TIME_FRACTION * (settings.seconds_per_photo or 0.0)
        seconds += min(photos, MAX_COMPARED_PHOTOS) * forward_seconds
    return seconds


def _estimate_missing_features(
    photos: int, assembly: Assembly, settings: DeviceSettings, pixels: str
) -> tuple[int, int]:
    """Estimate the bytes of features not cached yet, and the most photos a network lacks.

    Args:
        pixels: name of the pixel cache.
    """
    recipe = assembly.recipe
    if not (recipe.caches_features or recipe.fits_linear_probe):
        return 0, 0
    exact = replace(settings, precision="float32") if recipe.caches_features else settings
    candidates = {candidate.precision: candidate for candidate in (settings, exact)}.values()
    missing_bytes = missing_photos = 0
    for member in assembly.members:
        key = feature_cache.make_feature_key(pixels, member.recipe, member.weights)
        # Each photo has features in one precision only: either it trains or it is held out.
        member_bytes, member_photos = feature_cache.estimate_missing(
            member.backbone, key, photos, recipe.image_size, candidates
        )
        missing_bytes, missing_photos = missing_bytes + member_bytes, max(missing_photos, member_photos)
    return missing_bytes, missing_photos


def _estimate_cache_bytes(dataset: Dataset, recipe: Recipe, pixels: Path, features_bytes: int) -> float:
    """Bound the growth of the cache: pixels, then near-duplicate search or features.

    Args:
        pixels: folder of the pixel cache, which may not exist yet.
    """
    has_pixels = pixels.exists()
    pixel_bytes = 0 if has_pixels else pixel_cache.compute_cache_bytes(dataset, recipe.image_size)
    scratch_bytes = (
        0
        if has_pixels and near_duplicates.has_cached_pairs(pixels)
        else search.compute_scratch_bytes(dataset.photos.height)
    )
    return float(pixel_bytes + max(scratch_bytes, features_bytes))


def _estimate_run_bytes(dataset: Dataset, assembly: Assembly) -> float:
    """Bound the size of the run folder: thumbnails, tables, weights and checkpoints."""
    recipe, photos = assembly.recipe, dataset.photos.height
    held_out = photos * (recipe.split_fractions[1] + recipe.split_fractions[2])
    weights = 4.0 * sum(tensor.numel() for tensor in assembly.network.state_dict().values())
    trainable = 4.0 * sum(parameter.numel() for parameter in assembly.network.parameters() if parameter.requires_grad)
    checkpoint = weights + trainable if recipe.adamw is None else 3 * weights + 2 * trainable
    if isinstance(recipe.method, LinearProbe):
        checkpoint = 0.0
    thumbnails = held_out * (recipe.image_size**2 * THUMBNAIL_BYTES_PER_PIXEL + SMALL_FILE_BYTES)
    return thumbnails + photos * TABLE_BYTES_PER_PHOTO + weights + (2 + recipe.refit_on_all) * checkpoint


def _estimate_memory(photos: int, assembly: Assembly, settings: DeviceSettings) -> float:
    """Bound the memory in bytes: libraries, photos and, except on CUDA, a training step."""
    held_out_fraction = assembly.recipe.split_fractions[1] + assembly.recipe.split_fractions[2]
    photo_bytes = MEMORY_BYTES_PER_PHOTO + 16 * assembly.classes * held_out_fraction
    step_bytes = 0.0 if settings.device == "cuda" else _estimate_step_memory(photos, assembly, settings)
    return LIBRARIES_BYTES + step_bytes + photos * photo_bytes


def _estimate_step_memory(photos: int, assembly: Assembly, settings: DeviceSettings) -> float:
    """Estimate the bytes of a training step: weights, optimiser state and activations."""
    weights = sum(parameter.numel() for parameter in assembly.network.parameters())
    activations = max(_estimate_activation_bytes(member, photos, settings) for member in assembly.members)
    return (5 if assembly.recipe.caches_features else 2.5) * activations + 16 * weights


def _estimate_activation_bytes(member: Member, photos: int, settings: DeviceSettings) -> int:
    """Estimate the bytes of the layers' outputs in a training step."""
    if member.recipe.caches_features:  # a forward pass keeps the outputs of few layers at a time
        return max(
            layer_table.estimate_activation_bytes([layer], settings.inference_batch_size, 4) for layer in member.layers
        )
    batch_size = min(member.recipe.gradient_method.batch_size, photos)
    return layer_table.estimate_activation_bytes(
        layer_table.skip_frozen_layers(member.layers), batch_size, settings.dtype.itemsize
    )


def _describe_epochs(count: int, seconds: float, networks: int) -> str:
    per_network = f"{networks} networks x " if networks > 1 else ""
    return f"{per_network}{count} epoch{'s' * (count > 1)} of {format_duration(seconds)}"


def _count_photos(count: int) -> str:
    return f"{count:,} photo{'s' * (count != 1)}"


def format_duration(seconds: float) -> str:
    """Format a duration, such as 3.2 s, 45 s, 7 min or 2.1 h."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
