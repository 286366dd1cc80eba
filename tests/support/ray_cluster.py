"""A Ray cluster of several nodes on this machine, in a process of its own.

Run as a script, it obeys lines of JSON on standard input, and stops the cluster at their end.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

OBJECT_STORE_BYTES = 80 * 2**20
FAULTS = Path(__file__).with_name("node_faults")


class RayCluster:
    """A head with one CPU, and other nodes with one CPU each."""

    def __init__(self, log: Path):
        paths = [str(FAULTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "RAY_USAGE_STATS_ENABLED": "0"}
        # By default, workers wait while any other process of the machine computes.
        variables["RAY_worker_niceness"] = "0"
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env={**os.environ, **variables},
            )
        self.address = self._command(action="start")

    def add_node(self, name: str, **variables: str) -> None:
        """Add a node with one CPU and these environment variables."""
        self._command(action="add", name=name, variables=variables)

    def kill_node(self, name: str) -> None:
        """Kill a node without warning."""
        self._command(action="kill", name=name)

    def close(self) -> None:
        """Stop all nodes."""
        self.process.communicate(timeout=60)

    def _command(self, **values: Any) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(values) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def _obey() -> None:
    from ray.cluster_utils import Cluster

    options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
    cluster, nodes = Cluster(), {}
    for line in sys.stdin:
        command = json.loads(line)
        if command["action"] == "start":
            cluster.add_node(node_name="first", include_dashboard=False, **options)
        elif command["action"] == "add":
            node = cluster.add_node(node_name=command["name"], env_vars=command["variables"], **options)
            nodes[command["name"]] = node
        else:
            cluster.remove_node(nodes.pop(command["name"]), allow_graceful=False)
        sys.stdout.write(json.dumps(cluster.address) + "\n")
        sys.stdout.flush()
    cluster.shutdown()


if __name__ == "__main__":
    _obey()
