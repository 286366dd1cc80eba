"""The classifier in a model file: its inputs, its predictions, and the modules it needs."""

import io
import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from support.images import draw_noisy_image, encode_image

import ikebana
from ikebana.errors import PhotosError, UnreadablePhoto
from ikebana.evaluation.candidate_sets import CandidateRule
from ikebana.inference import classifier as classifiers
from ikebana.inference.prediction import to_prediction, unusable_prediction


@pytest.fixture
def photo(good_photos):
    return good_photos[0]


def have_equal_predictions(first, second):
    return first.label == second.label and first.probabilities == second.probabilities


def test_a_path_its_bytes_and_its_pixels_are_the_same_photo(paper_classifier, photo):
    by_path = paper_classifier.predict(photo)
    assert by_path.label in paper_classifier.classes
    assert by_path.path == str(photo)
    assert sum(by_path.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert by_path.confidence == max(by_path.probabilities.values())
    assert have_equal_predictions(paper_classifier.predict(str(photo)), by_path)
    assert have_equal_predictions(paper_classifier.predict(photo.read_bytes()), by_path)


def test_an_image_and_an_array_are_predicted_like_a_file_of_their_pixels(paper_classifier):
    picture = draw_noisy_image(61, 40)
    by_bytes = paper_classifier.predict(encode_image(picture, "PNG"))
    assert have_equal_predictions(paper_classifier.predict(picture), by_bytes)
    assert have_equal_predictions(paper_classifier.predict(np.asarray(picture)), by_bytes)
    assert have_equal_predictions(paper_classifier.predict(picture.convert("RGBA")), by_bytes)


def test_the_exif_orientation_of_an_image_is_applied_and_the_image_is_not_changed(paper_classifier):
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = encode_image(draw_noisy_image(61, 40), "JPEG", quality=95, exif=exif)
    with Image.open(io.BytesIO(lying)) as opened:
        predictions, size = paper_classifier.predict(opened), opened.size
        assert size == (61, 40)
    assert predictions.probabilities == pytest.approx(paper_classifier.predict(lying).probabilities, abs=1e-3)


def test_predictions_of_many_photos_are_in_order_and_equal_those_of_single_photos(paper_classifier, good_photos):
    photos = good_photos
    together = paper_classifier.predict(photos)
    assert [prediction.path for prediction in together] == [str(photo) for photo in photos]
    for prediction, photo in zip(together, photos, strict=True):
        assert prediction.probabilities == pytest.approx(paper_classifier.predict(photo).probabilities, abs=1e-5)
    assert [prediction.label for prediction in paper_classifier.predict(iter(photos))] == [
        prediction.label for prediction in together
    ]
    assert paper_classifier.predict([]) == []


def test_a_given_name_becomes_the_path(paper_classifier, photo):
    predictions = list(paper_classifier.stream([("mine", photo.read_bytes()), photo.read_bytes()]))
    assert [prediction.path for prediction in predictions] == ["mine", ""]


def test_a_broken_photo_is_an_error_alone_and_a_row_with_the_reason_among_many(paper_classifier, photo, tmp_path):
    (tmp_path / "text.jpg").write_text("no photo")
    wanted = {tmp_path / "text.jpg": "not a photo: text", tmp_path / "gone.jpg": "no such file", tmp_path: "a folder"}
    for broken, words in wanted.items():
        with pytest.raises(UnreadablePhoto, match=words) as refused:
            paper_classifier.predict(broken)
        assert refused.value.where == broken
    predictions = paper_classifier.predict([photo, *wanted, b"", photo])
    assert [prediction.label is not None for prediction in predictions] == [True, False, False, False, False, True]
    assert [prediction.is_usable for prediction in predictions] == [True, False, False, False, False, True]
    for prediction, words in zip(predictions[1:], [*wanted.values(), "empty file"], strict=False):
        assert words in prediction.status


@pytest.mark.parametrize(
    "nonsense", [7, np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), {"a": 1}]
)
def test_a_value_of_another_type_is_refused_with_a_message(paper_classifier, nonsense):
    with pytest.raises(PhotosError) as refused:
        paper_classifier.predict(nonsense)
    assert "uint8 [height, width, 3]" in (refused.value.advice or "")
    (among_many,) = paper_classifier.predict([nonsense])
    assert not among_many.is_usable
    assert among_many.status


