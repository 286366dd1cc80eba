"""What a run will cost, said before it begins: time, disk and memory."""

import functools
import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ikebana import machine, progress
from ikebana import recipe as recipes
from ikebana.learning import backbones, device, features, networks, training
from ikebana.learning.device import Setting
from ikebana.learning.learner import phases
from ikebana.learning.repeating import changed_since
from ikebana.photos import kept, twins
from ikebana.photos.dataset import Dataset
from ikebana.places import cache_folder
from ikebana.recipe import Recipe

AT_LEAST = 0.75  # of the memory that is expected must be there: less than this is never enough
A_PHOTO = (
    900  # bytes of memory: its path, label, hash and part, where it is, and copies of these while tables are joined
)
A_ROW = 200  # bytes of the run's tables
THUMBNAIL, BLOCK = 0.25, 3000  # bytes a pixel of a thumbnail, and what every small file takes besides
LIBRARIES = 0.55e9  # bytes that Python, torch and polars hold before the first photo, and scikit-learn and matplotlib at the end
READ_SECONDS = (
    0.0015  # to open one photo of a quarter of a megapixel, a thread; large ones take up to ten times as long
)
FORWARD_SHARE = 0.35  # of a training step's time goes into its forward pass
HEAD_SPEED = 1e11  # operations a second, of dense layers that learn; six for each of their weights and photos
EXACT_TOO = 1.4  # held-out photos are seen in float32, which is slower where bfloat16 is the faster
BESIDES = 4.0  # seconds that a run takes however few its photos: networks made ready, the head, scores, figures


FEW = 40  # training photos of a class, below which a tail learns them by heart (docs/log.md)


@dataclass(frozen=True)
class Better:
    """A recipe that is usually better than another, for the last words of a run."""

    recipe: str
    times_a_look: float  # an epoch's time for a photo, as a multiple of the lesser recipe's: of a look or of a step
    gain: str


# Validation included: the first multiple is of a Xeon with AMX, the second of an EPYC with avx512_bf16 before steps became
# faster (on the Xeon 5.6 at the most, beside other work); the gains on Flowers Recognition, by both splits: bench/records.md.
BETTER = {
    "quick": Better("good", 3.8, "it usually takes away a quarter to a third of the mistakes"),
    "good": Better("best", 4.0, "it took away 7 to 24 % of the mistakes where that was tried"),
}


@dataclass(frozen=True)
class Forecast:
    """About what `fit` will need."""

    seconds: float
    cache: float  # bytes that will be added to it at the most; 0 if all is kept from before
    made: float  # bytes in the run's folder at the most
    memory: float  # bytes at the most
    text: str
    run: Path | None

    def told(self, recipe: Recipe) -> None:
        """Say so, and refuse before any photo is opened what this machine cannot hold.

        raises  MachineError if disk or memory falls short
        """
        progress.say(self.text)
        machine.need_disk({cache_folder(): self.cache} | ({self.run: self.made} if self.run is not None else {}))
        machine.need_memory(AT_LEAST * self.memory, _smaller(recipe))


def _smaller(recipe: Recipe) -> str:
    """What to try where memory falls short."""
    batch = f" or --batch (it is {recipe.batch})" if recipe.transfer is None or not recipe.transfer.kept else ""
    return f"a smaller --side (it is {recipe.side}){batch}, or a machine with more memory"


def within_memory(recipe: Recipe) -> AbstractContextManager[None]:
    """`machine.within_memory` around work that this recipe's choices make smaller.

    raises  MachineError
    """
    return machine.within_memory(f"anew with {_smaller(recipe)}")


