"""How long fastai and ikebana take to which accuracy: same photos, split, backbone, weights and machine, on its processor.

    python bench/peer_fastai.py --photos flowers/ --env fastai-env/ --out result.json --rounds 3
    python bench/peer_fastai.py --photos flowers/ --epochs 1 --contestants fastai_tuned,quick --rounds 1

Contestants, each a whole process from its start to its last score, one at a time, in turns, round by round:
    fastai         `vision_learner(…).fine_tune(N)` for each N of --epochs, as its own pages show it, everything default
    fastai_tuned   the same, and what a user who knows torch would add (`peer_fastai_worker.py` says what and why)
    quick, good …  `ikebana fit --recipe …` under the Python that runs this file: with an empty cache (cold), and the
                   same command again on what the first has kept (warm)

Backbone and weights are those of `quick`, tf_efficientnet_lite0; fastai reads them from a file under timm's names. ikebana
makes the split and hands it over as a table. The seed is the number of the round. One run of each side goes before and is
not counted: it fills the system's file cache, leaves compiled files behind, and shows that the environments work.

--out is written after every run, and a file that is there already is gone on with: what it has is not measured again. So
a measurement of many hours can be stopped at any time; rounds that it has on other machines or photos are refused.

--env is a folder with an environment that has fastai in it; where there is none it is made there (6 GB; in a temporary
folder if --env is not given) by the standard `venv` and `pip`, from whatever index your pip is set up to use. Its torch is
asked to be the same version as ikebana's, and torchvision whichever agrees with that.
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
NETWORK, SIDE, BATCH = "tf_efficientnet_lite0", 224, 64  # backbone, pixels, fastai's own photos a step
WORKER = Path(__file__).with_name("peer_fastai_worker.py")
LOG_LINES = 15  # of a contestant's own output, shown when it fails
ALONE = {"CUDA_VISIBLE_DEVICES": "-1"}  # nobody has a GPU
# What glibc reads from the environment; the same numbers as ikebana's own `process_state.keep_large_blocks`.
KEEP_BLOCKS = {
    "MALLOC_MMAP_THRESHOLD_": str(process_state.MAX_KEPT_BLOCK_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(2 * process_state.MAX_KEPT_BLOCK_BYTES - 1),
}

Row = dict[str, Any]  # one run: contestant, round, seconds, accuracy, parts, …


class ContestantError(Exception):
    """A contestant died, or scored other photos than it was asked to; the message has the end of its log."""


class Task(NamedTuple):
    """What all contestants are given."""

    photos: Path
    table: list[tuple[str, str, str]]  # path below the folder, class, part
    peer: Path  # fastai's Python
    weights: Path  # safetensors under timm's names
    scratch: Path

    def test(self) -> dict[str, str]:
        """The sealed photos and their true classes."""
        return {path: label for path, label, part in self.table if part == "test"}


def tell(text: str) -> None:
    """What goes on, for people; the results alone go to standard output."""
    print(text, file=sys.stderr, flush=True)


def refuse(what: str, where: object, advice: str) -> SystemExit:
    """An error as ikebana writes them: what, where, what to try. Status 1."""
    return SystemExit(f"PeerError: {what}\n  in   {where}\n  try  {advice}")


def timed(name: str, command: list[str], scratch: Path, more: dict[str, str]) -> float:
    """Seconds of a whole process; its output goes to a log.

    raises  ContestantError if it does not end well
    """
    with tempfile.NamedTemporaryFile("w+", dir=scratch, suffix=".log", errors="replace") as log:
        begun = time.perf_counter()
        done = subprocess.run(command, stdout=log, stderr=log, env={**os.environ, **ALONE, **more}, check=False)
        seconds = time.perf_counter() - begun
        if done.returncode:
            log.seek(0)
            end = "\n".join(log.read().splitlines()[-LOG_LINES:])
            raise ContestantError(f"{name} ended with status {done.returncode}:\n{end}")
    return seconds


# --- fastai ----------------------------------------------------------------------------------------------------------


def asked_of_peer(name: str, peer: Path, scratch: Path, task: dict[str, Any] | None) -> tuple[float, dict[str, Any]]:
    """Run the worker under fastai's Python: seconds of the whole process, and its answer. No task asks for versions."""
    question, answer = scratch / "task.json", scratch / "answer.json"
    question.write_text(json.dumps(task) + "\n", "utf-8")
    command = [str(peer), str(WORKER), str(question) if task else "--versions", str(answer)]
    # ikebana's own folders are no business of the peer's.
    more = {"PYTHONPATH": "", **(KEEP_BLOCKS if task and task["tuned"] else {})}
    return timed(name, command, scratch, more), json.loads(answer.read_text("utf-8"))


