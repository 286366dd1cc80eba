"""Without a usable Ray cluster, a command says what is missing, at once and without Ray's own output."""

import functools
import os
import subprocess
import sys

import pytest

from ikebana.cluster.connection import connect
from ikebana.errors import MachineError, UsageError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ikebana[cluster]'")

from support.ray_cluster import RayCluster  # noqa: E402

# Nothing listens there.
STALE_ADDRESS = "127.0.0.1:9"
TOKEN = "0123456789abcdef" * 4


@pytest.fixture
def lonely_machine(monkeypatch, tmp_path):
    """A machine on which no cluster was started; Ray may not try to connect."""

    def refuse(**options):
        pytest.fail("Ray tries to connect")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(ray._private.services, "find_gcs_addresses", functools.cache(set))
    monkeypatch.setattr(ray, "init", refuse)
    return tmp_path


def get_refusal(kind):
    with pytest.raises(kind) as refusal, connect():
        pass
    return refusal.value


@pytest.mark.usefixtures("lonely_machine")
def test_without_a_cluster_the_error_says_how_to_start_one():
    error = get_refusal(MachineError)
    assert (error.what, error.where) == ("no Ray cluster found", "this machine")
    assert "ray start --head" in str(error.advice)


def test_a_cluster_that_has_ended_is_noticed_before_ray_tries_to_connect(lonely_machine):
    (lonely_machine / "ray").mkdir()
    (lonely_machine / "ray" / "ray_current_cluster").write_text(STALE_ADDRESS, "ascii")
    error = get_refusal(MachineError)
    assert "no Ray cluster found" in error.what
    assert STALE_ADDRESS in str(error.where)
    assert "ray start --head" in str(error.advice)


@pytest.mark.usefixtures("lonely_machine")
@pytest.mark.parametrize("address", ["local", "10.0.0.5", "ray://10.0.0.5:10001", "http://10.0.0.5:8265"])
def test_an_address_that_is_not_a_host_and_a_port_is_wrong_usage(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    error = get_refusal(UsageError)
    assert error.where == f"RAY_ADDRESS={address}"
    assert "RAY_ADDRESS=" in str(error.advice)


def test_an_address_that_does_not_answer_is_to_be_checked_first(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", STALE_ADDRESS)
    assert str(get_refusal(MachineError).advice).startswith("check RAY_ADDRESS; or start one")


CONNECT = """
import functools, sys

import ray._private.services

from ikebana.cluster.connection import connect
from ikebana.errors import MachineError

ray._private.services.find_gcs_addresses = functools.cache(lambda: {sys.argv[1]})
try:
    with connect():
        print("connected")
except MachineError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_cluster_on_this_machine_that_wants_a_token_is_found_and_the_error_names_the_variable(monkeypatch, tmp_path):
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # A token of the user's is not found there.
    monkeypatch.setenv("HOME", str(tmp_path))
    with monkeypatch.context() as context:
        for name, value in variables.items():
            context.setenv(name, value)
        cluster = RayCluster(tmp_path / "ray.log")
    try:
        command = [sys.executable, "-c", CONNECT, cluster.address]
        refused, accepted = (
            subprocess.run(command, env=os.environ | given, capture_output=True, text=True, check=True)
            for given in ({}, variables)
        )
    finally:
        cluster.close()
    assert refused.stdout.startswith("the Ray cluster refused the connection: the token is missing or wrong")
    assert "RAY_AUTH_MODE=token" in refused.stdout
    assert cluster.address in refused.stdout
    # Ray warns of each attempt.
    assert refused.stderr.count("gcs_client") <= 1
    assert accepted.stdout == "connected\n"
