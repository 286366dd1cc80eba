"""Networks with pretrained timm backbones: their stages, and which of their weights are trained."""

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


def build(name="quick", **choices):
    recipe = networks.fill_defaults(recipes.get_recipe(name, **choices))
    return recipe, networks.build_network(recipe, 5)


def photos(side, count=2):
    numbers = torch.Generator().manual_seed(0)
    shape = (count, side, side, 3)
    return torch.randint(0, 256, shape, generator=numbers, dtype=torch.uint8).permute(0, 3, 1, 2)


def list_trainable(network):
    return {name for name, weight in network.named_parameters() if weight.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_any_timm_network_maps_photos_to_logits(name):
    recipe, network = build(network=name)
    assert network.eval()(photos(recipe.image_size)).shape == (2, 5)
    assert list_trainable(network) == {"head.dense.weight", "head.dense.bias"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "resnet50", "convnext_atto", "mobilenetv2_100", "halonet26t"]
)
def test_a_frozen_network_sees_objects_at_about_the_scale_of_timms_evaluation(name):
    import timm

    config = timm.get_pretrained_cfg(name)
    assert config is not None
    about = config.to_dict()
    # timm resizes the shorter side to this size before a centre crop; ikebana shows the complete photo.
    shorter_side = about["input_size"][1] / about["crop_pct"]
    recipe, network = build(network=name)
    assert abs(recipe.image_size - shorter_side) <= 16
    with torch.inference_mode():
        assert network.eval()(photos(recipe.image_size)).shape == (2, 5)  # some need a multiple of 32
    assert backbones.get_native_image_size(recipes.get_recipe("good", network=name)) == about["input_size"][1]


def test_a_network_with_a_fixed_input_size_gets_that_size():
    assert backbones.get_native_image_size(with_options(QUICK, network="vit_tiny_patch16_224")) == 224


