"""Kills `ikebana fit` at random moments, goes on with `--resume`, and compares what comes out with a run never stopped.

    python bench/kill.py                                              # 100 kills of small runs of three recipes
    python bench/kill.py --photos flowers/ --recipes good --kills 20 --within-one   # one run, killed again and again

A moment is drawn uniformly from the life of the undisturbed command; SIGKILL, SIGTERM and SIGINT take turns. A run that was
killed before its folder was there is begun anew; one whose folder is there is resumed, with the same cache. With
`--within-one` one run is killed so often before it may end: each process gets about its share of the work.
The command is `ikebana fit … --json`; with `--every` (where it is not `--started`) the pause between two checkpoints within
an epoch is shorter than a minute, so that small runs have some for SIGKILL to find.
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
# A process that has loaded the libraries and is forked for each life: what is killed is the command's work and not, three
# times out of four, its start-up. `--started` starts the command itself instead.
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
SMALL = {
    "augmented": ["--image-size", "48", "--batch-size", "8", "--epochs", "8"],
    "quick": ["--image-size", "64"],
    "good": ["--image-size", "64", "--batch-size", "8", "--epochs", "3"],
}


@dataclass
class Life:
    """One process: how it ended, and where it was when it was killed."""

    status: int
    stage: str
    seconds: float
    words: str


@dataclass
class Tally:
    """What became of all kills."""

    kills: Counter = field(default_factory=Counter)  # (signal, stage)
    statuses: Counter = field(default_factory=Counter)  # (signal, exit status)
    resumed: int = 0
    anew: int = 0
    runs: int = 0
    equal: int = 0
    wrong: list[str] = field(default_factory=list)


class Lives:
    """Where processes come from."""

    def __init__(self, options: argparse.Namespace, scratch: Path):
        self.every, self.started, self.scratch = options.every, options.started, scratch
        self.zygote: Any = None
        if not self.started:
            command = [sys.executable, "-c", ZYGOTE]
            self.zygote = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def live(
        self,
        arguments: list[str],
        cache: Path,
        kill: tuple[int, float] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Life:
        """Run the command; kill it so many seconds after its start."""
        out, errors = self.scratch / "out", self.scratch / "errors"
        for each in (out, errors):
            each.unlink(missing_ok=True)
        around = {"IKEBANA_CACHE": str(cache), **(environment or {})}
        pid, ended = self._begin(["fit", *arguments, "--json"], around, out, errors)
        begun, at = time.monotonic(), "to its end"
        if kill is not None and not ended(kill[1]):
            at = _stage(out)
            os.kill(pid, kill[0])
        status = ended(None)
        events = _events(out)
        words = [
            event.get("text") or event.get("what") or "" for event in events if event["event"] in ("message", "error")
        ]
        broken = ["Traceback: a broken event"] if any(event["event"] == "broken" for event in events[:-1]) else []
        return Life(status, at, time.monotonic() - begun, "\n".join([*words, errors.read_text(), *broken]))

    def _begin(self, arguments: list[str], around: dict[str, str], out: Path, errors: Path) -> tuple[int, Any]:
        """A process's number, and what waits for its end: true, or its status, once it has ended."""
        if self.zygote is None:
            environment = {**os.environ, **around}
            with out.open("wb") as stream, errors.open("wb") as other:
                process = subprocess.Popen(
                    [sys.executable, "-m", "ikebana", *arguments], stdout=stream, stderr=other, env=environment
                )

            def ended(seconds):
                try:
                    status = process.wait(seconds)
                    return status if seconds is None else True
                except subprocess.TimeoutExpired:
                    return False

            return process.pid, ended
        order = {
            "arguments": arguments,
            "environment": around,
            "out": str(out),
            "errors": str(errors),
            "every": self.every,
        }
        print(json.dumps(order), file=self.zygote.stdin, flush=True)
        pid = int(self.zygote.stdout.readline())

        def forked_ended(seconds):
            if seconds is None:
                return int(self.zygote.stdout.readline())
            return bool(select.select([self.zygote.stdout], [], [], seconds)[0])

        return pid, forked_ended


def _events(out: Path) -> list[dict]:
    """What the command has told so far; a line that is no event is 'broken', as the last may be after SIGKILL."""
    events = []
    for line in out.read_text("utf-8").splitlines() if out.exists() else []:
        try:
            events.append(json.loads(line))
        except ValueError:
            events.append({"event": "broken"})
    return events


def _stage(out: Path) -> str:
    """Where the command is."""
    names = {"stage": "{}", "stage_end": "after {}"}
    told = [names[event["event"]].format(event["stage"]) for event in _events(out) if event["event"] in names]
    return told[-1] if told else "start"


def result(run: Path) -> dict[str, Any]:
    """All that must be the same but for seconds, by the name of its file."""
    scored = json.loads((run / "evaluation.json").read_text())
    epochs = [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]
    for each in (scored, *epochs):
        each.pop("seconds")
    return {
        "weights.safetensors": (run / "weights.safetensors").read_bytes(),
        "predictions.parquet": pl.read_parquet(run / "predictions.parquet").rows(),
        "evaluation.json": scored,
        "epochs.jsonl": epochs,
        "files": sorted(str(each.relative_to(run)) for each in run.rglob("*")),
    }


def same(one: Path, other: Path) -> list[str]:
    """What differs, by name."""
    first, second = result(one), result(other)
    return [name for name in first if first[name] != second[name]]


