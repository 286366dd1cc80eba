"""The records of a recipe: every option of a run, its explanation and its checks."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from ikebana.errors import RecipeError

Trainable = Literal["all", "head", "last_stages"]

FRACTION_BELOW_ONE = "at least 0 and below 1", lambda value: 0 <= value < 1
NOT_NEGATIVE = "at least 0", lambda value: value >= 0
POSITIVE_UP_TO_ONE = "above 0 and at most 1", lambda value: 0 < value <= 1


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes to training photos.

    The first five have the units of Keras' `ImageDataGenerator`.
    """

    # Degrees, in both directions.
    rotation: float = 0.0
    # Fractions of height and width, in both directions.
    shift: tuple[float, float] = (0.0, 0.0)
    # Degrees, in both directions. Keras' 0.2 is 0.2 degrees, which is invisible.
    shear: float = 0.0
    # 0.2 draws a factor from 0.8 to 1.2 per axis.
    zoom: float = 0.0
    # Flip half of the photos horizontally.
    flip: bool = False
    # Smallest share of the photo's area in a random crop, whose aspect ratio varies slightly.
    crop_area: float = 1.0
    # 0.2 draws factors from 0.8 to 1.2, one for brightness and one for contrast.
    brightness: float = 0.0

    def __post_init__(self) -> None:
        _check("augmentation", *FRACTION_BELOW_ONE, zoom=self.zoom, brightness=self.brightness)
        _check("augmentation", *POSITIVE_UP_TO_ONE, crop_area=self.crop_area)


@dataclass(frozen=True)
class Transfer:
    """Options of transfer learning: a new head on a pretrained network.

    The head is trained first, then perhaps more of the network.
    """

    # Whether the head is a logistic regression; otherwise it is trained like any layer.
    fit_logistic_head: bool = False
    # Of the head's input.
    dropout: float = 0.0
    # Width of a dense layer with ReLU before the last; 0 for none.
    hidden_units: int = 0
    # Of that layer's output.
    hidden_dropout: float = 0.0
    # Run the frozen backbone once per photo and train the head on its features, which are cached on disk.
    cache_features: bool = False
    # Epochs in which the head alone is trained, before the recipe's own epochs.
    head_epochs: int = 0
    head_learning_rate: float = 0.0
    # In the recipe's own epochs.
    trainable: Trainable = "head"
    # Average the features of the photo and its horizontal flip (test-time augmentation).
    flip_tta: bool = False
    # The first stage that "last_stages" trains. The tutorial's network trains the last 50 of Keras' layers.
    train_from: str = ""

    def __post_init__(self) -> None:
        _check("transfer", *FRACTION_BELOW_ONE, dropout=self.dropout, hidden_dropout=self.hidden_dropout)
        _check("transfer", *NOT_NEGATIVE, hidden_units=self.hidden_units, head_epochs=self.head_epochs)
        if self.trainable not in get_args(Trainable):
            raise RecipeError(
                f"transfer: trainable is {self.trainable!r}", advice=f"one of {', '.join(get_args(Trainable))}"
            )
        if self.head_epochs and not self.head_learning_rate > 0:
            raise RecipeError(
                f"transfer: in {self.head_epochs} epochs of the head it learns nothing",
                advice="a head_learning_rate above 0",
            )
        if self.fit_logistic_head and self.hidden_units:
            raise RecipeError(
                "a logistic head has no hidden layer", advice="fit_logistic_head=False, or hidden_units=0"
            )
        if self.cache_features and self.trainable != "head":
            raise RecipeError(
                "features can be kept only where the head alone learns",
                advice='cache_features=False, or trainable="head"',
            )


@dataclass(frozen=True)
class Tuning:
    """Options of AdamW with warm-up, cosine decay and EMA of the weights.

    Without them a recipe trains as the tutorial does: RMSprop at a constant learning rate.
    """

    weight_decay: float
    # Learning rate of each stage, relative to the stage above it.
    layer_decay: float
    # Share of the steps in which the rate rises from 0; then it falls to 0 along a cosine.
    warmup_fraction: float
    # Share of the target distributed equally to all classes.
    label_smoothing: float
    # Decay per step of the exponential moving average of the weights, which is the final network.
    ema_decay: float

    def __post_init__(self) -> None:
        shares = {
            "weight_decay": self.weight_decay,
            "warmup_fraction": self.warmup_fraction,
            "ema_decay": self.ema_decay,
        }
        _check("tuning", *FRACTION_BELOW_ONE, label_smoothing=self.label_smoothing, **shares)
        _check("tuning", *POSITIVE_UP_TO_ONE, layer_decay=self.layer_decay)


def _check(record: str, expected: str, is_valid: Callable[[float], bool], **values: float) -> None:
    """Raise RecipeError if a number is out of range."""
    for name, value in values.items():
        if not is_valid(value):
            raise RecipeError(f"{record}: {name.replace('_', ' ')} is {value:g}; it must be {expected}")


