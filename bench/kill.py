"""Kills `ikebana fit` at random moments, goes on with `--resume`, and compares what comes out with a run never stopped.

    python bench/kill.py                                              # 100 kills of small runs of three recipes
    python bench/kill.py --photos flowers/ --recipes good --kills 20 --within-one   # one run, killed again and again

A moment is drawn uniformly from the life of the undisturbed command; SIGKILL, SIGTERM and SIGINT take turns. A run that was
killed before its folder was there is begun anew; one whose folder is there is resumed, with the same cache. With
`--within-one` no run may end before it has been killed so often: moments are drawn from a share of what is left.
The command is `ikebana fit … --json`; with `--every` the pause between two checkpoints within an epoch is shorter than a
minute, so that small runs have some for SIGKILL to find.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
EXPECTED = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
DRIVER = """
import sys
every = float(sys.argv.pop(1))
if every:
    import threading
    def shorten():  # once the command has loaded it, so that its start-up is what it is
        import time
        while "ikebana.learning.training" not in sys.modules or not hasattr(sys.modules["ikebana.learning.training"], "train"):
            time.sleep(0.01)
        sys.modules["ikebana.learning.training"].EVERY = every
        sys.modules["ikebana.learning.training"].SHARE = 1.0
    threading.Thread(target=shorten, daemon=True).start()
from ikebana.cli import main
main(sys.argv[1:])
"""
SMALL = {
    "augmented": ["--side", "48", "--batch", "8", "--epochs", "8"],
    "quick": ["--side", "64"],
    "good": ["--side", "64", "--batch", "8", "--epochs", "3"],
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


def lived(arguments: list[str], every: float, cache: Path, kill: tuple[int, float] | None) -> Life:
    """Run the command; kill it so many seconds after its start."""
    command = [sys.executable, "-c", DRIVER, str(every), "fit", *arguments, "--json"]
    begun = time.monotonic()
    environment = {**os.environ, "IKEBANA_CACHE": str(cache)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        stage, words = ["start"], []

        def listen() -> None:
            for line in process.stdout or ():
                event = json.loads(line) if line.startswith("{") and line.endswith("}\n") else {"event": ""}
                if event["event"] == "stage":
                    stage[0] = event["stage"]
                elif event["event"] == "stage_end":
                    stage[0] = f"after {event['stage']}"
                elif event["event"] in ("message", "error"):
                    words.append(event.get("text") or event.get("what", ""))

        listener = threading.Thread(target=listen)
        listener.start()
        at = "to its end"
        if kill is not None:
            try:
                process.wait(max(0.0, kill[1] - (time.monotonic() - begun)))
            except subprocess.TimeoutExpired:
                at = stage[0]
                process.send_signal(kill[0])
        status = process.wait()
        listener.join()
        errors = process.stderr.read() if process.stderr else ""
    return Life(status, at, time.monotonic() - begun, "\n".join([*words, errors]))


def result(run: Path) -> tuple[bytes, str, pl.DataFrame, list[dict]]:
    """All that must be the same but for seconds."""
    scored = json.loads((run / "evaluation.json").read_text())
    epochs = [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]
    for each in (scored, *epochs):
        each.pop("seconds")
    table = pl.read_parquet(run / "predictions.parquet")
    return (run / "weights.safetensors").read_bytes(), json.dumps(scored), table, epochs


def same(one: Path, other: Path) -> list[str]:
    """What differs, in words."""
    names = ("weights.safetensors", "evaluation.json", "predictions.parquet", "epochs.jsonl")
    pairs = zip(names, result(one), result(other), strict=True)
    found = [
        name for name, first, second in pairs if not (first.equals(second) if name == names[2] else first == second)
    ]
    files = [sorted(str(each.relative_to(run)) for each in run.rglob("*")) for run in (one, other)]
    return found + ([f"files: {sorted(set(files[0]) ^ set(files[1]))}"] if files[0] != files[1] else [])


def trial(arguments: list[str], whole: Path, place: Path, options: argparse.Namespace, tally: Tally, moment) -> None:
    """One run from its beginning to its end, killed on the way."""
    run, cache = place / "run", place / "cache"
    if options.warm:
        shutil.copytree(whole.parent / "cache", cache)
    for _ in range(1000):
        kill = moment(tally)
        there = (run / "recipe.json").exists()
        life = lived(["--resume", str(run)] if there else [*arguments, "--run", str(run)], options.every, cache, kill)
        if life.stage == "to its end":
            if life.status:
                tally.wrong.append(f"ended with {life.status}: {life.words[-800:]}")
                return
            break
        name = signal.Signals(kill[0]).name
        tally.kills[name, life.stage] += 1
        tally.statuses[name, life.status] += 1
        tally.resumed += (run / "recipe.json").exists()
        tally.anew += not (run / "recipe.json").exists()
        if "Traceback" in life.words:
            tally.wrong.append(f"{name} at {life.stage}: {life.words[-1500:]}")
    tally.runs += 1
    differing = same(whole, run)
    tally.equal += not differing
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
    parser.add_argument("--within-one", action="store_true", help="all kills within one run")
    parser.add_argument("--full", action="store_true", help="the recipe as it is, not with small photos")
    options = parser.parse_args()
    wrong, dice = 0, random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="ikebana-kill-") as scratch:
        photos = options.photos
        if photos is None:
            from ikebana import paper

            photos = Path(scratch) / "photos"
            paper.draw_collection(photos, photos_per_kind=options.drawn)
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
    whole = place / "whole"
    undisturbed = lived([*arguments, "--run", str(whole)], options.every, place / "cache", None)
    if undisturbed.status:
        sys.exit(undisturbed.words)
    print(f"{recipe}: never stopped, {undisturbed.seconds:.1f} s", flush=True)
    moment = (moments_within_one if options.within_one else random_moments)(dice, undisturbed.seconds, options.kills)
    tally, begun = Tally(), time.monotonic()
    while sum(tally.kills.values()) < options.kills and not (options.within_one and tally.runs):
        with tempfile.TemporaryDirectory(dir=place) as trial_place:
            trial(arguments, whole, Path(trial_place), options, tally, moment)
    told(recipe, tally, time.monotonic() - begun)
    return len(tally.wrong)


if __name__ == "__main__":
    main()
