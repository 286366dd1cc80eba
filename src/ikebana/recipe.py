"""Every choice of a run, explained once; the named recipes with their expected results."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from ikebana.choices import Augmentation, Transfer, Tuning
from ikebana.errors import RecipeError

Fit = Literal["squash", "crop"]
SplitName = Literal["stratified", "shuffle"]
Precision = Literal["auto", "float32", "bfloat16"]

LARGEST_SEED = 2**32 - 1  # what all libraries take
STEPWISE = frozenset(("epochs", "batch", "learning_rate", "dropout"))  # choices of those who learn step by step
UNDAMAGED = "a copy of it that is whole, or a recipe's name"
SEEDS_APART = 1_000_003  # between the networks of one recipe: no two runs of neighbouring seeds share a network


def choice(default: Any, explanation: str) -> Any:
    """A field of a recipe, with the sentence that the command line and the docs show for it."""
    return field(default=default, metadata={"explanation": explanation})


@dataclass(frozen=True)
class Recipe:
    """Every choice of a run. The photos, this and the versions of the libraries make a run again."""

    name: str = "custom"
    network: str = choice(
        "tutorial",
        "tutorial (four convolutions, two dense layers), keras_inception_v3, or the name of any network of timm; "
        "several, joined by +, learn one after the other and are averaged",
    )
    weights: str = choice(
        "", "a file with the network's pretrained weights (.safetensors or .pth); found by itself if not given"
    )
    until: str = choice("", "the last block of keras_inception_v3 that is used: mixed8, say")
    side: int = choice(150, "photos become squares of this many pixels; 0 for the side that the network was made for")
    fit: Fit = choice("squash", "how they become square: squash them, or cut out the centre")
    dropout: float = choice(
        0.0, "share of the tutorial network's flattened features left out at random in each training step"
    )
    transfer: Transfer | None = None
    tuning: Tuning | None = None
    augmentation: Augmentation | None = None
    learning_rate: float = choice(1e-3, "step size of the optimiser")
    batch: int = choice(128, "photos a training step")
    epochs: int = choice(20, "passes over the training photos; in finetuned after 30 that train the head alone")
    seed: int = choice(0, "of the training alone: first weights, order of the photos, dropout, augmentation")
    split: SplitName = choice(
        "stratified", "keep the share of each class and never part twins, or the tutorial's shuffle"
    )
    split_seed: int = choice(0, "of the split alone")
    parts: tuple[float, float, float] = choice((0.6, 0.2, 0.2), "shares of training, validation and test photos")
    class_order: tuple[str, ...] = choice((), "the classes in an order of your own, instead of sorted")
    all: bool = choice(
        False, "after the score is made, train once more on all photos: that network ships, the score stays"
    )
    precision: Precision = choice("auto", "number format of the training step; 'auto' measures which is faster here")

    def __post_init__(self) -> None:
        for each in fields(self):
            _check_kind(each.name, getattr(self, each.name), each.type)
        for problem in _problems(self):
            raise RecipeError(f"recipe {self.name}: {problem}")

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks that learn one after the other; nearly always one."""
        return tuple(name.strip() for name in self.network.split("+"))

    @property
    def members(self) -> tuple["Recipe", ...]:
        """The recipe of each network; the first has the recipe's own seed, so that one network alone is this recipe."""
        seeds = (self.seed + SEEDS_APART * number for number in range(len(self.networks)))
        pairs = zip(self.networks, seeds, strict=True)
        return tuple(replace(self, network=name, seed=seed % (LARGEST_SEED + 1)) for name, seed in pairs)


