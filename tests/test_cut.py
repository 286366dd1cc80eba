"""Networks cut in two, changed copies that stay the same, and the tails that learn from what is kept of them."""

import dataclasses

import numpy as np
import pytest
import timm
import torch
from conftest import stopped_after

import ikebana
from ikebana.choices import Augmentation, Transfer
from ikebana.errors import RecipeError
from ikebana.learning import backbones, cut, features, fitting, inference, networks
from ikebana.learning.device import Setting
from ikebana.learning.forecast import forecast, prepared
from ikebana.learning.views import Views
from ikebana.photos import intake, kept, split
from ikebana.recipe import RECIPES, Recipe, changed
from ikebana.run import Run

pytestmark = pytest.mark.usefixtures("shared_cache")

EXACT = Setting("cpu", "float32", 1, "as it comes")
SMALL = {"side": 64, "precision": "float32", "batch": 16, "epochs": 1}
TAIL = RECIPES["tail"]
CHANGES = Augmentation(rotation=20, flip=True, light=0.2)


@pytest.fixture(scope="module")
def folder_of_photos(drawn):
    return drawn(14)


@pytest.fixture(scope="module")
def run(folder_of_photos, cache, tmp_path_factory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKEBANA_CACHE", str(cache))
        return ikebana.fit(folder_of_photos, "tail", run=tmp_path_factory.mktemp("runs") / "run", **SMALL)


def recipe_for(network: str, stage: str, side: int = 64) -> Recipe:
    assert TAIL.transfer is not None
    return changed(TAIL, network=network, side=side, transfer=dataclasses.replace(TAIL.transfer, tail_from=stage))


def photos(count: int, side: int = 16) -> inference.Photos:
    pixels = np.random.default_rng(0).integers(0, 256, (count + 3, side, side, 3), np.uint8)
    labels = np.arange(count) % 2
    return inference.Photos(pixels, np.arange(count) + 3, labels, labels > 0, np.arange(count))


# --- the two halves ---


@pytest.mark.parametrize(
    ("network", "stage"),
    [
        ("tf_efficientnet_lite0", "blocks.5"),
        ("tf_efficientnet_lite0", "blocks.0"),
        ("tf_efficientnet_lite0", "conv_head"),
        ("tf_efficientnet_lite0", "no such stage"),
        ("test_resnet", "layer2"),
        ("resnet18", "layer3"),
        ("mobilenetv3_small_050", "blocks.3"),
    ],
)
def test_one_after_the_other_the_halves_are_the_network(network, stage):
    recipe = recipe_for(network, stage)
    seer = networks.build(recipe, 5).get_submodule("seer")
    below, above = cut.halves(seer, recipe)
    given = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(above.eval()(below.eval()(given)), seer.eval()(given), rtol=1e-4, atol=1e-5)


def test_the_halves_have_the_networks_own_weights():
    recipe = recipe_for("tf_efficientnet_lite0", "blocks.5")
    seer = networks.build(recipe, 5).get_submodule("seer")
    _, above = cut.halves(seer, recipe)
    own = {id(each) for each in seer.parameters()}
    assert {id(each) for each in above.parameters()} <= own
    assert {name.split(".")[1] for name, _ in above.named_parameters() if "blocks" not in name} == {"conv_head", "bn2"}
    assert {name.split(".")[2] for name, _ in above.named_parameters() if "blocks" in name} == {"5", "6"}


@pytest.mark.parametrize("network", ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_050", "convnext_atto"])
def test_what_learns_above_the_cut_is_what_would_learn_in_the_whole_network(network):
    recipe = recipe_for(network, "blocks.6")
    whole = networks.build(recipe, 2)
    asked = {id(each) for each in whole.parameters() if each.requires_grad}
    parts = {part: photos(4, 64) for part in ("train", "validation", "test")}
    lesson = fitting.lesson(whole, recipe, parts, features.origin("drawn", recipe, None), EXACT)
    groups = networks.trained_groups(lesson.learner, lesson.recipe, "tail", 1e-3)
    assert {id(each) for group in groups for each in group.weights} == asked


@pytest.mark.parametrize("network", ["test_vit", "tf_efficientnet_lite0"])
def test_a_network_that_is_more_than_its_stages_in_a_row_is_refused(network, monkeypatch):
    recipe = recipe_for(network, "blocks.5", 160)
    if network == "tf_efficientnet_lite0":  # one whose way through is not that of its layers alone
        real = timm.create_model

        def odd(*arguments, **options):
            made = real(*arguments, **options)
            whole = made.forward
            made.forward = lambda seen: whole(seen) + seen.mean()
            return made

        monkeypatch.setattr(timm, "create_model", odd)
    with pytest.raises(RecipeError, match="cannot be cut before blocks"):
        cut.halves(networks.build(recipe, 5).get_submodule("seer"), recipe)


def test_a_cut_with_nothing_below_it_is_refused():
    recipe = recipe_for("tf_efficientnet_lite0", "conv_stem")
    with pytest.raises(RecipeError, match="nothing lies below it"):
        cut.halves(networks.build(recipe, 5).get_submodule("seer"), recipe)


def test_it_is_refused_before_any_photo_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "sought", lambda _: None)
    monkeypatch.setattr(intake, "read", lambda *_: pytest.fail("photos were read"))
    with pytest.raises(RecipeError, match="cannot be cut"):
        ikebana.fit(tmp_path, recipe_for("test_vit", "blocks.1", 160), run=tmp_path / "run")


# --- views ---


def test_the_photos_come_first_and_then_copies_that_are_changed_each_in_its_own_way():
    one = photos(4)
    seen, labels = Views(one, CHANGES, 2).batch(np.arange(12), "cpu")
    plain, _ = one.batch(np.arange(4), "cpu")
    assert torch.equal(seen[:4], plain.float())
    assert labels.tolist() == [0, 1] * 6
    for number in range(4):
        of_one = [seen[number + 4 * copy] for copy in range(3)]
        assert not any(torch.equal(a, b) for a, b in zip(of_one, of_one[1:] + of_one[:1], strict=True))


def test_a_copy_is_the_same_whatever_is_asked_for_beside_it():
    views = Views(photos(4), CHANGES, 3)
    together, _ = views.batch(np.arange(16), "cpu")
    alone, _ = views.at(np.array([9, 2])).batch(np.array([0]), "cpu")
    assert torch.equal(alone[0], together[9])
    torch.manual_seed(7)
    assert torch.equal(views.batch(np.array([9]), "cpu")[0][0], together[9])


def test_copies_keep_label_and_group_and_all_of_them_have_a_name():
    one = photos(4)
    views = Views(one, CHANGES, 2)
    assert len(views) == views.height == 12
    assert views.groups.tolist() == one.groups.tolist() * 3
    assert views.for_choices.tolist() == one.for_choices.tolist() * 3
    others = (Views(one, CHANGES, 1), Views(one, Augmentation(flip=True), 2), Views(one.some(np.arange(3)), CHANGES, 2))
    assert len({views.about, *(each.about for each in others)}) == 4


# --- what learns from them ---


def course(run):
    """The run's course, before anything was learned."""
    found = intake.read(run.source["photos"])
    opened, keep = kept.opened(found, run.recipe.side, run.recipe.fit)
    parts = inference.parts(split.split(opened, run.recipe), keep.pixels)
    return fitting.course(run.recipe, len(run.classes), parts, keep.folder.name, EXACT), parts


def test_what_a_tail_says_of_what_is_kept_is_what_the_network_says_of_the_photos(run):
    given, parts = course(run)
    lesson = given.lessons[0]
    assert len(lesson.train) == 5 * len(parts["train"])
    said = inference.logits_of(lesson.learner, lesson.validation, EXACT)
    np.testing.assert_allclose(
        said, inference.logits_of(given.network, parts["validation"], EXACT), rtol=0.02, atol=0.01
    )


def test_the_tail_alone_moves_and_the_network_that_ships_has_it(run):
    given, _ = course(run)
    before, after = given.network.state_dict(), networks.build(run.recipe, len(run.classes))
    from ikebana.learning import checkpoint

    checkpoint.load_weights(run.weights, after)
    moved = {name for name, value in after.state_dict().items() if not torch.equal(value, before[name])}
    of_backbone = {name.removeprefix("seer.backbone.") for name in moved if name.startswith("seer.")}
    assert any(name.startswith("blocks.6") for name in of_backbone)
    assert all(name.startswith(("blocks.6", "conv_head", "bn2")) for name in of_backbone)
    assert not [name for name in of_backbone if "running" in name]


def test_a_second_run_looks_at_no_photo_again_and_gives_the_same_weights_to_the_bit(
    run, folder_of_photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(features, "_fill", lambda *_: pytest.fail("photos were looked at again"))
    again = ikebana.fit(folder_of_photos, "tail", run=tmp_path / "again", **SMALL)
    assert again.weights.read_bytes() == run.weights.read_bytes()


def test_one_that_was_stopped_goes_on_to_the_very_same_weights(run, folder_of_photos, tmp_path):
    with stopped_after(3):
        ikebana.fit(folder_of_photos, "tail", run=tmp_path / "stopped", **SMALL)
    assert ikebana.resume(tmp_path / "stopped").weights.read_bytes() == run.weights.read_bytes()


def test_it_can_learn_once_more_from_all_photos(run, folder_of_photos, tmp_path):
    more = ikebana.fit(folder_of_photos, "tail", run=tmp_path / "all", all=True, **SMALL)
    assert more.predictions.equals(run.predictions)  # the score stays
    assert more.weights.read_bytes() != run.weights.read_bytes()


def test_a_head_learns_from_changed_copies_too(folder_of_photos, tmp_path):
    quick = changed(
        RECIPES["quick"],
        side=64,
        precision="float32",
        augmentation=CHANGES,
        transfer=Transfer(logistic=True, kept=True, views=2),
    )
    made = ikebana.fit(folder_of_photos, quick, run=tmp_path / "run")
    given, parts = course(made)
    assert len(given.lessons[0].train) == 3 * len(parts["train"])
    assert made.evaluation.accuracy > 0.5


def kept_in(cache):
    """Bytes, but for weights, which are there in any case."""
    kinds = (each for each in cache.iterdir() if each.name != "weights")
    return sum(each.stat().st_size for kind in kinds for each in kind.rglob("*") if each.is_file())


def test_the_forecast_has_room_for_what_is_kept(run, folder_of_photos, tmp_path, monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path / "cache"))
    found = intake.read(folder_of_photos)
    said = forecast(found, run.recipe, prepared(run.recipe, 5))
    assert "4 changed copies of each training photo" in said.text
    ikebana.fit(folder_of_photos, "tail", run=tmp_path / "run", **SMALL)
    grown = kept_in(tmp_path / "cache")
    assert said.cache / 2 < grown < 1.05 * said.cache  # tables and checksums are not counted
    of_all = forecast(found, changed(run.recipe, all=True), prepared(run.recipe, 5), tmp_path)
    ikebana.fit(folder_of_photos, "tail", run=tmp_path / "all", all=True, **SMALL)
    assert 0 < kept_in(tmp_path / "cache") - grown < 1.05 * of_all.cache
    assert of_all.seconds > forecast(found, run.recipe, prepared(run.recipe, 5), tmp_path).seconds


def test_where_a_network_without_the_recipes_stage_begins_to_learn_is_said(folder_of_photos, monkeypatch):
    monkeypatch.setattr(backbones, "sought", lambda _: None)
    found = intake.read(folder_of_photos)
    for network, said in (("resnet18", True), ("tf_efficientnet_lite0", False), ("mobilenetv3_small_050", False)):
        text = forecast(found, recipe_for(network, "blocks.5"), EXACT).text
        assert (f"{network} has no stage blocks.5: it learns from its middle on" in text) == said


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"transfer": Transfer(kept=True, views=2)}, "take both augmentation and views"),
        ({"transfer": Transfer(kept=True), "augmentation": CHANGES}, "take both augmentation and views"),
        (
            {
                "transfer": Transfer(kept=True, trained="tail", views=1),
                "augmentation": CHANGES,
                "network": "keras_inception_v3",
            },
            "nothing of it can be kept",
        ),
    ],
)
def test_choices_that_do_not_go_together_are_refused(choices, words):
    with pytest.raises(RecipeError, match=words):
        changed(RECIPES["quick"], **choices)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"views": 2}, "views is 2; it must be .* 0 where nothing is kept"),
        ({"views": -1, "kept": True}, "views is -1"),
        ({"kept": True, "trained": "all"}, "nothing can be kept"),
        ({"trained": "Tail"}, "trained is 'Tail'"),
        ({"hidden": -1}, "hidden is -1; it must be at least 0"),
        ({"head_epochs": -1}, "head epochs is -1"),
        ({"head_epochs": 5}, "in 5 epochs of the head it learns nothing"),
        ({"kept": True, "trained": "tail", "mirrored": True}, "not of mirror images"),
    ],
)
def test_transfers_that_make_no_sense_are_refused(choices, words):
    with pytest.raises(RecipeError, match=words):
        Transfer(**choices)
