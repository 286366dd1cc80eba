"""Kill `ikebana fit` at random times, resume it, and compare with an uninterrupted run.

    python bench/kill.py                                              # 100 kills of small runs of three recipes
    python bench/kill.py --photos flowers/ --recipes good --kills 20 --within-one   # one run, 20 kills

Kill times are drawn uniformly from the duration of the uninterrupted command. SIGKILL, SIGTERM and
SIGINT alternate. A run that was killed before its folder existed starts again. Otherwise it is
resumed, with the same cache. With `--within-one`, a single run is killed `--kills` times before it
may finish, and each process gets about an equal share of the work.
The command is `ikebana fit … --json`. Without `--started`, `--every` sets the interval between two
checkpoints within an epoch. It is shorter than the usual minute, so that small runs have some
checkpoints when SIGKILL arrives.
"""

import argparse
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
EXPECTED = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
# A process that has imported the libraries and forks for each command. Otherwise three of four
# kills would hit the start-up and not the work. `--started` starts the command itself instead.
ZYGOTE = """
import json, os, sys
from ikebana import cli
from ikebana.commands import fit
from ikebana.learning.training import loop
from ikebana.reports import run_figures
import scipy.optimize, timm
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        for number, name in ((1, "out"), (2, "errors")):
            os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ.update(order["environment"])
        if order["every"]:
            loop.MIN_CHECKPOINT_INTERVAL_SECONDS, loop.MAX_CHECKPOINT_TIME_FRACTION = order["every"], 1.0
        status = 1
        try:
            cli.main(order["arguments"])
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
# With --within-one, no process is killed earlier than this after its start.
STARTUP_SECONDS = 4.0
SMALL_OPTIONS = {
    "augmented": ["--image-size", "48", "--batch-size", "8", "--epochs", "8"],
    "quick": ["--image-size", "64"],
    "good": ["--image-size", "64", "--batch-size", "8", "--epochs", "3"],
}


@dataclass
class Outcome:
    """How a process ended, and the stage at which it was killed."""

    status: int
    stage: str
    seconds: float
    output: str


@dataclass
class Tally:
    """Counts over all kills. `kills` has (signal, stage), `statuses` (signal, exit status)."""

    kills: Counter = field(default_factory=Counter)
    statuses: Counter = field(default_factory=Counter)
    resumed: int = 0
    restarted: int = 0
    runs: int = 0
    identical: int = 0
    problems: list[str] = field(default_factory=list)


class CommandRunner:
    """Runs commands, as forks of a process with imported libraries or as new processes."""

    def __init__(self, options: argparse.Namespace, scratch: Path):
        self.every, self.started, self.scratch = options.every, options.started, scratch
        self.zygote: Any = None
        if not self.started:
            command = [sys.executable, "-c", ZYGOTE]
            self.zygote = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run_command(
        self,
        arguments: list[str],
        cache: Path,
        kill: tuple[int, float] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Run the command. `kill` is a signal and its time in seconds after the start."""
        out, errors = self.scratch / "out", self.scratch / "errors"
        for file in (out, errors):
            file.unlink(missing_ok=True)
        variables = {"IKEBANA_CACHE": str(cache), **(environment or {})}
        pid, wait = self._begin(["fit", *arguments, "--json"], variables, out, errors)
        start, at = time.monotonic(), "to its end"
        if kill is not None and not wait(kill[1]):
            at = _stage(out)
            os.kill(pid, kill[0])
        status = wait(None)
        events = _events(out)
        output = [
            event.get("text") or event.get("what") or "" for event in events if event["event"] in ("message", "error")
        ]
        broken = ["Traceback: a broken event"] if any(event["event"] == "broken" for event in events[:-1]) else []
        return Outcome(status, at, time.monotonic() - start, "\n".join([*output, errors.read_text(), *broken]))

    def _begin(self, arguments: list[str], variables: dict[str, str], out: Path, errors: Path) -> tuple[int, Any]:
        """Start a process.

        Returns: its PID, and a function that waits for its end. With a timeout in seconds, this
            function returns whether the process has ended. With None, it returns the exit status.
        """
        if self.zygote is None:
            environment = {**os.environ, **variables}
            with out.open("wb") as stream, errors.open("wb") as other:
                process = subprocess.Popen(
                    [sys.executable, "-m", "ikebana", *arguments], stdout=stream, stderr=other, env=environment
                )

            def wait_for_process(seconds):
                try:
                    status = process.wait(seconds)
                    return status if seconds is None else True
                except subprocess.TimeoutExpired:
                    return False

            return process.pid, wait_for_process
        order = {
            "arguments": arguments,
            "environment": variables,
            "out": str(out),
            "errors": str(errors),
            "every": self.every,
        }
        print(json.dumps(order), file=self.zygote.stdin, flush=True)
        pid = int(self.zygote.stdout.readline())

        def wait_for_child(seconds):
            if seconds is None:
                return int(self.zygote.stdout.readline())
            return bool(select.select([self.zygote.stdout], [], [], seconds)[0])

        return pid, wait_for_child


