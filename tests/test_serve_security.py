"""Requests for another host name, and requests that two programs could parse differently."""

import importlib.metadata
import json
from functools import partial

import pytest
from support.server import RED, assert_error, read_response, run_server

from ikebana.commands import serve
from ikebana.serving import connections, server

pytestmark = pytest.mark.slow

NAMES = frozenset({"127.0.0.1", "localhost", "::1"})


@pytest.fixture(scope="module")
def served():
    with run_server() as running_server:
        yield running_server


@pytest.fixture
def named_server(monkeypatch):
    """A server with a list of allowed host names."""
    monkeypatch.setattr(server, "build", partial(server.build, allowed_hosts=NAMES))
    with run_server() as running_server:
        yield running_server


def read_all(connection):
    """Read until the other side closes the connection."""
    response = b""
    while piece := connection.recv(65536):
        response += piece
    return response


# --- the name of the server ---


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1"]
)
def test_dns_rebinding_is_refused(named_server, host):
    for path in ("/", "/classes", "/metrics", "/nothing"):
        error = assert_error(
            named_server.client.get(path, headers={"Host": host}), 421, "the Host header has another name"
        )
        assert "localhost" in error["advice"]
    assert_error(named_server.post(headers={"Host": host}), 421)
    assert named_server.get_metric('ikebana_requests_total{path="/classes",status="421"}') == 1


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8000", "localhost.", "127.0.0.1:1", "[::1]", "[::1]:8000"])
def test_requests_with_a_name_of_this_server_are_answered(named_server, host):
    assert named_server.post(headers={"Host": host}).status_code == 200
    assert named_server.client.get("/", headers={"Host": host}).status_code == 200


def test_health_checks_may_use_any_host_name_and_http_1_0_none(named_server):
    for path in ("/healthz", "/readyz"):
        assert named_server.client.get(path, headers={"Host": "pod-7.cluster"}).status_code == 200
    with named_server.connect() as connection:
        connection.sendall(b"GET /classes HTTP/1.0\r\n\r\n")
        assert read_response(connection)[0] == 200


def test_a_server_on_a_public_address_accepts_any_host_name(served):
    assert served.client.get("/classes", headers={"Host": "flowers.example"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "token", "guarded"),
    [("127.0.0.1", None, True), ("localhost", None, True), ("127.0.0.1", "secret", False), ("0.0.0.0", None, False)],
)
def test_host_names_are_checked_on_a_loopback_address_without_a_token(host, token, guarded, paper_model, monkeypatch):
    monkeypatch.setattr(connections, "run", lambda app, queue, limits, listener: listener.close() or built.append(app))
    built = []
    serve.serve(paper_model, host, 0, token=token)
    assert (built[0].allowed_hosts is not None) == guarded
    assert not guarded or {"localhost", "127.0.0.1", "::1"} <= built[0].allowed_hosts


def test_the_configured_host_name_is_allowed():
    listener = connections.bind_socket("localhost", 0)
    try:
        assert "my-machine" in (connections.get_allowed_hosts(listener, "My-Machine") or ())
    finally:
        listener.close()


# --- requests that can be parsed in two ways ---


def test_a_request_that_fails_after_its_response_gets_no_second_one(served):
    with served.connect() as connection:
        connection.sendall(b"DELETE /classes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        response = connection.recv(65536)
        connection.sendall(b"no length of a chunk\r\n" * 3)
        response += read_all(connection)
    assert response.startswith(b"HTTP/1.1 405 ")
    assert response.count(b"HTTP/1.1 ") == 1


def test_a_request_that_fails_before_its_response_gets_one(served):
    with served.connect() as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        served.wait_until(lambda: served.queue.open_requests == 1)
        connection.sendall(b"no length of a chunk\r\n" * 3)
        response = read_all(connection)
    assert response.startswith(b"HTTP/1.1 400 ")
    assert response.count(b"HTTP/1.1 ") == 1
    served.wait_until(lambda: served.queue.is_idle)


def test_a_malformed_request_after_a_valid_one_is_refused(served):
    with served.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        response = b""
        while not response.endswith(b"}"):
            response += connection.recv(65536)
        connection.sendall(b"this is no request\r\n\r\n")
        assert response.startswith(b"HTTP/1.1 200 ")
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")


def test_a_request_with_two_lengths_is_the_last_of_its_connection(served):
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(RED), RED)
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"
    with served.connect() as connection:
        connection.sendall(head + chunked + b"GET /classes HTTP/1.1\r\nHost: x\r\n\r\n")
        response = read_all(connection)
    assert response.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in response.lower()
    assert response.count(b"HTTP/1.1 ") == 1
    assert json.loads(response.partition(b"\r\n\r\n")[2])["predictions"][0]["label"] == "red"


# --- descriptions of the server ---


def test_the_reported_version_is_that_of_the_program_and_not_of_the_file_format(served):
    assert served.client.get("/openapi.json").json()["info"]["version"] == importlib.metadata.version("ikebana")
