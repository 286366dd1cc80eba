"""Familiarity: known photos are kept at the stated rate, other things are recognised, everywhere alike."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from PIL import Image
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

import ikebana
from ikebana.errors import RunError
from ikebana.evaluation import drawn_images, familiarity, familiarity_fit, unknown_objects
from ikebana.evaluation.familiarity import FamiliarityModel
from ikebana.inference import prediction
from ikebana.learning.models.familiarity_layer import FamiliarityLayer
from ikebana.recipe import LinearProbe
from ikebana.runs.run import Run

FEATURES, CLASSES = 40, 3


@pytest.fixture(scope="module")
def run(drawn, fit_in_cache):
    """A run on so many paper flowers that familiarity can be calibrated."""
    return fit_in_cache(drawn(60), "quick", image_size=96)


@pytest.fixture(scope="module")
def classifier(run):
    return ikebana.export(run, run.folder.parent / "paper.onnx")


def draw_photos(rng, count, shift: float | np.ndarray = 0.0):
    """Draw features around three centres, with the energy of a network that knows them."""
    labels = rng.integers(0, CLASSES, count)
    centres = np.random.default_rng(7).normal(size=(CLASSES, FEATURES)) * 3
    features = (centres[labels] + rng.normal(size=(count, FEATURES)) + shift).astype(np.float32)
    energy = (features @ centres.T).max(1).astype(np.float32) / 10
    return features, energy, labels


def fit_model(rng, train=300, calibration=200):
    features, _, labels = draw_photos(rng, train)
    model = familiarity_fit.fit_references(features, labels, features.mean(0), np.full(FEATURES, features.std()))
    known, energy, _ = draw_photos(rng, calibration)
    return calibrate(model, known, energy, np.arange(calibration))


def calibrate(model, known, energy, groups) -> FamiliarityModel:
    calibrated = familiarity_fit.calibrate(model, known, energy, groups)
    assert calibrated is not None
    return calibrated


def compute(model, features, energy):
    return model.to_familiarity(model.compute_scores(features, energy))


def test_at_most_a_twentieth_of_known_photos_is_called_unknown_on_average():
    rejected, photos, draws = 0, 100, 40
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        model = fit_model(rng, calibration=59)
        features, energy, _ = draw_photos(rng, photos)
        rejected += int((compute(model, features, energy) < model.threshold).sum())
    # Of 59 calibration photos the third lowest score is the threshold: 3 / 60 are rejected on average.
    # The share of one draw follows a beta distribution, so the sum spreads more than a binomial one.
    spread = np.sqrt(draws * (photos * 0.05 * 0.95 + photos**2 * 0.05 * 0.95 / 61))
    assert abs(rejected - draws * photos * 0.05) < 3.5 * spread
    assert binom.sf(rejected, draws * photos, 0.1) > 0.999


def test_photos_of_something_else_are_less_familiar_than_known_ones():
    rng = np.random.default_rng(0)
    model = fit_model(rng)
    known, other = draw_photos(rng, 200), draw_photos(rng, 200, shift=4.0)
    detection = unknown_objects.measure_detection(
        compute(model, *known[:2]), compute(model, *other[:2]), model.threshold
    )
    assert detection.auroc > 0.99
    assert detection.detected > 0.9


def test_familiarity_is_the_share_of_known_photos_that_score_lower():
    rng = np.random.default_rng(1)
    features, _, labels = draw_photos(rng, 300)
    model = familiarity_fit.fit_references(features, labels, features.mean(0), np.full(FEATURES, features.std()))
    known, energy, _ = draw_photos(rng, 119)
    model = calibrate(model, known, energy, np.arange(119))
    scores = model.compute_scores(known, energy)
    expected = (np.argsort(np.argsort(scores)) + 1) / 120
    assert model.to_familiarity(scores) == pytest.approx(expected, abs=1e-4)
    assert model.threshold == pytest.approx(6 / 120)


def test_familiarity_rises_with_the_score_also_beyond_all_known_photos():
    model = fit_model(np.random.default_rng(2))
    values = model.to_familiarity(np.linspace(-60, 60, 2001))
    assert (np.diff(values) >= 0).all()
    assert 0 <= values[0] < model.known_shares[0]
    assert model.known_shares[-1] < values[-1] <= 1


@pytest.mark.numerical
def test_the_torch_layer_computes_what_numpy_computes():
    rng = np.random.default_rng(3)
    model = fit_model(rng)
    features, energy, _ = draw_photos(rng, 300, shift=rng.normal(size=(300, 1)) * 2)
    layer = FamiliarityLayer(model)(torch.from_numpy(features), torch.from_numpy(energy))
    assert layer.numpy() == pytest.approx(compute(model, features, energy), abs=2e-4)


def test_copies_of_a_calibration_photo_count_once():
    rng = np.random.default_rng(4)
    features, _, labels = draw_photos(rng, 300)
    references = familiarity_fit.fit_references(features, labels, features.mean(0), np.full(FEATURES, features.std()))
    known, energy, _ = draw_photos(rng, 60)
    once = calibrate(references, known, energy, np.arange(60))
    copied = np.repeat(np.arange(60), 5)
    often = calibrate(references, known[copied], energy[copied], copied)
    for name, array in once.to_arrays().items():
        assert often.to_arrays()[name] == pytest.approx(array, rel=1e-5), name


def test_fewer_than_twenty_groups_calibrate_nothing():
    rng = np.random.default_rng(5)
    features, energy, labels = draw_photos(rng, 300)
    references = familiarity_fit.fit_references(features, labels, features.mean(0), np.full(FEATURES, features.std()))
    assert familiarity_fit.calibrate(references, features, energy, np.arange(300) % 19) is None


@pytest.mark.parametrize("name", ["axes", "centroids", "known_shares"])
def test_a_matrix_that_does_not_fit_the_others_is_refused(name):
    arrays = fit_model(np.random.default_rng(6)).to_arrays()
    familiarity.from_arrays(arrays)
    with pytest.raises(ValueError, match=name):
        familiarity.from_arrays({**arrays, name: arrays[name][..., 1:]})
    with pytest.raises(ValueError, match=name):
        familiarity.from_arrays({**arrays, name: arrays[name] * np.nan})
    del arrays[name]
    with pytest.raises(ValueError, match=name):
        familiarity.from_arrays(arrays)


def test_the_area_under_the_curve_is_that_of_scikit_learn():
    rng = np.random.default_rng(8)
    known, unknown = rng.integers(0, 30, 80) / 30, rng.integers(0, 20, 50) / 30
    expected = roc_auc_score(np.r_[np.ones(80), np.zeros(50)], np.r_[known, unknown])
    detection = unknown_objects.measure_detection(known, unknown, 0.2)
    assert detection.auroc == pytest.approx(expected)
    assert detection.detected == pytest.approx((unknown < 0.2).mean())


def test_drawn_images_are_the_same_each_time_and_differ_from_each_other():
    first, second = drawn_images.draw_images(64, 4), drawn_images.draw_images(64, 4)
    assert list(first) == ["text", "noise", "plain colours", "drawings", "screenshots"]
    for kind, images in first.items():
        assert images.shape == (4, 64, 64, 3)
        assert images.dtype == np.uint8
        assert (images == second[kind]).all()
        assert len({image.tobytes() for image in images}) == 4


def test_a_photo_below_the_threshold_is_unknown_whatever_its_confidence():
    known = prediction.to_prediction([0.97, 0.03], ["rose", "tulip"], 0.5, familiarity=0.3, familiarity_threshold=0.05)
    other = prediction.to_prediction([0.97, 0.03], ["rose", "tulip"], 0.5, familiarity=0.01, familiarity_threshold=0.05)
    assert (known.label, known.status) == ("rose", "ok")
    assert (other.label, other.status, other.closest_class, other.confidence) == (None, "unknown", "rose", 0.97)
    assert "unlike the training photos, closest to rose" in repr(other)


def test_a_run_says_how_often_it_recognises_other_things(run):
    evaluation = run.evaluation
    rates = evaluation.unknown_objects
    assert rates is not None
    assert set(rates.left_out) == set(run.classes)
    assert set(rates.drawn) == set(drawn_images.KINDS)
    stored = json.loads((run.folder / "evaluation.json").read_text("utf-8"))["unknown_objects"]
    assert stored["mean_left_out"] == pytest.approx(np.mean([kind.detected for kind in rates.left_out.values()]))
    table = run.predictions
    test = table.filter(split="test")
    assert rates.known_kept == pytest.approx((test["familiarity"] >= rates.threshold).mean())
    assert rates.known_photos == len(test)
    # "not sure" and "unknown" are both no answer.
    confidence = test.select(pl.max_horizontal(f"p:{name}" for name in run.classes)).to_series()
    is_answered = (confidence >= evaluation.threshold) & (test["familiarity"] >= rates.threshold)
    assert evaluation.answered_share == pytest.approx(is_answered.mean())
    assert '"unknown"' in repr(evaluation)


def test_a_fine_tuned_network_gets_the_rates_of_the_network_that_never_saw_the_class(run, drawn, fit_in_cache):
    tuned = fit_in_cache(drawn(60), "good", image_size=96, epochs=1, batch_size=16).evaluation.unknown_objects
    probe = replace(run.recipe, method=LinearProbe(flip_tta=True))
    expected = fit_in_cache(drawn(60), probe).evaluation.unknown_objects
    assert tuned.left_out == expected.left_out
    assert "before fine-tuning" in tuned.note
    assert expected.note == ""


def test_a_network_from_scratch_gets_no_rates_of_classes_that_it_was_trained_with(drawn, fit_in_cache):
    rates = fit_in_cache(drawn(60), "baseline", image_size=46, epochs=1).evaluation.unknown_objects
    assert rates.left_out == {}
    assert "not measured" in rates.describe()


def test_the_exported_file_computes_the_familiarity_of_the_run(run, classifier, drawn):
    test = run.predictions.filter(split="test")
    expected = dict(zip(test["path"], test["familiarity"], strict=True))
    predictions = classifier.predict([(path, drawn(60) / path) for path in expected])
    for photo in predictions:
        assert photo.familiarity == pytest.approx(expected[photo.path], abs=0.02), photo.path


def test_a_drawn_text_is_unlike_the_training_photos(classifier):
    images = drawn_images.draw_images(classifier.image_size, 10)
    predictions = classifier.predict([Image.fromarray(image) for image in images["text"]])
    assert sum(photo.status == "unknown" for photo in predictions) >= 9


def test_a_damaged_familiarity_file_is_an_error_of_the_run(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.folder, copy)
    (copy / "familiarity.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RunError, match=r"familiarity\.safetensors is damaged"):
        _ = Run(copy).familiarity


def test_a_run_with_too_few_photos_has_no_familiarity(paper_run, paper_classifier, good_photos):
    assert paper_run.familiarity is None
    assert paper_run.evaluation.unknown_objects is None
    assert paper_classifier.familiarity_threshold is None
    assert paper_classifier.predict(good_photos[0]).familiarity is None


@pytest.mark.slow
def test_an_int8_file_computes_familiarity_in_float32(run, tmp_path):
    ikebana.export(run, tmp_path / "int8.onnx", int8=True)
    graph = onnx.load(tmp_path / "int8.onnx").graph
    producers = {output: node for node in graph.node for output in node.output}
    derived = {value.name for value in graph.initializer if "familiarity." in value.name}
    products = []
    for node in graph.node:
        if derived.intersection(node.input):
            derived.update(node.output)
            products += [node] if node.op_type == "MatMul" else []
    assert len(products) == 3
    sources = {producers[name].op_type for node in products for name in node.input if name in producers}
    assert "DequantizeLinear" not in sources