def _events(out: Path) -> list[dict]:
    """Parse the events so far. An invalid line becomes the event 'broken'.

    The last line may be incomplete after SIGKILL.
    """
    events = []
    for line in out.read_text("utf-8").splitlines() if out.exists() else []:
        try:
            events.append(json.loads(line))
        except ValueError:
            events.append({"event": "broken"})
    return events


def _stage(out: Path) -> str:
    """Return the current stage of the command."""
    names = {"stage": "{}", "stage_end": "after {}"}
    stages = [names[event["event"]].format(event["stage"]) for event in _events(out) if event["event"] in names]
    return stages[-1] if stages else "start"


def load_results(run: Path) -> dict[str, Any]:
    """Load everything that must be identical, without the times, by file name."""
    evaluation = json.loads((run / "evaluation.json").read_text())
    epochs = [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]
    for record in (evaluation, *epochs):
        record.pop("seconds")
    return {
        "weights.safetensors": (run / "weights.safetensors").read_bytes(),
        "predictions.parquet": pl.read_parquet(run / "predictions.parquet").rows(),
        "evaluation.json": evaluation,
        "epochs.jsonl": epochs,
        "files": sorted(str(file.relative_to(run)) for file in run.rglob("*")),
    }


def list_differences(first_run: Path, second_run: Path) -> list[str]:
    """List the names of the results that differ between two runs."""
    first, second = load_results(first_run), load_results(second_run)
    return [name for name in first if first[name] != second[name]]


def run_until_done(
    arguments: list[str], reference: Path, folder: Path, runner: CommandRunner, warm: bool, tally: Tally, choose_kill
) -> None:
    """Kill and resume a run until it finishes, then compare it with the reference."""
    run, cache = folder / "run", folder / "cache"
    if warm:
        shutil.copytree(reference.parent / "cache", cache)
    for _ in range(1000):
        kill = choose_kill(tally)
        is_resumable = (run / "recipe.json").exists()
        outcome = runner.run_command(
            ["--resume", str(run)] if is_resumable else [*arguments, "--run", str(run)], cache, kill
        )
        if outcome.stage == "to its end":
            if outcome.status:
                tally.problems.append(f"ended with {outcome.status}: {outcome.output[-800:]}")
                return
            break
        name = signal.Signals(kill[0]).name
        tally.kills[name, outcome.stage] += 1
        print(
            f"  {sum(tally.kills.values())}: {name} at {outcome.stage}, status {outcome.status}",
            file=sys.stderr,
            flush=True,
        )
        tally.statuses[name, outcome.status] += 1
        tally.resumed += (run / "recipe.json").exists()
        tally.restarted += not (run / "recipe.json").exists()
        if "Traceback" in outcome.output:
            tally.problems.append(f"{name} at {outcome.stage}: {outcome.output[-1500:]}")
    tally.runs += 1
    differing = list_differences(reference, run)
    tally.identical += not differing
    print(f"  finished: {', '.join(differing) or 'bit-identical'}", file=sys.stderr, flush=True)
    if differing:
        tally.problems.append(f"differs: {', '.join(differing)}")


