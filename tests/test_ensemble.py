"""Ensembles, and refitting on all photos after the score was computed."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support.interrupts import interrupt_after_steps
from torch import nn

import ikebana
from ikebana import recipes
from ikebana.errors import RecipeError
from ikebana.learning import examples
from ikebana.learning.models import networks
from ikebana.learning.models.layers import Ensemble
from ikebana.learning.training.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_cache")]

SMALL_OPTIONS = {"image_size": 64, "precision": "float32"}
TWO_NETWORKS = "tf_efficientnet_lite0+mobilenetv3_small_050"
TRAINED_OPTIONS = {"epochs": 2, "batch_size": 16, "image_size": 48, "precision": "float32"}


@pytest.fixture(scope="module")
def photos(drawn):
    return drawn(14)


def fit(photos, folder, **choices):
    """Fit two small networks of the tutorial, which need no pretrained weights."""
    return ikebana.fit(photos, "baseline", run=folder, **(TRAINED_OPTIONS | choices))


# --- ensembles ---


class ConstantNetwork(nn.Module):
    """A network with the same output for every photo."""

    def __init__(self, *logits: float):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, photos):
        return self.logits.expand(len(photos), -1)


def test_an_ensemble_predicts_the_mean_of_its_members_probabilities():
    first, second = ConstantNetwork(2.0, -1.0, 0.5), ConstantNetwork(-3.0, 0.0, 4.0)
    probabilities = Ensemble([first, second])(torch.zeros(4, 3, 8, 8)).softmax(1)
    expected = (first.logits.softmax(0) + second.logits.softmax(0)) / 2
    torch.testing.assert_close(probabilities, expected.expand(4, -1))


@pytest.mark.parametrize("offset", [0.0, 5.0, -1e4])
def test_an_ensemble_of_copies_predicts_what_its_member_predicts(offset):
    member = ConstantNetwork(1.0 + offset, 3.0 + offset, -2.0 + offset)
    probabilities = Ensemble([member, member, member])(torch.zeros(2, 3, 8, 8)).softmax(1)
    torch.testing.assert_close(probabilities, member.logits.softmax(0).expand(2, -1))


def test_members_differ_in_network_and_seed_and_the_first_equals_the_single_network():
    recipe = recipes.get_recipe("good", network="tf_efficientnet_lite0+tf_efficientnet_lite2", seed=3)
    first, second = recipe.members
    assert first == recipes.get_recipe("good", network="tf_efficientnet_lite0", seed=3)
    assert second.network == "tf_efficientnet_lite2"
    assert second.seed not in range(1000)
    alone = recipes.get_recipe("good")
    assert alone.members == (alone,)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"network": "tf_efficientnet_lite0+"}, "names of networks, joined by +"),
        ({"network": "tf_efficientnet_lite0+tutorial"}, "no pretrained weights exist for the network tutorial"),
        ({"network": TWO_NETWORKS, "weights": "mine.safetensors"}, "cannot all start from one weights file"),
    ],
)
def test_networks_that_cannot_be_averaged_are_refused_with_a_message(choices, words):
    with pytest.raises(RecipeError, match=words):
        recipes.get_recipe("good", **choices)


@pytest.fixture(scope="module")
def pair(photos, cache, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKEBANA_CACHE", str(cache))
        return fit(photos, tmp_path_factory.mktemp("runs") / "pair", network="tutorial+tutorial")


def test_two_networks_are_trained_in_turn_and_scored_as_an_ensemble(pair, photos):
    assert pair.history["epoch"].to_list() == [1, 2, 3, 4]
    assert {"curves.png", "curves_2.png"} <= {file.name for file in (pair.folder / "figures").iterdir()}
    predictions = {prediction.path: prediction.probabilities for prediction in ikebana.predict(pair, photos)}
    for row in pair.predictions.iter_rows(named=True):
        of_file = predictions[str(photos / row["path"])]
        np.testing.assert_allclose([of_file[n] for n in pair.classes], [row[f"p:{n}"] for n in pair.classes], atol=1e-5)


def test_the_first_member_equals_the_network_trained_alone(pair, photos, tmp_path):
    alone = load_file(fit(photos, tmp_path / "alone").weights)
    together = load_file(pair.weights)
    assert len(together) == 2 * len(alone)
    for name, value in alone.items():
        np.testing.assert_array_equal(together[f"members.0.{name}"], value)
        assert "conv" not in name or not np.array_equal(together[f"members.1.{name}"], value)


@pytest.mark.parametrize("steps", [2, 7, 11])  # of 12: in the first network, in the second, in the last epoch
def test_an_interrupted_ensemble_resumes_to_the_same_weights(pair, photos, tmp_path, steps):
    with interrupt_after_steps(steps):
        fit(photos, tmp_path / "run", network="tutorial+tutorial")
    resumed = ikebana.resume(tmp_path / "run")
    assert resumed.weights.read_bytes() == pair.weights.read_bytes()
    assert resumed.predictions.equals(pair.predictions)
    assert not list(resumed.folder.glob("checkpoint*"))


def test_a_backbone_averaged_with_itself_predicts_what_it_predicts_alone(photos, tmp_path):
    one_twice = "tf_efficientnet_lite0+tf_efficientnet_lite0"
    run = ikebana.fit(photos, "quick", run=tmp_path / "run", network=one_twice, **SMALL_OPTIONS)
    alone = ikebana.fit(photos, "quick", run=tmp_path / "alone", **SMALL_OPTIONS)
    assert run.predictions.equals(alone.predictions)  # fitting a logistic head uses no random numbers
    assert list(json.loads((run.folder / "pretrained.json").read_text("utf-8"))) == ["tf_efficientnet_lite0"]


# --- refitting on all photos ---


@pytest.fixture(scope="module")
def shipped(photos, cache, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKEBANA_CACHE", str(cache))
        return fit(photos, tmp_path_factory.mktemp("runs") / "all", refit_on_all=True)


def test_with_refit_on_all_the_score_is_that_of_the_network_before_the_refit(shipped, photos, tmp_path):
    honest = fit(photos, tmp_path / "honest")
    assert shipped.predictions.equals(honest.predictions)
    assert shipped.evaluation.accuracy == honest.evaluation.accuracy
    assert honest.evaluation.note == ""
    assert f"all {shipped.dataset['split'].is_not_null().sum()} photos" in repr(shipped.evaluation)
    assert shipped.weights.read_bytes() != honest.weights.read_bytes()


def test_the_shipped_network_is_the_same_recipe_trained_on_every_photo(shipped, photos, tmp_path, monkeypatch):
    batch_sizes = []
    real = Trainer.step

    def step(self, inputs, labels, *settings):
        batch_sizes.append(len(labels))
        return real(self, inputs, labels, *settings)

    monkeypatch.setattr(Trainer, "step", step)
    # With a precision, since steps that measure which one is faster would count too.
    fit(photos, tmp_path / "again", refit_on_all=True, precision="float32")
    used = shipped.dataset.filter(shipped.dataset["split"].is_not_null())
    train = used.filter(used["split"] == "train").height
    assert sum(batch_sizes) == 2 * train + 2 * used.height  # two epochs each


@pytest.mark.parametrize("steps", [4, 8, 14])
def test_an_interrupted_refit_resumes_to_the_same_weights(shipped, photos, tmp_path, steps):
    with interrupt_after_steps(steps):
        fit(photos, tmp_path / "run", refit_on_all=True)
    resumed = ikebana.resume(tmp_path / "run")
    assert resumed.weights.read_bytes() == shipped.weights.read_bytes()
    assert resumed.evaluation.to_json() | {"seconds": {}} == shipped.evaluation.to_json() | {"seconds": {}}


def test_quick_can_ship_a_head_trained_on_all_photos(photos, tmp_path):
    refitted = ikebana.fit(photos, "quick", run=tmp_path / "all", refit_on_all=True, **SMALL_OPTIONS)
    honest = ikebana.fit(photos, "quick", run=tmp_path / "honest", **SMALL_OPTIONS)
    before, after = load_file(honest.weights), load_file(refitted.weights)
    moved = [name for name in before if not np.array_equal(before[name], after[name])]
    assert moved == ["head.dense.bias", "head.dense.weight"]
    assert refitted.predictions.equals(honest.predictions)


def test_a_refit_trains_on_every_photo_once():
    pixels = np.zeros((9, 8, 8, 3), np.uint8)
    parts = {
        "train": part(pixels, [0, 4, 8]),
        "validation": part(pixels, [2, 3]),
        "test": part(pixels, [7, 1, 5]),
    }
    merged = examples.merge_for_refit(parts)
    assert merged["train"].rows.tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    assert merged["train"].labels.tolist() == [row % 3 for row in merged["train"].rows]
    assert len(merged["validation"]) == len(merged["test"]) == 0


def part(pixels, rows):
    rows = np.array(rows)
    return examples.PhotoExamples(pixels, rows, rows % 3, np.zeros(len(rows), bool), rows)


def test_a_single_network_is_not_an_ensemble():
    recipe = recipes.get_recipe("baseline", image_size=48)
    network = networks.build_network(recipe, 3)
    assert networks.get_members(network) == [network]
    assert not isinstance(network, Ensemble)
