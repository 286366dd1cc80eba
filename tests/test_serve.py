"""Responses of the server: to valid and invalid photos, without a token, and about itself."""

import os
import re
import sys
import tempfile

import pytest
from support.images import draw_noisy_image, encode_image
from support.server import BLUE, GREY, RED, assert_error, encode_square, run_server

from ikebana.commands import serve
from ikebana.errors import MachineError, RecipeError
from ikebana.serving import connections, server

TEXT = b"this is no photo, but a text"


@pytest.fixture(scope="module")
def served():
    """A server with default settings."""
    with run_server() as running_server:
        yield running_server


# --- photos ---


def test_the_bytes_of_a_photo_are_answered_with_class_and_probabilities(served):
    (predictions,) = served.post(RED, params={"name": "rose.png"}).json()["predictions"]
    assert (predictions["name"], predictions["label"], predictions["status"]) == ("rose.png", "red", "ok")
    assert predictions["probabilities"] == pytest.approx({"red": 1, "green": 0, "blue": 0}, abs=1e-6)
    assert predictions["confidence"] == max(predictions["probabilities"].values())


def test_a_form_of_many_photos_is_answered_in_order(served):
    response = served.post_form(BLUE, GREY, TEXT, RED)
    assert response.status_code == 200
    predictions = response.json()["predictions"]
    assert [prediction["name"] for prediction in predictions] == ["0.png", "1.png", "2.png", "3.png"]
    assert [prediction["label"] for prediction in predictions] == ["blue", None, None, "red"]
    assert [prediction["status"] for prediction in predictions] == ["ok", "not sure", "not a photo: text", "ok"]
    assert predictions[1]["probabilities"] == pytest.approx(dict.fromkeys(["red", "green", "blue"], 1 / 3), abs=1e-6)
    assert predictions[2]["probabilities"] == {}
    assert [len(prediction["candidates"]) for prediction in predictions] == [1, 2, 0, 1]
    assert predictions[0]["candidates"] == ["blue"]


def test_the_classes_come_with_the_limits_of_the_candidates(served):
    limits = {"coverage": 0.9, "limit": 0.75, "unsure_limit": 0.6}
    assert served.client.get("/classes").json()["candidates"] == limits


def test_fields_of_a_form_that_are_not_files_are_ignored(served):
    response = served.client.post("/predict", data={"note": "mine"}, files={"file": ("a.png", RED)})
    assert [prediction["label"] for prediction in response.json()["predictions"]] == ["red"]