def fastai(name: str, epochs: int, number: int, task: Task, chosen: argparse.Namespace) -> Row:
    """One run of fastai; whether its answers are right is counted here, not there."""
    given = {"photos": task.table, "root": str(task.photos), "weights": str(task.weights), "network": NETWORK}
    given |= {"side": SIDE, "epochs": epochs, "seed": number, "tuned": name == "fastai_tuned"}
    given |= {"workers": chosen.workers, "threads": chosen.threads}
    seconds, answer = asked_of_peer(name, task.peer, task.scratch, given)
    truth = list(task.test().values())
    right = sum(one == other for one, other in zip(answer["predicted"], truth, strict=True))
    return {
        "contestant": f"{name}, fine_tune({epochs})",
        "round": number,
        "seconds": seconds,
        "accuracy": right / len(truth),
        "parts": answer["seconds"],
        "scored_a_second": len(truth) / answer["seconds"]["score"],
        "setting": answer["setting"],
    }


def environment(folder: Path) -> Path:
    """The Python of fastai's environment, which is made if the folder has none."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        packages = ["fastai", f"timm=={version('timm')}", f"torch=={version('torch').split('+')[0]}", "torchvision"]
        tell(f"making an environment for the peer in {folder} ({', '.join(packages)})")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *packages]
        subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": ""})
    return python


# --- ikebana ---------------------------------------------------------------------------------------------------------


def fitted(
    recipe: str, run: Path, cache: Path, seed: int, photos: Path, split: str, scratch: Path
) -> tuple[float, dict[str, Any]]:
    """`ikebana fit` as a process of its own: its seconds, and its evaluation.json."""
    order = ",".join(TUTORIAL_CLASS_ORDER)
    names = {each.name for each in photos.iterdir() if each.is_dir() and not each.name.startswith(".")}
    command = [sys.executable, "-m", "ikebana", "fit", str(photos), "--recipe", recipe, "--run", str(run)]
    command += ["--seed", str(seed), "--split", split]
    command += ["--class-order", order] if names == set(TUTORIAL_CLASS_ORDER) else []
    seconds = timed(recipe, command, scratch, {"IKEBANA_CACHE": str(cache)})
    return seconds, json.loads((run / "evaluation.json").read_text("utf-8"))


def ikebana(recipe: str, number: int, task: Task, chosen: argparse.Namespace) -> Iterator[Row]:
    """The recipe on an empty cache, then once more on what that has kept."""
    with tempfile.TemporaryDirectory(dir=task.scratch) as scratch:
        for state in ("cold", "warm"):
            run = Path(scratch) / state
            cache = Path(scratch) / "cache"
            seconds, scored = fitted(recipe, run, cache, number, task.photos, chosen.split, task.scratch)
            predictions = pl.read_parquet(run / "predictions.parquet").filter(pl.col("split") == "test")
            if dict(predictions.select("path", "label").iter_rows()) != task.test():
                raise ContestantError(f"{recipe} was tested on other photos than the peer")
            setting = json.loads((run / "environment.json").read_text("utf-8"))
            row = {"contestant": f"{recipe}, {state}", "round": number, "seconds": seconds}
            yield row | {"accuracy": scored["accuracy"], "parts": scored["seconds"], "setting": setting}


# --- what is said of it ----------------------------------------------------------------------------------------------


def by_contestant(rows: list[Row]) -> dict[str, dict[int, Row]]:
    """contestant -> round -> its run."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        found.setdefault(row["contestant"], {})[row["round"]] = row
    return found


def middle(runs: dict[int, Row], key: str) -> float:
    """The median over the rounds."""
    return median(row[key] for row in runs.values())


