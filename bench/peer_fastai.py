"""Compare time and accuracy of fastai and ikebana on CPU with the same backbone.

    python bench/peer_fastai.py --photos flowers/ --env fastai-env/ --out result.json --rounds 3
    python bench/peer_fastai.py --photos flowers/ --epochs 1 --contestants fastai_tuned,quick --rounds 1

All use the same split, weights and machine. The contestants are complete processes, from start to
the test score. They run one at a time and alternate within a round:
    fastai         `vision_learner(…).fine_tune(N)` for each N of --epochs, as in its documentation, with
                   all defaults
    fastai_tuned   the same with optimisations by an experienced torch user (`peer_fastai_worker.py`
                   lists them)
    quick, good …  `ikebana fit --recipe …` under the Python that runs this file: with an empty cache
                   (cold), and the same command again with the filled cache (warm)

Backbone and weights are those of `quick`, tf_efficientnet_lite0. fastai reads them from a file with
timm's names. ikebana makes the split and passes it as a table. The seed is the number of the round.
One run of each side is not counted: it fills the file cache of the system, compiles bytecode, and
shows that the environments work.

--out is written after every run. An existing file is continued: its runs are not measured again, so
a long measurement can be interrupted at any time. A file from another machine or other photos is
refused.

--env is a folder with an environment that has fastai. If it does not exist, it is made (6 GB; in a
temporary folder without --env) with `venv` and `pip`, from the index that your pip uses. It has the
same version of torch as ikebana, and the matching torchvision.
"""

import argparse
import datetime
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import polars as pl
from machine import format_spread

from ikebana.learning import device, process_state
from ikebana.learning.models import pretrained_weights
from ikebana.recipes import RECIPES, TUTORIAL_CLASS_ORDER
from ikebana.system.files import atomic_write
from ikebana.system.threads import count_threads

