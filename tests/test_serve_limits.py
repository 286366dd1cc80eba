"""Limits of the server: too much data, slow clients, and stopping."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import fields

import httpx
import pytest
from support.server import BLUE, GREY, RED, assert_error, encode_square, read_response, run_server

from ikebana.errors import RecipeError
from ikebana.serving.limits import Limits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served():
    """A server with default settings."""
    with run_server() as server:
        yield server


# --- too much ---


def test_too_many_bytes_are_refused_whether_or_not_they_are_declared():
    with run_server(megabytes=1) as served:
        large = os.urandom(3 * 2**20)
        assert_error(served.post(large), 413, "larger than 1 MB")
        assert_error(served.client.post("/predict", content=iter([large[: 2**19]] * 6)), 413, "larger than 1 MB")
        assert_error(served.post_form(large), 413, "larger than 1 MB")
        assert served.post(RED).status_code == 200
        assert served.queue.held_bytes == 0


def test_too_many_photos_in_one_request_are_refused():
    with run_server(files=3) as served:
        assert served.post_form(RED, RED, RED).status_code == 200
        assert_error(served.post_form(RED, RED, RED, RED), 413, "more than 3 photos")


def test_a_photo_of_too_many_pixels_is_refused_before_it_is_decoded():
    with run_server(megapixels=1) as served:
        assert served.post(encode_square("blue", 1000)).status_code == 200
        assert_error(served.post(encode_square("blue", 1001)), 422, "too large: 1001 x 1001 .* limit is 1")


def test_photos_beyond_the_queue_length_get_503_until_there_is_room():
    with run_server(waiting=2) as served:
        served.classifier.gate.clear()
        accepted = [served.post_later(), served.post_later()]
        served.wait_until(lambda: served.queue.waiting_photos == 2)
        response = served.post()
        assert_error(response, 503, "queue is full")
        assert int(response.headers["Retry-After"]) >= 1
        served.classifier.gate.set()
        assert [future.result().status_code for future in accepted] == [200, 200]
        served.wait_until(lambda: served.queue.waiting_photos == 0)
        assert served.post().status_code == 200


def test_a_request_larger_than_the_queue_is_answered_if_the_queue_is_empty():
    with run_server(waiting=2) as served:
        assert len(served.post_form(RED, BLUE, GREY, RED).json()["predictions"]) == 4


def test_uploads_that_together_exceed_the_memory_limit_get_503():
    with run_server(held_megabytes=1) as served:
        response = served.post(bytes(2 * 2**20))
        assert_error(response, 503, "too many uploads")
        assert int(response.headers["Retry-After"]) >= 1
        assert served.post(RED).status_code == 200


def test_too_many_connections_get_503():
    with run_server(connections=2) as served:
        connections_held = [served.connect(), served.connect()]
        try:
            with served.connect() as third:
                status, body = read_response(third)
            assert status == 503
            assert "connections" in json.loads(body)["error"]
        finally:
            for connection in connections_held:
                connection.close()


def test_a_photo_that_takes_too_long_times_out_and_the_server_continues():
    with run_server(answer_seconds=0.3) as served:
        served.classifier.gate.clear()
        assert_error(served.post(), 503, "overloaded")
        served.classifier.gate.set()
        assert served.post().status_code == 200


# --- slow, aborted and malformed requests ---


def begin_upload(served, length=1000, sent=RED[:20]):
    """Start an upload and send only its beginning."""
    connection = served.connect()
    connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length + sent)
    return connection


def test_an_upload_that_stalls_is_cut_off_with_the_reason():
    with run_server(silence_seconds=0.3) as served, begin_upload(served) as connection:
        status, body = read_response(connection)
        assert status == 408
        assert "too slow" in json.loads(body)["error"]
        assert served.get_metric('ikebana_requests_total{path="/predict",status="408"}') == 1


def test_an_upload_that_trickles_is_cut_off():
    with run_server(silence_seconds=5, upload_seconds=0.5) as served, begin_upload(served) as connection:
        connection.settimeout(0.05)
        response, end = b"", time.monotonic() + 15
        while not response and time.monotonic() < end:
            connection.sendall(b"x")
            try:
                response = connection.recv(65536)
            # No response yet: send the next byte.
            except TimeoutError:
                continue
        assert b" 408 " in response.splitlines()[0]


@pytest.mark.slow
def test_a_client_that_never_reads_is_disconnected():
    with run_server(silence_seconds=0.5, connections=2) as served:
        ends = []
        for _ in range(2):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", int(served.url.rsplit(":", 1)[1])))
            connection.settimeout(0.2)
            # The server stops reading, and closes the connection, because the client reads no response.
            with suppress(TimeoutError, ConnectionError):
                connection.sendall(b"GET /page.css HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
            ends.append(connection)
        served.wait_until(lambda: httpx.get(f"{served.url}/healthz").status_code == 200)
        for client in ends:
            client.close()


def test_a_request_line_that_never_ends_is_cut_off():
    with run_server(silence_seconds=0.3) as served, served.connect() as connection:
        connection.sendall(b"GET /healthz HTT")
        assert read_response(connection)[0] == 408


def test_an_aborted_upload_leaves_nothing_behind(served):
    with begin_upload(served):
        served.wait_until(lambda: served.queue.held_bytes > 0)
    served.wait_until(lambda: served.queue.held_bytes == 0 and served.queue.is_idle)
    assert served.post().status_code == 200


@pytest.mark.parametrize(
    "noise", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", os.urandom(300) + b"\r\n\r\n", b"A" * 100_000]
)
def test_bytes_that_are_not_http_are_refused(served, noise):
    with served.connect() as connection:
        connection.sendall(noise)
        connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):  # it may hang up while more is coming
            assert read_response(connection)[0] == 400
    assert served.client.get("/healthz").status_code == 200


# --- stopping ---


def test_a_stopping_server_finishes_accepted_requests_and_refuses_new_ones():
    with run_server() as served:
        served.classifier.gate.clear()
        accepted = served.post_later()
        served.wait_until(lambda: served.queue.waiting_photos == 1)
        served.queue.close()
        time.sleep(0.5)  # the server looks at its queue every tenth of a second
        assert_error(served.post(), 503, "shutting down")
        assert_error(served.client.get("/readyz"), 503, "shutting down")
        assert served.client.get("/healthz").status_code == 200
        served.classifier.gate.set()
        assert accepted.result().json()["predictions"][0]["label"] == "red"
        served.thread.join(20)
        assert not served.thread.is_alive()
        with pytest.raises(httpx.ConnectError):
            httpx.get(served.url)


def test_a_stopping_server_does_not_wait_forever():
    with run_server(grace_seconds=0.2) as served:
        served.classifier.gate.clear()
        accepted = served.post_later()
        served.wait_until(lambda: served.queue.waiting_photos == 1)
        served.queue.close()
        served.thread.join(20)
        assert not served.thread.is_alive()
        assert accepted.exception() or accepted.result().status_code == 500


@contextmanager
def command(model):
    """Start `ikebana serve`; yield the process, its later events, and its address."""
    called = [sys.executable, "-m", "ikebana", "serve", str(model), "--port", "0", "--json"]
    with subprocess.Popen(called, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            events = iter(json.loads(line) for line in process.stdout)
            yield process, events, next(event["url"] for event in events if event["event"] == "serving")
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_the_command_prints_its_address_answers_and_exits_with_0(sign, paper_model, good_photos):
    with command(paper_model) as (process, events, url):
        response = httpx.post(f"{url}/predict", content=good_photos[0].read_bytes(), timeout=20)
        assert response.status_code == 200
        process.send_signal(sign)
        assert [event["event"] for event in events] == ["done"]
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_a_second_ctrl_c_drops_accepted_requests_and_exits_with_130(paper_model):
    with (
        command(paper_model) as (process, _, url),
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as connection,
    ):
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf of it")
        while "ikebana_open_requests 1" not in httpx.get(f"{url}/metrics").text:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        while httpx.get(f"{url}/readyz").status_code == 200:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (130, "")


@pytest.mark.parametrize("limit", [field.name for field in fields(Limits)])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 0])
def test_a_limit_that_would_refuse_everything_is_refused(limit, value):
    if limit == "grace_seconds" and value == 0:
        assert Limits(grace_seconds=0).grace_seconds == 0
        return
    with pytest.raises(RecipeError, match=f"--{limit.replace('_', '-')}"):
        Limits(**{limit: value})