def _check_kind(name: str, value: Any, declared: Any, begins: str = "", advice: str | None = None) -> None:
    """Refuse a value that is of another type than the choice; the words of a Literal are checked with the rules.

    begins, advice  what the error says first and last, if it is not a choice of the caller's
    raises          RecipeError
    """
    kinds = get_args(declared) if isinstance(declared, UnionType) else (declared,)
    record = next((kind for kind in kinds if is_dataclass(kind)), None)
    if isinstance(value, dict) and record is not None:
        if value.keys() != {each.name for each in fields(record)}:
            raise _of_another_version(name)
        for each in fields(record):
            _check_kind(f"{name}'s {each.name}", value[each.name], each.type, begins, advice)
    elif not any(_is_of(value, kind) for kind in kinds):
        kind = getattr(declared, "__name__", None) or str(declared)
        raise RecipeError(f"{begins}{name} cannot be {value!r}", advice=advice or f"a value of the kind {kind}")


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value of JSON can stand for that type."""
    if get_origin(kind) is tuple:
        of = get_args(kind)
        kinds = [of[0]] * len(value) if of[-1] is ... and isinstance(value, list | tuple) else of
        return isinstance(value, list | tuple) and len(value) == len(kinds) and all(map(_is_of, value, kinds))
    if get_origin(kind) is Literal:
        return isinstance(value, str)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is kind  # a bool is no int


def _problems(recipe: Recipe) -> list[str]:
    """What is wrong with a recipe, in words; empty if it can be carried out."""
    shares = recipe.parts
    whole = len(shares) == 3 and min(shares) >= 0 and shares[0] > 0 and shares[2] > 0 and abs(sum(shares) - 1) < 1e-6
    rules = {
        f"side is {recipe.side}; it must lie between 8 and 2048 pixels, or be 0": recipe.side == 0
        or 8 <= recipe.side <= 2048,
        f"dropout is {recipe.dropout}; it must be at least 0 and below 1": 0 <= recipe.dropout < 1,
        f"learning rate is {recipe.learning_rate}; it must lie above 0 and not above 1e30": 0
        < recipe.learning_rate
        <= 1e30,
        f"batch is {recipe.batch}; it must be at least 1": recipe.batch >= 1,
        f"epochs is {recipe.epochs}; it must be at least 1": recipe.epochs >= 1,
        f"seed is {recipe.seed}; it must lie between 0 and {LARGEST_SEED:,}": 0 <= recipe.seed <= LARGEST_SEED,
        f"split seed is {recipe.split_seed}; it must not be negative": recipe.split_seed >= 0,
        f"parts are {_listed(shares)}; they must be three shares that add up to 1, training and test above 0": whole,
        "network is tutorial, which nobody has trained before; take the recipe baseline": "tutorial"
        not in recipe.networks
        or recipe.transfer is None,
        f"network is {recipe.network}; names of networks, joined by +": all(recipe.networks),
        "several networks cannot all begin with the one file of --weights": len(recipe.networks) == 1
        or not recipe.weights,
        "weights are given, but this recipe begins with none; take quick, good or best": recipe.transfer is not None
        or not recipe.weights,
        "until is given, but only keras_inception_v3 can be cut short": KERAS_INCEPTION in recipe.networks
        or not recipe.until,
        "kept features are of photos as they are; leave augmentation out, or take kept=False": recipe.transfer is None
        or not recipe.transfer.kept
        or recipe.augmentation is None,
        "the class order names a class twice": len(set(recipe.class_order)) == len(recipe.class_order),
    }
    for name, words in (("fit", get_args(Fit)), ("split", get_args(SplitName)), ("precision", get_args(Precision))):
        value = getattr(recipe, name)
        rules[f"{name} is {value!r}; it must be one of {', '.join(words)}"] = value in words
    return [problem for problem, holds in rules.items() if not holds]


def _listed(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


KERAS_INCEPTION = "keras_inception_v3"  # InceptionV3 to Keras' arithmetic; timm's own is inception_v3
TUTORIAL_AUGMENTATION = Augmentation(rotation=40, shift=(0.2, 0.2), shear=0.2, zoom=0.2, flip=True)

GOOD = Recipe(
    name="good",
    network="tf_efficientnet_lite0",
    side=0,
    fit="crop",
    transfer=Transfer(logistic=True, trained="tail", tail_from="blocks.3", mirrored=True),
    tuning=Tuning(weight_decay=0.02, layer_decay=0.8, warm_up=0.1, label_smoothing=0.1, averaging=0.99),
    augmentation=Augmentation(rotation=20, flip=True, area=0.4, light=0.2),
    learning_rate=3e-4,
    batch=32,
    epochs=6,
)

# What each of them gives on the 4,317 Flowers Recognition photos with the tutorial's split (864 test photos), and over how
# many seeds that was measured: bench/records.md.
RECIPES: Mapping[str, Recipe] = {
    "baseline": Recipe(name="baseline"),
    "augmented": Recipe(
        name="augmented", dropout=0.2, augmentation=TUTORIAL_AUGMENTATION, learning_rate=1e-5, epochs=100
    ),
    "features": Recipe(
        name="features",
        network=KERAS_INCEPTION,
        transfer=Transfer(hidden=512, hidden_dropout=0.5, kept=True),
        learning_rate=1.5e-6,
        epochs=120,
    ),
    "frozen": Recipe(
        name="frozen",
        network=KERAS_INCEPTION,
        transfer=Transfer(dropout=0.2, hidden=64),
        augmentation=TUTORIAL_AUGMENTATION,
        learning_rate=1e-4,
        epochs=30,
    ),
    "finetuned": Recipe(
        name="finetuned",
        network=KERAS_INCEPTION,
        transfer=Transfer(dropout=0.2, hidden=64, head_epochs=30, head_learning_rate=1e-4, trained="tail"),
        augmentation=TUTORIAL_AUGMENTATION,
        learning_rate=1e-5,
        epochs=100,
    ),
    "quick": Recipe(
        name="quick",
        network="tf_efficientnet_lite0",
        side=0,
        fit="crop",
        transfer=Transfer(logistic=True, kept=True),
        epochs=1,
    ),
    "good": GOOD,
    "best": replace(GOOD, name="best", network="tf_efficientnet_lite2+tf_efficientnet_lite1", side=256, epochs=8),
}

DEFAULT = "quick"


# The order in which the tutorial lists the classes: its split depends on it.
TUTORIAL_CLASS_ORDER = ("sunflower", "tulip", "rose", "daisy", "dandelion")


def named(name: str, **choices: Any) -> Recipe:
    """The recipe of that name, with some choices changed.

    raises  RecipeError if there is no such recipe or choice, or a choice cannot be carried out
    """
    if name not in RECIPES:
        raise RecipeError(
            f"there is no recipe {name!r}", advice=f"one of: {', '.join(RECIPES)}; or the recipe.json of a run"
        )
    return changed(RECIPES[name], **choices)


def sought(wanted: "str | Path | Recipe", **choices: Any) -> Recipe:
    """The recipe that is meant, with some choices changed.

    wanted  a name, a file such as a run's `recipe.json`, or a Recipe
    raises  RecipeError if there is no such recipe, file or choice, the file is damaged or of another version, or a choice
            cannot be carried out
    """
    if isinstance(wanted, Recipe):
        found = changed(wanted, **choices)
    elif isinstance(wanted, str) and not wanted.endswith(".json"):
        found = named(wanted, **choices)
    else:
        found = changed(from_file(Path(wanted).expanduser()), **choices)
    in_vain = sorted(STEPWISE & choices.keys())
    if in_vain and found.transfer is not None and found.transfer.logistic and found.transfer.trained == "head":
        raise RecipeError(
            f"the head of {found.name} is found at once, not step by step: {', '.join(in_vain)} would change nothing",
            advice="leave that out, or --recipe good",
        )
    if "dropout" in choices and "tutorial" not in found.networks:
        raise RecipeError(
            f"dropout is of the tutorial's network; {found.name} has {found.network}", advice="leave --dropout out"
        )
    return found


def from_file(file: Path) -> Recipe:
    """The recipe in a file, such as the `recipe.json` of a run.

    raises  RecipeError if there is no such file, or it is damaged or of another version
    """
    if not file.is_file() and file.suffix != ".json":  # a misspelt name
        return named(str(file))
    try:
        return from_json(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        told = error.strerror if isinstance(error, OSError) else f"it is damaged: {error}"
        raise RecipeError(
            f"this recipe cannot be read: {told}", where=file, advice="the recipe.json of a run"
        ) from None
    except RecipeError as error:
        raise RecipeError(error.what, where=file, advice=error.advice) from None


def changed(recipe: Recipe, **choices: Any) -> Recipe:
    """The same recipe with some choices changed.

    raises  RecipeError if there is no such choice, or it cannot be carried out
    """
    known = {each.name for each in fields(Recipe)} - {"name"}
    for unknown in sorted(choices.keys() - known):
        raise RecipeError(f"a recipe has no choice {unknown!r}", advice=f"one of: {', '.join(sorted(known))}")
    return replace(recipe, **{key: _as_declared(key, value) for key, value in choices.items()})


def to_json(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values, for `recipe.json`."""
    return asdict(recipe)


