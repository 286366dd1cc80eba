"""Plans, the loop over epochs, and custom modules."""

import inspect
import json
from dataclasses import fields
from typing import get_type_hints

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.interrupts import interrupt_after_steps
from torch import nn

import ikebana
from ikebana import recipes
from ikebana.cli import options as cli_options
from ikebana.demo_data import paper_flowers
from ikebana.errors import RecipeError
from ikebana.learning.models import networks
from ikebana.learning.plan import Plan
from ikebana.recipe import METHODS, FitOptions, Recipe, Scratch, recipe_to_json

pytestmark = pytest.mark.usefixtures("shared_cache")
SMALL_OPTIONS: FitOptions = {"image_size": 48, "batch_size": 16, "epochs": 2, "precision": "float32"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan") / "photos"
    paper_flowers.draw_collection(folder, photos_per_kind=8)
    return folder


class TinyNetwork(nn.Module):
    """Two convolutions with BatchNorm, as a user might write them."""

    def __init__(self, classes=5):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU()
        )
        self.classifier = nn.Linear(16, classes)

    def forward(self, images):
        return self.classifier(self.backbone(images / 255).mean((2, 3)))


class LabelledTinyNetwork(TinyNetwork):
    """Another class with the same weights."""


def make_tiny_network(classes=5, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyNetwork(classes)


@pytest.fixture
def builds(monkeypatch):
    """The networks that are built while a test runs."""
    counted = []
    real = networks._build_member
    monkeypatch.setattr(
        networks, "_build_member", lambda recipe, classes: counted.append(recipe) or real(recipe, classes)
    )
    return counted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "expected"),
    [(SMALL_OPTIONS, 1), ({**SMALL_OPTIONS, "refit_on_all": True}, 2), ({**SMALL_OPTIONS, "precision": "auto"}, 1)],
    ids=["once", "refit", "with a trial of the precision"],
)
def test_fit_builds_each_network_once_and_again_only_for_a_refit(
    options: FitOptions, expected, photos, tmp_path, builds
):
    ikebana.fit(photos, "baseline", run=tmp_path / "run", **options)
    assert len(builds) == expected


@pytest.mark.slow
def test_resume_audit_and_doctor_build_each_network_once(photos, tmp_path, builds, monkeypatch):
    with interrupt_after_steps(2):
        ikebana.fit(photos, "baseline", run=tmp_path / "run", **SMALL_OPTIONS)
    builds.clear()
    ikebana.resume(tmp_path / "run")
    assert len(builds) == 1
    builds.clear()
    ikebana.audit(photos, advise=True)
    assert len(builds) == 1
    builds.clear()
    ikebana.doctor()
    assert len(builds) == 1
    builds.clear()
    small: FitOptions = {"image_size": 64, "batch_size": 16, "epochs": 1, "precision": "float32"}
    ikebana.fit(photos, "best", run=tmp_path / "best", **small)
    assert [recipe.network for recipe in builds] == ["tf_efficientnet_lite2", "tf_efficientnet_lite1"]


def test_a_plan_has_recipe_network_and_cost_before_a_photo_is_opened(photos):
    plan = Plan.from_photos(photos, "baseline", **SMALL_OPTIONS)
    assert plan.recipe.gradient_method.epochs == 2
    assert plan.dataset.photos["sha256"].null_count() == plan.dataset.photos.height
    assert "conv_1" in plan.layer_table
    assert plan.estimate.seconds > 0
    assert "baseline" in repr(plan)


def test_training_yields_the_epochs_of_fit_and_the_same_weights(photos, tmp_path):
    plan = Plan.from_photos(photos, "baseline", **SMALL_OPTIONS)
    initial = {name: value.clone() for name, value in plan.network.state_dict().items()}
    epochs = list(ikebana.training(plan))
    run = ikebana.fit(photos, "baseline", run=tmp_path / "run", **SMALL_OPTIONS)
    assert [epoch.train_loss for epoch in epochs] == run.history["train_loss"].to_list()
    trained = load_file(run.weights)
    assert all(torch.equal(value, trained[name]) for name, value in plan.network.state_dict().items())
    assert not torch.equal(initial["dense_2.weight"], trained["dense_2.weight"])