def draw_kill_times(rng: random.Random, duration: float, kills: int):
    """Draw kill times uniformly over the duration of the uninterrupted command.

    Returns: a function that returns the next (signal, seconds), or None after `kills` kills
    """

    def choose_kill(tally: Tally):
        n_kills = sum(tally.kills.values())
        return (SIGNALS[n_kills % 3], rng.uniform(0, duration)) if n_kills < kills else None

    return choose_kill


def draw_kill_times_within_one_run(rng: random.Random, duration: float, kills: int):
    """Draw kill times such that one run is killed `kills` times before it finishes."""

    def choose_kill(tally: Tally):
        n_kills = sum(tally.kills.values())
        return (
            (SIGNALS[n_kills % 3], rng.uniform(0, 2) * duration / (kills + 1) + STARTUP_SECONDS)
            if n_kills < kills
            else None
        )

    return choose_kill


def print_tally(name: str, tally: Tally, seconds: float) -> None:
    """Print a table of kills per stage and signal."""
    stages = sorted({stage for _, stage in tally.kills})
    print(f"\n{name}: {sum(tally.kills.values())} kills in {seconds:.0f} s")
    print(f"  {'stage':<28}" + "".join(f"{kill_signal.name:>9}" for kill_signal in SIGNALS))
    for stage in stages:
        print(f"  {stage:<28}" + "".join(f"{tally.kills[kill_signal.name, stage]:>9}" for kill_signal in SIGNALS))
    print(
        f"  resumed {tally.resumed}, restarted {tally.restarted}; runs finished {tally.runs}, bit-identical {tally.identical}"
    )
    print(
        "  exit statuses: " + ", ".join(f"{name} {status}: {n}" for (name, status), n in sorted(tally.statuses.items()))
    )
    for line in tally.problems:
        print(f"  WRONG {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="default: drawn photos")
    parser.add_argument("--drawn", type=int, default=12, help="photos to draw for each of five kinds")
    parser.add_argument("--recipes", default="augmented,quick,good")
    parser.add_argument("--epochs", help="epochs of each recipe, instead of a few")
    parser.add_argument("--kills", type=int, default=34, help="kills per recipe")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between checkpoints; 0 for the usual minute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warm", action="store_true", help="start each run with the cache of the uninterrupted one")
    parser.add_argument("--started", action="store_true", help="start a new process each time, imports included")
    parser.add_argument("--within-one", action="store_true", help="kill a single run repeatedly")
    parser.add_argument("--full", action="store_true", help="the unchanged recipe instead of small photos")
    options = parser.parse_args()
    problems, rng = 0, random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="ikebana-kill-") as scratch:
        photos = options.photos
        if photos is None:
            from ikebana.demo_data import paper_flowers

            photos = Path(scratch) / "photos"
            paper_flowers.draw_collection(photos, photos_per_kind=options.drawn)
        for recipe in options.recipes.split(","):
            problems += kill_recipe(recipe, photos, Path(scratch) / recipe, options, rng)
    sys.exit(bool(problems))


def kill_recipe(recipe: str, photos: Path, folder: Path, options: argparse.Namespace, rng: random.Random) -> int:
    """Run all kills of a recipe, and return the number of problems."""
    arguments = [str(photos), "--recipe", recipe, "--precision", "float32"]
    arguments += [] if options.full else SMALL_OPTIONS.get(recipe, [])
    if options.epochs:
        arguments += ["--epochs", options.epochs]
    folder.mkdir()
    runner = CommandRunner(options, folder)
    reference = folder / "whole"
    undisturbed = runner.run_command([*arguments, "--run", str(reference)], folder / "cache", None)
    if undisturbed.status:
        sys.exit(undisturbed.output)
    print(f"{recipe}: uninterrupted, {undisturbed.seconds:.1f} s", flush=True)
    choose_kill = (draw_kill_times_within_one_run if options.within_one else draw_kill_times)(
        rng, undisturbed.seconds, options.kills
    )
    tally, start = Tally(), time.monotonic()
    while sum(tally.kills.values()) < options.kills and not (options.within_one and tally.runs):
        with tempfile.TemporaryDirectory(dir=folder) as trial_folder:
            run_until_done(arguments, reference, Path(trial_folder), runner, options.warm, tally, choose_kill)
    print_tally(recipe, tally, time.monotonic() - start)
    return len(tally.problems)


if __name__ == "__main__":
    main()