def from_json(values: Mapping[str, Any]) -> Recipe:
    """The recipe that `to_json` wrote.

    raises  RecipeError if a choice is unknown or missing: it was written by another version
    """
    declared = {each.name for each in fields(Recipe)}
    if not isinstance(values, dict) or len(declared & values.keys()) < len(declared) / 2:
        raise RecipeError("this is no recipe", advice="the recipe.json of a run, or a recipe's name")
    if values.keys() != declared:
        raise _of_another_version(", ".join(sorted(declared ^ values.keys())))
    for each in fields(Recipe):
        _check_kind(each.name, values[each.name], each.type, "this recipe is damaged: ", UNDAMAGED)
    try:
        return Recipe(**{key: _as_declared(key, value) for key, value in values.items()})
    except (TypeError, ValueError, OverflowError) as error:
        raise RecipeError(f"this recipe is damaged: {error}", advice=UNDAMAGED) from None


def _of_another_version(differing: str) -> RecipeError:
    return RecipeError(
        f"another version of ikebana wrote this recipe; it differs in {differing}",
        advice="the version in the run's environment.json, or a new run",
    )


RECORDS = {"augmentation": Augmentation, "transfer": Transfer, "tuning": Tuning}


def _as_declared(key: str, value: Any) -> Any:
    """JSON knows neither tuples nor records: give them back their type."""
    if key in RECORDS and isinstance(value, dict):
        return RECORDS[key](**{name: _as_tuple(each) for name, each in value.items()})
    if isinstance(value, Path):
        return str(value)
    return _as_tuple(value)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