def test_an_endless_stream_is_predicted_in_small_batches(paper_classifier, photo):
    taken = itertools.count()
    photos = ((next(taken), photo)[1] for _ in itertools.count())
    stream = paper_classifier.stream(photos, batch_size=4)
    predictions = list(itertools.islice(stream, 40))
    stream.close()
    assert len({prediction.label for prediction in predictions}) == 1
    assert next(taken) <= 40 + 4 * (classifiers.PREFETCH_BATCHES + 2)


def test_many_threads_can_share_a_classifier(paper_classifier, good_photos):
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(paper_classifier.predict, good_photos))
    assert all(
        have_equal_predictions(prediction_at_once, paper_classifier.predict(photo))
        for prediction_at_once, photo in zip(at_once, good_photos, strict=True)
    )


def test_the_features_of_a_photo_are_returned_with_its_probabilities(paper_classifier, photo):
    squares = paper_classifier.preprocess(photo)[None]
    outputs = paper_classifier.forward(np.concatenate([squares, squares]))
    assert outputs.probabilities.shape == (2, 5)
    assert outputs.features.shape == (2, 512)
    assert np.array_equal(outputs.features[0], outputs.features[1])


def test_a_prediction_below_the_threshold_is_not_sure():
    sure = to_prediction([0.1, 0.9], ("rose", "tulip"), 0.9)
    assert (sure.label, sure.confidence, sure.status) == ("tulip", 0.9, "ok")
    unsure = to_prediction([0.41, 0.38, 0.21], ("rose", "tulip", "daisy"), 0.5)
    assert (unsure.label, unsure.confidence, unsure.status, unsure.is_usable) == (None, 0.41, "not sure", True)
    assert repr(sure) == 'Prediction("tulip", 0.90)'
    assert repr(unsure) == 'Prediction("not sure": rose 0.41, tulip 0.38)'
    rule = CandidateRule(0.9, 0.0, 0.8)
    three = to_prediction([0.41, 0.38, 0.21], ("rose", "tulip", "daisy"), 0.5, candidate_rule=rule)
    assert (sure.candidates, unsure.candidates, three.candidates) == ((), (), ("rose", "tulip", "daisy"))
    assert repr(three) == 'Prediction("not sure": rose 0.41, tulip 0.38, daisy 0.21)'
    assert to_prediction([0.1, 0.9], ("rose", "tulip"), 0.9, candidate_rule=rule).candidates == ("tulip",)
    assert repr(unusable_prediction("a.jpg", "empty file")) == "Prediction(empty file)"


def test_predicting_imports_neither_torch_nor_onnx_nor_polars(paper_model, photo):
    script = (
        "import sys, json, ikebana\n"
        f"said = ikebana.load({str(paper_model)!r}).predict({str(photo)!r})\n"
        "print(json.dumps([said.label, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    label, loaded = json.loads(done.stdout)
    assert label == ikebana.load(paper_model).predict(photo).label
    assert not set(loaded) & {"torch", "timm", "onnx", "polars", "sklearn", "scipy", "matplotlib", "rich", "cyclopts"}


def test_a_classifier_has_a_readable_representation(paper_classifier):
    assert repr(paper_classifier).startswith("Classifier(5 classes: ")


@pytest.mark.skipif(sys.platform == "win32", reason="onnxruntime keeps its identifiers elsewhere there")
def test_no_telemetry_is_sent_and_no_file_is_left_in_the_home_folder(paper_model, good_photos, tmp_path):
    """By default, onnxruntime 1.29 and later writes a device identifier and unsent events there."""
    code = "import sys, ikebana; ikebana.load(sys.argv[1]).predict(sys.argv[2])"
    environment = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, str(paper_model), str(good_photos[0])], env=environment, check=True)
    assert not list(tmp_path.rglob("*"))
