"""The records of a recipe: every option of a run, its explanation and its checks.

A recipe has a method, which is one of four records with different options:

    Scratch          all weights are random at first and trained
    LinearProbe      a pretrained backbone is frozen, a logistic regression is fitted to its features
    FrozenBackbone   a pretrained backbone is frozen, a head is trained by gradient descent
    FineTune         a head and a part of a pretrained backbone are trained
"""

import difflib
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import Field as RecordField
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, get_args

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from ikebana.errors import RecipeError
from ikebana.records import (
    CONFIG,
    Count,
    FractionBelowOne,
    LearningRate,
    Names,
    OptionalShare,
    Pair,
    PathText,
    PositiveCount,
    PositiveFraction,
    Record,
    Share,
    Triple,
    option,
)

# The largest seed that all libraries accept.
MAX_SEED = 2**32 - 1
# Between the networks of one recipe: runs with neighbouring seeds share no network.
MEMBER_SEED_STRIDE = 1_000_003
# InceptionV3 with Keras' arithmetic; timm's own is inception_v3.
KERAS_INCEPTION = "keras_inception_v3"
# As the first trained stage: the last 50 layers of Keras' InceptionV3, about half of another network.
MIDDLE_STAGE = "middle"
# The only network without a pretrained backbone.
TUTORIAL_NETWORK = "tutorial"
# A network of the user's own, followed by the name of its class.
MODULE_PREFIX = "module:"
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 8, 2048
DAMAGED_ADVICE = "an undamaged copy of it, or a recipe's name"

Resize = Literal["squash", "crop"]
SplitStrategy = Literal["stratified", "shuffle"]
Precision = Literal["auto", "float32", "bfloat16"]
InitialHead = Literal["random", "linear_probe"]
# Which weights train: the head alone, the last stages of the backbone too, or all.
Trainable = Literal["all", "head", "last_stages"]


@dataclass(frozen=True, config=CONFIG)
class Augmentation(Record):
    """Ranges of the random changes to training photos.

    The first five have the units of Keras' `ImageDataGenerator`.
    """

    # Degrees, in both directions.
    rotation: float = 0.0
    # Fractions of height and width, in both directions.
    shift: Pair = (0.0, 0.0)
    # Degrees, in both directions. Keras' 0.2 is 0.2 degrees, which is invisible.
    shear: float = 0.0
    # 0.2 draws a factor from 0.8 to 1.2 per axis.
    zoom: FractionBelowOne = 0.0
    # Flip half of the photos horizontally.
    flip: bool = False
    # Smallest share of the photo's area in a random crop, whose aspect ratio varies slightly.
    crop_area: PositiveFraction = 1.0
    # 0.2 draws factors from 0.8 to 1.2, one for brightness and one for contrast.
    brightness: FractionBelowOne = 0.0


@dataclass(frozen=True, config=CONFIG)
class AdamW(Record):
    """AdamW with warm-up, cosine decay, label smoothing and EMA of the weights."""

    weight_decay: FractionBelowOne = 0.02
    # Learning rate of each stage, relative to the stage above it.
    layer_decay: PositiveFraction = 0.8
    # Share of the steps in which the rate rises from 0; then it falls to 0 along a cosine.
    warmup_fraction: FractionBelowOne = 0.1
    # Share of the target distributed equally to all classes.
    label_smoothing: FractionBelowOne = 0.1
    # Decay per step of the exponential moving average of the weights, which is the final network.
    ema_decay: FractionBelowOne = 0.99


@dataclass(frozen=True, config=CONFIG)
class GradientMethod(Record):
    """Options of every method that trains by gradient descent."""

    learning_rate: LearningRate = option(1e-3, "step size of the optimiser")
    batch_size: PositiveCount = option(128, "photos per training step")
    epochs: PositiveCount = option(
        20, "passes over the training photos; in finetuned after 30 that train the head alone"
    )
    augmentation: Augmentation | None = None
    # None: RMSprop at a constant learning rate, as in the tutorial.
    adamw: AdamW | None = None


@dataclass(frozen=True, config=CONFIG)
class PretrainedMethod(Record):
    """Options of every method that starts from a pretrained backbone."""

    weights: PathText = option(
        "", "file with the network's pretrained weights (.safetensors or .pth); found automatically if not given"
    )
    # Average the features of the photo and its horizontal flip (test-time augmentation).
    flip_tta: bool = False


