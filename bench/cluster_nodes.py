"""Machines of a Ray cluster as network namespaces of this machine, for `cluster.py`.

Each has an address of its own on one bridge, so that its link can be cut. They share the disk.
Needs root on Linux, and the command `ip`.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")
BRIDGE, NETWORK, PORT = "ikebench", "10.77.0", 6379
# Of this machine on the bridge; the machines' default route.
HOST = f"{NETWORK}.254"
START_SECONDS = 120
# From `man prctl`.
PR_SET_CHILD_SUBREAPER = 36
# A lost machine is noticed within seconds, as docs/cluster.md recommends.
SHORT_HEALTH_CHECK = {
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "3000",
}


def adopt_orphans() -> None:
    """Become the parent of all orphans among the descendants, so that their CPU time counts."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Machine:
    """A network namespace with one Ray node of one CPU."""

    def __init__(self, number: int):
        self.name, self.link = f"ikebench{number}", f"ikeb{number}"
        self.address = f"{NETWORK}.{number + 1}"
        self.node: subprocess.Popen[bytes] | None = None
        inside = f"{self.link}n"
        _ip("netns", "add", self.name)
        _ip("link", "add", self.link, "type", "veth", "peer", "name", inside)
        _ip("link", "set", inside, "netns", self.name)
        _ip("link", "set", self.link, "master", BRIDGE, "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", inside)
        _ip("-n", self.name, "link", "set", inside, "up")
        _ip("-n", self.name, "link", "set", "lo", "up")
        # Ray finds its own address by the route.
        _ip("-n", self.name, "route", "add", "default", "via", HOST)

    def popen(self, command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command on this machine."""
        with log.open("ab") as stream:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command], env=environment, stdout=stream, stderr=stream
            )

    def start_ray(self, head: "Machine", environment: dict[str, str], log: Path, health_check: dict[str, str]) -> None:
        """Start this machine's node; the head first."""
        where = (
            ["--head", f"--port={PORT}", "--include-dashboard=false"]
            if head is self
            else [f"--address={head.address}:{PORT}"]
        )
        options = [
            "--num-cpus=1",
            f"--node-ip-address={self.address}",
            f"--node-name={self.name}",
            "--object-store-memory=80000000",
            "--block",
        ]
        variables = {**environment, "RAY_USAGE_STATS_ENABLED": "0", **health_check}
        self.node = self.popen([str(RAY), "start", *where, *options], variables, log)

    def kill_ray(self) -> None:
        """Kill all processes on this machine, as a power failure does."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        for text in listed.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(text), signal.SIGKILL)
        if self.node is not None:
            self.node.wait()

    def cut(self) -> None:
        """Cut the network link."""
        _ip("link", "set", self.link, "down")

    def reconnect(self) -> None:
        """Restore the network link."""
        _ip("link", "set", self.link, "up")

    def remove(self) -> None:
        """Remove the machine."""
        self.kill_ray()
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self.link], check=False, capture_output=True)


class Machines:
    """Several machines on one bridge."""

    def __init__(self, count: int, environment: dict[str, str], logs: Path):
        if os.geteuid() or shutil.which("ip") is None:
            raise SystemExit("network namespaces need root, Linux, and the command ip")
        self.environment, self.logs = environment, logs
        subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True)
        for number in range(count):
            subprocess.run(["ip", "netns", "del", f"ikebench{number}"], check=False, capture_output=True)
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{HOST}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        self.all = [Machine(number) for number in range(count)]
        self.head, *self.others = self.all

    @property
    def ray_address(self) -> str:
        return f"{self.head.address}:{PORT}"

    def start(self, health_check: dict[str, str] | None = None) -> None:
        """Start Ray on all machines, and wait until all have joined."""
        for machine in self.all:
            self.start_one(machine, health_check)
            self.wait_for_nodes(self.all.index(machine) + 1)

    def start_one(self, machine: Machine, health_check: dict[str, str] | None = None) -> None:
        """Start Ray on one machine."""
        log = self.logs / f"{machine.name}.log"
        machine.start_ray(
            self.head, self.environment, log, SHORT_HEALTH_CHECK if health_check is None else health_check
        )

    def wait_for_nodes(self, count: int) -> None:
        """Wait until so many nodes are alive."""
        script = (
            "import ray, sys; ray.init(address='auto', log_to_driver=False, logging_level='ERROR'); "
            f"sys.exit(sum(node['Alive'] for node in ray.nodes()) != {count})"
        )
        environment = {**self.environment, "RAY_ADDRESS": self.ray_address}
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            process = self.head.popen([sys.executable, "-c", script], environment, self.logs / "wait.log")
            if not process.wait():
                return
            time.sleep(1)
        raise SystemExit(f"{count} nodes have not started; see {self.logs}")

    def stop(self) -> None:
        """Stop Ray on all machines."""
        for machine in reversed(self.all):
            machine.kill_ray()

    def close(self) -> None:
        """Remove all machines."""
        for machine in reversed(self.all):
            machine.reconnect()
            machine.remove()
        subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True)


def reap() -> None:
    """Wait for adopted processes that have ended."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            time.sleep(0.05)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
