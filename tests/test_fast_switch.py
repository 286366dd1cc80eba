"""IKEBANA_FAST=off: plain torch computes everything, with the same result up to rounding."""

import functools
import inspect

import numpy as np
import pytest
import torch

import ikebana
from ikebana.learning import device, fast
from ikebana.learning.fast import cuda_graphs, depthwise, fused_inference, fused_training, pooling
from ikebana.learning.models import networks
from ikebana.learning.models.layers import MaxPoolReLU
from ikebana.recipes import get_recipe

MODULES = (cuda_graphs, depthwise, fused_inference, fused_training, pooling)
# Of probabilities after one epoch, because fast paths add numbers in another order.
TOLERANCE = 1e-3
GOOD = {"image_size": 64, "batch_size": 16, "epochs": 1, "precision": "float32"}
QUICK = {"image_size": 64, "precision": "float32"}
BASELINE = {"image_size": 46, "batch_size": 16, "epochs": 1, "precision": "bfloat16"}


@pytest.fixture
def off(monkeypatch):
    monkeypatch.setenv(fast.VARIABLE, "off")


@pytest.fixture
def entered(monkeypatch):
    """The functions and classes of the fast paths that are used."""
    names = set()

    def record(name, function):
        @functools.wraps(function)
        def recorder(*arguments, **options):
            names.add(name)
            return function(*arguments, **options)

        return recorder

    for module in MODULES:
        for name, value in list(vars(module).items()):
            if getattr(value, "__module__", "") != module.__name__:
                continue
            if inspect.isfunction(value):
                monkeypatch.setattr(module, name, record(name, value))
            elif inspect.isclass(value) and "__init__" in vars(value):
                monkeypatch.setattr(value, "__init__", record(name, value.__init__))
    return names


@pytest.mark.parametrize(("value", "enabled"), [(None, True), ("", True), ("on", True), ("off", False)])
def test_fast_paths_are_on_unless_they_are_off(value, enabled, monkeypatch):
    monkeypatch.delenv(fast.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(fast.VARIABLE, value)
    assert fast.is_enabled() == enabled


@pytest.mark.parametrize("value", ["of", "0", "OFF", "false", " "])
def test_any_other_value_is_refused_before_anything_is_computed(value, monkeypatch):
    monkeypatch.setenv(fast.VARIABLE, value)
    with pytest.raises(ikebana.RecipeError, match=f"IKEBANA_FAST is '{value}'") as error:
        device.configure()
    assert "IKEBANA_FAST=off" in str(error.value)


@pytest.mark.usefixtures("off")
def test_networks_consist_of_layers_of_torch(entered):
    network = networks.build_network(get_recipe("good", image_size=64), 2)
    assert not [module for module in network.modules() if isinstance(module, depthwise.DepthwiseConv2d)]
    features = torch.randn(2, 4, 6, 6).bfloat16().contiguous(memory_format=torch.channels_last)
    MaxPoolReLU()(features)
    assert not entered


def test_weights_fit_networks_with_and_without_fast_paths(monkeypatch):
    recipe = get_recipe("good", image_size=64)
    with_fast_paths = networks.build_network(recipe, 2).state_dict()
    monkeypatch.setenv(fast.VARIABLE, "off")
    without = networks.build_network(recipe, 2).state_dict()
    assert all(torch.equal(with_fast_paths[name], value) for name, value in without.items())
    assert list(with_fast_paths) == list(without)


@pytest.mark.usefixtures("off", "on_processor", "ikebana_cache")
@pytest.mark.slow
def test_doctor_and_the_run_report_that_fast_paths_are_off(monkeypatch):
    settings = device.configure()
    assert settings.reasons["fast paths"] == "disabled by IKEBANA_FAST=off"
    assert device.collect_environment(settings)["fast_paths"] == "off"
    assert ikebana.doctor()["fast paths"].startswith("disabled by IKEBANA_FAST=off")
    monkeypatch.delenv(fast.VARIABLE)
    assert "fast paths" not in device.configure().reasons


@pytest.mark.slow
@pytest.mark.usefixtures("on_processor", "shared_cache")
@pytest.mark.parametrize(("recipe", "options"), [("good", GOOD), ("quick", QUICK), ("baseline", BASELINE)])
def test_no_fast_path_is_used_and_the_result_is_the_same_up_to_rounding(
    recipe, options, drawn, tmp_path, monkeypatch, entered
):
    photos, results = drawn(10), {}
    for value in ("on", "off"):
        monkeypatch.setenv(fast.VARIABLE, value)
        entered.clear()
        run = ikebana.fit(photos, recipe, run=tmp_path / value, **options)
        if recipe == "baseline":
            ikebana.export(run, tmp_path / f"{value}.onnx")
        # `learning.plan` calls this function, which only reads the switch.
        assert (not entered) == (value == "off")
        predictions = ikebana.predict(run, photos)
        results[value] = np.array(
            [list(prediction.probabilities.values()) for prediction in predictions if prediction.is_usable]
        )
    difference = float(np.abs(results["on"] - results["off"]).max())
    # In bfloat16, windows with equal values give their gradient to another pixel.
    assert difference <= (0.05 if options["precision"] == "bfloat16" else TOLERANCE)