@dataclass(frozen=True, config=CONFIG)
class HeadMethod(PretrainedMethod, GradientMethod):
    """Options of every method that trains a head by gradient descent."""

    dropout: FractionBelowOne = option(0.0, "dropout rate of the input of the head")
    # Width of a dense layer with ReLU before the last; 0 for none.
    hidden_units: Count = 0
    # Dropout rate of that layer's output.
    hidden_dropout: FractionBelowOne = 0.0


@dataclass(frozen=True, config=CONFIG)
class Scratch(GradientMethod):
    """Train all weights of a network from random initial values."""

    dropout: FractionBelowOne = option(0.0, "dropout rate of the input of the head")
    kind: Literal["scratch"] = "scratch"


@dataclass(frozen=True, config=CONFIG)
class LinearProbe(PretrainedMethod):
    """Fit a logistic regression to the cached features of a frozen backbone."""

    kind: Literal["linear_probe"] = "linear_probe"


@dataclass(frozen=True, config=CONFIG)
class FrozenBackbone(HeadMethod):
    """Train a head on a frozen backbone.

    Without augmentation the features of each photo are extracted once and cached.
    """

    kind: Literal["frozen_backbone"] = "frozen_backbone"


@dataclass(frozen=True, config=CONFIG)
class FineTune(HeadMethod):
    """Train a head and the last stages of a pretrained backbone, or all of it."""

    # Random, or fitted to the frozen features as by LinearProbe.
    initial_head: InitialHead = "random"
    # Epochs in which the head alone is trained, before the method's own epochs.
    head_epochs: Count = 0
    head_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    # The first stage to train, or "middle"; empty for the whole backbone. A network without a stage
    # of that name is trained from its middle stage.
    train_from: str = ""
    kind: Literal["fine_tune"] = "fine_tune"

    def _find_problems(self) -> list[tuple[str, str]]:
        problems = []
        if self.head_epochs and not self.head_learning_rate > 0:
            problems.append(
                (
                    f"fine tune: head_epochs is {self.head_epochs}, but head_learning_rate is 0",
                    "a head_learning_rate above 0",
                )
            )
        if self.initial_head == "linear_probe" and self.hidden_units:
            problems.append(
                ("fine tune: a linear probe has no hidden layer", 'initial_head="random", or hidden_units=0')
            )
        return problems


Method = Scratch | LinearProbe | FrozenBackbone | FineTune
METHODS: tuple[type[Method], ...] = get_args(Method)


