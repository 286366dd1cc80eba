"""Exported files predict what the run predicts, or the export fails."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from onnx import numpy_helper, version_converter

import ikebana
from ikebana import recipes
from ikebana.data import dataset, split
from ikebana.errors import MachineError, ModelError, PhotosError, RunError
from ikebana.exporting import onnx_file as exporting
from ikebana.exporting import quantisation, run_photos
from ikebana.exporting.resize_graph import ONNX_OPSET
from ikebana.inference import classifier, page_files
from ikebana.learning.models import networks
from ikebana.recipe import recipe_to_json, with_options

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def graph(paper_run, good_photos):
    """The network of the run as an ONNX graph, before it is written."""
    network = exporting.load_network(paper_run, 1.0)
    squares = np.zeros((2, 48, 48, 3), np.uint8)
    return exporting.trace_to_onnx(network, 48, squares).SerializeToString()


@pytest.fixture
def fast_export(graph, monkeypatch):
    """Export without waiting for torch to write the same graph again."""
    monkeypatch.setattr(exporting, "trace_to_onnx", lambda *_: onnx.load_from_string(graph))


@pytest.fixture
def run_copy(paper_run, tmp_path):
    """A copy of the run, to be changed."""
    shutil.copytree(paper_run.folder, tmp_path / "run")
    return ikebana.open_run(tmp_path / "run")


def list_operator_sets(model):
    return [(opset.domain, opset.version) for opset in model.opset_import]


def get_refusal(kind, words, run, place, **choices):
    before = sorted(place.iterdir())
    with pytest.raises(kind, match=words) as refusal:
        ikebana.export(run, place / "out.onnx", **choices)
    assert sorted(place.iterdir()) == before
    return refusal.value


# --- the same everywhere ---


def test_the_file_predicts_what_the_network_of_the_run_predicts(paper_run, paper_classifier, paper_photos):
    by_run, by_file = (ikebana.predict(model, paper_photos) for model in (paper_run, paper_classifier))
    assert [prediction.path for prediction in by_run] == [prediction.path for prediction in by_file]
    for first, second in zip(by_run, by_file, strict=True):
        assert (first.label, first.status) == (second.label, second.status)
        assert first.probabilities == pytest.approx(second.probabilities, abs=1e-5)


def test_the_file_gives_test_photos_the_probabilities_that_were_scored(paper_run, paper_classifier, paper_photos):
    for row in paper_run.predictions.iter_rows(named=True):
        prediction = paper_classifier.predict((paper_photos / row["path"]).read_bytes())
        for name in paper_run.classes:
            assert prediction.probabilities[name] == pytest.approx(row[f"p:{name}"], abs=1e-5)


def test_the_example_of_the_docs_predicts_the_same_without_ikebana(
    paper_model, paper_classifier, good_photos, tmp_path
):
    page = (ROOT / "docs/export.md").read_text("utf-8")
    (script,) = re.findall(r"^```python\n(import json.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert script.count("\n") <= 12
    assert "ikebana" not in script
    shutil.copy(paper_model, tmp_path / "flowers.onnx")
    photo = next(file for file in good_photos if file.suffix == ".jpg")
    shutil.copy(photo, tmp_path / "garden.jpg")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    printed, confidence = done.stdout.split()
    expected = paper_classifier.predict(photo)
    assert printed == expected.label
    assert float(confidence) == pytest.approx(expected.confidence, abs=1e-3)


def test_openvino_predicts_the_same(paper_model, paper_classifier, good_photos):
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().compile_model(paper_model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    squares = np.stack([paper_classifier.preprocess(photo) for photo in good_photos])
    np.testing.assert_allclose(model(squares)[0], paper_classifier.forward(squares).probabilities, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tutorial+tutorial", "resnet18"])
def test_ensembles_and_flip_tta_are_part_of_the_graph(name):
    if name == "resnet18":
        recipe = recipes.get_recipe("good", network=name, image_size=64)
    else:
        recipe = recipes.get_recipe("baseline", network=name, image_size=64)
    network = networks.CalibratedNetwork(networks.build_network(recipe, 3), temperature=1.7).eval()
    squares = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    about = {"ikebana": 1, "classes": ["a", "b", "c"], "image_size": 64, "resize": "squash", "threshold": None}
    about |= {"versions": {"ikebana": "0"}}
    traced = exporting.trace_to_onnx(network, 64, squares)
    file = exporting.assemble_file(traced, about)
    outputs = classifier.from_bytes(file).forward(squares)
    with torch.inference_mode():
        probabilities, features = network(torch.from_numpy(squares).permute(0, 3, 1, 2))
    np.testing.assert_allclose(outputs.probabilities, probabilities, atol=1e-5)
    np.testing.assert_allclose(outputs.features, features, atol=1e-4 * features.abs().max())
    if name == "resnet18":
        mirrored = classifier.from_bytes(file).forward(np.ascontiguousarray(squares[:, :, ::-1]))
        np.testing.assert_allclose(mirrored.probabilities, outputs.probabilities, atol=1e-5)
        # Two of twenty, for the photo and for its mirror image.
        assert len(quantisation._list_first_convolutions(traced)) == 4


def test_confidence_and_threshold_are_those_of_the_run(run_copy, paper_classifier, good_photos, tmp_path):
    rule = {"coverage": 0.9, "limit": 0.3, "unsure_limit": 0.8}
    calibration = {"temperature": 0.5, "threshold": 0.4, "photos": 40, "candidates": rule}
    (run_copy.folder / "calibration.json").write_text(json.dumps(calibration))
    hot = ikebana.export(run_copy, tmp_path / "hot.onnx")
    assert (hot.threshold, hot.metadata["temperature"]) == (0.4, 0.5)
    predictions = hot.predict(good_photos)
    assert {prediction.status for prediction in predictions} == {"ok", "not sure"}
    for prediction, before in zip(predictions, paper_classifier.predict(good_photos), strict=True):
        assert (prediction.label is None) == (prediction.confidence < 0.4)
        squared = {name: value**2 for name, value in before.probabilities.items()}
        assert prediction.probabilities == pytest.approx(
            {name: value / sum(squared.values()) for name, value in squared.items()}, abs=1e-5
        )
    by_run = ikebana.predict(run_copy, good_photos)
    assert [(prediction.label, prediction.status, prediction.candidates) for prediction in by_run] == [
        (prediction.label, prediction.status, prediction.candidates) for prediction in predictions
    ]
    assert len({len(prediction.candidates) for prediction in predictions}) > 1


# --- metadata ---


def test_the_metadata_has_classes_scores_and_origin(paper_classifier, paper_run):
    about = paper_classifier.metadata
    assert about["ikebana"] == 1
    assert about["classes"] == list(paper_run.classes) == list(paper_classifier.classes)
    assert (about["image_size"], about["resize"], about["temperature"]) == (48, "squash", 1.0)
    assert about["recipe"]["name"] == "baseline"
    assert about["recipe"]["method"]["epochs"] == 30
    assert about["data"]["fingerprint"] == paper_run.source["fingerprint"]
    assert about["scores"]["accuracy"] == paper_run.evaluation.accuracy
    assert about["scores"]["accuracy_interval"] == list(paper_run.evaluation.accuracy_interval)
    assert about["parity"]["photos"] == paper_run.evaluation.n
    assert about["parity"]["accuracy"] == pytest.approx(paper_run.evaluation.accuracy)
    assert about["parity"]["largest_difference"] < 1e-5
    assert {"ikebana", "torch", "onnxruntime"} <= about["versions"].keys()


def test_each_operator_set_is_imported_once(paper_model):
    model = onnx.load(paper_model)
    onnx.checker.check_model(model, full_check=True)
    assert list_operator_sets(model) == [("", ONNX_OPSET)]
    assert {node.domain for node in model.graph.node} == {""}
    assert list_operator_sets(version_converter.convert_version(model, ONNX_OPSET + 1)) == [("", ONNX_OPSET + 1)]


def test_equal_runs_give_equal_files_without_paths_and_times(run_copy, paper_model, tmp_path, fast_export):
    ikebana.export(run_copy, tmp_path / "elsewhere.onnx")
    data = (tmp_path / "elsewhere.onnx").read_bytes()
    assert data == paper_model.read_bytes()
    for path in (paper_model.parent, tmp_path, ROOT, Path(torch.__file__).parent):
        assert str(path).encode() not in data
    assert b'"seconds"' not in data


def test_the_metadata_has_the_source_and_licence_of_pretrained_weights(run_copy, tmp_path, fast_export):
    origin = {"tf_efficientnet_lite0": {"source": "a package", "sha256": "0" * 64, "license": "Apache-2.0"}}
    (run_copy.folder / "pretrained.json").write_text(json.dumps(origin))
    assert ikebana.export(run_copy, tmp_path / "out.onnx").metadata["pretrained"] == origin


# --- refusals, which leave no files behind ---


def test_a_graph_with_other_predictions_is_refused_with_the_name_of_a_photo(graph, run_copy, tmp_path, monkeypatch):
    def return_tampered(*_):
        model = onnx.load_from_string(graph)
        tensor = max(model.graph.initializer, key=lambda pair: np.prod(pair.dims))
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.05, tensor.name))
        return model

    monkeypatch.setattr(exporting, "trace_to_onnx", return_tampered)
    refusal = get_refusal(ModelError, "but the run's network predicts", run_copy, tmp_path)
    assert refusal.where in run_copy.predictions["path"].to_list()


def test_a_file_whose_predictions_differ_from_the_scored_ones_is_refused_unless_refitted(
    run_copy, tmp_path, fast_export
):
    first, *others = (f"p:{name}" for name in run_copy.classes)
    turned = run_copy.predictions.with_columns(
        pl.Series(first, [1.0] * run_copy.predictions.height), *(pl.lit(0.0).alias(name) for name in others)
    )
    turned.write_parquet(run_copy.folder / "predictions.parquet")
    refusal = get_refusal(ModelError, "when it was scored", run_copy, tmp_path)
    assert refusal.where
    assert "differs" not in refusal.what  # the current predictions of the network do not differ
    recipe = recipe_to_json(with_options(run_copy.recipe, refit_on_all=True))
    (run_copy.folder / "recipe.json").write_text(json.dumps(recipe))
    assert ikebana.export(ikebana.open_run(run_copy.folder), tmp_path / "out.onnx").metadata["recipe"]["refit_on_all"]


def test_a_refitted_model_does_not_claim_the_score_as_its_own(paper_photos, paper_classifier, tmp_path):
    choices = {"image_size": 48, "batch_size": 16, "epochs": 1, "precision": "float32"}
    run = ikebana.fit(paper_photos, "baseline", run=tmp_path / "all", refit_on_all=True, **choices)
    shipped = ikebana.export(run, tmp_path / "all.onnx")
    assert "accuracy" not in shipped.metadata["parity"]
    summary = page_files.summarise_classifier(shipped)
    assert summary.note == run.evaluation.note
    assert "retrained on all" in summary.note
    assert "of the scored network" in repr(shipped)
    assert page_files.summarise_classifier(paper_classifier).note == ""


def test_moved_photos_are_found_and_changed_ones_are_refused(
    run_copy, paper_photos, paper_model, tmp_path, fast_export
):
    source = json.loads((run_copy.folder / "source.json").read_text("utf-8")) | {"photos": str(tmp_path / "gone")}
    (run_copy.folder / "source.json").write_text(json.dumps(source))
    moved = ikebana.open_run(run_copy.folder)
    assert "--photos DIR" in (
        get_refusal(PhotosError, "photos of this run were not found", moved, tmp_path).advice or ""
    )
    shutil.copytree(paper_photos, tmp_path / "here")
    ikebana.export(moved, tmp_path / "out.onnx", photos=tmp_path / "here")
    assert (tmp_path / "out.onnx").read_bytes() == paper_model.read_bytes()
    (tmp_path / "out.onnx").unlink()
    last = tmp_path / "here" / run_copy.predictions.filter(split="test")["path"][-1]
    last.write_bytes(last.read_bytes() + b"\0")
    assert get_refusal(
        PhotosError, "has changed since the run", moved, tmp_path, photos=tmp_path / "here"
    ).where == str(last)
    last.unlink()
    assert get_refusal(PhotosError, "cannot be read", moved, tmp_path, photos=tmp_path / "here").where == str(last)


def test_a_run_from_an_archive_is_verified_on_the_members_of_the_archive(
    run_copy, paper_photos, paper_model, tmp_path, fast_export
):
    archive = shutil.make_archive(str(tmp_path / "flowers"), "zip", paper_photos)
    table = run_copy.dataset.with_columns(path="flowers.zip!" + pl.col("path"))
    table.write_parquet(run_copy.folder / "dataset.parquet")
    named = run_copy.predictions.with_columns(path="flowers.zip!" + pl.col("path"))
    named.write_parquet(run_copy.folder / "predictions.parquet")
    shutil.copy(archive, tmp_path / "renamed.zip")
    for source in (archive, tmp_path / "renamed.zip", paper_photos):
        ikebana.export(run_copy, tmp_path / "out.onnx", photos=source)
        assert (tmp_path / "out.onnx").read_bytes() == paper_model.read_bytes()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("flowers.zip!rose/1.jpg", "rose/1.jpg"),
        ("old!flowers.TAR.gz!rose/!.jpg", "rose/!.jpg"),
        ("rose/wow!.jpg", "rose/wow!.jpg"),
        ("wow!/rose/1.jpg", "wow!/rose/1.jpg"),
        ("old.zip!/1.jpg", "old.zip!/1.jpg"),
        ("rose/x.zip!1.jpg", "rose/x.zip!1.jpg"),
    ],
)
def test_only_the_name_of_an_archive_is_removed_from_a_missing_path(path, expected, tmp_path):
    here = dataset.Dataset("somewhere", tmp_path, pl.DataFrame(), ())
    assert run_photos._locate(path, here, set()).address == str(tmp_path / expected)


def test_an_impossible_run_name_is_refused_before_photos_are_searched(tmp_path):
    with pytest.raises(MachineError, match="too long") as refusal:
        ikebana.fit(tmp_path / "gone", "baseline", run=tmp_path / ("n" * 300))
    assert refusal.value.advice


def test_a_model_file_given_as_the_run_is_refused(paper_model, tmp_path):
    with pytest.raises(RunError, match="this is a model file, not a run"):
        ikebana.export(paper_model, tmp_path / "again.onnx")


def test_an_unfinished_run_and_an_invalid_file_name_are_refused(run_copy, tmp_path):
    with pytest.raises(ModelError, match=r"must end in \.onnx"):
        ikebana.export(run_copy, tmp_path / "flowers.pt")
    (run_copy.folder / "evaluation.json").unlink()
    get_refusal(RunError, "has not finished", ikebana.open_run(run_copy.folder), tmp_path)


@pytest.mark.parametrize(
    "text", ['{"temperature": 0, "threshold": null}', '{"temperature": "warm"}', "[]", '{"temperature": 1}']
)
def test_a_damaged_calibration_is_refused(text, run_copy, tmp_path):
    (run_copy.folder / "calibration.json").write_text(text)
    get_refusal(RunError, "calibration.json", run_copy, tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("evaluation.json", "{}"),
        ("evaluation.json", "[]"),
        ("evaluation.json", "3"),
        ("evaluation.json", '{"accuracy": "high"}'),
        ("classification_report.txt", None),
        ("source.json", "{}"),
        ("source.json", "[]"),
        ("source.json", '{"photos": "here", "fingerprint": "", "classes": "ab"}'),
        ("source.json", '{"photos": 3, "fingerprint": "", "classes": ["a", "b"]}'),
    ],
)
def test_a_damaged_run_is_refused_with_the_file_name_and_advice(name, text, run_copy, tmp_path):
    damaged = run_copy.folder / name
    damaged.write_text(text) if text is not None else damaged.unlink()
    refusals = [get_refusal(RunError, name, run_copy.folder, tmp_path)]
    with pytest.raises(RunError, match=name) as of_score:
        _ = ikebana.open_run(run_copy.folder).evaluation
    refusals.append(of_score.value)
    if name == "source.json":
        with pytest.raises(RunError, match=name) as of_answers:
            ikebana.predict(run_copy.folder, [])
        refusals.append(of_answers.value)
    assert all(refusal.where and refusal.advice for refusal in refusals)


@pytest.mark.parametrize("lost", ["path", "split", "p:"])
def test_predictions_without_a_column_are_refused_with_its_name(lost, run_copy, tmp_path):
    file = run_copy.folder / "predictions.parquet"
    table = pl.read_parquet(file)
    column = next(name for name in table.columns if name.startswith(lost))
    table.drop(column).write_parquet(file)
    assert f"it lacks {column}" in get_refusal(RunError, "predictions.parquet", run_copy.folder, tmp_path).what


def test_a_dataset_table_without_a_column_is_refused_with_its_name(run_copy, tmp_path):
    file = run_copy.folder / "dataset.parquet"
    pl.read_parquet(file).drop("sha256").write_parquet(file)
    assert "it lacks sha256" in get_refusal(RunError, "dataset.parquet", run_copy.folder, tmp_path).what


# --- int8 ---


def test_int8_is_refused_with_both_accuracies_if_it_loses_accuracy(run_copy, tmp_path, fast_export, monkeypatch):
    monkeypatch.setattr(quantisation, "MAX_ACCURACY_LOSS", -1.0)
    refusal = get_refusal(ModelError, r"falls from 0\.\d+ to 0\.\d+, by \d+ photos?", run_copy, tmp_path, int8=True)
    assert "at least 100 photos are needed" in str(refusal)
    assert "validation photos" in refusal.what


def test_int8_is_a_smaller_file_with_the_same_predictions(
    run_copy, paper_model, good_photos, tmp_path, fast_export, monkeypatch
):
    monkeypatch.setattr(quantisation, "MAX_ACCURACY_LOSS", 1.0)  # ten photos are too few for a margin
    small = ikebana.export(run_copy, tmp_path / "small.onnx", int8=True)
    assert (tmp_path / "small.onnx").stat().st_size < 0.4 * paper_model.stat().st_size
    assert list_operator_sets(onnx.load(tmp_path / "small.onnx")) == [("", ONNX_OPSET)]
    assert small.metadata["int8"].keys() >= {"accuracy_in_float32", "accuracy_in_int8", "margin", "judged_by"}
    squares = np.stack([small.preprocess(photo) for photo in good_photos])
    exact = ikebana.load(paper_model).forward(squares).probabilities
    assert np.abs(small.forward(squares).probabilities - exact).max() < 0.1


@pytest.mark.parametrize("enough", [1, 3, 10_000])
def test_int8_is_evaluated_on_selection_photos_unless_they_are_too_few(enough, paper_run, paper_photos, monkeypatch):
    monkeypatch.setattr(quantisation, "MIN_JUDGING_PHOTOS", enough)
    validation = run_photos.find_photos(paper_run, paper_photos)["validation"]
    choosing = [photo for photo in validation if photo.for_selection]
    assert 3 <= len(choosing) < len(validation)
    assert quantisation.select_judging_photos(validation) == (choosing if len(choosing) >= enough else validation)


def test_int8_reports_the_number_of_photos_it_was_evaluated_on(run_copy, tmp_path, fast_export, monkeypatch):
    monkeypatch.setattr(quantisation, "MAX_ACCURACY_LOSS", 1.0)
    monkeypatch.setattr(quantisation, "MIN_JUDGING_PHOTOS", 1)
    small = ikebana.export(run_copy, tmp_path / "small.onnx", int8=True)
    validation = run_copy.dataset.filter(split="validation")
    assert small.metadata["int8"]["validation_photos"] == split.get_selection_mask(validation).sum() < len(validation)


def test_int8_without_validation_photos_is_refused(run_copy, tmp_path, fast_export):
    run_copy.dataset.with_columns(pl.col("split").replace("validation", "train")).write_parquet(
        run_copy.folder / "dataset.parquet"
    )
    get_refusal(ModelError, "no validation photos", run_copy, tmp_path, int8=True)


def test_the_command_writes_the_file_and_prints_its_name_last(run_copy, paper_model, tmp_path):
    command = [sys.executable, "-m", "ikebana", "export", str(run_copy.folder), str(tmp_path / "out.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out.onnx")
    assert "same class for 100.00%" in done.stderr
    assert (tmp_path / "out.onnx").read_bytes() == paper_model.read_bytes()