def prepared(recipe: Recipe, classes: int, photos: int | None = None) -> Setting:
    """How this machine will be used for this recipe; the first time on a machine this takes some seconds.

    photos  how many there are, if that is known: no batch is larger
    raises  MachineError if the memory is not there for what is timed then
    """
    setting, recipe = device.prepare(), networks.settled(recipe)
    recipe = replace(recipe, batch=min(recipe.batch, photos or recipe.batch))
    # Only where there is something to measure; the members of an ensemble are measured one by one, and take the same format.
    built = functools.cache(lambda: networks.members(networks.build(recipe, classes)))
    if recipe.transfer is not None and recipe.transfer.kept:
        name = f"features of {recipe.network} {recipe.until} {recipe.side} px{_otherwise(recipe)}"
        timed = functools.partial(features.seconds_per_photo, side=recipe.side)
    else:
        augmentation = "augmented" if recipe.augmentation is not None else "plain"
        about = f"{recipe.side} px, batch {recipe.batch}, {augmentation}{_otherwise(recipe)}"
        name = f"{recipe.name} {recipe.network} {recipe.until} {about}"
        timed = functools.partial(training.seconds_per_photo, recipe=recipe, classes=classes)

    def trial(one: Setting) -> float:
        with within_memory(recipe):
            return sum(timed(each, setting=one) for each in _fitting(built(), recipe, classes, one))

    found = device.measured(setting, recipe.precision, name, trial)
    # What one frozen network sees is timed again while it sees them all; a step is not, nor are two networks one after the other.
    a_look = recipe.transfer is not None and recipe.transfer.kept and len(recipe.members) == 1
    return found if a_look else replace(found, measured_in="")


def _otherwise(recipe: Recipe) -> str:
    """What tells it from the recipe of its name, as far as that changes how long a photo takes."""
    named = recipes.RECIPES.get(recipe.name)
    learning = (recipe.transfer, recipe.tuning)
    if named is not None and learning == (named.transfer, named.tuning):
        return ""
    return f", {hashlib.sha256(repr(learning).encode()).hexdigest()[:8]}"


def as_begun(run: Path, recipe: Recipe, classes: int) -> Setting:
    """How the machine was used when a run began, for going on with it; what is not as it was then is said.

    run  its folder
    """
    setting = device.remembered(run / "environment.json") or prepared(recipe, classes)
    if since := changed_since(run, device.environment(setting)):
        progress.say(since)
    return setting


def _fitting(built: list[nn.Module], recipe: Recipe, classes: int, setting: Setting) -> list[nn.Module]:
    """The networks, if a step of the largest fits into memory in that number format.

    raises  MachineError if it does not: the kernel would end the process without a word
    """
    needed = AT_LEAST * _memory(recipe.batch, classes, recipe, built, setting)
    machine.need_memory(needed, _smaller(recipe))
    if setting.device == "cuda":
        on_gpu = AT_LEAST * _of_a_step(recipe.batch, recipe, built, setting)
        machine.need_memory(on_gpu, _smaller(recipe), device.free_on_gpu(), "the GPU's memory")
    return built


def left_on_gpu(recipe: Recipe, classes: int, setting: Setting) -> int:
    """Bytes that a step leaves of a GPU's own memory; 0 where there is none."""
    if setting.device != "cuda":
        return 0
    built = networks.members(networks.build(recipe, classes))
    return max(0, device.free_on_gpu() - int(_of_a_step(recipe.batch, recipe, built, setting)))


def forecast(dataset: Dataset, recipe: Recipe, setting: Setting, run: Path | None = None) -> Forecast:
    """What a run on these photos will cost here; half as much or twice as much is as good as it can know.

    run  the folder that it makes; None for an audit, which makes none
    """
    built = networks.members(networks.build(recipe, len(dataset.classes)))
    place = kept.place(dataset, recipe.side, recipe.fit)  # once: it looks at every file
    there = place.exists()
    features_too, unseen = _features(dataset.photos.height, recipe, setting, built, place.name)
    seconds, work = _time(dataset.photos.height, unseen, recipe, setting, built)
    seconds += BESIDES + (0.0 if there else dataset.photos.height * READ_SECONDS / kept.threads())
    cache = _in_cache(dataset, recipe, place, features_too)
    made = _in_run(dataset, recipe, built) if run is not None else 0.0
    memory = _memory(dataset.photos.height, len(dataset.classes), recipe, built, setting)
    # The trial of a number format that was not chosen may have taken more; the C library keeps it for the steps to come.
    most = max(memory, machine.held())
    disk = f"{cache / 1e9:.2f} GB in the cache" if cache else "all kept from before in the cache"
    disk += f", {made / 1e9:.2f} GB in the run" if made else ""
    disk += "; the pixels are kept from before" if cache and there else ""
    text = f"expected: {duration(seconds)} ({work}), {most / 1e9:.1f} GB of memory, {disk}"
    text += "".join(map(_tail_of_its_own, built, recipe.members))
    return Forecast(seconds, cache, made, memory, text, run)