@dataclass(frozen=True, config=CONFIG)
class Recipe(Record):
    """Every option of a run.

    The photos, the recipe and the versions of the libraries reproduce a run.
    """

    name: str = "custom"
    network: str = option(
        TUTORIAL_NETWORK,
        "tutorial (four convolutions, two dense layers), keras_inception_v3, or the name of any network of timm; "
        "several, joined by +, are trained one after the other and averaged",
    )
    truncate_at: str = option("", "last block of keras_inception_v3 that is used, such as mixed8")
    image_size: int = option(
        150, "photos become squares of this many pixels; 0 for the size that the network was made for"
    )
    resize: Resize = option("squash", "how they become square: squash them, or crop the centre")
    method: Annotated[Method, Field(discriminator="kind")] = Scratch()
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = option(
        0, "seed of the training: initial weights, order of the photos, dropout, augmentation"
    )
    split: SplitStrategy = option(
        "stratified", "keep the share of each class and never separate duplicates, or the tutorial's shuffle"
    )
    split_seed: Count = option(0, "seed of the split")
    split_fractions: Triple = option((0.6, 0.2, 0.2), "shares of training, validation and test photos")
    class_order: Names = option((), "the classes in this order, instead of sorted")
    refit_on_all: bool = option(
        False, "after scoring, train once more on all photos: that network is exported, the score stays"
    )
    coverage: Share = option(
        0.9, "probability with which the candidate classes of a photo contain the true one, such as 90%", is_text=True
    )
    at_most_wrong: OptionalShare = option(
        None,
        "choose the threshold of 'not sure' so that at most this share of the answers is wrong, such as 5%",
        is_text=True,
    )
    precision: Precision = option("auto", "number format of the training step; 'auto' measures which is faster here")

    def _find_problems(self) -> list[tuple[str, str]]:
        shares = self.split_fractions
        is_valid_split = min(shares) >= 0 and shares[0] > 0 and shares[2] > 0 and abs(sum(shares) - 1) < 1e-6
        has_valid_size = self.image_size == 0 or MIN_IMAGE_SIZE <= self.image_size <= MAX_IMAGE_SIZE
        is_tutorial = TUTORIAL_NETWORK in self.networks
        is_own_model = self.network.startswith(MODULE_PREFIX)
        has_head_dropout = isinstance(self.method, Scratch) and self.method.dropout > 0
        is_file_name = self.name.strip() and not self.name.startswith(".") and not set(self.name) & set('/\\:*?"<>|')
        rules = {
            f"name is {self.name!r}": (bool(is_file_name), "a name that a folder can have"),
            f"image_size is {self.image_size}": (has_valid_size, f"0, or {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels"),
            f"split_fractions are {', '.join(f'{share:g}' for share in shares)}": (
                is_valid_split,
                "three shares with the sum 1; those of training and test above 0",
            ),
            "no pretrained weights exist for the network tutorial": (
                not (is_tutorial and self.is_pretrained),
                "the recipe baseline",
            ),
            "a model of your own is trained from scratch": (
                not (is_own_model and self.is_pretrained),
                "the recipe baseline or augmented, or a Recipe with method=Scratch(...)",
            ),
            f"network is {self.network!r}": (all(self.networks), "names of networks, joined by +"),
            "several networks cannot all start from one weights file": (
                len(self.networks) == 1 or not self.weights,
                "leave --weights out",
            ),
            f"truncate_at is {self.truncate_at!r}": (
                not self.truncate_at or set(self.networks) == {KERAS_INCEPTION},
                f"leave --truncate-at out: only {KERAS_INCEPTION} can be truncated",
            ),
            f"dropout of a network from scratch, {self.network}": (
                not has_head_dropout or is_tutorial,
                "leave --dropout out: only the network tutorial has it",
            ),
            "class_order names a class twice": (
                len(set(self.class_order)) == len(self.class_order),
                "each class once",
            ),
        }
        return [(f"recipe {self.name}: {name}", advice) for name, (holds, advice) in rules.items() if not holds]

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

    @property
    def is_pretrained(self) -> bool:
        """Whether the network starts from pretrained weights."""
        return isinstance(self.method, PretrainedMethod)

    @property
    def weights(self) -> str:
        """The file with pretrained weights; empty if they are found automatically."""
        return self.method.weights if isinstance(self.method, PretrainedMethod) else ""

    @property
    def augmentation(self) -> Augmentation | None:
        """The random changes to training photos, if any."""
        return self.method.augmentation if isinstance(self.method, GradientMethod) else None

    @property
    def adamw(self) -> AdamW | None:
        """The options of AdamW; None for RMSprop, and for a linear probe."""
        return self.method.adamw if isinstance(self.method, GradientMethod) else None

    @property
    def trainable(self) -> Trainable:
        """Which weights train in the method's own epochs."""
        if isinstance(self.method, FineTune):
            return "last_stages" if self.method.train_from else "all"
        return "all" if isinstance(self.method, Scratch) else "head"

    @property
    def caches_features(self) -> bool:
        """Whether features are extracted once per photo: nothing before the head ever changes."""
        return isinstance(self.method, LinearProbe) or (
            isinstance(self.method, FrozenBackbone) and self.method.augmentation is None
        )

    @property
    def fits_linear_probe(self) -> bool:
        """Whether the head is, or starts as, a logistic regression on frozen features."""
        return isinstance(self.method, LinearProbe) or (
            isinstance(self.method, FineTune) and self.method.initial_head == "linear_probe"
        )

    @property
    def gradient_method(self) -> GradientMethod:
        """The method's options of gradient descent; TypeError for a linear probe, which has none."""
        if not isinstance(self.method, GradientMethod):
            raise TypeError(f"{type(self.method).__name__} is not trained by gradient descent")
        return self.method


