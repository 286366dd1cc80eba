"""InceptionV3 compared with Keras layer by layer, and with timm for the weights of timm."""

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

# Keras 3.15 calls numpy in a way that numpy 2 deprecates.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

KERAS_LAYERS = 311  # layers, as the tutorial and Keras count them
PHOTOS = 2
HEAD = (2048 * 3 * 3 + 1) * 64 + (64 + 1) * 5  # Flatten, Dropout, Dense 64, Dense 5 on photos of 150 pixels


@pytest.fixture(scope="module")
def keras_whole():
    """The network of Keras with distinct weights and statistics.

    Its signals do not vanish with depth.

    It is in float64: in training, 94 BatchNorms amplify the rounding errors of float32 to a thousandth.
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
    """The network of Keras, truncated there: mixed8 is the output of its ninth concatenation."""
    if until == "mixed10":
        return keras_whole
    return keras.Model(keras_whole.input, select_layers(keras_whole, "Concatenate")[8].output)


def kind(layer):
    return type(layer).__name__


def select_layers(model, wanted):
    return [layer for layer in model.layers if kind(layer) == wanted]


def pairs(model, network, until):
    """Pair the layers of Keras with our modules, by index."""
    layers = inception.list_keras_layers(until)
    return [
        (layer, network.get_submodule(ours.module_name))
        for layer, ours in zip(model.layers, layers, strict=True)
        if ours.module_name is not None
    ]


def get_keras_weights(module):
    """Return our parameters and statistics in the layout of Keras.

    Convolutions are (rows, columns, in, out).
    """
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


def assert_close(ours, expected, apart):
    """Assert that the largest difference is a small fraction of the largest value."""
    assert ours.shape == expected.shape
    assert float(np.abs(ours - expected).max() / np.abs(expected).max()) < apart


@torch.no_grad()
def features(network, number=torch.float64):
    given = network(photos().to(number))
    assert given.is_contiguous(memory_format=torch.channels_last)
    return given.permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def keras_features(model, training):
    """Compute the output of Keras in float64. Otherwise its BatchNorm would use float32."""
    pixels = photos().permute(0, 2, 3, 1).double().numpy()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(keras.src.backend, "result_type", lambda *_: "float64")
        return model(pixels, training=training).detach().cpu().numpy()


def test_the_layers_are_those_of_keras_in_the_same_order(theirs, until):
    layers = inception.list_keras_layers(until)
    assert [ours.class_name for ours in layers] == [kind(layer) for layer in theirs.layers]
    assert len(layers) == {"mixed8": 249, "mixed10": KERAS_LAYERS}[until]


def test_every_layer_has_as_many_parameters_as_in_keras(theirs, until):
    network = inception.build_inception(until)
    for layer, ours in zip(theirs.layers, inception.list_keras_layers(until), strict=True):
        values = get_keras_weights(network.get_submodule(ours.module_name)) if ours.module_name else []
        assert [value.shape for value in values] == [tuple(weight.shape) for weight in layer.weights]
    assert count_parameters(network) == theirs.count_params()
    if until == "mixed10":
        assert count_parameters(network) == 21_802_784


def count_parameters(network):
    return sum(value.numel() for value in [*network.parameters(), *network.buffers()])


def test_features_in_evaluation_equal_those_of_keras(theirs, until):
    network, expected = copied(theirs, until).eval(), keras_features(theirs, training=False)
    assert expected.shape == (PHOTOS, 3, 3, {"mixed8": 1280, "mixed10": 2048}[until])
    assert_close(features(network), expected, 1e-12)
    assert_close(features(network.float(), torch.float32), expected, 1e-5)


def test_features_and_moving_statistics_in_training_equal_those_of_keras(keras_whole):
    before = keras_whole.get_weights()
    network = copied(keras_whole, "mixed10")
    norms = select_layers(keras_whole, "BatchNormalization")
    try:
        for norm in norms:
            norm.momentum = 0.9
        assert_close(features(network.train()), keras_features(keras_whole, training=True), 1e-10)
        for layer, module in pairs(keras_whole, network, "mixed10"):
            for mine, yours in zip(get_keras_weights(module), layer.get_weights(), strict=True):
                assert_close(mine, yours, 1e-10)
    finally:
        keras_whole.set_weights(before)


def test_the_last_fifty_layers_begin_at_the_84th_convolution_and_27_have_weights(keras_whole):
    layers = inception.list_keras_layers()
    last = [ours.module_name for ours in layers[-50:] if ours.module_name]
    assert len(last) == len([layer for layer in keras_whole.layers[-50:] if layer.weights]) == 27
    # Keras numbers its convolutions from 0 in order of creation, so conv2d_83 is the 84th.
    convolutions = [
        name for name, module in inception.build_inception().named_modules() if isinstance(module, nn.Conv2d)
    ]
    assert convolutions[83] == last[0]


def test_parameter_counts_equal_those_of_the_tutorial(keras_whole):
    network, layers = inception.build_inception().requires_grad_(False), inception.list_keras_layers()
    assert count_parameters(network) + HEAD == 22_982_821
    assert trainable(network) + HEAD == 1_180_037
    norms = [number for number, layer in enumerate(layers) if layer.class_name == "BatchNormalization"]
    assert len(norms) == 94
    free = {*range(KERAS_LAYERS - 50, KERAS_LAYERS), *norms}
    for number in free:
        if name := layers[number].module_name:
            network.get_submodule(name).requires_grad_(True)
    assert trainable(network) + HEAD == 8_365_253
    assert trainable(network) == sum(
        int(np.prod(weight.shape)) for number in free for weight in keras_whole.layers[number].trainable_weights
    )


def trainable(network):
    return sum(value.numel() for value in network.parameters() if value.requires_grad)


def test_average_pooling_does_not_count_the_padding_at_the_edge():
    pools = [module for module in inception.build_inception().modules() if isinstance(module, nn.AvgPool2d)]
    assert len(pools) == 9
    for pool in pools:
        assert torch.equal(pool(torch.ones(1, 2, 5, 4)), torch.ones(1, 2, 5, 4))


def add_gamma(norm):
    """Return the equivalent torch layer, with gamma 1."""
    torchs = nn.BatchNorm2d(len(norm.bias), eps=1e-3, momentum=norm.momentum).train(norm.training)
    torchs.load_state_dict(norm.state_dict() | {"weight": torch.ones(len(norm.bias))}, strict=False)
    return torchs


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_batchnorm_without_gamma_equals_that_of_torch_with_gamma_1(training, number, layout):
    torch.manual_seed(0)
    norm = inception.BatchNorm(24, momentum=0.1).train(training)
    for value in (norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(value, 0.5, 2)
    entering = (torch.randn(6, 24, 5, 5) * 3 + 1).to(number, memory_format=layout)
    results = []
    for layer in (add_gamma(norm), norm):
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


def test_torch_can_fold_it_into_the_convolution_before_it():
    unit: Any = inception.build_inception("mixed0").eval().get_submodule("stem_1")
    for value in unit.bn.state_dict().values():
        nn.init.uniform_(value, 0.5, 2)
    fused = torch.nn.utils.fuse_conv_bn_eval(unit.conv, unit.bn)
    torch.testing.assert_close(fused(photos(75)).relu(), unit(photos(75)))


def test_the_moving_variance_approaches_the_biased_variance_of_the_batch():
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


def test_an_invalid_truncation_is_refused_with_the_valid_ones():
    for make in (inception.build_inception, inception.list_keras_layers):
        with pytest.raises(RecipeError) as refusal:
            make("mixed11")
        assert all(cut in str(refusal.value) for cut in inception.get_truncation_points())


@pytest.mark.parametrize("until", inception.get_truncation_points())
def test_a_truncated_network_has_the_first_layers_of_the_complete_one(until):
    layers, all_layers = inception.list_keras_layers(until), inception.list_keras_layers()
    assert layers == all_layers[: len(layers)]
    names = [name for name, _ in inception.build_inception(until).named_children()]
    assert names[-1] == until


@pytest.fixture(scope="module")
def timm_whole():
    """The network of timm with distinct statistics."""
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
    """Compute timm's features after a stage, with the average pooling of Keras."""
    with monkeypatch.context() as patched:
        patched.setattr(functional, "avg_pool2d", functools.partial(functional.avg_pool2d, count_include_pad=False))
        for name, stage in network.named_children():
            given = stage(given)
            if name == last:
                break
    return given.numpy()