Resize = Literal["squash", "crop"]
SplitStrategy = Literal["stratified", "shuffle"]
Precision = Literal["auto", "float32", "bfloat16"]

# The largest seed that all libraries accept.
MAX_SEED = 2**32 - 1
# Options without effect where a head is fitted directly.
GRADIENT_TRAINING_OPTIONS = frozenset(("epochs", "batch_size", "learning_rate", "dropout"))
DAMAGED_ADVICE = "a copy of it that is whole, or a recipe's name"
# Between the networks of one recipe: runs with neighbouring seeds share no network.
MEMBER_SEED_STRIDE = 1_000_003


def option(default: Any, explanation: str) -> Any:
    """Declare a recipe field with its explanation for the command line and the docs."""
    return field(default=default, metadata={"explanation": explanation})


@dataclass(frozen=True)
class Recipe:
    """Every option of a run.

    The photos, the recipe and the versions of the libraries reproduce a run.
    """

    name: str = "custom"
    network: str = option(
        "tutorial",
        "tutorial (four convolutions, two dense layers), keras_inception_v3, or the name of any network of timm; "
        "several, joined by +, learn one after the other and are averaged",
    )
    weights: str = option(
        "", "a file with the network's pretrained weights (.safetensors or .pth); found by itself if not given"
    )
    truncate_at: str = option("", "the last block of keras_inception_v3 that is used: mixed8, say")
    image_size: int = option(
        150, "photos become squares of this many pixels; 0 for the side that the network was made for"
    )
    resize: Resize = option("squash", "how they become square: squash them, or cut out the centre")
    dropout: float = option(
        0.0, "share of the tutorial network's flattened features left out at random in each training step"
    )
    transfer: Transfer | None = None
    tuning: Tuning | None = None
    augmentation: Augmentation | None = None
    learning_rate: float = option(1e-3, "step size of the optimiser")
    batch_size: int = option(128, "photos a training step")
    epochs: int = option(20, "passes over the training photos; in finetuned after 30 that train the head alone")
    seed: int = option(0, "of the training alone: first weights, order of the photos, dropout, augmentation")
    split: SplitStrategy = option(
        "stratified", "keep the share of each class and never part twins, or the tutorial's shuffle"
    )
    split_seed: int = option(0, "of the split alone")
    split_fractions: tuple[float, float, float] = option(
        (0.6, 0.2, 0.2), "shares of training, validation and test photos"
    )
    class_order: tuple[str, ...] = option((), "the classes in an order of your own, instead of sorted")
    refit_on_all: bool = option(
        False, "after the score is made, train once more on all photos: that network ships, the score stays"
    )
    precision: Precision = option("auto", "number format of the training step; 'auto' measures which is faster here")

    def __post_init__(self) -> None:
        for option_field in fields(self):
            _check_type(option_field.name, getattr(self, option_field.name), option_field.type)
        for problem in _list_problems(self):
            raise RecipeError(f"recipe {self.name}: {problem}")

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks, trained one after the other; usually one."""
        return tuple(name.strip() for name in self.network.split("+"))

    @property
    def members(self) -> tuple["Recipe", ...]:
        """One recipe per network; the first has the recipe's own seed."""
        seeds = (self.seed + MEMBER_SEED_STRIDE * index for index in range(len(self.networks)))
        pairs = zip(self.networks, seeds, strict=True)
        return tuple(replace(self, network=name, seed=seed % (MAX_SEED + 1)) for name, seed in pairs)


def _check_type(name: str, value: Any, declared: Any, prefix: str = "", advice: str | None = None) -> None:
    """Raise RecipeError if a value has another type than the option.

    The values of a Literal are checked by `_list_problems`.

    Args:
        prefix: the start of the error's text.
        advice: of the error, instead of the expected type.
    """
    types = get_args(declared) if isinstance(declared, UnionType) else (declared,)
    record = next((expected for expected in types if is_dataclass(expected)), None)
    if isinstance(value, dict) and record is not None:
        if value.keys() != {record_field.name for record_field in fields(record)}:
            raise _other_version_error(name)
        for record_field in fields(record):
            key = record_field.name
            _check_type(f"{name}'s {key}", value[key], record_field.type, prefix, advice)
    elif not any(_has_type(value, expected) for expected in types):
        type_name = getattr(declared, "__name__", None) or str(declared)
        raise RecipeError(f"{prefix}{name} cannot be {value!r}", advice=advice or f"a value of the kind {type_name}")


def _has_type(value: Any, expected: Any) -> bool:
    """Return whether a JSON value can represent that type."""
    if get_origin(expected) is tuple:
        declared = get_args(expected)
        types = [declared[0]] * len(value) if declared[-1] is ... and isinstance(value, list | tuple) else declared
        return isinstance(value, list | tuple) and len(value) == len(types) and all(map(_has_type, value, types))
    if get_origin(expected) is Literal:
        return isinstance(value, str)
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    # Not isinstance: a bool is an int, too.
    return type(value) is expected