def table(rows: list[Row]) -> list[str]:
    """Accuracy against seconds, and where the seconds of the last round went."""
    form = "  {:<28}{:>3}  {:<26}{:<24}{:<18}{}".format
    lines = [form("contestant", "n", "test accuracy", "seconds", "scored, photos/s", "parts of the last round, s")]
    for name, runs in by_contestant(rows).items():
        accuracies, seconds = ([run[key] for run in runs.values()] for key in ("accuracy", "seconds"))
        speeds = [run["scored_a_second"] for run in runs.values() if "scored_a_second" in run]
        parts = ", ".join(f"{part} {value:.1f}" for part, value in list(runs.values())[-1]["parts"].items())
        scored = f"{median(speeds):.0f}" if speeds else "-"
        lines.append(form(name, len(runs), format_spread(accuracies, 4), format_spread(seconds, 1), scored, parts))
    return lines


def ratio(one: dict[int, Row], other: dict[int, Row]) -> str:
    """How many times the seconds of the other, round by round."""
    shared = sorted(one.keys() & other.keys())
    return format_spread([one[each]["seconds"] / other[each]["seconds"] for each in shared], 1) if shared else "unknown"


def statements(rows: list[Row]) -> list[str]:
    """For each of fastai's results: which of ikebana's gets there soonest, and how many times shorter that is.

    Medians decide who gets there: at least as many test photos right.
    """
    found = by_contestant(rows)
    ours = {name: runs for name, runs in found.items() if not name.startswith(PEERS)}
    lines: list[str] = []
    for name, runs in found.items():
        if name not in ours and ours:
            wanted = middle(runs, "accuracy")
            lines.append(f"{name} has {wanted:.4f} after {middle(runs, 'seconds'):.1f} s.")
            for state in ("cold", "warm"):
                there = {
                    own: done
                    for own, done in ours.items()
                    if own.endswith(state) and middle(done, "accuracy") >= wanted
                }
                if there:
                    best = min(there, key=lambda own: middle(there[own], "seconds"))
                    had = f"{middle(there[best], 'accuracy'):.4f} after {middle(there[best], 'seconds'):.1f} s"
                    lines.append(f"  ikebana's {best}, has {had}: {ratio(runs, there[best])} times shorter.")
                else:
                    lines.append(f"  Nothing of ikebana's, {state}, gets there.")
    return lines