def test_training_can_be_left_after_an_epoch_and_resumed_from_its_checkpoint(photos, tmp_path):
    uninterrupted = Plan.from_photos(photos, "baseline", **SMALL_OPTIONS)
    for _ in ikebana.training(uninterrupted):
        pass
    file = tmp_path / "checkpoint.safetensors"
    for _ in ikebana.training(Plan.from_photos(photos, "baseline", **SMALL_OPTIONS), file):
        break
    resumed = Plan.from_photos(photos, "baseline", **SMALL_OPTIONS)
    assert [epoch.epoch for epoch in ikebana.training(resumed, file)] == [1, 2]
    expected = uninterrupted.network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.network.state_dict().items())


@pytest.mark.slow
def test_a_custom_module_is_trained_scored_and_exported(photos, tmp_path):
    model = make_tiny_network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options: FitOptions = {**SMALL_OPTIONS, "epochs": 5, "learning_rate": 3e-3}
    run = ikebana.fit(photos, model=model, run=tmp_path / "run", **options)
    assert run.recipe.network == "module:TinyNetwork"
    assert run.history[-1, "train_loss"] < run.history[0, "train_loss"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(RecipeError, match="your own network: TinyNetwork") as refusal:
        ikebana.export(run, tmp_path / "model.onnx")
    assert "model=model" in str(refusal.value)
    with pytest.raises(RecipeError, match="your own network"):
        ikebana.predict(run, photos)
    classifier = ikebana.export(run, tmp_path / "model.onnx", model=TinyNetwork())
    test = run.predictions.filter(split="test")
    for row in test.head(5).iter_rows(named=True):
        probabilities = classifier.predict(photos / row["path"]).probabilities
        expected = [row[f"p:{name}"] for name in run.classes]
        np.testing.assert_allclose([probabilities[name] for name in run.classes], expected, atol=1e-4)


@pytest.mark.slow
def test_a_run_of_a_custom_module_resumes_to_the_same_bits_with_that_module(photos, tmp_path):
    uninterrupted = ikebana.fit(photos, model=make_tiny_network(), run=tmp_path / "whole", **SMALL_OPTIONS)
    with interrupt_after_steps(2):
        ikebana.fit(photos, model=make_tiny_network(), run=tmp_path / "stopped", **SMALL_OPTIONS)
    for model, problem in ((None, "your own network"), (LabelledTinyNetwork(), "is a LabelledTinyNetwork")):
        with pytest.raises(RecipeError, match=problem):
            ikebana.resume(tmp_path / "stopped", model=model)
    # The checkpoint has all weights, so those of the module do not matter.
    resumed = ikebana.resume(tmp_path / "stopped", model=make_tiny_network(seed=1))
    assert resumed.weights.read_bytes() == uninterrupted.weights.read_bytes()


def test_frozen_weights_of_a_custom_module_stay_frozen(photos, tmp_path):
    model = make_tiny_network()
    model.backbone[0].requires_grad_(False)
    plan = Plan.from_photos(photos, model=model, **SMALL_OPTIONS)
    for _ in ikebana.training(plan):
        pass
    trained = plan.network.state_dict()
    before = model.state_dict()
    assert torch.equal(trained["module.backbone.0.weight"], before["backbone.0.weight"])
    assert not torch.equal(trained["module.classifier.weight"], before["classifier.weight"])


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (make_tiny_network(classes=3), r"returned \(2, 3\) for a batch of 2 images of 5 classes"),
        (nn.Identity(), "returned"),
        (nn.Linear(7, 5), "failed on a batch"),
    ],
)
def test_a_module_that_returns_no_logits_is_refused_before_a_photo_is_opened(model, problem, photos, tmp_path):
    with pytest.raises(RecipeError, match=problem):
        ikebana.fit(photos, model=model, run=tmp_path / "run", **SMALL_OPTIONS)
    assert not (tmp_path / "run").exists()


def test_a_custom_module_needs_a_recipe_that_trains_from_scratch(photos):
    with pytest.raises(RecipeError, match="trained from scratch") as refusal:
        ikebana.fit(photos, "good", model=make_tiny_network())
    assert "baseline" in str(refusal.value)


def test_the_typed_options_of_fit_are_the_options_of_recipes_and_their_methods():
    method_fields = {field.name for method in METHODS for field in fields(method)} - {"kind"}
    recipe_fields = {field.name for field in fields(Recipe)} - {"name"}
    assert get_type_hints(FitOptions).keys() == method_fields | recipe_fields
    assert {field.name for field in cli_options.OPTION_FIELDS} <= method_fields | recipe_fields
    assert "options" in inspect.signature(ikebana.fit).parameters