def trial(arguments: list[str], whole: Path, place: Path, lives: Lives, warm: bool, tally: Tally, moment) -> None:
    """One run from its beginning to its end, killed on the way."""
    run, cache = place / "run", place / "cache"
    if warm:
        shutil.copytree(whole.parent / "cache", cache)
    for _ in range(1000):
        kill = moment(tally)
        there = (run / "recipe.json").exists()
        life = lives.live(["--resume", str(run)] if there else [*arguments, "--run", str(run)], cache, kill)
        if life.stage == "to its end":
            if life.status:
                tally.wrong.append(f"ended with {life.status}: {life.words[-800:]}")
                return
            break
        name = signal.Signals(kill[0]).name
        tally.kills[name, life.stage] += 1
        print(
            f"  {sum(tally.kills.values())}: {name} at {life.stage}, status {life.status}", file=sys.stderr, flush=True
        )
        tally.statuses[name, life.status] += 1
        tally.resumed += (run / "recipe.json").exists()
        tally.anew += not (run / "recipe.json").exists()
        if "Traceback" in life.words:
            tally.wrong.append(f"{name} at {life.stage}: {life.words[-1500:]}")
    tally.runs += 1
    differing = same(whole, run)
    tally.equal += not differing
    print(f"  ended: {', '.join(differing) or 'bit-equal'}", file=sys.stderr, flush=True)
    if differing:
        tally.wrong.append(f"differs: {', '.join(differing)}")


def random_moments(dice: random.Random, life: float, kills: int):
    """Uniform over the life of the undisturbed command; once there were enough, none."""

    def moment(tally: Tally):
        made = sum(tally.kills.values())
        return (SIGNALS[made % 3], dice.uniform(0, life)) if made < kills else None

    return moment


def moments_within_one(dice: random.Random, life: float, kills: int):
    """So spread that one run is killed so often before it ends: each process gets about its share of the work done."""

    def moment(tally: Tally):
        made = sum(tally.kills.values())
        return (SIGNALS[made % 3], dice.uniform(0, 2) * life / (kills + 1) + START) if made < kills else None

    return moment


START = 4.0  # seconds in which a process of --within-one may start before it can be killed


def told(name: str, tally: Tally, seconds: float) -> None:
    """The table."""
    stages = sorted({stage for _, stage in tally.kills})
    print(f"\n{name}: {sum(tally.kills.values())} kills in {seconds:.0f} s")
    print(f"  {'stage':<28}" + "".join(f"{each.name:>9}" for each in SIGNALS))
    for stage in stages:
        print(f"  {stage:<28}" + "".join(f"{tally.kills[each.name, stage]:>9}" for each in SIGNALS))
    print(f"  resumed {tally.resumed}, begun anew {tally.anew}; runs ended {tally.runs}, bit-equal {tally.equal}")
    print(
        "  exit statuses: " + ", ".join(f"{name} {status}: {n}" for (name, status), n in sorted(tally.statuses.items()))
    )
    for line in tally.wrong:
        print(f"  WRONG {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="drawn ones if none are given")
    parser.add_argument("--drawn", type=int, default=12, help="photos of each of five kinds to draw")
    parser.add_argument("--recipes", default="augmented,quick,good")
    parser.add_argument("--epochs", help="of each recipe, instead of a few")
    parser.add_argument("--kills", type=int, default=34, help="of each recipe")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between checkpoints; 0 for the usual minute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warm", action="store_true", help="each run finds the cache of the undisturbed one")
    parser.add_argument("--started", action="store_true", help="start the command each time, its libraries included")
    parser.add_argument("--within-one", action="store_true", help="all kills within one run")
    parser.add_argument("--full", action="store_true", help="the recipe as it is, not with small photos")
    options = parser.parse_args()
    wrong, dice = 0, random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="ikebana-kill-") as scratch:
        photos = options.photos
        if photos is None:
            from ikebana.demo_data import paper_flowers

            photos = Path(scratch) / "photos"
            paper_flowers.draw_collection(photos, photos_per_kind=options.drawn)
        for recipe in options.recipes.split(","):
            wrong += tried(recipe, photos, Path(scratch) / recipe, options, dice)
    sys.exit(bool(wrong))


def tried(recipe: str, photos: Path, place: Path, options: argparse.Namespace, dice: random.Random) -> int:
    """All kills of a recipe; how many things went wrong."""
    arguments = [str(photos), "--recipe", recipe, "--precision", "float32"]
    arguments += [] if options.full else SMALL.get(recipe, [])
    if options.epochs:
        arguments += ["--epochs", options.epochs]
    place.mkdir()
    lives = Lives(options, place)
    whole = place / "whole"
    undisturbed = lives.live([*arguments, "--run", str(whole)], place / "cache", None)
    if undisturbed.status:
        sys.exit(undisturbed.words)
    print(f"{recipe}: never stopped, {undisturbed.seconds:.1f} s", flush=True)
    moment = (moments_within_one if options.within_one else random_moments)(dice, undisturbed.seconds, options.kills)
    tally, begun = Tally(), time.monotonic()
    while sum(tally.kills.values()) < options.kills and not (options.within_one and tally.runs):
        with tempfile.TemporaryDirectory(dir=place) as trial_place:
            trial(arguments, whole, Path(trial_place), lives, options.warm, tally, moment)
    told(recipe, tally, time.monotonic() - begun)
    return len(tally.wrong)


if __name__ == "__main__":
    main()
