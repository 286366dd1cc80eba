"""InceptionV3 against Keras' own, layer by layer, and against timm's for timm's weights."""

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from ikebana.errors import RecipeError
from ikebana.learning.models import inception

os.environ["KERAS_BACKEND"], os.environ["KERAS_TORCH_DEVICE"] = "torch", "cpu"
keras = pytest.importorskip("keras", reason="Keras is a development dependency: pip install 'ikebana[dev]'")

# Keras 3.15 itself asks numpy in a way that numpy 2 warns of.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

WHOLE = 311  # layers, as the tutorial and Keras count them
PHOTOS = 2
HEAD = (2048 * 3 * 3 + 1) * 64 + (64 + 1) * 5  # Flatten, Dropout, Dense 64, Dense 5 on photos of 150 pixels


@pytest.fixture(scope="module")
def keras_whole():
    """Keras' network with weights and moving statistics of which none is like another, and signals that do not fade.

    In float64: in training the last bit of float32 grows to a thousandth on the way through 94 BatchNorms.
    """
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    model = keras.applications.InceptionV3(weights=None, include_top=False, input_shape=(150, 150, 3))
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    numbers = np.random.default_rng(0)
    for layer in model.layers:
        shapes = [weight.shape for weight in layer.weights]
        if kind(layer) == "Conv2D":
            layer.set_weights([numbers.normal(0, (2 / np.prod(shapes[0][:3])) ** 0.5, shapes[0])])
        elif shapes:
            beta, mean, variance = numbers.normal(0, 0.3, (3, *shapes[0]))
            layer.set_weights([beta, mean, np.exp(variance)])
    return model


@pytest.fixture(params=["mixed8", "mixed10"])
def until(request):
    return request.param


@pytest.fixture
def theirs(keras_whole, until):
    """Keras' network until there: mixed8 is what its ninth concatenation gives."""
    if until == "mixed10":
        return keras_whole
    return keras.Model(keras_whole.input, of_kind(keras_whole, "Concatenate")[8].output)


def kind(layer):
    return type(layer).__name__


def of_kind(model, wanted):
    return [layer for layer in model.layers if kind(layer) == wanted]


def pairs(model, network, until):
    """Keras' layers with weights and our modules that hold the same, by index and never by name."""
    layers = inception.list_keras_layers(until)
    return [
        (layer, network.get_submodule(ours.module_name))
        for layer, ours in zip(model.layers, layers, strict=True)
        if ours.module_name is not None
    ]


def held(module):
    """Our parameters and statistics as Keras keeps them: convolutions as (rows, columns, in, out)."""
    values = [*module.parameters(), *module.buffers()]
    values = [value.permute(2, 3, 1, 0) if value.ndim == 4 else value for value in values]
    return [value.detach().numpy() for value in values]


@torch.no_grad()
def copied(model, until):
    network = inception.build_inception(until).double()
    for layer, module in pairs(model, network, until):
        for value, given in zip([*module.parameters(), *module.buffers()], layer.get_weights(), strict=True):
            tensor = torch.from_numpy(np.array(given))
            value.copy_(tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor)
    return network


def photos(side=150):
    pixels = torch.rand((PHOTOS, 3, side, side), generator=torch.Generator().manual_seed(0))
    return pixels.contiguous(memory_format=torch.channels_last)


def assert_alike(ours, expected, apart):
    """The largest difference as a share of the largest value."""
    assert ours.shape == expected.shape
    assert float(np.abs(ours - expected).max() / np.abs(expected).max()) < apart


@torch.no_grad()
def features(network, number=torch.float64):
    given = network(photos().to(number))
    assert given.is_contiguous(memory_format=torch.channels_last)
    return given.permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def keras_features(model, training):
    """What Keras gives in float64. Its BatchNorm would go by way of float32, as Keras promotes nothing to float64."""
    pixels = photos().permute(0, 2, 3, 1).double().numpy()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(keras.src.backend, "result_type", lambda *_: "float64")
        return model(pixels, training=training).detach().cpu().numpy()


def test_the_layers_are_keras_layers_in_keras_order(theirs, until):
    layers = inception.list_keras_layers(until)
    assert [each.class_name for each in layers] == [kind(layer) for layer in theirs.layers]
    assert len(layers) == {"mixed8": 249, "mixed10": WHOLE}[until]


def test_every_layer_has_the_parameters_that_keras_counts(theirs, until):
    network = inception.build_inception(until)
    for layer, ours in zip(theirs.layers, inception.list_keras_layers(until), strict=True):
        values = held(network.get_submodule(ours.module_name)) if ours.module_name else []
        assert [value.shape for value in values] == [tuple(weight.shape) for weight in layer.weights]
    assert counted(network) == theirs.count_params()
    if until == "mixed10":
        assert counted(network) == 21_802_784