def test_recipe_json_names_the_method_and_only_its_options():
    values = {
        name: json.loads(json.dumps(recipe_to_json(recipe)))["method"] for name, recipe in recipes.RECIPES.items()
    }
    kinds = {name: method["kind"] for name, method in values.items()}
    assert kinds == {
        "baseline": "scratch", "augmented": "scratch", "features": "frozen_backbone", "frozen": "frozen_backbone",
        "finetuned": "fine_tune", "quick": "linear_probe", "good": "fine_tune", "best": "fine_tune",
    }  # fmt: skip
    assert values["quick"].keys() == {"kind", "weights", "flip_tta"}
    assert "weights" not in values["baseline"]
    assert {name for name, recipe in recipes.RECIPES.items() if recipe.caches_features} == {"features", "quick"}
    assert Scratch().epochs == 20


def test_the_process_has_the_callers_settings_between_two_epochs(photos):
    torch.set_num_threads(1)
    torch.manual_seed(7)
    expected = torch.get_rng_state()
    plan = Plan.from_photos(photos, "augmented", **SMALL_OPTIONS)
    for _ in ikebana.training(plan):
        assert torch.get_num_threads() == 1
        assert torch.equal(torch.get_rng_state(), expected)
    assert plan.settings.threads >= 1


@pytest.mark.slow
def test_a_run_without_a_checkpoint_needs_the_same_initial_weights(photos, tmp_path):
    with interrupt_after_steps(2):
        ikebana.fit(photos, model=make_tiny_network(), run=tmp_path / "run", **SMALL_OPTIONS)
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    with pytest.raises(ikebana.RunError, match="initial weights are not those") as refusal:
        ikebana.resume(tmp_path / "run", model=make_tiny_network(seed=1))
    assert "torch.manual_seed" in str(refusal.value)
    assert ikebana.resume(tmp_path / "run", model=make_tiny_network()).is_finished


def test_a_run_of_a_custom_module_reports_how_to_resume_it_from_python(photos, tmp_path, caplog):
    caplog.set_level("INFO", "ikebana")
    with interrupt_after_steps(1):
        ikebana.fit(photos, model=make_tiny_network(), run=tmp_path / "run", **SMALL_OPTIONS)
    expected = f"ikebana.resume({str(tmp_path / 'run')!r}, model=model)"
    assert expected in caplog.text
    with pytest.raises(ikebana.RunError) as refusal:
        _ = ikebana.open_run(tmp_path / "run").evaluation
    assert refusal.value.advice == expected


def test_training_refuses_a_checkpoint_of_another_plan_and_any_other_file(photos, tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    for _ in ikebana.training(Plan.from_photos(photos, "baseline", **SMALL_OPTIONS), file):
        pass
    for options in ({"learning_rate": 0.1}, {"split_seed": 9}, {"epochs": 1}):
        changed: FitOptions = {**SMALL_OPTIONS, **options}  # type: ignore[typeddict-item]
        with pytest.raises(RecipeError, match="not a checkpoint of the same plan"):
            next(ikebana.training(Plan.from_photos(photos, "baseline", **changed), file))
    (tmp_path / "flowers.onnx").write_bytes(b"a model")
    with pytest.raises(RecipeError, match="not a checkpoint"):
        next(ikebana.training(Plan.from_photos(photos, "baseline", **SMALL_OPTIONS), tmp_path / "flowers.onnx"))
    assert (tmp_path / "flowers.onnx").read_bytes() == b"a model"


def test_a_class_instead_of_a_module_is_refused_with_advice(photos):
    with pytest.raises(RecipeError, match="the model is a class, TinyNetwork"):
        ikebana.fit(photos, model=TinyNetwork, **SMALL_OPTIONS)  # type: ignore[arg-type]


def test_an_unavailable_device_is_refused_before_a_photo_is_opened(photos, tmp_path):
    if torch.backends.mps.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(ikebana.MachineError, match="cannot use the device 'mps'"):
        ikebana.fit(photos, "baseline", run=tmp_path / "run", device="mps", **SMALL_OPTIONS)
    assert Plan.from_photos(photos, "baseline", device="cpu", **SMALL_OPTIONS).settings.device == "cpu"