# --- the road --------------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    """The flags."""

    def words(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(word) for word in words(text)]

    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--photos", type=Path, required=True, metavar="DIR", help="one sub-folder a class")
    flags.add_argument("--env", type=Path, metavar="DIR", help="an environment with fastai; made if it is not there")
    flags.add_argument("--epochs", type=numbers, default=[1, 3, 5], metavar="N,M", help="of fine_tune; default 1,3,5")
    flags.add_argument("--contestants", type=words, default=[*PEERS, "quick", "good"], metavar="A,B")
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--split", default="shuffle", help="shuffle (the tutorial's, default) or stratified")
    flags.add_argument("--workers", type=int, help="fastai's num_workers; its own default if not given")
    flags.add_argument("--threads", type=int, help="torch.set_num_threads for fastai; its own default if not given")
    flags.add_argument("--out", type=Path, metavar="FILE.json", help="everything measured; gone on with if it is there")
    return flags.parse_args()


def check(chosen: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is installed or started."""
    if not chosen.photos.is_dir():
        raise refuse("there is no such folder", chosen.photos, "--photos with one sub-folder of photos a class")
    if unknown := [name for name in chosen.contestants if name not in (*PEERS, *RECIPES)]:
        raise refuse(f"unknown: {', '.join(unknown)}", "--contestants", f"of {', '.join((*PEERS, *RECIPES))}")
    if min(*chosen.epochs, chosen.rounds, 1) < 1:
        raise refuse("nothing would be measured", "--epochs or --rounds", "1 or more")
    if chosen.out and not chosen.out.absolute().parent.is_dir():
        raise refuse("the folder for the result does not exist", chosen.out, "make it first")


def prepared(chosen: argparse.Namespace, scratch: Path) -> tuple[Task, dict[str, Any]]:
    """One uncounted run of each side: the split, the weights, and what the machine and the libraries are."""
    peer = environment(chosen.env or scratch / "peer")
    _, versions = asked_of_peer("fastai", peer, scratch, None)
    tell("an uncounted run of ikebana, which makes the split")
    cache, run = scratch / "kept", scratch / "first"
    fitted("quick", run, cache, 0, chosen.photos, chosen.split, scratch)
    used = pl.read_parquet(run / "dataset.parquet").filter(pl.col("status") == "used")
    rows = list(used.select("path", "label", "split").iter_rows())
    parts = {part: sum(row[2] == part for row in rows) for part in ("train", "validation", "test")}
    if parts["train"] < BATCH:
        raise refuse(
            f"{parts['train']} training photos; fastai trains on batches of {BATCH}", chosen.photos, "more photos"
        )
    os.environ["IKEBANA_CACHE"] = str(cache)  # the weights under timm's names lie there since the run above
    task = Task(chosen.photos.absolute(), rows, peer, pretrained_weights.find_weights(NETWORK).file, scratch)
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


def begun(chosen: argparse.Namespace, facts: dict[str, Any]) -> dict[str, Any]:
    """The record to add to: what --out holds already, or a new one."""
    if not (chosen.out and chosen.out.exists()):
        return {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "facts": facts, "runs": []}
    record = json.loads(chosen.out.read_text("utf-8"))
    if differing := [key for key in facts if record.get("facts", {}).get(key) != facts[key]]:
        raise refuse(f"it was made with other: {', '.join(differing)}", chosen.out, "another file for --out")
    return record


def turns(chosen: argparse.Namespace, task: Task, done: set[tuple[str, int]]) -> Iterator[Iterator[Row]]:
    """Round by round, contestant after contestant; what is done already is left out."""
    for number in range(chosen.rounds):
        for name in chosen.contestants:
            if name not in PEERS:
                if not {(f"{name}, {state}", number) for state in ("cold", "warm")} <= done:
                    yield ikebana(name, number, task, chosen)
                continue
            for epochs in chosen.epochs:
                if (f"{name}, fine_tune({epochs})", number) not in done:
                    yield (fastai(*each, task, chosen) for each in [(name, epochs, number)])


def measured(chosen: argparse.Namespace, scratch: Path) -> bool:
    """Everything asked for, told as it comes and kept at once; returns whether all of it went well."""
    task, facts = prepared(chosen, scratch)
    record = begun(chosen, facts)
    well = True
    for turn in turns(chosen, task, {(row["contestant"], row["round"]) for row in record["runs"]}):
        try:
            for row in turn:
                row["load_after"] = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
                record["runs"].append(row)
                tell(f"  round {row['round']}: {row['contestant']}: {row['accuracy']:.4f} in {row['seconds']:.1f} s")
                if chosen.out:
                    with atomic_write(chosen.out) as beside:
                        beside.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        except ContestantError as problem:
            well = False
            tell(f"! {problem}")
    head = {key: facts[key] for key in ("processor", "processors", "of them allowed")}
    print(record["date"], ", ".join(f"{key} {value}" for key, value in head.items()))
    print("fastai's environment:", ", ".join(f"{key} {value}" for key, value in facts["peer"].items()))
    print("ikebana's:", ", ".join(f"{key} {value}" for key, value in facts["ikebana"].items()))
    print("photos:", ", ".join(f"{key} {value}" for key, value in facts["photos"].items()), end="\n\n")
    print(*table(record["runs"]), "", *statements(record["runs"]), sep="\n", flush=True)
    return well


def main() -> int:
    """Measure, and leave nothing behind but the result."""
    chosen = arguments()
    check(chosen)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the contestant ends and the folder goes
    try:
        with tempfile.TemporaryDirectory(prefix="peer-fastai-") as scratch:
            return 0 if measured(chosen, Path(scratch)) else 1
    except KeyboardInterrupt:
        tell("interrupted; --out has what was measured until now")
        return 130
    except ContestantError as problem:
        raise refuse("a contestant cannot run at all", problem, "--env with an environment that has fastai") from None
    except subprocess.CalledProcessError as problem:
        raise refuse("the peer's environment could not be made", problem, "--env with one that exists") from None


if __name__ == "__main__":
    sys.exit(main())
