"""The named recipes, and the resolution of a name, file or Recipe."""

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ikebana.errors import RecipeError
from ikebana.recipe import (
    KERAS_INCEPTION,
    MIDDLE_STAGE,
    AdamW,
    Augmentation,
    FineTune,
    FrozenBackbone,
    InapplicableOption,
    LinearProbe,
    Recipe,
    Scratch,
    recipe_from_json,
    with_options,
)

TUTORIAL_AUGMENTATION = Augmentation(rotation=40, shift=(0.2, 0.2), shear=0.2, zoom=0.2, flip=True)

GOOD = Recipe(
    name="good",
    network="tf_efficientnet_lite0",
    image_size=0,
    resize="crop",
    method=FineTune(
        initial_head="linear_probe",
        train_from="blocks.3",
        flip_tta=True,
        adamw=AdamW(weight_decay=0.02, layer_decay=0.8, warmup_fraction=0.1, label_smoothing=0.1, ema_decay=0.99),
        augmentation=Augmentation(rotation=20, flip=True, crop_area=0.4, brightness=0.2),
        learning_rate=3e-4,
        batch_size=32,
        epochs=6,
    ),
)

# bench/records.md has their test accuracy on the 4,317 Flowers Recognition photos with the
# tutorial's split, and the number of seeds.
RECIPES: Mapping[str, Recipe] = {
    "baseline": Recipe(name="baseline"),
    "augmented": Recipe(
        name="augmented",
        method=Scratch(dropout=0.2, augmentation=TUTORIAL_AUGMENTATION, learning_rate=1e-5, epochs=100),
    ),
    "features": Recipe(
        name="features",
        network=KERAS_INCEPTION,
        method=FrozenBackbone(hidden_units=512, hidden_dropout=0.5, learning_rate=1.5e-6, epochs=120),
    ),
    "frozen": Recipe(
        name="frozen",
        network=KERAS_INCEPTION,
        method=FrozenBackbone(
            dropout=0.2, hidden_units=64, augmentation=TUTORIAL_AUGMENTATION, learning_rate=1e-4, epochs=30
        ),
    ),
    "finetuned": Recipe(
        name="finetuned",
        network=KERAS_INCEPTION,
        method=FineTune(
            dropout=0.2,
            hidden_units=64,
            head_epochs=30,
            head_learning_rate=1e-4,
            train_from=MIDDLE_STAGE,
            augmentation=TUTORIAL_AUGMENTATION,
            learning_rate=1e-5,
            epochs=100,
        ),
    ),
    "quick": Recipe(name="quick", network="tf_efficientnet_lite0", image_size=0, resize="crop", method=LinearProbe()),
    "good": GOOD,
    "best": replace(
        GOOD,
        name="best",
        network="tf_efficientnet_lite2+tf_efficientnet_lite1",
        image_size=256,
        method=replace(GOOD.method, epochs=8),
    ),
}

DEFAULT_RECIPE = "quick"


# The order in which the tutorial lists the classes; its split depends on it.
TUTORIAL_CLASS_ORDER = ("sunflower", "tulip", "rose", "daisy", "dandelion")


def get_recipe(name: str, **options: Any) -> Recipe:
    """Return the recipe of that name with some options changed.

    Raises:
        RecipeError: there is no such recipe or option, or an option is invalid.
    """
    if name not in RECIPES:
        similar = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.5)
        guess = f"did you mean {similar[0]}? " if similar else ""
        raise RecipeError(
            f"there is no recipe {name!r}", advice=f"{guess}one of: {', '.join(RECIPES)}; or the recipe.json of a run"
        )
    return _change(RECIPES[name], options)


def resolve_recipe(source: "str | Path | Recipe", **options: Any) -> Recipe:
    """Return the recipe that a name, file or Recipe refers to, with some options changed.

    Args:
        source: a name, a file such as a run's `recipe.json`, or a Recipe.
    Raises:
        RecipeError: there is no such recipe, file or option, the file is damaged or from another
            version, or an option is invalid.
    """
    if isinstance(source, Recipe):
        return _change(source, options)
    if not isinstance(source, str | Path):
        raise RecipeError(f"the recipe is {source!r}", advice="a recipe's name, the path of a recipe.json, or a Recipe")
    if isinstance(source, str) and not source.endswith(".json"):
        return get_recipe(source, **options)
    return _change(read_recipe(Path(os.path.expanduser(source))), options)


def _change(recipe: Recipe, options: dict[str, Any]) -> Recipe:
    """Change options of a recipe.

    The error for an option that its method does not have names the recipes that have it.
    """
    try:
        return with_options(recipe, **options)
    except InapplicableOption as error:
        missing = [name for name in options if not hasattr(recipe, name) and not hasattr(recipe.method, name)]
        names = [known.name for known in RECIPES.values() if all(hasattr(known.method, name) for name in missing)]
        advice = f"{error.advice}: {', '.join(names)}" if names else error.advice
        raise RecipeError(error.what, advice=advice) from None


def read_recipe(file: Path) -> Recipe:
    """Read a recipe file, such as the `recipe.json` of a run; RecipeError if that fails."""
    # Probably a misspelt name: the error lists the names.
    if not file.is_file() and file.suffix != ".json":
        return get_recipe(str(file))
    try:
        return recipe_from_json(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is damaged: {error}"
        raise RecipeError(
            f"this recipe cannot be read: {reason}", where=file, advice="the recipe.json of a run"
        ) from None
    except RecipeError as error:
        raise RecipeError(error.what, where=file, advice=error.advice) from None
