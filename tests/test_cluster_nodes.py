"""The nodes of a Ray cluster: how they are named, and why they are refused."""

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ikebana[cluster]'")

from ikebana.cluster import nodes  # noqa: E402
from ikebana.errors import MachineError  # noqa: E402


def make_row(node_id, name, host="worker", address="10.0.0.7", cpus=1.0):
    return {
        "NodeID": node_id,
        "NodeName": name,
        "NodeManagerHostname": host,
        "NodeManagerAddress": address,
        "Alive": True,
        "Resources": {"CPU": cpus},
    }


def refuse(monkeypatch, problems_by_name):
    """Return the error for nodes with these problems."""
    problems_by_id = {f"{number:056x}": problems for number, problems in enumerate(problems_by_name.values(), 1)}
    rows = [make_row(node_id, name) for node_id, name in zip(problems_by_id, problems_by_name, strict=True)]
    monkeypatch.setattr(ray, "nodes", lambda: rows)

    class Remote:
        def options(self, scheduling_strategy, **_):
            self.node_id = scheduling_strategy.node_id
            return self

        def remote(self):
            return self.node_id

    monkeypatch.setattr(ray, "remote", lambda _: Remote())
    monkeypatch.setattr(ray, "wait", lambda references, **_: (references, []))
    monkeypatch.setattr(ray, "get", problems_by_id.__getitem__)
    with pytest.raises(MachineError) as refusal:
        nodes.check_nodes(list)
    return refusal.value


def test_nodes_of_one_name_are_told_apart_by_their_ids_and_no_address_is_repeated(monkeypatch):
    rows = [make_row(node_id * 10, "10.0.0.7", host="vm") for node_id in ("ab", "cd")]
    monkeypatch.setattr(ray, "nodes", lambda: [*rows, make_row("ef", "third", host="worker-3")])
    names = [node.name for node in nodes.list_nodes()]
    assert names == ["10.0.0.7 (vm) abababab", "10.0.0.7 (vm) cdcdcdcd", "third (worker-3, 10.0.0.7)"]


def test_nodes_with_the_same_problem_share_a_line(monkeypatch):
    error = refuse(monkeypatch, {"a": ["Python 3.11 instead of 3.12"], "b": ["Python 3.11 instead of 3.12"], "c": []})
    assert error.what.splitlines() == [
        "1 problem on the 3 nodes of the cluster:",
        "  nodes a (worker, 10.0.0.7), b (worker, 10.0.0.7): Python 3.11 instead of 3.12",
    ]
    assert str(error.advice).startswith("the same versions")


def test_the_advice_for_missing_credentials_is_to_set_them(monkeypatch):
    denied = "the photo s3://a/b.jpg cannot be read: access denied: the credentials are missing"
    assert str(refuse(monkeypatch, {"a": [denied]}).advice).startswith("the variables of the store on these nodes")
    both = str(refuse(monkeypatch, {"a": [denied, "Python 3.11 instead of 3.12"]}).advice)
    assert "AWS_ACCESS_KEY_ID" in both
    assert "the same versions" in both