def counted(network):
    return sum(value.numel() for value in [*network.parameters(), *network.buffers()])


def test_for_a_photo_it_gives_what_keras_gives(theirs, until):
    network, expected = copied(theirs, until).eval(), keras_features(theirs, training=False)
    assert expected.shape == (PHOTOS, 3, 3, {"mixed8": 1280, "mixed10": 2048}[until])
    assert_alike(features(network), expected, 1e-12)
    assert_alike(features(network.float(), torch.float32), expected, 1e-5)


def test_in_training_it_gives_what_keras_gives_and_its_statistics_move_as_keras_move(keras_whole):
    before = keras_whole.get_weights()
    network = copied(keras_whole, "mixed10")
    norms = of_kind(keras_whole, "BatchNormalization")
    try:
        for norm in norms:
            norm.momentum = 0.9
        assert_alike(features(network.train()), keras_features(keras_whole, training=True), 1e-10)
        for layer, module in pairs(keras_whole, network, "mixed10"):
            for mine, yours in zip(held(module), layer.get_weights(), strict=True):
                assert_alike(mine, yours, 1e-10)
    finally:
        keras_whole.set_weights(before)


def test_the_last_fifty_layers_begin_at_the_84th_convolution_and_27_have_weights(keras_whole):
    layers = inception.list_keras_layers()
    last = [each.module_name for each in layers[-50:] if each.module_name]
    assert len(last) == len([layer for layer in keras_whole.layers[-50:] if layer.weights]) == 27
    # Keras numbers its convolutions from 0 as they are made, and so conv2d_83 is the 84th
    made = [name for name, module in inception.build_inception().named_modules() if isinstance(module, nn.Conv2d)]
    assert made[83] == last[0]


def test_it_is_as_large_and_as_trainable_as_the_tutorial_counts(keras_whole):
    network, layers = inception.build_inception().requires_grad_(False), inception.list_keras_layers()
    assert counted(network) + HEAD == 22_982_821
    assert trainable(network) + HEAD == 1_180_037
    norms = [number for number, each in enumerate(layers) if each.class_name == "BatchNormalization"]
    assert len(norms) == 94
    free = {*range(WHOLE - 50, WHOLE), *norms}
    for number in free:
        if name := layers[number].module_name:
            network.get_submodule(name).requires_grad_(True)
    assert trainable(network) + HEAD == 8_365_253
    assert trainable(network) == sum(
        int(np.prod(weight.shape)) for number in free for weight in keras_whole.layers[number].trainable_weights
    )


def trainable(network):
    return sum(value.numel() for value in network.parameters() if value.requires_grad)


def test_an_average_of_equal_values_is_that_value_at_the_edge_as_well():
    pools = [module for module in inception.build_inception().modules() if isinstance(module, nn.AvgPool2d)]
    assert len(pools) == 9
    for pool in pools:
        assert torch.equal(pool(torch.ones(1, 2, 5, 4)), torch.ones(1, 2, 5, 4))


def with_gamma(norm):
    """torch's own layer that does the same, its gamma left at 1."""
    torchs = nn.BatchNorm2d(len(norm.bias), eps=1e-3, momentum=norm.momentum).train(norm.training)
    torchs.load_state_dict(norm.state_dict() | {"weight": torch.ones(len(norm.bias))}, strict=False)
    return torchs


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_batch_norm_without_gamma_is_torchs_own_with_a_gamma_of_one(training, number, layout):
    torch.manual_seed(0)
    norm = inception.BatchNorm(24, momentum=0.1).train(training)
    for value in (norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(value, 0.5, 2)
    entering = (torch.randn(6, 24, 5, 5) * 3 + 1).to(number, memory_format=layout)
    results = []
    for layer in (with_gamma(norm), norm):
        leaf = entering.clone(memory_format=torch.preserve_format).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=number == torch.bfloat16):
            given = layer(leaf)
        (given.float() ** 2).sum().backward()
        assert leaf.grad is not None
        assert layer.bias.grad is not None
        results.append((given.detach(), leaf.grad, layer.bias.grad, layer.running_mean))
    for theirs, ours in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.stride() == theirs.stride()
        torch.testing.assert_close(ours, theirs)


def test_torch_can_make_it_part_of_the_convolution_before_it():
    unit: Any = inception.build_inception("mixed0").eval().get_submodule("stem_1")
    for value in unit.bn.state_dict().values():
        nn.init.uniform_(value, 0.5, 2)
    fused = torch.nn.utils.fuse_conv_bn_eval(unit.conv, unit.bn)
    torch.testing.assert_close(fused(photos(75)).relu(), unit(photos(75)))