def test_a_model_predicts_the_same_by_http_as_in_python(paper_classifier, good_photos):
    with run_server(paper_classifier) as served:
        predictions = served.post_form(*[prediction.read_bytes() for prediction in good_photos[:5]]).json()[
            "predictions"
        ]
    for prediction, photo in zip(predictions, good_photos, strict=False):
        expected = paper_classifier.predict(photo)
        assert (prediction["label"], prediction["status"]) == (expected.label, expected.status)
        assert tuple(prediction["candidates"]) == expected.candidates
        assert prediction["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)


def test_photos_that_arrive_together_are_predicted_in_one_batch(served):
    served.classifier.batch_sizes.clear()
    served.classifier.gate.clear()
    first = served.post_later()
    served.wait_until(lambda: served.classifier.batch_sizes)
    others = [served.post_later(BLUE) for _ in range(9)]
    served.wait_until(lambda: len(served.queue.ready_photos) == 9)
    served.classifier.gate.set()
    assert {response.result().json()["predictions"][0]["label"] for response in [first, *others]} == {"red", "blue"}
    assert served.classifier.batch_sizes == [1, 9]


# --- bad uploads: always 4xx with a reason ---


@pytest.mark.parametrize("data", [b"", TEXT, b"\xff\xd8\xff", RED[:40], os.urandom(5000), b"<svg/>"])
def test_data_that_is_not_a_photo_is_refused_with_the_reason(served, data):
    error = assert_error(served.post(data), 422, "empty|not a photo|unreadable")
    assert error["predictions"][0]["status"] == error["error"]


@pytest.mark.slow
def test_no_awkward_file_causes_a_server_error(served, awkward):
    for file in sorted(awkward.iterdir()):
        response = served.post(file.read_bytes())
        assert response.status_code in (200, 422), file
        (predictions,) = response.json()["predictions"]
        assert bool(predictions["probabilities"]) == (response.status_code == 200), file
        assert predictions["status"]
    assert served.post(RED).status_code == 200


def make_form(*parts: bytes, end: bytes = b"--x--\r\n") -> bytes:
    return b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + end


FILE = b'Content-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\n' + RED
FIELD = b'Content-Disposition: form-data; name="note"\r\n\r\nmine'


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (make_form(FILE), "multipart/form-data", 400, "malformed"),
        (b"no form", "multipart/form-data; boundary=x", 400, "malformed"),
        (make_form(FILE)[:60], "multipart/form-data; boundary=x", 400, "truncated"),
        (make_form(FILE, end=b""), "multipart/form-data; boundary=x", 400, "truncated"),
        (b"", "multipart/form-data; boundary=x", 400, "truncated"),
        (make_form(FIELD), "multipart/form-data; boundary=x", 400, "no file"),
        (make_form(*[FIELD] * 80), "multipart/form-data; boundary=x", 413, "fields"),
        (make_form(b"x" * 9000 + FILE), "multipart/form-data; boundary=x", 400, "malformed"),
        (make_form(FILE), "multipart/form-data; boundary=" + "y" * 300, 400, "malformed"),
    ],
)
def test_a_malformed_form_is_refused(served, body, kind, status, words):
    assert_error(served.client.post("/predict", content=body, headers={"Content-Type": kind}), status, words)