def _tail_of_its_own(network: nn.Module, recipe: Recipe) -> str:
    """Where the network begins to learn, in words, if it has no stage of the name that the recipe says."""
    if recipe.transfer is None or recipe.transfer.trained != "tail" or not recipe.transfer.tail_from:
        return ""
    stage = backbones.tail(network.get_submodule("seer.backbone"), recipe.transfer.tail_from)
    if stage == recipe.transfer.tail_from:
        return ""
    return f"\n{recipe.network} has no stage {recipe.transfer.tail_from}: it learns from its middle on, {stage}"


def _time(photos: int, unseen: int, recipe: Recipe, setting: Setting, built: list[nn.Module]) -> tuple[float, str]:
    """Seconds from the first look at the pixels, and on what most of them are spent.

    unseen  photos whose features are not kept from before
    """
    a_photo = setting.seconds_per_photo or 0.0
    if recipe.transfer is not None and recipe.transfer.kept:
        return _time_of_kept(photos, unseen, recipe, setting, built)
    epoch, epochs = photos * a_photo * (recipe.parts[0] + FORWARD_SHARE * recipe.parts[1]), phases(recipe)[-1].last
    once_more = 1 + 1 / recipe.parts[0] if recipe.all else 1.0  # then on all photos
    return epochs * epoch * once_more, _epochs(epochs, epoch / len(built), len(built))


def _time_of_kept(
    photos: int, unseen: int, recipe: Recipe, setting: Setting, built: list[nn.Module]
) -> tuple[float, str]:
    """The same where what does not learn sees each photo once."""
    assert recipe.transfer is not None
    a_photo, epochs = setting.seconds_per_photo or 0.0, phases(recipe)[-1].last
    learned = photos * recipe.parts[0]
    head = sum(each.numel() for member in built for each in member.get_submodule("head").parameters())
    learning = epochs * learned * 6 * head / HEAD_SPEED
    before = f", {photos - unseen:,} of them before" if unseen < photos else ""
    work = f"each photo seen once by {recipe.network}{before}"
    seconds = unseen * a_photo * EXACT_TOO + learning
    if recipe.all:  # those that were held out are learned from too, and then seen as the others are
        seen_otherwise = 0.0 if setting.number_format == "float32" else (photos - learned) * a_photo
        seconds += learning / recipe.parts[0] + seen_otherwise
    return seconds, work


def _features(photos: int, recipe: Recipe, setting: Setting, built: list[nn.Module], pixels: str) -> tuple[int, int]:
    """Bytes that features will take which are not kept yet, and of how many photos they are, at least one network's.

    pixels  the name of the kept pixels
    """
    if recipe.transfer is None or not (recipe.transfer.kept or recipe.transfer.logistic):
        return 0, 0
    exact = replace(setting, number_format="float32") if recipe.transfer.kept else setting
    settings = {one.number_format: one for one in (setting, exact)}.values()
    taken = unseen = 0
    for member, its in zip(built, recipe.members, strict=True):
        origin, seer = features.origin(pixels, its, backbones.sought(its)), member.get_submodule("seer")
        # A photo is seen in one format only: as one to learn from, or as one that is held out.
        its_bytes, its_unseen = features.still_to_come(seer, origin, photos, recipe.side, settings)
        taken, unseen = taken + its_bytes, max(unseen, its_unseen)
    return taken, unseen


def _in_cache(dataset: Dataset, recipe: Recipe, place: Path, features_too: int) -> float:
    """Bytes that the cache will grow by at the most: pixels, then what the search for twins needs while it lasts, or features.

    place  where the pixels are kept, or will be
    """
    there = place.exists()
    pixels = 0 if there else kept.size_on_disk(dataset, recipe.side)
    searched = 0 if there and twins.are_found(place) else twins.scratch(dataset.photos.height)
    return float(pixels + max(searched, features_too))