@pytest.mark.parametrize(("until", "last"), [("mixed0", "Mixed_5b"), ("mixed8", "Mixed_7a"), ("mixed10", "Mixed_7c")])
def test_with_timms_weights_it_is_timms_network_with_the_average_pooling_of_keras(timm_whole, until, last, monkeypatch):
    network = inception.build_inception(until).eval()
    inception.load_timm_weights(network, timm_whole.state_dict())
    with torch.no_grad():
        ours = network(photos()).numpy()
    assert_close(ours, timm_features(timm_whole, last, photos(), monkeypatch), 1e-5)


def test_the_file_of_real_weights_gives_the_features_of_timm(timm_whole, monkeypatch):
    file = Path(__file__).resolve().parents[2] / "shared/weights/inception_v3_mixed8.safetensors"
    if not file.exists():
        pytest.skip(f"{file} is not there: weights are never part of the project")
    tensors = load_file(file)
    network = inception.build_inception("mixed8").eval()
    inception.load_timm_weights(network, tensors)
    assert not timm_whole.load_state_dict(tensors, strict=False).unexpected_keys
    with torch.no_grad():
        ours = network(photos() * 2 - 1).numpy()
    assert_close(ours, timm_features(timm_whole, "Mixed_7a", photos() * 2 - 1, monkeypatch), 1e-5)


def get_refusal(network, tensors):
    with pytest.raises(RecipeError) as raised:
        inception.load_timm_weights(network, tensors)
    return str(raised.value)


def test_weights_that_do_not_fit_are_refused_and_change_nothing(timm_whole):
    tensors, network = timm_whole.state_dict(), inception.build_inception("mixed9")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kernel, gamma = "Mixed_7b.branch3x3_2a.conv.weight", "Mixed_7b.branch3x3dbl_3b.bn.weight"
    ends_early = {name: value for name, value in tensors.items() if not name.startswith("Mixed_7b")}
    assert "lack 45 of the" in get_refusal(network, ends_early)  # nine convolutions with five tensors each
    without_one = {name: value for name, value in tensors.items() if name != kernel}
    assert kernel in get_refusal(network, without_one)
    assert kernel in get_refusal(network, tensors | {kernel: tensors[kernel].mT})
    nearly = torch.ones_like(tensors[gamma])
    nearly[-1] = 1.01
    assert gamma in get_refusal(network, tensors | {gamma: nearly})
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
