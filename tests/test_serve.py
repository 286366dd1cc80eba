"""What the server answers: to good photos, to bad ones, to strangers, and to those who ask about itself."""

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
    """A server as it comes."""
    with run_server() as one:
        yield one


# --- photos ---


def test_the_bytes_of_one_photo_get_its_class_and_all_probabilities(served):
    (said,) = served.post(RED, params={"name": "rose.png"}).json()["predictions"]
    assert (said["name"], said["label"], said["status"]) == ("rose.png", "red", "ok")
    assert said["probabilities"] == pytest.approx({"red": 1, "green": 0, "blue": 0}, abs=1e-6)
    assert said["confidence"] == max(said["probabilities"].values())


def test_a_form_of_many_photos_gets_an_answer_for_each_in_order(served):
    response = served.post_form(BLUE, GREY, TEXT, RED)
    assert response.status_code == 200
    said = response.json()["predictions"]
    assert [each["name"] for each in said] == ["0.png", "1.png", "2.png", "3.png"]
    assert [each["label"] for each in said] == ["blue", None, None, "red"]
    assert [each["status"] for each in said] == ["ok", "not sure", "not a photo: text", "ok"]
    assert said[1]["probabilities"] == pytest.approx(dict.fromkeys(["red", "green", "blue"], 1 / 3), abs=1e-6)
    assert said[2]["probabilities"] == {}
    assert [len(each["candidates"]) for each in said] == [1, 2, 0, 1]
    assert said[0]["candidates"] == ["blue"]


def test_the_classes_come_with_the_limits_of_the_candidates(served):
    limits = {"coverage": 0.9, "limit": 0.75, "unsure_limit": 0.6}
    assert served.client.get("/classes").json()["candidates"] == limits


def test_fields_of_a_form_that_are_no_files_are_passed_over(served):
    response = served.client.post("/predict", data={"note": "mine"}, files={"file": ("a.png", RED)})
    assert [each["label"] for each in response.json()["predictions"]] == ["red"]


def test_a_model_file_says_by_http_what_it_says_in_python(paper_classifier, good_photos):
    with run_server(paper_classifier) as served:
        said = served.post_form(*[each.read_bytes() for each in good_photos[:5]]).json()["predictions"]
    for each, photo in zip(said, good_photos, strict=False):
        expected = paper_classifier.predict(photo)
        assert (each["label"], each["status"]) == (expected.label, expected.status)
        assert tuple(each["candidates"]) == expected.candidates
        assert each["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)


def test_photos_that_come_at_the_same_time_are_looked_at_together(served):
    served.classifier.batch_sizes.clear()
    served.classifier.gate.clear()
    first = served.post_later()
    served.wait_until(lambda: served.classifier.batch_sizes)
    others = [served.post_later(BLUE) for _ in range(9)]
    served.wait_until(lambda: len(served.queue.ready_photos) == 9)
    served.classifier.gate.set()
    assert {each.result().json()["predictions"][0]["label"] for each in [first, *others]} == {"red", "blue"}
    assert served.classifier.batch_sizes == [1, 9]


# --- bad uploads: always 4xx with a reason ---


@pytest.mark.parametrize("data", [b"", TEXT, b"\xff\xd8\xff", RED[:40], os.urandom(5000), b"<svg/>"])
def test_what_is_no_photo_is_refused_with_the_reason(served, data):
    told = assert_error(served.post(data), 422, "empty|not a photo|unreadable")
    assert told["predictions"][0]["status"] == told["error"]


@pytest.mark.slow
def test_no_awkward_file_is_the_servers_fault(served, awkward):
    for file in sorted(awkward.iterdir()):
        response = served.post(file.read_bytes())
        assert response.status_code in (200, 422), file
        (said,) = response.json()["predictions"]
        assert bool(said["probabilities"]) == (response.status_code == 200), file
        assert said["status"]
    assert served.post(RED).status_code == 200


def form(*parts: bytes, end: bytes = b"--x--\r\n") -> bytes:
    return b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + end


FILE = b'Content-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\n' + RED
FIELD = b'Content-Disposition: form-data; name="note"\r\n\r\nmine'


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (form(FILE), "multipart/form-data", 400, "malformed"),
        (b"no form", "multipart/form-data; boundary=x", 400, "malformed"),
        (form(FILE)[:60], "multipart/form-data; boundary=x", 400, "truncated"),
        (form(FILE, end=b""), "multipart/form-data; boundary=x", 400, "truncated"),
        (b"", "multipart/form-data; boundary=x", 400, "truncated"),
        (form(FIELD), "multipart/form-data; boundary=x", 400, "no file"),
        (form(*[FIELD] * 80), "multipart/form-data; boundary=x", 413, "fields"),
        (form(b"x" * 9000 + FILE), "multipart/form-data; boundary=x", 400, "malformed"),
        (form(FILE), "multipart/form-data; boundary=" + "y" * 300, 400, "malformed"),
    ],
)
def test_a_form_that_is_none_is_refused(served, body, kind, status, words):
    assert_error(served.client.post("/predict", content=body, headers={"Content-Type": kind}), status, words)


