"""The next better recipe: measured scores, the command, and its cost on this machine."""

import shlex
from dataclasses import asdict, dataclass
from typing import Any

from ikebana import recipes
from ikebana.data.dataset import Dataset
from ikebana.evaluation.metrics import MIN_USEFUL_ACCURACY
from ikebana.learning.device import DeviceSettings
from ikebana.learning.estimate import FIXED_SECONDS, format_duration
from ikebana.learning.models import networks
from ikebana.learning.precision import get_seconds_per_photo
from ikebana.recipe import MODULE_PREFIX, Recipe

# Training photos per class from which fine-tuning is recommended. With 12 to 50 of the flowers it was
# no more accurate than a head (bench/records.md).
MIN_PHOTOS_PER_CLASS_FOR_FINE_TUNING = 40
# With fewer training photos per class, no gain of a better recipe was measured; with 100 it is a sixth.
MIN_PHOTOS_PER_CLASS_FOR_MEASURED_GAIN = 100

FEW_PHOTOS_EVIDENCE = (
    "on Flowers Recognition fine-tuning gained nothing with 12 to 50 training photos per class, and much with 500"
)


@dataclass(frozen=True)
class RecipeUpgrade:
    """A recipe that is more accurate than another.

    Attributes:
        epoch_cost_factor: its training time per photo over the lesser recipe's `seconds_per_photo`.
        scores: measured test accuracies of both, for the user.
    """

    recipe: str
    epoch_cost_factor: float
    scores: str


# Factors include validation. The first is from a Xeon with AMX. The second is from an EPYC with
# avx512_bf16, before steps became faster (on the Xeon at most 5.6, under load).
# Scores are test accuracies on Flowers Recognition with the tutorial's split: bench/records.md.
UPGRADES = {
    "quick": RecipeUpgrade("good", 3.8, "good 0.950, quick 0.926"),
    "good": RecipeUpgrade("best", 4.0, "best 0.962, good 0.950"),
}
# Test accuracies of the tutorial's recipes on the same split.
TUTORIAL_SCORES = {"baseline": 0.626, "augmented": 0.589, "features": 0.861, "frozen": 0.885, "finetuned": 0.870}
QUICK_SCORE = 0.926


@dataclass(frozen=True)
class Suggestion:
    """What to try after a run.

    Attributes:
        text: what is to be expected of it.
        command: to copy; empty if there is none.
        note: its cost here and the evidence; may be empty.
    """

    text: str
    command: str = ""
    note: str = ""

    def __str__(self) -> str:
        command = f": {self.command}" if self.command else ""
        return f"{self.text}{command}" + (f"\n  ({self.note})" if self.note else "")

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `suggestion.json`."""
        return asdict(self)


def suggest_upgrade(
    dataset: Dataset, recipe: Recipe, settings: DeviceSettings, accuracy: float, accuracy_lower_bound: float
) -> Suggestion | None:
    """Suggest the next better recipe, with measured scores and its cost here.

    Args:
        dataset: after `split_photos`.
        accuracy_lower_bound: lower end of the confidence interval of the accuracy.
    Returns:
        None if there is no better recipe or nothing to gain.
    """
    if accuracy < 1 and _is_quick_better(recipe, accuracy_lower_bound):
        return _suggest_quick(dataset, recipe)
    better = UPGRADES.get(recipe.name)
    seconds_per_photo = get_seconds_per_photo(settings)
    if better is None or seconds_per_photo is None or accuracy == 1:
        return None
    if accuracy_lower_bound <= 1 / len(dataset.classes):
        return Suggestion(
            "not shown to be better than guessing on so few test photos: check the labels, and add photos"
        )
    preset, cost = networks.fill_defaults(recipes.RECIPES[recipe.name]), ""
    command = f"ikebana fit {shlex.quote(dataset.command_argument)} --recipe {better.recipe}"
    if recipe.network != preset.network:  # the scores were measured with the preset's network only
        return Suggestion("possibly more accurate", f"{command} --network {recipe.network}")
    if recipe.image_size == preset.image_size:  # time per photo is known for this image size only
        cost = f"about {format_duration(estimate_upgrade_seconds(dataset, recipe, better, seconds_per_photo))} here; "
    photos_per_class = dataset.used_photos.filter(split="train").group_by("label").len()["len"].median()
    if isinstance(photos_per_class, float) and photos_per_class < MIN_PHOTOS_PER_CLASS_FOR_MEASURED_GAIN:
        return Suggestion("possibly more accurate", command, f"{cost}{FEW_PHOTOS_EVIDENCE}")
    return Suggestion("more accurate", command, f"{cost}accuracy on one Flowers Recognition split: {better.scores}")


def _is_quick_better(recipe: Recipe, accuracy_lower_bound: float) -> bool:
    """Return whether the default recipe is usually much more accurate than this one."""
    if recipe.name in (*UPGRADES, "best") or recipe.network.startswith(MODULE_PREFIX):
        return False
    return not recipe.is_pretrained or accuracy_lower_bound < MIN_USEFUL_ACCURACY


def _suggest_quick(dataset: Dataset, recipe: Recipe) -> Suggestion:
    command = f"ikebana fit {shlex.quote(dataset.command_argument)} --recipe quick"
    score = TUTORIAL_SCORES.get(recipe.name)
    note = "it starts from a network that was trained on ImageNet"
    if score is not None:
        note += f"; accuracy on one Flowers Recognition split: quick {QUICK_SCORE:.3f}, {recipe.name} {score:.3f}"
    return Suggestion("usually much more accurate", command, note)


def estimate_upgrade_seconds(
    dataset: Dataset, recipe: Recipe, better: RecipeUpgrade, seconds_per_photo: float
) -> float:
    """Estimate how long the next better recipe would train here.

    Args:
        seconds_per_photo: of the current recipe's frozen forward pass or training step.
    """
    shown_photos = (
        dataset.used_photos.height * recipes.RECIPES[better.recipe].gradient_method.epochs * recipe.split_fractions[0]
    )
    return FIXED_SECONDS + shown_photos * seconds_per_photo * better.epoch_cost_factor
