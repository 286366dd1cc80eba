"""Recipes: the named ones, invalid options, and the round trip through JSON."""

import dataclasses
import json
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikebana import recipes
from ikebana.errors import RecipeError
from ikebana.recipe import (
    MAX_SEED,
    AdamW,
    Augmentation,
    FineTune,
    FrozenBackbone,
    LinearProbe,
    Recipe,
    Scratch,
    list_options,
    recipe_from_json,
    recipe_to_json,
)

ADAMW = AdamW(weight_decay=0.02, layer_decay=0.8, warmup_fraction=0.1, label_smoothing=0.1, ema_decay=0.99)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_survives_json(name):
    recipe = recipes.get_recipe(name, class_order=("b", "a"), split_fractions=(0.5, 0.25, 0.25))
    assert recipe_from_json(json.loads(json.dumps(recipe_to_json(recipe)))) == recipe


@pytest.mark.parametrize(
    ("choice", "value"),
    [
        ("epochs", 0), ("batch_size", 0), ("image_size", 4), ("image_size", 100_000), ("dropout", 1.0),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")), ("learning_rate", float("nan")), ("learning_rate", 1e308), ("seed", -1),
        ("seed", 2**32), ("seed", 2 * 10**13),
        ("split_seed", -1), ("resize", "stretch"), ("split", "random"), ("precision", "float16"),
        ("split_fractions", (0.5, 0.5)),
        ("split_fractions", (0.5, 0.4, 0.2)), ("split_fractions", (0.0, 0.5, 0.5)), ("split_fractions", (0.8, 0.2, 0.0)),
        ("class_order", ("a", "a")),
        ("coverage", 0.0), ("coverage", 1.0), ("coverage", "90"), ("coverage", "many"), ("at_most_wrong", "5"),
        ("at_most_wrong", "0%"), ("at_most_wrong", "5 percent"), ("at_most_wrong", True),
    ],
)  # fmt: skip
def test_an_invalid_option_is_refused_by_name(choice, value):
    with pytest.raises(RecipeError, match=choice):
        recipes.get_recipe("baseline", **{choice: value})


def test_weights_are_refused_for_a_recipe_that_trains_from_scratch():
    with pytest.raises(RecipeError, match="--weights has no effect on its training method, scratch"):
        recipes.get_recipe("baseline", network="resnet18", weights="mine.pth")


def test_a_recipe_for_pretrained_networks_refuses_other_networks():
    with pytest.raises(RecipeError, match="baseline"):
        recipes.get_recipe("quick", network="tutorial")


def test_unknown_recipes_and_options_are_refused_with_the_known_ones():
    with pytest.raises(RecipeError) as refusal:
        recipes.get_recipe("best-ever")
    assert "baseline" in str(refusal.value)
    with pytest.raises(RecipeError) as refusal:
        recipes.get_recipe("baseline", epoch=3)
    assert "epochs" in str(refusal.value)


@pytest.mark.slow
@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=8) | st.none(), max_size=5))
def test_a_damaged_recipe_file_is_refused_with_a_message(values):
    with pytest.raises(RecipeError):
        recipe_from_json(values)


def test_every_option_has_help_text_for_the_command_line():
    options = list_options()
    assert all(option.metadata["explanation"] for option in options.values())
    assert {field.name for field in dataclasses.fields(Recipe)} - {"name", "method"} <= options.keys()
    assert {"epochs", "batch_size", "learning_rate", "dropout", "weights"} <= options.keys()


@pytest.mark.parametrize("shift", [[0.2], [0.2, 0.2, 0.2], [], 0.2])
def test_a_list_of_the_wrong_length_is_refused(shift):
    values = json.loads(json.dumps(recipe_to_json(recipes.get_recipe("augmented"))))
    assert len(values["method"]["augmentation"]["shift"]) == 2
    values["method"]["augmentation"]["shift"] = shift
    with pytest.raises(RecipeError, match="shift"):
        recipe_from_json(values)


def test_every_seed_of_a_recipe_is_valid_for_all_libraries():
    members = recipes.get_recipe("best", seed=MAX_SEED).members
    assert len({member.seed for member in members}) == len(members) == 2


def test_a_list_on_the_command_line_can_quote_names_with_commas():
    from ikebana.cli import options

    given = options.RecipeOptions(class_order='tulip, "rose, wild",daisy', split_fractions="0.5, 0.25,0.25")
    assert options.parse_options(given) == {
        "class_order": ("tulip", "rose, wild", "daisy"),
        "split_fractions": (0.5, 0.25, 0.25),
    }
    for wrong in ("a,b", ""):
        with pytest.raises(RecipeError, match=r"split.fractions"):
            recipes.get_recipe("quick", **options.parse_options(options.RecipeOptions(split_fractions=wrong)))


