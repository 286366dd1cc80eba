"""What a run will cost, said before it begins: time, disk and memory."""

import functools
from dataclasses import dataclass

from ikebana import recipe as recipes
from ikebana.learning import device, features, networks, training
from ikebana.learning.device import Setting
from ikebana.learning.learner import phases
from ikebana.photos import kept
from ikebana.photos.dataset import Dataset
from ikebana.recipe import Better, Recipe

LIBRARIES = 0.45e9  # bytes that Python, torch and polars hold before the first photo
READ_SECONDS = (
    0.0015  # to open one photo of a quarter of a megapixel, a thread; large ones take up to ten times as long
)
FORWARD_SHARE = 0.35  # of a training step's time goes into its forward pass
HEAD_SPEED = 1e11  # operations a second, of dense layers that learn; six for each of their weights and photos
EXACT_TOO = 1.4  # held-out photos are seen in float32, which is slower where bfloat16 is the faster


@dataclass(frozen=True)
class Forecast:
    """About what `fit` will need."""

    seconds: float
    disk: float  # bytes in the cache; 0 if the pixels are kept already
    memory: float  # bytes at the most
    text: str


def prepared(recipe: Recipe, classes: int) -> Setting:
    """How this machine will be used for this recipe; the first time on a machine this takes some seconds."""
    setting, recipe = device.prepare(), networks.settled(recipe)
    # Only where there is something to measure; the members of an ensemble are measured one by one, and take the same format.
    built = functools.cache(lambda: networks.members(networks.build(recipe, classes)))
    if recipe.transfer is not None and recipe.transfer.kept:
        name = f"features of {recipe.network} {recipe.until} {recipe.side} px"
        return device.measured(
            setting,
            recipe.precision,
            name,
            lambda one: sum(features.seconds_per_photo(each, recipe.side, one) for each in built()),
        )
    augmentation = "augmented" if recipe.augmentation is not None else "plain"
    name = f"{recipe.name} {recipe.network} {recipe.until} {recipe.side} px, batch {recipe.batch}, {augmentation}"
    return device.measured(
        setting,
        recipe.precision,
        name,
        lambda one: sum(training.seconds_per_photo(each, recipe, classes, one) for each in built()),
    )


def forecast(dataset: Dataset, recipe: Recipe, setting: Setting) -> Forecast:
    """What a run on these photos will cost here; half as much or twice as much is as good as it can know."""
    photos = dataset.photos.height
    there = kept.is_kept(dataset, recipe.side, recipe.fit)
    reading = 0.0 if there else photos * READ_SECONDS / kept.threads()
    of_features = recipe.transfer is not None and recipe.transfer.kept
    a_photo = setting.seconds_per_photo or 0.0
    epoch = photos * a_photo * (recipe.parts[0] + FORWARD_SHARE * recipe.parts[1])
    disk = 0.0 if there else float(kept.size_on_disk(dataset, recipe.side))
    members = networks.members(networks.build(recipe, len(dataset.classes)))
    weights = sum(each.numel() for member in members for each in member.parameters())
    epochs = phases(recipe)[-1].last
    if of_features:
        head = sum(each.numel() for member in members for each in member.get_submodule("head").parameters())
        seconds = photos * (a_photo * EXACT_TOO + epochs * recipe.parts[0] * 6 * head / HEAD_SPEED)
    else:
        seconds = epochs * epoch
    if recipe.all:  # then once more on all photos
        seconds *= 1 + 1 / recipe.parts[0]
    seconds += reading
    step = max(_step_bytes(networks.layers(member, recipe.side), recipe, photos, setting) for member in members)
    memory = LIBRARIES + (5 if of_features else 2.5) * step + 16 * weights
    on_disk = "kept from before" if there else f"{disk / 1e9:.2f} GB in the cache"
    work = (
        f"each photo seen once by {recipe.network}"
        if of_features
        else _epochs(epochs, epoch / len(members), len(members))
    )
    text = f"expected: {duration(seconds)} ({work}), {memory / 1e9:.1f} GB of memory, pixels {on_disk}"
    return Forecast(seconds, disk, memory, text)


def _step_bytes(table: list[networks.Layer], recipe: Recipe, photos: int, setting: Setting) -> int:
    """About how much memory the layers' outputs take in a step."""
    if recipe.transfer is not None and recipe.transfer.kept:  # seen once: few layers' outputs lie in memory at a time
        return max(networks.activation_bytes([layer], setting.at_a_time, 4) for layer in table)
    trained = networks.from_first_trained(table)
    return networks.activation_bytes(trained, min(recipe.batch, photos), setting.dtype.itemsize)


def next_step(dataset: Dataset, recipe: Recipe, setting: Setting) -> str:
    """What the next better recipe would cost here and usually gains; nothing if there is none."""
    better = recipes.BETTER.get(recipe.name)
    if better is None or setting.seconds_per_photo is None:
        return ""
    seconds = seconds_of_better(dataset, recipe, better, setting.seconds_per_photo)
    return f"better still: --recipe {better.recipe}, about {duration(seconds)} here; {better.gain}"


def seconds_of_better(dataset: Dataset, recipe: Recipe, better: Better, a_look: float) -> float:
    """About how long the next better recipe would train here.

    a_look  seconds in which the recipe's own frozen backbone sees a photo
    """
    shown = dataset.used.height * recipes.RECIPES[better.recipe].epochs * recipe.parts[0]
    return shown * a_look * better.times_a_look


def _epochs(count: int, seconds: float, networks: int) -> str:
    each = f" for each of {networks} networks" if networks > 1 else ""
    return f"{count} epoch{'s' * (count > 1)} of {duration(seconds)}{each}"


def duration(seconds: float) -> str:
    """A time in words: 3.2 s, 45 s, 7 min, 2.1 h."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