def test_photos_are_normalised_as_in_the_pretraining_of_the_backbone():
    import timm

    _, network = build(network="resnet18")
    config = timm.get_pretrained_cfg("resnet18")
    assert config is not None
    about = config.to_dict()
    normalised = network.get_submodule("backbone.normalise")(photos(224))
    mean, std = (torch.tensor(about[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(normalised, (photos(224) / 255 - mean) / std, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_pretrained_backbone_has_the_features_of_timm():
    import timm

    recipe, network = build()
    weights = weight_loading.load_pretrained_weights(network, recipe)
    assert weights is not None
    assert weights.license == "Apache-2.0"
    peer = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    peer.load_state_dict(network.get_submodule("backbone.network").state_dict())
    shown = photos(224)
    with torch.inference_mode():
        ours = network.eval().get_submodule("backbone.network")(network.get_submodule("backbone.normalise")(shown))
        torch.testing.assert_close(ours, peer.eval()((shown.float() - 127.5) / 127.5), rtol=1e-4, atol=1e-4)
    assert ours.std() > 0.1  # random weights would give nearly equal features


def test_an_unknown_network_is_refused_with_similar_names():
    with pytest.raises(RecipeError, match="unknown network") as refusal:
        build(network="resnet1")
    assert "resnet18" in str(refusal.value)


def test_unknown_weights_are_refused_with_the_available_ones():
    with pytest.raises(RecipeError, match=r"unknown pretrained weights 'resnet18\.nope'") as refusal:
        build(network="resnet18.nope")
    assert "resnet18." in str(refusal.value.advice)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "side"), [("good", 299), ("quick", 352)])
def test_an_image_size_too_small_for_a_backbone_is_refused_with_its_native_size(recipe, side):
    with pytest.raises(RecipeError) as refusal:
        build(recipe, network="inception_v3", image_size=64)
    assert f"--image-size {side}" in str(refusal.value)


@pytest.mark.slow
def test_weights_of_another_network_are_refused(tmp_path):
    from safetensors.torch import save_file

    _, other = build(network="resnet18")
    file = tmp_path / "resnet18.safetensors"
    save_file(
        {name: value.contiguous() for name, value in other.get_submodule("backbone.network").state_dict().items()}, file
    )
    recipe, network = build(weights=str(file))
    with pytest.raises(RecipeError, match="do not fit tf_efficientnet_lite0"):
        weight_loading.load_pretrained_weights(network, recipe)


def test_weights_for_another_image_size_are_refused_before_any_photo_is_read(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    file = tmp_path / "hub.safetensors"
    _, network = build("good", network="test_vit")
    save_file({n: v.contiguous() for n, v in network.get_submodule("backbone.network").state_dict().items()}, file)
    monkeypatch.setattr(pretrained_weights, "find_weights", lambda *_: Weights(file, "", "the hub", None))
    monkeypatch.setattr(sources, "read", lambda *_: pytest.fail("photos were read"))
    with pytest.raises(RecipeError, match=r"do not fit test_vit at 192 pixels") as refused:
        ikebana.fit(tmp_path, "good", network="test_vit", image_size=192)
    assert "--image-size 160" in str(refused.value.advice)


@pytest.mark.slow
def test_a_weights_file_of_the_user_takes_precedence_over_the_package(tmp_path):
    from safetensors.torch import save_file

    recipe, network = build()
    own = network.get_submodule("backbone.network").state_dict()
    mine = {name: torch.full_like(value, 0.5).contiguous() for name, value in own.items()}
    save_file(mine, tmp_path / "mine.safetensors")
    recipe = with_options(recipe, weights=str(tmp_path / "mine.safetensors"))
    source = weight_loading.load_pretrained_weights(network, recipe)
    assert source is not None
    assert str(tmp_path) in source.source
    assert all((weight == 0.5).all() for weight in network.get_submodule("backbone.network").parameters())


def test_a_weights_file_is_found_from_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    complete_recipe = networks.fill_defaults(with_options(QUICK, weights="mine.safetensors"))
    assert complete_recipe.weights == str(tmp_path / "mine.safetensors")
    assert networks.fill_defaults(complete_recipe) == complete_recipe


def test_stages_contain_each_weight_once_in_forward_order():
    _, network = build()
    backbone = network.get_submodule("backbone.network")
    stages = parameter_groups.list_stages(backbone)
    assert [name for name, _ in stages] == ["conv_stem", *(f"blocks.{number}" for number in range(7)), "conv_head"]
    counted = [id(weight) for _, own in stages for weight in own]
    assert sorted(counted) == sorted(id(weight) for weight in backbone.parameters())


def test_layers_in_a_list_are_separate_stages():
    _, network = build("good", network="test_vit_relpos")
    assert isinstance(network.get_submodule("backbone.network.blocks"), nn.ModuleList)
    names = [name for name, _ in parameter_groups.list_stages(network.get_submodule("backbone.network"))]
    assert "blocks.0" in names
    assert {name.split(".")[2] for name in list_trainable(network) if ".blocks." in name} == {"blocks"}
    assert not any("blocks.0." in name or "patch_embed" in name for name in list_trainable(network))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mvitv2_tiny", "efficientvim_m1", "sequencer2d_s"])
def test_the_layer_table_has_layers_with_several_outputs(name):
    recipe, network = build(network=name)
    table = layer_table.summarise_layers(network, recipe.image_size)
    assert sum(layer.trainable_parameters for layer in table) == sum(
        weight.numel() for weight in network.parameters() if weight.requires_grad
    )
    assert sum(layer.parameters for layer in table) >= sum(weight.numel() for weight in network.parameters())


def test_flip_tta_gives_a_photo_and_its_mirror_image_the_same_output():
    recipe = with_options(QUICK, image_size=64, flip_tta=True)
    network = networks.build_network(recipe, 5).eval()
    shown = photos(64)
    with torch.inference_mode():
        torch.testing.assert_close(network(shown), network(shown.flip(3)), rtol=1e-4, atol=1e-5)
        plain = networks.build_network(with_options(recipe, flip_tta=False), 5).eval()
        assert not torch.allclose(plain(shown), plain(shown.flip(3)), rtol=1e-3)
        parameter_groups.set_training_mode(network, recipe, "head")
        torch.testing.assert_close(network(shown), plain(shown))  # in training mode, each photo is used once


def test_the_layer_table_counts_each_weight_once_and_marks_the_trainable_ones():
    recipe, network = build("good")
    table = layer_table.summarise_layers(network, recipe.image_size)
    weights = [*network.parameters(), *(buffer for name, buffer in network.named_buffers() if "running" in name)]
    assert sum(layer.parameters for layer in table) == sum(weight.numel() for weight in weights)
    trainable_sizes = [weight.numel() for weight in network.parameters() if weight.requires_grad]
    assert sum(layer.trainable_parameters for layer in table) == sum(trainable_sizes) > 0
    assert all(layer.trainable_parameters for layer in layer_table.skip_frozen_layers(table)[:1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "trainable"),
    [("features", 31_243_045, 9_440_261), ("frozen", 22_982_821, 1_180_037), ("finetuned", 22_982_821, 8_365_253)],
)
def test_the_tutorials_recipes_have_the_parameter_counts_of_the_tutorial(name, parameters, trainable):
    recipe, network = build(name)
    table = layer_table.summarise_layers(network, recipe.image_size)
    assert sum(layer.parameters for layer in table) == parameters
    assert sum(layer.trainable_parameters for layer in table) == trainable


def tuned(trained, train_from="blocks.4", layer_decay=0.5):
    adamw = AdamW(weight_decay=0.02, layer_decay=layer_decay, warmup_fraction=0.1, label_smoothing=0.1, ema_decay=0.9)
    method = FrozenBackbone(adamw=adamw) if trained == "head" else FineTune(train_from=train_from, adamw=adamw)
    return with_options(QUICK, image_size=64, method=method)


def test_trained_stages_start_at_train_from_and_learning_rates_decay_towards_the_input():
    recipe = tuned("last_stages")
    network = networks.build_network(recipe, 5)
    stages = {name.split(".")[2] + "." + name.split(".")[3] for name in list_trainable(network) if ".blocks." in name}
    assert stages == {"blocks.4", "blocks.5", "blocks.6"}
    names = {id(weight): name for name, weight in network.named_parameters()}
    rates = {}
    for group in parameter_groups.make_parameter_groups(network, recipe, "last_stages", 1.0):
        for weight in group.weights:
            rates[names[id(weight)]] = group.learning_rate
            assert group.has_weight_decay == (weight.ndim > 1)
    assert set(rates) == list_trainable(network)
    assert rates["head.dense.weight"] == 1
    assert rates["backbone.network.conv_head.weight"] == 0.5
    assert rates["backbone.network.blocks.6.0.conv_pw.weight"] == 0.25
    assert rates["backbone.network.blocks.4.0.conv_pw.weight"] == 0.0625


def test_a_separate_head_has_the_weight_decay_of_the_head_within_its_network():
    recipe = tuned("head")
    network = networks.build_network(recipe, 5)
    alone = nn.Sequential(OrderedDict(head=network.get_submodule("head")))
    for learner in (network, alone):
        groups = parameter_groups.make_parameter_groups(learner, recipe, "head", 1.0)
        assert [(group.has_weight_decay, [tuple(weight.shape) for weight in group.weights]) for group in groups] == [
            (True, [(5, 1280)]),
            (False, [(5,)]),
        ]


@pytest.mark.slow
def test_frozen_weights_do_not_change_in_training():
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
    assert moved == list_trainable(network)  # BatchNorm statistics of frozen and trained stages do not change


@pytest.mark.slow
@pytest.mark.parametrize("name", ["levit_128s", "tiny_vit_5m_224"])
def test_a_network_that_caches_derived_weights_trains_and_uses_the_updated_ones(name):
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


def test_the_head_has_the_layers_of_the_recipe():
    recipe = with_options(QUICK, image_size=64, method=FrozenBackbone(dropout=0.2, hidden_units=64, hidden_dropout=0.5))
    head = networks.build_network(recipe, 5).get_submodule("head")
    kinds = [type(layer) for layer in head.children()]
    assert kinds == [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [layer.p for layer in head.children() if isinstance(layer, nn.Dropout)] == [0.2, 0.5]
