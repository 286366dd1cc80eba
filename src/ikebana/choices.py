"""The records that a recipe is made of: how photos are changed, what a pretrained network becomes, how weights move."""

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
    """How far a training photo may be changed; the first five in the units of Keras' `ImageDataGenerator`."""

    rotation: float = 0.0  # degrees, either way
    shift: tuple[float, float] = (0.0, 0.0)  # fraction of the height and of the width, either way
    shear: float = 0.0  # degrees, either way: Keras' 0.2 is 0.2 degrees, which one cannot see
    zoom: float = 0.0  # 0.2 draws a factor from 0.8 to 1.2, for each axis apart
    flip: bool = False  # left and right, for every second photo
    area: float = (
        1.0  # the least share of the photo that is shown, somewhere in it, somewhat wider or higher than it is
    )
    light: float = 0.0  # 0.2 draws factors from 0.8 to 1.2, one for the brightness and one for the contrast

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
    """How the weights move, where it is not the tutorial's way (RMSprop at one learning rate): AdamW, rising, then falling."""

    weight_decay: float
    layer_decay: float  # each stage learns at this share of the rate of the stage above it
    warm_up: float  # share of the steps in which the rate rises from 0; then it falls to 0 along a cosine
    label_smoothing: float  # share of the truth given to all classes alike
    averaging: float  # the network that counts is a running mean of the weights; this much of it stays at each step

    def __post_init__(self) -> None:
        shares = {"weight_decay": self.weight_decay, "warm_up": self.warm_up, "averaging": self.averaging}
        _check("tuning", *BELOW_ONE, label_smoothing=self.label_smoothing, **shares)
        _check("tuning", *ABOVE_NOTHING, layer_decay=self.layer_decay)


def _check(of: str, words: str, holds: Callable[[float], bool], **values: float) -> None:
    """Refuse a number that a record cannot have.

    raises  RecipeError
    """
    for name, value in values.items():
        if not holds(value):
            raise RecipeError(f"{of}: {name.replace('_', ' ')} is {value:g}; it must be {words}")
