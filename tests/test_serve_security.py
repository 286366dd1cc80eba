"""What the server does about requests that mean another server, or that two programs could read in two ways."""

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
    with run_server() as one:
        yield one


@pytest.fixture
def named(monkeypatch):
    """A server that has names of its own."""
    monkeypatch.setattr(server, "build", partial(server.build, allowed_hosts=NAMES))
    with run_server() as one:
        yield one


def everything(connection):
    """All that comes until the other side hangs up."""
    said = b""
    while piece := connection.recv(65536):
        said += piece
    return said


# --- the name of the server ---


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1"]
)
def test_a_page_whose_name_was_made_to_lead_here_learns_nothing(named, host):
    for path in ("/", "/classes", "/metrics", "/nothing"):
        told = assert_error(named.client.get(path, headers={"Host": host}), 421, "the Host header has another name")
        assert "localhost" in told["advice"]
    assert_error(named.post(headers={"Host": host}), 421)
    assert named.get_metric('ikebana_requests_total{path="/classes",status="421"}') == 1


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8000", "localhost.", "127.0.0.1:1", "[::1]", "[::1]:8000"])
def test_whoever_means_this_server_is_answered(named, host):
    assert named.post(headers={"Host": host}).status_code == 200
    assert named.client.get("/", headers={"Host": host}).status_code == 200


def test_whoever_looks_after_servers_may_ask_by_any_name_and_an_old_program_by_none(named):
    for path in ("/healthz", "/readyz"):
        assert named.client.get(path, headers={"Host": "pod-7.cluster"}).status_code == 200
    with named.connect() as connection:
        connection.sendall(b"GET /classes HTTP/1.0\r\n\r\n")
        assert read_response(connection)[0] == 200


def test_a_server_that_others_reach_may_have_any_name(served):
    assert served.client.get("/classes", headers={"Host": "flowers.example"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "token", "guarded"),
    [("127.0.0.1", None, True), ("localhost", None, True), ("127.0.0.1", "secret", False), ("0.0.0.0", None, False)],
)
def test_names_matter_at_a_loopback_address_without_a_token(host, token, guarded, paper_model, monkeypatch):
    monkeypatch.setattr(connections, "run", lambda app, desk, limits, listener: listener.close() or built.append(app))
    built = []
    serve.serve(paper_model, host, 0, token=token)
    assert (built[0].allowed_hosts is not None) == guarded
    assert not guarded or {"localhost", "127.0.0.1", "::1"} <= built[0].allowed_hosts


def test_the_name_that_the_server_was_given_is_one_of_its_own():
    listener = connections.bind_socket("localhost", 0)
    try:
        assert "my-machine" in (connections.get_allowed_hosts(listener, "My-Machine") or ())
    finally:
        listener.close()


# --- requests that can be read in two ways ---


def test_a_request_that_breaks_after_its_answer_gets_no_second_one(served):
    with served.connect() as connection:
        connection.sendall(b"DELETE /classes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        said = connection.recv(65536)
        connection.sendall(b"no length of a chunk\r\n" * 3)
        said += everything(connection)
    assert said.startswith(b"HTTP/1.1 405 ")
    assert said.count(b"HTTP/1.1 ") == 1


def test_a_request_that_breaks_before_its_answer_gets_one(served):
    with served.connect() as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        served.wait_until(lambda: served.queue.open_requests == 1)
        connection.sendall(b"no length of a chunk\r\n" * 3)
        said = everything(connection)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1 ") == 1
    served.wait_until(lambda: served.queue.is_idle)


def test_a_broken_request_after_a_whole_one_is_told_so(served):
    with served.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        said = b""
        while not said.endswith(b"}"):
            said += connection.recv(65536)
        connection.sendall(b"this is no request\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 200 ")
        assert everything(connection).startswith(b"HTTP/1.1 400 ")


def test_a_request_with_two_lengths_is_the_last_of_its_connection(served):
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(RED), RED)
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"
    with served.connect() as connection:
        connection.sendall(head + chunked + b"GET /classes HTTP/1.1\r\nHost: x\r\n\r\n")
        said = everything(connection)
    assert said.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in said.lower()
    assert said.count(b"HTTP/1.1 ") == 1
    assert json.loads(said.partition(b"\r\n\r\n")[2])["predictions"][0]["label"] == "red"


# --- what it says of itself ---


def test_the_version_is_that_of_the_program_and_not_of_the_files_format(served):
    assert served.client.get("/openapi.json").json()["info"]["version"] == importlib.metadata.version("ikebana")