class FitOptions(TypedDict, total=False):
    """The options that `with_options` accepts, and `fit` with it."""

    network: str
    truncate_at: str
    image_size: int
    resize: Resize
    method: Method
    seed: int
    split: SplitStrategy
    split_seed: int
    split_fractions: tuple[float, float, float]
    class_order: Sequence[str]
    refit_on_all: bool
    coverage: float | str
    at_most_wrong: float | str | None
    precision: Precision
    learning_rate: float
    batch_size: int
    epochs: int
    augmentation: Augmentation | None
    adamw: AdamW | None
    dropout: float
    weights: str | Path
    flip_tta: bool
    hidden_units: int
    hidden_dropout: float
    initial_head: InitialHead
    head_epochs: int
    head_learning_rate: float
    train_from: str


def list_options() -> dict[str, RecordField[Any]]:
    """List the options that are flags, of Recipe and its methods."""
    declared = (record_field for record in (Recipe, *METHODS) for record_field in fields(record))
    return {record_field.name: record_field for record_field in declared if "explanation" in record_field.metadata}


class InapplicableOption(RecipeError):
    """An option that the recipe's training method does not have."""


def with_options(recipe: Recipe, **options: Any) -> Recipe:
    """Return the recipe with some options changed, those of its method included.

    Raises:
        RecipeError: there is no such option, the recipe's method does not have it, or it is invalid.
    """
    method = options.pop("method", recipe.method)
    recipe_names = {record_field.name for record_field in fields(Recipe)} - {"name", "method"}
    method_names = {record_field.name for record_field in fields(method)} - {"kind"}
    known = recipe_names | {record_field.name for kind in METHODS for record_field in fields(kind)} - {"kind"}
    for name in options:
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=1)
            guess = f"did you mean {similar[0]}? " if similar else ""
            raise RecipeError(f"a recipe has no option {name!r}", advice=f"{guess}one of: {', '.join(sorted(known))}")
        if name not in recipe_names | method_names:
            flag, kind = f"--{name.replace('_', '-')}", method.kind.replace("_", " ")
            raise InapplicableOption(
                f"recipe {recipe.name}: {flag} has no effect on its training method, {kind}",
                advice=f"leave {flag} out, or another recipe",
            )
    method_options = {name: value for name, value in options.items() if name in method_names}
    recipe_options = {name: value for name, value in options.items() if name in recipe_names}
    return replace(recipe, method=replace(method, **method_options), **recipe_options)


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """Convert a recipe to plain values for `recipe.json`."""
    values = asdict(recipe)
    return values | {"method": {"kind": recipe.method.kind, **values["method"]}}


def recipe_from_json(values: Mapping[str, Any]) -> Recipe:
    """Build the recipe that `recipe_to_json` wrote.

    Raises:
        RecipeError: an option is unknown, missing or invalid, so another version wrote it or it is damaged.
    """
    declared = {record_field.name for record_field in fields(Recipe)}
    if not isinstance(values, dict) or len(declared & values.keys()) < len(declared) / 2:
        raise RecipeError("this is not a recipe", advice="the recipe.json of a run, or a recipe's name")
    if values.keys() != declared:
        raise _other_version_error(declared ^ values.keys())
    try:
        recipe = _make_adapter().validate_json(json.dumps(values))
    except (RecipeError, ValueError, OverflowError, RecursionError) as error:
        reason = error.what if isinstance(error, RecipeError) else str(error)
        raise RecipeError(f"this recipe is damaged: {reason}", advice=DAMAGED_ADVICE) from None
    if differing := _list_keys(recipe_to_json(recipe)) ^ _list_keys(values):
        raise _other_version_error(differing)
    return recipe


@functools.cache
def _make_adapter() -> TypeAdapter[Recipe]:
    return TypeAdapter(Recipe)


def _list_keys(values: Mapping[str, Any], prefix: str = "") -> set[str]:
    """List the keys of nested records, such as `method.epochs`."""
    keys = {f"{prefix}{name}" for name in values}
    for name, value in values.items():
        if isinstance(value, dict):
            keys |= _list_keys(value, f"{prefix}{name}.")
    return keys


def _other_version_error(differing: set[str]) -> RecipeError:
    return RecipeError(
        f"another version of ikebana wrote this recipe; it differs in {', '.join(sorted(differing))}",
        advice="the version in the run's environment.json, or a new run",
    )