PEERS = ("fastai", "fastai_tuned")
NETWORK, IMAGE_SIZE, BATCH_SIZE = "tf_efficientnet_lite0", 224, 64
WORKER = Path(__file__).with_name("peer_fastai_worker.py")
# Lines of a contestant's output that are shown when it fails.
LOG_LINES = 15
# No contestant uses a GPU.
HIDE_GPU = {"CUDA_VISIBLE_DEVICES": "-1"}
# What glibc reads from the environment; the same numbers as ikebana's own `process_state.keep_large_blocks`.
KEEP_BLOCKS = {
    "MALLOC_MMAP_THRESHOLD_": str(process_state.MAX_KEPT_BLOCK_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(2 * process_state.MAX_KEPT_BLOCK_BYTES - 1),
}

Row = dict[str, Any]  # one run: contestant, round, seconds, accuracy, parts, …


class ContestantError(Exception):
    """A contestant failed or scored other photos; the message has the end of its log."""


class Task(NamedTuple):
    """The input of all contestants."""

    photos: Path
    table: list[tuple[str, str, str]]  # path below the folder, class, part
    peer: Path  # fastai's Python
    weights: Path  # safetensors under timm's names
    scratch: Path

    def test(self) -> dict[str, str]:
        """Return the test photos and their true classes."""
        return {path: label for path, label, part in self.table if part == "test"}


def log(text: str) -> None:
    """Print progress to standard error; standard output has only the results."""
    print(text, file=sys.stderr, flush=True)


def refuse(what: str, where: object, advice: str) -> SystemExit:
    """Build an exception with an error message in the format of ikebana."""
    return SystemExit(f"PeerError: {what}\n  in   {where}\n  try  {advice}")


def time_process(name: str, command: list[str], scratch: Path, variables: dict[str, str]) -> float:
    """Measure the seconds of a complete process; its output goes to a log.

    Raises: ContestantError if the process fails
    """
    with tempfile.NamedTemporaryFile("w+", dir=scratch, suffix=".log", errors="replace") as log:
        start = time.perf_counter()
        done = subprocess.run(command, stdout=log, stderr=log, env={**os.environ, **HIDE_GPU, **variables}, check=False)
        seconds = time.perf_counter() - start
        if done.returncode:
            log.seek(0)
            end = "\n".join(log.read().splitlines()[-LOG_LINES:])
            raise ContestantError(f"{name} ended with status {done.returncode}:\n{end}")
    return seconds


# --- fastai ----------------------------------------------------------------------------------------------------------


def run_worker(name: str, peer: Path, scratch: Path, task: dict[str, Any] | None) -> tuple[float, dict[str, Any]]:
    """Run the worker under fastai's Python. Without a task it returns library versions.

    Returns: seconds of the complete process, and its answer
    """
    question, answer = scratch / "task.json", scratch / "answer.json"
    question.write_text(json.dumps(task) + "\n", "utf-8")
    command = [str(peer), str(WORKER), str(question) if task else "--versions", str(answer)]
    # The peer must not import from ikebana's folders.
    variables = {"PYTHONPATH": "", **(KEEP_BLOCKS if task and task["tuned"] else {})}
    return time_process(name, command, scratch, variables), json.loads(answer.read_text("utf-8"))


def run_fastai(name: str, epochs: int, number: int, task: Task, options: argparse.Namespace) -> Row:
    """Run fastai once, and compute the accuracy of its predictions here."""
    task_facts = {"photos": task.table, "root": str(task.photos), "weights": str(task.weights), "network": NETWORK}
    task_facts |= {"side": IMAGE_SIZE, "epochs": epochs, "seed": number, "tuned": name == "fastai_tuned"}
    task_facts |= {"workers": options.workers, "threads": options.threads}
    seconds, answer = run_worker(name, task.peer, task.scratch, task_facts)
    truth = list(task.test().values())
    correct = sum(label == truth_label for label, truth_label in zip(answer["predicted"], truth, strict=True))
    return {
        "contestant": f"{name}, fine_tune({epochs})",
        "round": number,
        "seconds": seconds,
        "accuracy": correct / len(truth),
        "parts": answer["seconds"],
        "scored_a_second": len(truth) / answer["seconds"]["score"],
        "setting": answer["setting"],
    }


def make_environment(folder: Path) -> Path:
    """Return the Python of fastai's environment, which is made if it does not exist."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        packages = ["fastai", f"timm=={version('timm')}", f"torch=={version('torch').split('+')[0]}", "torchvision"]
        log(f"making an environment for the peer in {folder} ({', '.join(packages)})")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *packages]
        subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": ""})
    return python


# --- ikebana ---------------------------------------------------------------------------------------------------------


def run_fit(
    recipe: str, run: Path, cache: Path, seed: int, photos: Path, split: str, scratch: Path
) -> tuple[float, dict[str, Any]]:
    """Run `ikebana fit` in a separate process, and return its seconds and evaluation.json."""
    order = ",".join(TUTORIAL_CLASS_ORDER)
    names = {entry.name for entry in photos.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    command = [sys.executable, "-m", "ikebana", "fit", str(photos), "--recipe", recipe, "--run", str(run)]
    command += ["--seed", str(seed), "--split", split]
    command += ["--class-order", order] if names == set(TUTORIAL_CLASS_ORDER) else []
    seconds = time_process(recipe, command, scratch, {"IKEBANA_CACHE": str(cache)})
    return seconds, json.loads((run / "evaluation.json").read_text("utf-8"))


def run_ikebana(recipe: str, number: int, task: Task, options: argparse.Namespace) -> Iterator[Row]:
    """Run a recipe with an empty cache, then again with the filled cache."""
    with tempfile.TemporaryDirectory(dir=task.scratch) as scratch:
        for state in ("cold", "warm"):
            run = Path(scratch) / state
            cache = Path(scratch) / "cache"
            seconds, scored = run_fit(recipe, run, cache, number, task.photos, options.split, task.scratch)
            predictions = pl.read_parquet(run / "predictions.parquet").filter(pl.col("split") == "test")
            if dict(predictions.select("path", "label").iter_rows()) != task.test():
                raise ContestantError(f"{recipe} was tested on other photos than the peer")
            setting = json.loads((run / "environment.json").read_text("utf-8"))
            row = {"contestant": f"{recipe}, {state}", "round": number, "seconds": seconds}
            yield row | {"accuracy": scored["accuracy"], "parts": scored["seconds"], "setting": setting}


# --- results ---------------------------------------------------------------------------------------------------------


def group_by_contestant(rows: list[Row]) -> dict[str, dict[int, Row]]:
    """Group the runs as contestant -> round -> run."""
    groups: dict[str, dict[int, Row]] = {}
    for row in rows:
        groups.setdefault(row["contestant"], {})[row["round"]] = row
    return groups


def compute_median(runs: dict[int, Row], key: str) -> float:
    """Compute the median over the rounds."""
    return median(row[key] for row in runs.values())


def format_table(rows: list[Row]) -> list[str]:
    """Format accuracy, seconds, and the stages of the last round."""
    form = "  {:<28}{:>3}  {:<26}{:<24}{:<18}{}".format
    lines = [form("contestant", "n", "test accuracy", "seconds", "scored, photos/s", "parts of the last round, s")]
    for name, runs in group_by_contestant(rows).items():
        accuracies, seconds = ([run[key] for run in runs.values()] for key in ("accuracy", "seconds"))
        speeds = [run["scored_a_second"] for run in runs.values() if "scored_a_second" in run]
        parts = ", ".join(f"{part} {value:.1f}" for part, value in list(runs.values())[-1]["parts"].items())
        scored = f"{median(speeds):.0f}" if speeds else "-"
        lines.append(form(name, len(runs), format_spread(accuracies, 4), format_spread(seconds, 1), scored, parts))
    return lines


def format_ratio(runs: dict[int, Row], reference: dict[int, Row]) -> str:
    """Format the ratio of the seconds per round."""
    shared = sorted(runs.keys() & reference.keys())
    return (
        format_spread([runs[number]["seconds"] / reference[number]["seconds"] for number in shared], 1)
        if shared
        else "unknown"
    )


def compare_results(rows: list[Row]) -> list[str]:
    """For each result of fastai, find ikebana's fastest recipe that is as accurate.

    Medians are compared.
    """
    groups = group_by_contestant(rows)
    ours = {name: runs for name, runs in groups.items() if not name.startswith(PEERS)}
    lines: list[str] = []
    for name, runs in groups.items():
        if name not in ours and ours:
            accuracy = compute_median(runs, "accuracy")
            lines.append(f"{name} has {accuracy:.4f} after {compute_median(runs, 'seconds'):.1f} s.")
            for state in ("cold", "warm"):
                candidates = {
                    own: runs_of_ours
                    for own, runs_of_ours in ours.items()
                    if own.endswith(state) and compute_median(runs_of_ours, "accuracy") >= accuracy
                }
                if candidates:
                    best = min(candidates, key=lambda own: compute_median(candidates[own], "seconds"))
                    best_accuracy, seconds = (compute_median(candidates[best], key) for key in ("accuracy", "seconds"))
                    speed_up = format_ratio(runs, candidates[best])
                    lines.append(
                        f"  ikebana's {best} has {best_accuracy:.4f} after {seconds:.1f} s: {speed_up} times faster."
                    )
                else:
                    lines.append(f"  No {state} run of ikebana is as accurate.")
    return lines


# --- running ---------------------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    """The flags."""

    def words(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(word) for word in words(text)]

    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--photos", type=Path, required=True, metavar="DIR", help="one sub-folder per class")
    flags.add_argument("--env", type=Path, metavar="DIR", help="an environment with fastai; made if it is not there")
    flags.add_argument("--epochs", type=numbers, default=[1, 3, 5], metavar="N,M", help="of fine_tune; default 1,3,5")
    flags.add_argument("--contestants", type=words, default=[*PEERS, "quick", "good"], metavar="A,B")
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--split", default="shuffle", help="shuffle (the tutorial's, default) or stratified")
    flags.add_argument("--workers", type=int, help="fastai's num_workers; its own default if not given")
    flags.add_argument("--threads", type=int, help="torch.set_num_threads for fastai; its own default if not given")
    flags.add_argument("--out", type=Path, metavar="FILE.json", help="everything measured; gone on with if it is there")
    return flags.parse_args()


def check_options(options: argparse.Namespace) -> None:
    """Check the options before anything is installed or started."""
    if not options.photos.is_dir():
        raise refuse("there is no such folder", options.photos, "--photos with one sub-folder of photos per class")
    if unknown := [name for name in options.contestants if name not in (*PEERS, *RECIPES)]:
        raise refuse(f"unknown: {', '.join(unknown)}", "--contestants", f"of {', '.join((*PEERS, *RECIPES))}")
    if min(*options.epochs, options.rounds, 1) < 1:
        raise refuse("nothing would be measured", "--epochs or --rounds", "1 or more")
    if options.out and not options.out.absolute().parent.is_dir():
        raise refuse("the folder for the result does not exist", options.out, "make it first")


def prepare(options: argparse.Namespace, scratch: Path) -> tuple[Task, dict[str, Any]]:
    """Run each side once without counting it, and collect split, weights and machine facts."""
    peer = make_environment(options.env or scratch / "peer")
    _, versions = run_worker("fastai", peer, scratch, None)
    log("an uncounted run of ikebana, which makes the split")
    cache, run = scratch / "kept", scratch / "first"
    run_fit("quick", run, cache, 0, options.photos, options.split, scratch)
    used = pl.read_parquet(run / "dataset.parquet").filter(pl.col("status") == "used")
    rows = list(used.select("path", "label", "split").iter_rows())
    parts = {part: sum(row[2] == part for row in rows) for part in ("train", "validation", "test")}
    if parts["train"] < BATCH_SIZE:
        raise refuse(
            f"{parts['train']} training photos; fastai trains on batches of {BATCH_SIZE}", options.photos, "more photos"
        )
    # The run above has written the weights with timm's names to this cache.
    os.environ["IKEBANA_CACHE"] = str(cache)
    task = Task(options.photos.absolute(), rows, peer, pretrained_weights.find_weights(NETWORK).file, scratch)
    facts = {
        "processor": device.describe_processor(),
        "processors": os.cpu_count(),
        "of them allowed": count_threads(),
        "peer": versions,
        "ikebana": {name: version(name) for name in ("ikebana", "torch", "timm", "pillow", "numpy")},
        "photos": parts,
        "split": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }
    return task, facts


def open_record(options: argparse.Namespace, facts: dict[str, Any]) -> dict[str, Any]:
    """Load the record of --out, or make a new one."""
    if not (options.out and options.out.exists()):
        return {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "facts": facts, "runs": []}
    record = json.loads(options.out.read_text("utf-8"))
    if differing := [key for key in facts if record.get("facts", {}).get(key) != facts[key]]:
        raise refuse(f"it was made with other: {', '.join(differing)}", options.out, "another file for --out")
    return record


def list_turns(options: argparse.Namespace, task: Task, done: set[tuple[str, int]]) -> Iterator[Iterator[Row]]:
    """List the remaining runs, round by round and contestant by contestant."""
    for number in range(options.rounds):
        for name in options.contestants:
            if name not in PEERS:
                if not {(f"{name}, {state}", number) for state in ("cold", "warm")} <= done:
                    yield run_ikebana(name, number, task, options)
                continue
            for epochs in options.epochs:
                if (f"{name}, fine_tune({epochs})", number) not in done:
                    yield (run_fastai(*arguments, task, options) for arguments in [(name, epochs, number)])


def measure(options: argparse.Namespace, scratch: Path) -> bool:
    """Measure everything, save it after every run, and return whether all runs succeeded."""
    task, facts = prepare(options, scratch)
    record = open_record(options, facts)
    is_complete = True
    for turn in list_turns(options, task, {(row["contestant"], row["round"]) for row in record["runs"]}):
        try:
            for row in turn:
                row["load_after"] = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
                record["runs"].append(row)
                log(f"  round {row['round']}: {row['contestant']}: {row['accuracy']:.4f} in {row['seconds']:.1f} s")
                if options.out:
                    with atomic_write(options.out) as partial:
                        partial.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        except ContestantError as problem:
            is_complete = False
            log(f"! {problem}")
    machine = {key: facts[key] for key in ("processor", "processors", "of them allowed")}
    print(record["date"], ", ".join(f"{key} {value}" for key, value in machine.items()))
    print("fastai's environment:", ", ".join(f"{key} {value}" for key, value in facts["peer"].items()))
    print("ikebana's:", ", ".join(f"{key} {value}" for key, value in facts["ikebana"].items()))
    print("photos:", ", ".join(f"{key} {value}" for key, value in facts["photos"].items()), end="\n\n")
    print(*format_table(record["runs"]), "", *compare_results(record["runs"]), sep="\n", flush=True)
    return is_complete


def main() -> int:
    """Run the benchmark, and remove everything but the result."""
    options = parse_arguments()
    check_options(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory(prefix="peer-fastai-") as scratch:
            return 0 if measure(options, Path(scratch)) else 1
    except KeyboardInterrupt:
        log("interrupted; --out has what was measured until now")
        return 130
    except ContestantError as problem:
        raise refuse("a contestant cannot run at all", problem, "--env with an environment that has fastai") from None
    except subprocess.CalledProcessError as problem:
        raise refuse("the peer's environment could not be made", problem, "--env with one that exists") from None


if __name__ == "__main__":
    sys.exit(main())
