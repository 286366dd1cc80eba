"""Records of a recipe: augmentation, transfer learning and fine-tuning."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from ikebana.errors import RecipeError

Trained = Literal["all", "head", "tail"]

BELOW_ONE = "at least 0 and below 1", lambda value: 0 <= value < 1
NOT_NEGATIVE = "at least 0", lambda value: value >= 0
ABOVE_NOTHING = "above 0 and at most 1", lambda value: 0 < value <= 1


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
    area: float = 1.0
    # 0.2 draws factors from 0.8 to 1.2, one for brightness and one for contrast.
    light: float = 0.0

    def __post_init__(self) -> None:
        _check("augmentation", *BELOW_ONE, zoom=self.zoom, light=self.light)
        _check("augmentation", *ABOVE_NOTHING, area=self.area)


@dataclass(frozen=True)
class Transfer:
    """How a pretrained network becomes a classifier of other photos: a new head on it, then perhaps more of it."""

    logistic: bool = False  # the head is a logistic regression; otherwise it is trained like any layer
    dropout: float = 0.0  # of the head's input
    hidden: int = 0  # width of a dense layer with ReLU before the last; 0 for none
    hidden_dropout: float = 0.0  # of that layer's output
    kept: bool = (
        False  # the backbone sees each photo once, and the head learns from its features, which are kept on disk
    )
    head_epochs: int = 0  # in which the head alone is trained, before the recipe's own epochs
    head_learning_rate: float = 0.0
    trained: Trained = "head"  # in the recipe's own epochs
    mirrored: bool = False  # what is said of a photo is the mean of what is seen in it and in its mirror image
    tail_from: str = ""  # the first stage of the tail; for the tutorial's network the last 50 of Keras' layers

    def __post_init__(self) -> None:
        _check("transfer", *BELOW_ONE, dropout=self.dropout, hidden_dropout=self.hidden_dropout)
        _check("transfer", *NOT_NEGATIVE, hidden=self.hidden, head_epochs=self.head_epochs)
        if self.trained not in get_args(Trained):
            raise RecipeError(f"transfer: trained is {self.trained!r}", advice=f"one of {', '.join(get_args(Trained))}")
        if self.head_epochs and not self.head_learning_rate > 0:
            raise RecipeError(
                f"transfer: in {self.head_epochs} epochs of the head it learns nothing",
                advice="a head_learning_rate above 0",
            )
        if self.logistic and self.hidden:
            raise RecipeError("a logistic head has no hidden layer", advice="logistic=False, or hidden=0")
        if self.kept and self.trained != "head":
            raise RecipeError(
                "features can be kept only where the head alone learns", advice='kept=False, or trained="head"'
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
    warm_up: float
    # Share of the target distributed equally to all classes.
    label_smoothing: float
    # Decay per step of the exponential moving average of the weights, which is the final network.
    averaging: float

    def __post_init__(self) -> None:
        shares = {"weight_decay": self.weight_decay, "warm_up": self.warm_up, "averaging": self.averaging}
        _check("tuning", *BELOW_ONE, label_smoothing=self.label_smoothing, **shares)
        _check("tuning", *ABOVE_NOTHING, layer_decay=self.layer_decay)


def _check(record: str, expected: str, is_valid: Callable[[float], bool], **values: float) -> None:
    """Raise RecipeError if a number is out of range."""
    for name, value in values.items():
        if not is_valid(value):
            raise RecipeError(f"{record}: {name.replace('_', ' ')} is {value:g}; it must be {expected}")