def test_a_name_that_is_not_valid_text_is_returned_with_replacements(served):
    strange = FILE.replace(b"a.png", b"\xff\xfe" + b"n" * 999)
    response = served.client.post(
        "/predict", content=make_form(strange), headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert response.json()["predictions"][0]["label"] == "red"
    assert len(response.json()["predictions"][0]["name"]) == 255


def test_other_paths_and_methods_are_refused_in_the_same_form(served):
    assert_error(served.client.get("/nothing"), 404)
    assert_error(served.client.get("/predict"), 405)
    assert_error(served.client.delete("/classes"), 405)


# --- authentication ---


def test_with_a_token_only_requests_with_the_token_are_answered():
    with run_server(token="open-sesame") as served:

        def ask(path, token):
            header = {"Authorization": token} if token else {}
            return served.client.request("POST" if path == "/predict" else "GET", path, headers=header, content=RED)

        for path in ("/predict", "/classes", "/metrics"):
            for wrong in (None, "Bearer open-sesam", "Bearer", "Basic open-sesame", b"Bearer \xff\xfe"):
                response = ask(path, wrong)
                assert_error(response, 401, "token")
                assert response.headers["WWW-Authenticate"] == "Bearer"
            assert ask(path, "Bearer open-sesame").status_code == 200
        for path in ("/", "/healthz", "/readyz", "/docs", "/page.js"):
            assert ask(path, None).status_code == 200


def test_with_a_token_the_classes_are_not_public():
    with run_server(token="secret") as served:
        assert served.client.get("/openapi.json").status_code == 200
        assert "blue" not in served.client.get("/openapi.json").text
    with run_server() as served:
        assert "blue" in served.client.get("/openapi.json").text


@pytest.mark.parametrize("token", ["", "two words", "clé", "a\nb"])
def test_a_token_that_no_header_can_contain_is_refused_at_the_start(token, paper_model):
    with pytest.raises(RecipeError, match="token"):
        serve.serve(paper_model, port=0, token=token)


def test_a_port_in_use_is_refused_with_advice(served):
    with pytest.raises(MachineError, match="cannot listen") as refusal:
        connections.bind_socket("127.0.0.1", int(served.url.rsplit(":", 1)[1]))
    assert "--port" in (refusal.value.advice or "")


@pytest.mark.parametrize(
    ("host", "port", "words", "advice"),
    [
        ("nohost.invalid", 0, "no such address", "--host"), ("192.0.2.1", 0, "no such address", "--host"),
        ("127.0.0.1", 99999, "invalid port 99999", "--port"), ("127.0.0.1", -1, "invalid port -1", "--port"),
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_bound_is_refused_with_the_cause(host, port, words, advice):
    with pytest.raises(MachineError, match=words) as refusal:
        connections.bind_socket(host, port)
    assert advice in (refusal.value.advice or "")
    assert "bind" not in str(refusal.value)


def test_every_response_has_security_headers_and_is_not_cached(served):
    for response in (served.post(), served.post(TEXT), served.client.get("/"), served.client.get("/nothing")):
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] in ("no-store", "no-cache")
    assert served.post().headers["cache-control"] == "no-store"


@pytest.mark.slow
def test_no_photo_is_written_to_disk(served, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a file was made")

    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, never)
    large = encode_image(draw_noisy_image(1200, 900), "PNG")
    assert len(large) > 2**21
    assert served.post_form(large, large).status_code == 200


# --- descriptions of the server ---


def test_the_server_describes_its_classes_scores_and_limits(served):
    description = served.client.get("/classes").json()
    assert description["classes"] == ["red", "green", "blue"]
    assert (
        description["threshold"],
        description["accuracy"],
        description["accuracy_interval"],
        description["photos"],
    ) == (
        0.6,
        0.9,
        [0.8, 0.95],
        40,
    )
    assert description["limits"] == {"bytes": 64 * 2**20, "files": 32, "pixels": 64_000_000}


def test_metrics_count_requests_and_photos():
    with run_server() as served:
        served.post_form(RED, RED, GREY, TEXT)
        served.post(TEXT)
        served.client.get("/invented/by/anybody")
        assert served.get_metric('ikebana_requests_total{path="/predict",status="200"}') == 1
        assert served.get_metric('ikebana_requests_total{path="/predict",status="422"}') == 1
        assert served.get_metric('ikebana_requests_total{path="other",status="404"}') == 1
        assert served.get_metric('ikebana_photos_total{label="red",outcome="named"}') == 2
        assert served.get_metric('ikebana_photos_total{label="",outcome="not sure"}') == 1
        assert served.get_metric('ikebana_photos_total{label="",outcome="unusable"}') == 2
        assert served.get_metric("ikebana_decode_seconds_count") == 5
        assert served.get_metric("ikebana_waiting_photos") == served.get_metric("ikebana_held_bytes") == 0
        assert served.get_metric("process_resident_memory_bytes") > 0 or sys.platform != "linux"


def test_openapi_names_every_path_and_the_docs_need_no_other_host(served):
    description = served.client.get("/openapi.json").json()
    assert set(description["paths"]) == {"/predict", "/classes", "/healthz", "/readyz", "/metrics"}
    assert set(description["components"]["schemas"]["PhotoPrediction"]["properties"]) == set(
        served.post().json()["predictions"][0]
    )
    for path in server.PAGES:
        response = served.client.get(path)
        assert response.status_code == 200
        text = response.text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"(https?:)?//[a-z]", text), path
        for link in re.findall(r'(?:src|href)="([^"]+)"', text) + re.findall(r'from "([^"]+)"', text):
            assert served.client.get("/" + link.lstrip("./")).status_code == 200, (path, link)


def test_a_failing_network_is_a_server_error_and_the_next_photo_is_answered(served, capfd):
    served.classifier.is_broken = True
    try:
        assert_error(served.post(), 500, "internal server error")
    finally:
        served.classifier.is_broken = False
    assert served.post().status_code == 200


def test_a_photo_unlike_the_training_photos_is_unknown_and_counted_as_such():
    with run_server() as server:
        (prediction,) = server.post(encode_square("black")).json()["predictions"]
        assert (prediction["label"], prediction["status"]) == (None, "unknown")
        assert prediction["familiarity"] < server.classifier.familiarity_threshold
        assert set(prediction["probabilities"]) == set(server.classifier.classes)
        assert server.get_metric('ikebana_photos_total{label="",outcome="unknown"}') == 1
