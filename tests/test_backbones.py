"""Networks on pretrained backbones: any of timm's, their parts, and which of their weights learn."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import ikebana
from ikebana import recipes
from ikebana.data import sources
from ikebana.errors import RecipeError
from ikebana.learning.models import (
    backbones,
    layer_table,
    networks,
    parameter_groups,
    pretrained_weights,
    weight_loading,
)
from ikebana.learning.models.pretrained_weights import Weights
from ikebana.recipe import AdamW, FineTune, FrozenBackbone, with_options

pytestmark = pytest.mark.slow

QUICK = recipes.get_recipe("quick")


def built(name="quick", **choices):
    recipe = networks.fill_defaults(recipes.get_recipe(name, **choices))
    return recipe, networks.build_network(recipe, 5)


def photos(side, count=2):
    numbers = torch.Generator().manual_seed(0)
    shape = (count, side, side, 3)
    return torch.randint(0, 256, shape, generator=numbers, dtype=torch.uint8).permute(0, 3, 1, 2)


def learning(network):
    return {name for name, weight in network.named_parameters() if weight.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_any_network_of_timm_takes_photos_and_gives_logits(name):
    recipe, network = built(network=name)
    assert network.eval()(photos(recipe.image_size)).shape == (2, 5)
    assert learning(network) == {"head.dense.weight", "head.dense.bias"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "resnet50", "convnext_atto", "mobilenetv2_100", "halonet26t"]
)
def test_a_frozen_network_sees_things_about_as_large_as_it_did_when_timm_tested_it(name):
    import timm

    found = timm.get_pretrained_cfg(name)
    assert found is not None
    about = found.to_dict()
    # There the shorter side of a photo has that many pixels before its middle is cut out; here all of it is shown.
    shorter_side = about["input_size"][1] / about["crop_pct"]
    recipe, network = built(network=name)
    assert abs(recipe.image_size - shorter_side) <= 16
    with torch.inference_mode():
        assert network.eval()(photos(recipe.image_size)).shape == (2, 5)  # some want a multiple of 32
    assert backbones.get_native_image_size(recipes.get_recipe("good", network=name)) == about["input_size"][1]


def test_a_network_of_one_fixed_size_is_given_that():
    assert backbones.get_native_image_size(with_options(QUICK, network="vit_tiny_patch16_224")) == 224


def test_photos_reach_the_backbone_as_it_was_trained_to_see_them():
    import timm

    _, network = built(network="resnet18")
    found = timm.get_pretrained_cfg("resnet18")
    assert found is not None
    about = found.to_dict()
    seen = network.get_submodule("backbone.normalise")(photos(224))
    mean, std = (torch.tensor(about[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(seen, (photos(224) / 255 - mean) / std, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_pretrained_backbone_gives_timms_own_features():
    import timm

    recipe, network = built()
    weights = weight_loading.load_pretrained_weights(network, recipe)
    assert weights is not None
    assert weights.license == "Apache-2.0"
    peer = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    peer.load_state_dict(network.get_submodule("backbone.network").state_dict())
    shown = photos(224)
    with torch.inference_mode():
        ours = network.eval().get_submodule("backbone.network")(network.get_submodule("backbone.normalise")(shown))
        torch.testing.assert_close(ours, peer.eval()((shown.float() - 127.5) / 127.5), rtol=1e-4, atol=1e-4)
    assert ours.std() > 0.1  # weights that were learned, not drawn, tell photos apart


def test_a_network_that_does_not_exist_is_refused_with_those_like_it():
    with pytest.raises(RecipeError, match="unknown network") as refusal:
        built(network="resnet1")
    assert "resnet18" in str(refusal.value)


def test_weights_that_do_not_exist_are_refused_with_those_that_do():
    with pytest.raises(RecipeError, match=r"unknown pretrained weights 'resnet18\.nope'") as refusal:
        built(network="resnet18.nope")
    assert "resnet18." in str(refusal.value.advice)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "side"), [("good", 299), ("quick", 352)])
def test_photos_too_small_for_a_backbone_are_refused_with_its_own_side(recipe, side):
    with pytest.raises(RecipeError) as refusal:
        built(recipe, network="inception_v3", image_size=64)
    assert f"--image-size {side}" in str(refusal.value)


@pytest.mark.slow
def test_weights_of_another_network_are_refused(tmp_path):
    from safetensors.torch import save_file

    _, other = built(network="resnet18")
    file = tmp_path / "resnet18.safetensors"
    save_file(
        {name: value.contiguous() for name, value in other.get_submodule("backbone.network").state_dict().items()}, file
    )
    recipe, network = built(weights=str(file))
    with pytest.raises(RecipeError, match="do not fit tf_efficientnet_lite0"):
        weight_loading.load_pretrained_weights(network, recipe)


def test_weights_for_another_side_are_refused_before_any_photo_is_read(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    file = tmp_path / "hub.safetensors"
    _, made = built("good", network="test_vit")
    save_file({n: v.contiguous() for n, v in made.get_submodule("backbone.network").state_dict().items()}, file)
    monkeypatch.setattr(pretrained_weights, "find_weights", lambda *_: Weights(file, "", "the hub", None))
    monkeypatch.setattr(sources, "read", lambda *_: pytest.fail("photos were read"))
    with pytest.raises(RecipeError, match=r"do not fit test_vit at 192 pixels") as refused:
        ikebana.fit(tmp_path, "good", network="test_vit", image_size=192)
    assert "--image-size 160" in str(refused.value.advice)


@pytest.mark.slow
def test_a_file_of_ones_own_goes_before_the_package(tmp_path):
    from safetensors.torch import save_file

    recipe, network = built()
    own = network.get_submodule("backbone.network").state_dict()
    mine = {name: torch.full_like(value, 0.5).contiguous() for name, value in own.items()}
    save_file(mine, tmp_path / "mine.safetensors")
    recipe = with_options(recipe, weights=str(tmp_path / "mine.safetensors"))
    found = weight_loading.load_pretrained_weights(network, recipe)
    assert found is not None
    assert str(tmp_path) in found.source
    assert all((weight == 0.5).all() for weight in network.get_submodule("backbone.network").parameters())


def test_a_file_of_weights_is_found_again_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settled = networks.fill_defaults(with_options(QUICK, weights="mine.safetensors"))
    assert settled.weights == str(tmp_path / "mine.safetensors")
    assert networks.fill_defaults(settled) == settled


def test_stages_hold_each_weight_once_in_the_order_of_the_photos_way():
    _, network = built()
    backbone = network.get_submodule("backbone.network")
    stages = parameter_groups.list_stages(backbone)
    assert [name for name, _ in stages] == ["conv_stem", *(f"blocks.{number}" for number in range(7)), "conv_head"]
    counted = [id(weight) for _, own in stages for weight in own]
    assert sorted(counted) == sorted(id(weight) for weight in backbone.parameters())


def test_layers_in_a_list_are_stages_too():
    _, network = built("good", network="test_vit_relpos")
    assert isinstance(network.get_submodule("backbone.network.blocks"), nn.ModuleList)
    names = [name for name, _ in parameter_groups.list_stages(network.get_submodule("backbone.network"))]
    assert "blocks.0" in names
    assert {name.split(".")[2] for name in learning(network) if ".blocks." in name} == {"blocks"}
    assert not any("blocks.0." in name or "patch_embed" in name for name in learning(network))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mvitv2_tiny", "efficientvim_m1", "sequencer2d_s"])
def test_the_layer_table_has_layers_that_give_several_things(name):
    recipe, network = built(network=name)
    table = layer_table.summarise_layers(network, recipe.image_size)
    assert sum(layer.trainable_parameters for layer in table) == sum(
        each.numel() for each in network.parameters() if each.requires_grad
    )
    assert sum(layer.parameters for layer in table) >= sum(each.numel() for each in network.parameters())


def test_a_mirrored_network_says_the_same_of_a_photo_and_its_mirror_image():
    recipe = with_options(QUICK, image_size=64, flip_tta=True)
    network = networks.build_network(recipe, 5).eval()
    shown = photos(64)
    with torch.inference_mode():
        torch.testing.assert_close(network(shown), network(shown.flip(3)), rtol=1e-4, atol=1e-5)
        plain = networks.build_network(with_options(recipe, flip_tta=False), 5).eval()
        assert not torch.allclose(plain(shown), plain(shown.flip(3)), rtol=1e-3)
        parameter_groups.set_training_mode(network, recipe, "head")
        torch.testing.assert_close(network(shown), plain(shown))  # while it learns it sees each photo once


def test_the_layer_table_counts_each_weight_once_and_says_which_learn():
    recipe, network = built("good")
    table = layer_table.summarise_layers(network, recipe.image_size)
    weights = [*network.parameters(), *(each for name, each in network.named_buffers() if "running" in name)]
    assert sum(layer.parameters for layer in table) == sum(each.numel() for each in weights)
    learning = [each.numel() for each in network.parameters() if each.requires_grad]
    assert sum(layer.trainable_parameters for layer in table) == sum(learning) > 0
    assert all(layer.trainable_parameters for layer in layer_table.skip_frozen_layers(table)[:1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "trainable"),
    [("features", 31_243_045, 9_440_261), ("frozen", 22_982_821, 1_180_037), ("finetuned", 22_982_821, 8_365_253)],
)
def test_the_tutorials_recipes_have_the_tutorials_counts(name, parameters, trainable):
    recipe, network = built(name)
    table = layer_table.summarise_layers(network, recipe.image_size)
    assert sum(layer.parameters for layer in table) == parameters
    assert sum(layer.trainable_parameters for layer in table) == trainable


def tuned(trained, train_from="blocks.4", layer_decay=0.5):
    adamw = AdamW(weight_decay=0.02, layer_decay=layer_decay, warmup_fraction=0.1, label_smoothing=0.1, ema_decay=0.9)
    method = FrozenBackbone(adamw=adamw) if trained == "head" else FineTune(train_from=train_from, adamw=adamw)
    return with_options(QUICK, image_size=64, method=method)


def test_a_tail_learns_from_its_first_stage_on_at_rates_that_fall_with_depth():
    recipe = tuned("last_stages")
    network = networks.build_network(recipe, 5)
    stages = {name.split(".")[2] + "." + name.split(".")[3] for name in learning(network) if ".blocks." in name}
    assert stages == {"blocks.4", "blocks.5", "blocks.6"}
    names = {id(weight): name for name, weight in network.named_parameters()}
    rates = {}
    for group in parameter_groups.make_parameter_groups(network, recipe, "last_stages", 1.0):
        for weight in group.weights:
            rates[names[id(weight)]] = group.learning_rate
            assert group.has_weight_decay == (weight.ndim > 1)
    assert set(rates) == learning(network)
    assert rates["head.dense.weight"] == 1
    assert rates["backbone.network.conv_head.weight"] == 0.5
    assert rates["backbone.network.blocks.6.0.conv_pw.weight"] == 0.25
    assert rates["backbone.network.blocks.4.0.conv_pw.weight"] == 0.0625


def test_a_head_alone_decays_as_it_does_within_its_network():
    recipe = tuned("head")
    network = networks.build_network(recipe, 5)
    alone = nn.Sequential(OrderedDict(head=network.get_submodule("head")))
    for learner in (network, alone):
        groups = parameter_groups.make_parameter_groups(learner, recipe, "head", 1.0)
        assert [(each.has_weight_decay, [tuple(one.shape) for one in each.weights]) for each in groups] == [
            (True, [(5, 1280)]),
            (False, [(5,)]),
        ]


@pytest.mark.slow
def test_what_is_frozen_stays_as_it_is_while_the_rest_learns():
    from ikebana.learning import device
    from ikebana.learning.training.trainer import Trainer, plan_phases

    recipe = tuned("last_stages")
    network = networks.build_network(recipe, 5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    learner = Trainer(network, recipe, plan_phases(recipe)[0], np.arange(8) % 5)
    parameter_groups.set_training_mode(network, recipe, "last_stages")
    for _ in range(3):
        learner.step(photos(64, 8), torch.arange(8) % 5, device.DeviceSettings("cpu", "float32", 2, ""))
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == learning(network)  # the means of BatchNorm, below and above the cut, among what stays


@pytest.mark.slow
@pytest.mark.parametrize("name", ["levit_128s", "tiny_vit_5m_224"])
def test_a_network_that_keeps_what_it_makes_of_its_weights_learns_and_says_what_the_new_ones_say(name):
    from ikebana.learning import device
    from ikebana.learning.training.trainer import Trainer, plan_phases

    recipe = networks.fill_defaults(recipes.get_recipe("good", network=name, train_from=""))
    network = networks.build_network(recipe, 5)
    learner = Trainer(network, recipe, plan_phases(recipe)[0], np.arange(4))
    parameter_groups.set_training_mode(network, recipe, "all")
    setting = device.DeviceSettings("cpu", "float32", 2, "")
    for _ in range(2):
        learner.step(photos(224, 4), torch.arange(4), setting)
    fresh = networks.build_network(recipe, 5)
    fresh.load_state_dict(network.state_dict())
    with torch.inference_mode():
        expected = fresh.eval()(photos(224, 2))
        assert torch.equal(network.eval()(photos(224, 2)), expected)


def test_the_head_has_the_layers_that_the_recipe_names():
    recipe = with_options(QUICK, image_size=64, method=FrozenBackbone(dropout=0.2, hidden_units=64, hidden_dropout=0.5))
    head = networks.build_network(recipe, 5).get_submodule("head")
    kinds = [type(layer) for layer in head.children()]
    assert kinds == [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [layer.p for layer in head.children() if isinstance(layer, nn.Dropout)] == [0.2, 0.5]