def test_a_name_that_is_no_text_is_repeated_as_well_as_can_be(served):
    strange = FILE.replace(b"a.png", b"\xff\xfe" + b"n" * 999)
    response = served.client.post(
        "/predict", content=form(strange), headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert response.json()["predictions"][0]["label"] == "red"
    assert len(response.json()["predictions"][0]["name"]) == 255


def test_other_paths_and_methods_are_refused_in_the_same_form(served):
    assert_error(served.client.get("/nothing"), 404)
    assert_error(served.client.get("/predict"), 405)
    assert_error(served.client.delete("/classes"), 405)


# --- who may ask ---


def test_with_a_token_only_those_who_bring_it_are_answered():
    with run_server(token="open-sesame") as served:

        def asked(path, token):
            header = {"Authorization": token} if token else {}
            return served.client.request("POST" if path == "/predict" else "GET", path, headers=header, content=RED)

        for path in ("/predict", "/classes", "/metrics"):
            for wrong in (None, "Bearer open-sesam", "Bearer", "Basic open-sesame", b"Bearer \xff\xfe"):
                response = asked(path, wrong)
                assert_error(response, 401, "token")
                assert response.headers["WWW-Authenticate"] == "Bearer"
            assert asked(path, "Bearer open-sesame").status_code == 200
        for path in ("/", "/healthz", "/readyz", "/docs", "/page.js"):
            assert asked(path, None).status_code == 200


def test_with_a_token_strangers_do_not_learn_what_the_classes_are():
    with run_server(token="secret") as served:
        assert served.client.get("/openapi.json").status_code == 200
        assert "blue" not in served.client.get("/openapi.json").text
    with run_server() as served:
        assert "blue" in served.client.get("/openapi.json").text


@pytest.mark.parametrize("token", ["", "two words", "clé", "a\nb"])
def test_a_token_that_no_header_can_hold_is_refused_at_the_start(token, paper_model):
    with pytest.raises(RecipeError, match="token"):
        serve.serve(paper_model, port=0, token=token)


def test_a_port_that_is_taken_is_refused_with_advice(served):
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
def test_where_the_server_cannot_listen_is_told_from_why(host, port, words, advice):
    with pytest.raises(MachineError, match=words) as refusal:
        connections.bind_socket(host, port)
    assert advice in (refusal.value.advice or "")
    assert "bind" not in str(refusal.value)


def test_every_answer_tells_browsers_to_be_careful_and_none_is_kept(served):
    for response in (served.post(), served.post(TEXT), served.client.get("/"), served.client.get("/nothing")):
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] in ("no-store", "no-cache")
    assert served.post().headers["cache-control"] == "no-store"


@pytest.mark.slow
def test_no_photo_touches_the_disk(served, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a file was made")

    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, never)
    large = encode_image(draw_noisy_image(1200, 900), "PNG")
    assert len(large) > 2**21
    assert served.post_form(large, large).status_code == 200


# --- what it says of itself ---


def test_it_says_what_it_tells_apart_how_well_and_what_it_takes(served):
    told = served.client.get("/classes").json()
    assert told["classes"] == ["red", "green", "blue"]
    assert (told["threshold"], told["accuracy"], told["accuracy_interval"], told["photos"]) == (
        0.6,
        0.9,
        [0.8, 0.95],
        40,
    )
    assert told["limits"] == {"bytes": 64 * 2**20, "files": 32, "pixels": 64_000_000}


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


def test_the_description_for_machines_names_every_path_and_the_docs_need_no_other_host(served):
    told = served.client.get("/openapi.json").json()
    assert set(told["paths"]) == {"/predict", "/classes", "/healthz", "/readyz", "/metrics"}
    assert set(told["components"]["schemas"]["PhotoPrediction"]["properties"]) == set(
        served.post().json()["predictions"][0]
    )
    for path in server.PAGES:
        response = served.client.get(path)
        assert response.status_code == 200
        text = response.text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"(https?:)?//[a-z]", text), path
        for link in re.findall(r'(?:src|href)="([^"]+)"', text) + re.findall(r'from "([^"]+)"', text):
            assert served.client.get("/" + link.lstrip("./")).status_code == 200, (path, link)


def test_a_network_that_fails_is_said_to_be_the_servers_fault_and_the_next_photo_is_answered(served, capfd):
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