def test_the_moving_variance_goes_towards_that_of_the_batch_which_torch_enlarges():
    norm = inception.BatchNorm(3, momentum=1.0).train()
    entering = torch.randn(2, 3, 2, 2)
    norm(entering)
    torch.testing.assert_close(norm.running_var, entering.var((0, 2, 3), correction=0))


def test_it_trains_in_bfloat16_and_keeps_its_statistics_in_float32():
    network = inception.build_inception("mixed0").train()
    with torch.autocast("cpu", torch.bfloat16):
        given = network(photos(75))
    assert given.dtype == torch.bfloat16
    assert given.is_contiguous(memory_format=torch.channels_last)
    given.float().square().mean().backward()
    for value in network.parameters():
        assert value.grad is not None
        assert value.grad.isfinite().all()
        assert value.grad.any()
    assert {value.dtype for value in network.buffers()} == {torch.float32}


def test_a_network_that_cannot_be_cut_there_says_where_it_can():
    for make in (inception.build_inception, inception.list_keras_layers):
        with pytest.raises(RecipeError) as refusal:
            make("mixed11")
        assert all(cut in str(refusal.value) for cut in inception.get_truncation_points())


@pytest.mark.parametrize("until", inception.get_truncation_points())
def test_wherever_it_is_cut_the_layers_are_the_first_of_the_whole(until):
    layers, whole = inception.list_keras_layers(until), inception.list_keras_layers()
    assert layers == whole[: len(layers)]
    names = [name for name, _ in inception.build_inception(until).named_children()]
    assert names[-1] == until


@pytest.fixture(scope="module")
def timm_whole():
    """timm's network, with statistics of which none is like another; whoever uses it reads its weights as they are."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("inception_v3", pretrained=False).eval()
    for name, value in network.state_dict().items():
        if name.endswith("conv.weight"):
            nn.init.kaiming_normal_(value, nonlinearity="relu")
        elif name.endswith("running_var"):
            nn.init.uniform_(value, 0.5, 2)
        elif name.endswith(("bn.bias", "running_mean")):
            nn.init.normal_(value, 0, 0.3)
    return network


@torch.no_grad()
def timm_features(network, last, given, monkeypatch):
    """What timm's network gives after a stage, if its average pools left out the padding as Keras' do."""
    with monkeypatch.context() as patched:
        patched.setattr(functional, "avg_pool2d", functools.partial(functional.avg_pool2d, count_include_pad=False))
        for name, stage in network.named_children():
            given = stage(given)
            if name == last:
                break
    return given.numpy()


@pytest.mark.parametrize(("until", "last"), [("mixed0", "Mixed_5b"), ("mixed8", "Mixed_7a"), ("mixed10", "Mixed_7c")])
def test_with_timms_weights_it_is_timms_network_with_keras_average_pools(timm_whole, until, last, monkeypatch):
    network = inception.build_inception(until).eval()
    inception.load_timm_weights(network, timm_whole.state_dict())
    with torch.no_grad():
        ours = network(photos()).numpy()
    assert_alike(ours, timm_features(timm_whole, last, photos(), monkeypatch), 1e-5)


def test_the_file_of_real_weights_is_read_whole_and_gives_timms_features(timm_whole, monkeypatch):
    file = Path(__file__).resolve().parents[2] / "shared/weights/inception_v3_mixed8.safetensors"
    if not file.exists():
        pytest.skip(f"{file} is not there: weights are never part of the project")
    tensors = load_file(file)
    network = inception.build_inception("mixed8").eval()
    inception.load_timm_weights(network, tensors)
    assert not timm_whole.load_state_dict(tensors, strict=False).unexpected_keys
    with torch.no_grad():
        ours = network(photos() * 2 - 1).numpy()
    assert_alike(ours, timm_features(timm_whole, "Mixed_7a", photos() * 2 - 1, monkeypatch), 1e-5)


def refusal(network, tensors):
    with pytest.raises(RecipeError) as raised:
        inception.load_timm_weights(network, tensors)
    return str(raised.value)


def test_weights_that_do_not_fit_are_refused_and_change_nothing(timm_whole):
    tensors, network = timm_whole.state_dict(), inception.build_inception("mixed9")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kernel, gamma = "Mixed_7b.branch3x3_2a.conv.weight", "Mixed_7b.branch3x3dbl_3b.bn.weight"
    ends_early = {name: value for name, value in tensors.items() if not name.startswith("Mixed_7b")}
    assert "lack 45 of the" in refusal(network, ends_early)  # nine convolutions, each with four vectors
    without_one = {name: value for name, value in tensors.items() if name != kernel}
    assert kernel in refusal(network, without_one)
    assert kernel in refusal(network, tensors | {kernel: tensors[kernel].mT})
    nearly = torch.ones_like(tensors[gamma])
    nearly[-1] = 1.01
    assert gamma in refusal(network, tensors | {gamma: nearly})
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