def _in_run(dataset: Dataset, recipe: Recipe, built: list[nn.Module]) -> float:
    """Bytes that the run's folder takes at the most: thumbnails, tables, weights, checkpoints and the next one beside them."""
    held_out = dataset.photos.height * (recipe.parts[1] + recipe.parts[2])
    weights = 4.0 * sum(each.numel() for member in built for each in member.state_dict().values())
    trained = 4.0 * sum(each.numel() for member in built for each in member.parameters() if each.requires_grad)
    checkpoint = weights + trained if recipe.tuning is None else 3 * weights + 2 * trained
    if recipe.transfer is not None and recipe.transfer.logistic and recipe.transfer.trained == "head":
        checkpoint = 0.0
    small = held_out * (recipe.side**2 * THUMBNAIL + BLOCK)
    return small + dataset.photos.height * A_ROW + weights + (2 + recipe.all) * checkpoint


def _memory(photos: int, classes: int, recipe: Recipe, built: list[nn.Module], setting: Setting) -> float:
    """Bytes at the most: libraries, a step, unless it is made on a GPU of its own, and the little that each photo takes."""
    a_photo = A_PHOTO + 16 * classes * (recipe.parts[1] + recipe.parts[2])
    step = 0.0 if setting.device == "cuda" else _of_a_step(photos, recipe, built, setting)
    return LIBRARIES + step + photos * a_photo


def _of_a_step(photos: int, recipe: Recipe, built: list[nn.Module], setting: Setting) -> float:
    """Bytes that a step takes: weights and what moves them, and the maps."""
    weights = sum(each.numel() for member in built for each in member.parameters())
    of_features = recipe.transfer is not None and recipe.transfer.kept
    step = max(_step_bytes(networks.layers(each, recipe.side), recipe, photos, setting) for each in built)
    return (5 if of_features else 2.5) * step + 16 * weights


def _step_bytes(table: list[networks.Layer], recipe: Recipe, photos: int, setting: Setting) -> int:
    """About how much memory the layers' outputs take in a step."""
    looks = max(networks.activation_bytes([layer], setting.at_a_time, 4) for layer in table)
    if recipe.transfer is not None and recipe.transfer.kept:
        return looks  # seen once: few layers' outputs lie in memory at a time
    trained = networks.from_first_trained(table)
    return networks.activation_bytes(trained, min(recipe.batch, photos), setting.dtype.itemsize)


def next_step(dataset: Dataset, recipe: Recipe, setting: Setting, accuracy: float, at_least: float) -> str:
    """What the next better recipe would cost here and usually gains; nothing if there is none, or nothing to gain.

    dataset   split
    at_least  the accuracy on other photos of the same kind, with some certainty
    """
    better = BETTER.get(recipe.name)
    a_look = device.speed(setting)
    if better is None or a_look is None or accuracy == 1:
        return ""
    if at_least <= 1 / len(dataset.classes):
        return "this may be guessing: look at photos and labels first (ikebana audit), and for more photos"
    a_class = dataset.used.filter(split="train").group_by("label").len()["len"].median()
    if isinstance(a_class, float) and a_class < FEW:
        return f"with fewer than {FEW} photos a class to learn from, more photos help more than another recipe"
    as_named, cost = networks.settled(recipes.RECIPES[recipe.name]), ""
    if recipe.network != as_named.network:  # what the better recipe gains with another nobody has measured
        return f"better still, perhaps: --recipe {better.recipe} --network {recipe.network}"
    if recipe.side == as_named.side:  # else nobody has timed what it would be shown
        cost = f", about {duration(seconds_of_better(dataset, recipe, better, a_look))} here"
    return f"better still: --recipe {better.recipe}{cost}; {better.gain}"


def seconds_of_better(dataset: Dataset, recipe: Recipe, better: Better, a_look: float) -> float:
    """About how long the next better recipe would train here.

    a_look  seconds in which the recipe's own frozen backbone sees a photo, or of a step of its training
    """
    shown = dataset.used.height * recipes.RECIPES[better.recipe].epochs * recipe.parts[0]
    return BESIDES + shown * a_look * better.times_a_look


def _epochs(count: int, seconds: float, networks: int) -> str:
    each = f" for each of {networks} networks" if networks > 1 else ""
    return f"{count} epoch{'s' * (count > 1)} of {duration(seconds)}{each}"


def duration(seconds: float) -> str:
    """A time in words: 3.2 s, 45 s, 7 min, 2.1 h."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