def _list_problems(recipe: Recipe) -> list[str]:
    """List what is invalid in a recipe, as text; empty if it is valid."""
    shares = recipe.split_fractions
    is_valid_split = (
        len(shares) == 3 and min(shares) >= 0 and shares[0] > 0 and shares[2] > 0 and abs(sum(shares) - 1) < 1e-6
    )
    rules = {
        f"image size is {recipe.image_size}; it must lie between 8 and 2048 pixels, or be 0": recipe.image_size == 0
        or 8 <= recipe.image_size <= 2048,
        f"dropout is {recipe.dropout}; it must be at least 0 and below 1": 0 <= recipe.dropout < 1,
        f"learning rate is {recipe.learning_rate}; it must lie above 0 and not above 1e30": 0
        < recipe.learning_rate
        <= 1e30,
        f"batch size is {recipe.batch_size}; it must be at least 1": recipe.batch_size >= 1,
        f"epochs is {recipe.epochs}; it must be at least 1": recipe.epochs >= 1,
        f"seed is {recipe.seed}; it must lie between 0 and {MAX_SEED:,}": 0 <= recipe.seed <= MAX_SEED,
        f"split seed is {recipe.split_seed}; it must not be negative": recipe.split_seed >= 0,
        f"split fractions are {_format_fractions(shares)}; they must be three shares that add up to 1, "
        "training and test above 0": is_valid_split,
        "network is tutorial, which nobody has trained before; take the recipe baseline": "tutorial"
        not in recipe.networks
        or recipe.transfer is None,
        f"network is {recipe.network}; names of networks, joined by +": all(recipe.networks),
        "several networks cannot all begin with the one file of --weights": len(recipe.networks) == 1
        or not recipe.weights,
        "weights are given, but this recipe begins with none; take quick, good or best": recipe.transfer is not None
        or not recipe.weights,
        "truncate_at is given, but only keras_inception_v3 can be cut short": KERAS_INCEPTION in recipe.networks
        or not recipe.truncate_at,
        "kept features are of photos as they are; leave augmentation out, or take cache_features=False": recipe.transfer
        is None
        or not recipe.transfer.cache_features
        or recipe.augmentation is None,
        "the class order names a class twice": len(set(recipe.class_order)) == len(recipe.class_order),
    }
    for name, words in (
        ("resize", get_args(Resize)),
        ("split", get_args(SplitStrategy)),
        ("precision", get_args(Precision)),
    ):
        value = getattr(recipe, name)
        rules[f"{name} is {value!r}; it must be one of {', '.join(words)}"] = value in words
    return [problem for problem, holds in rules.items() if not holds]


def _format_fractions(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


# InceptionV3 with Keras' arithmetic; timm's own is inception_v3.
KERAS_INCEPTION = "keras_inception_v3"


def with_options(recipe: Recipe, **options: Any) -> Recipe:
    """Return the recipe with some options changed; RecipeError if one is unknown or invalid."""
    known = {option_field.name for option_field in fields(Recipe)} - {"name"}
    for unknown in sorted(options.keys() - known):
        raise RecipeError(f"a recipe has no choice {unknown!r}", advice=f"one of: {', '.join(sorted(known))}")
    return replace(recipe, **{key: _to_declared_type(key, value) for key, value in options.items()})


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """Convert a recipe to plain values for `recipe.json`."""
    return asdict(recipe)


def recipe_from_json(values: Mapping[str, Any]) -> Recipe:
    """Build the recipe that `recipe_to_json` wrote.

    Raises:
        RecipeError: an option is unknown or missing, so another version wrote it.
    """
    declared = {option_field.name for option_field in fields(Recipe)}
    if not isinstance(values, dict) or len(declared & values.keys()) < len(declared) / 2:
        raise RecipeError("this is no recipe", advice="the recipe.json of a run, or a recipe's name")
    if values.keys() != declared:
        raise _other_version_error(", ".join(sorted(declared ^ values.keys())))
    for option_field in fields(Recipe):
        name = option_field.name
        _check_type(name, values[name], option_field.type, "this recipe is damaged: ", DAMAGED_ADVICE)
    try:
        return Recipe(**{key: _to_declared_type(key, value) for key, value in values.items()})
    except (TypeError, ValueError, OverflowError) as error:
        raise RecipeError(f"this recipe is damaged: {error}", advice=DAMAGED_ADVICE) from None


def _other_version_error(differing: str) -> RecipeError:
    return RecipeError(
        f"another version of ikebana wrote this recipe; it differs in {differing}",
        advice="the version in the run's environment.json, or a new run",
    )


RECORD_TYPES = {"augmentation": Augmentation, "transfer": Transfer, "tuning": Tuning}


def _to_declared_type(key: str, value: Any) -> Any:
    """Restore tuples and records, which JSON does not have."""
    if key in RECORD_TYPES and isinstance(value, dict):
        return RECORD_TYPES[key](**{name: _list_to_tuple(item) for name, item in value.items()})
    if isinstance(value, Path):
        return str(value)
    return _list_to_tuple(value)


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