@pytest.mark.parametrize("text", ["5%", "5 %", "0.05", ".05", 0.05])
def test_a_share_is_a_percentage_or_a_fraction(text):
    from ikebana.cli import options

    assert recipes.get_recipe("quick", at_most_wrong=text).at_most_wrong == 0.05
    given = options.parse_options(options.RecipeOptions(at_most_wrong=str(text), coverage="95%"))
    recipe = recipes.get_recipe("quick", **given)
    assert (recipe.at_most_wrong, recipe.coverage) == (0.05, 0.95)
    assert recipe_from_json(json.loads(json.dumps(recipe_to_json(recipe)))) == recipe
    assert recipes.get_recipe("quick").at_most_wrong is None


@pytest.mark.parametrize("choice", [{"epochs": 3}, {"batch_size": 5}, {"learning_rate": 0.1}, {"dropout": 0.3}])
def test_options_without_effect_on_a_linear_probe_are_refused(choice):
    with pytest.raises(RecipeError, match="has no effect on its training method, linear probe") as refusal:
        recipes.resolve_recipe("quick", **choice)
    assert refusal.value.advice is not None
    others = refusal.value.advice.rpartition(": ")[2].split(", ")
    # Every recipe that is suggested has the option.
    assert "good" in others
    assert all(recipes.resolve_recipe(name, **choice).name == name for name in others)
    assert recipes.resolve_recipe("augmented", **choice) != recipes.resolve_recipe("augmented")


def test_options_of_another_method_are_refused():
    with pytest.raises(RecipeError, match="dropout of a network from scratch"):
        recipes.resolve_recipe("baseline", network="resnet18", dropout=0.3)
    for name, network in (("baseline", "tutorial"), ("good", "resnet18"), ("good", "keras_inception_v3+resnet18")):
        with pytest.raises(RecipeError, match="only keras_inception_v3 can be truncated"):
            recipes.get_recipe(name, network=network, truncate_at="mixed8")
    assert recipes.get_recipe("good", network="keras_inception_v3", truncate_at="mixed8").truncate_at == "mixed8"


@pytest.mark.parametrize(
    ("record", "values", "named"),
    [
        (FineTune, {"initial_head": "linear_probe", "hidden_units": 16}, "hidden layer"),
        (FineTune, {"initial_head": "logistic"}, "initial_head is 'logistic'; it must be 'random' or 'linear_probe'"),
        (FrozenBackbone, {"hidden_units": -1}, "hidden_units is -1; it must be greater than or equal to 0"),
        (FineTune, {"head_epochs": -1}, "head_epochs is -1"),
        (FineTune, {"head_epochs": 5}, "head_epochs is 5, but head_learning_rate is 0"),
        (FrozenBackbone, {"dropout": 1.0}, "dropout"),
        (FineTune, {"hidden_dropout": -0.1}, "hidden_dropout"),
        (LinearProbe, {"epochs": 3}, "linear probe has no option 'epochs'"),
        (Scratch, {"weights": "mine.pth"}, "scratch has no option 'weights'"),
        (Recipe, {"method": {"kind": "magic"}}, "unknown kind of method"),
        (Augmentation, {"crop_area": 0.0}, "crop_area"),
        (Augmentation, {"zoom": 1.5}, "zoom"),
        (Augmentation, {"brightness": float("nan")}, "brightness"),
        (partial(replace, ADAMW), {"label_smoothing": 5.0}, "label_smoothing"),
        (partial(replace, ADAMW), {"layer_decay": 0.0}, "layer_decay"),
        (partial(replace, ADAMW), {"ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_an_invalid_field_of_a_recipe_record_is_refused_by_name(record, values, named):
    with pytest.raises(RecipeError, match=named):
        record(**values)


@pytest.mark.parametrize(
    "choices",
    [
        {"seed": 1.5},
        {"seed": True},
        {"split_fractions": "0.6"},
        {"image_size": None},
        {"class_order": "abc"},
        {"refit_on_all": 1},
        {"method": 3},
    ],
)
def test_an_option_of_the_wrong_type_is_refused_immediately(choices):
    (name,) = choices
    if name != "method":
        with pytest.raises(RecipeError, match=f"{name} is"):
            recipes.get_recipe("quick", **choices)
    with pytest.raises(RecipeError, match=name):
        Recipe(name="mine", **choices)


def test_a_weights_file_may_be_a_path_object(tmp_path):
    assert recipes.get_recipe("quick", weights=tmp_path / "mine.safetensors").weights == str(
        tmp_path / "mine.safetensors"
    )


def test_a_misspelt_recipe_is_refused_with_the_closest_name():
    with pytest.raises(RecipeError) as refusal:
        recipes.get_recipe("gud")
    assert str(refusal.value.advice).startswith("did you mean good?")
    with pytest.raises(RecipeError) as refusal:
        recipes.get_recipe("xyzzy")
    assert "did you mean" not in str(refusal.value.advice)


@pytest.mark.parametrize("name", ["a/b", "..", "", " ", "a:b"])
def test_the_name_of_a_recipe_is_a_valid_folder_name(name):
    with pytest.raises(RecipeError, match="name is"):
        Recipe(name=name)


def test_a_misspelt_option_is_refused_with_the_closest_name():
    with pytest.raises(RecipeError) as refusal:
        recipes.get_recipe("baseline", epoch=8)
    assert str(refusal.value.advice).startswith("did you mean epochs?")
