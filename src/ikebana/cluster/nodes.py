"""The nodes of a cluster, and whether each can compute what the driver planned."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ray
from ray.exceptions import NodeDiedError, TaskUnschedulableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ikebana.data.store_errors import ACCESS_DENIED
from ikebana.errors import MachineError, get_first_line

# A node that starts its first worker imports ikebana from a slow disk.
INSPECTION_SECONDS = 120
# Of all CPUs, that large tasks must be able to use.
MIN_USED_CPUS_SHARE = 0.75
# Characters of a node's id that distinguish nodes of one name.
SHORT_ID_LENGTH = 8
ADVICE_CREDENTIALS = (
    "the variables of the store on these nodes, such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL, set before `ray start`"
)


class Node(NamedTuple):
    """A living node with CPUs."""

    node_id: str
    # As `ray status` shows it, with the name of the machine.
    name: str
    cpus: int


def list_nodes() -> list[Node]:
    """List the living nodes that have CPUs for tasks."""
    nodes = [
        Node(node["NodeID"], _describe_node(node), int(node["Resources"].get("CPU", 0)))
        for node in ray.nodes()
        if node["Alive"]
    ]
    counts = Counter(node.name for node in nodes)
    # Several nodes of one machine may have one name. `ray status` shows their ids.
    distinct = [
        node if counts[node.name] == 1 else node._replace(name=f"{node.name} {node.node_id[:SHORT_ID_LENGTH]}")
        for node in nodes
    ]
    return sorted((node for node in distinct if node.cpus), key=lambda node: node.name)


def _describe_node(node: Mapping[str, Any]) -> str:
    name, host, address = node["NodeName"], node["NodeManagerHostname"], node["NodeManagerAddress"]
    others = [text for text in dict.fromkeys([host, address]) if text != name]
    return f"{name} ({', '.join(others)})" if name != host and others else name


def count_gpus() -> int:
    """Count the GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def count_slots(resources: Mapping[str, float]) -> int:
    """Count the tasks with these resources that the living nodes can run at a time."""
    if resources.get("num_gpus"):
        return count_gpus()
    return sum(int(node.cpus // resources["num_cpus"]) for node in list_nodes())


def choose_resources(device: str) -> dict[str, float]:
    """Choose a GPU with its share of CPUs for a task, or a whole node."""
    nodes = list_nodes()
    cpus = min((node.cpus for node in nodes), default=1)
    gpus = 0 if device == "cpu" else count_gpus()
    if not gpus:
        return {"num_cpus": cpus}
    gpus_per_node = max(1, gpus // max(1, len(nodes)))
    return {"num_cpus": max(1, cpus // gpus_per_node), "num_gpus": 1}


def choose_cpus() -> int:
    """Choose the CPUs of a task, so that few tasks share a node.

    For tasks with a large fixed cost. As many as the largest node has, unless too many CPUs of
    smaller nodes would then be idle.
    """
    sizes = sorted((node.cpus for node in list_nodes()), reverse=True)
    for cpus in sizes:
        if sum(size // cpus * cpus for size in sizes) >= MIN_USED_CPUS_SHARE * sum(sizes):
            return cpus
    return min(sizes, default=1)


def check_nodes(inspect: Callable[..., list[str]], *arguments: Any, shared: str = "output folder") -> None:
    """Run an inspection on each node, and refuse unfit nodes by name.

    A node that leaves meanwhile is not refused. Ray lists a dead node as alive for some seconds, and
    a node that returns has a new id and its old name.

    Args:
        inspect: returns the problems of the node that it runs on.
        shared: what all nodes must share besides the photos.
    Raises:
        MachineError: a node has problems or does not answer, or there is no node.
    """
    nodes = list_nodes()
    if not nodes:
        raise MachineError("no node of the Ray cluster has CPUs", advice="ray start --address=HEAD:6379 --num-cpus=N")
    remote = ray.remote(inspect)
    references = {
        remote.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        ).remote(*arguments): node
        for node in nodes
    }
    ready, _ = ray.wait(list(references), num_returns=len(references), timeout=INSPECTION_SECONDS)
    problems = {node: _get_problems(reference, reference in ready) for reference, node in references.items()}
    alive = {node.node_id for node in list_nodes()}
    present = {node: texts for node, texts in problems.items() if texts is not None and node.node_id in alive}
    if not present:
        raise MachineError("all nodes of the Ray cluster left while they were checked", advice="repeat the command")
    names_by_problem: dict[str, list[str]] = {}
    for node, texts in present.items():
        for text in texts:
            names_by_problem.setdefault(text, []).append(node.name)
    if names_by_problem:
        raise _make_refusal(names_by_problem, len(present), shared)


def _make_refusal(names_by_problem: Mapping[str, list[str]], nodes: int, shared: str) -> MachineError:
    """Make the error for unfit nodes.

    Args:
        names_by_problem: the names of the nodes that have each problem.
        nodes: the number of all nodes.
    """
    count = len(names_by_problem)
    lines = [_describe_problem(problem, names) for problem, names in names_by_problem.items()]
    denied = [problem for problem in names_by_problem if ACCESS_DENIED in problem]
    advice = [ADVICE_CREDENTIALS] if denied else []
    if len(denied) < count:
        advice.append(f"the same versions, photos and {shared} on all nodes")
    return MachineError(
        f"{count} problem{'s' * (count > 1)} on the {nodes} node{'s' * (nodes > 1)} of the cluster:{''.join(lines)}",
        advice="; ".join([*advice, "or stop these nodes with `ray stop`"]),
    )


def _describe_problem(problem: str, names: Iterable[str]) -> str:
    names = list(names)
    return f"\n  node{'s' * (len(names) > 1)} {', '.join(names)}: {problem}"


def _get_problems(reference: Any, is_ready: bool) -> list[str] | None:
    """Return what an inspection found; None if its node has left the cluster."""
    if not is_ready:
        ray.cancel(reference, force=True)
        return [f"no answer within {INSPECTION_SECONDS} s"]
    try:
        return ray.get(reference)
    except (NodeDiedError, TaskUnschedulableError):
        return None
    # Anything may be missing on a node, such as ikebana itself.
    except Exception as error:
        return [_summarise(error)]


def _summarise(error: Exception) -> str:
    """Summarise an error from another process, whose text begins with a traceback."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return f"{type(cause).__name__}: {get_first_line(cause)}"
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
