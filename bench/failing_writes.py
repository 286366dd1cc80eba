"""Makes one change on disk after the other fail in `ikebana fit`, as a full or read-only disk would, wherever it is.

    python bench/failing_writes.py [--recipe good|quick|augmented] [--which run,cache] [--how full,once,read-only]
                                   [--trials 40]

A library put before the C library's own calls (failing_writes.c, built here; Linux and a C compiler) counts what the command
changes below a folder: files opened to be written, written to, made longer, renamed, folders made. An undisturbed run tells
how many there are. Then runs in which one of them fails: with "no space left" alone (once) or with all that follow (full), or
with "read-only file system" from there on, which leaves what is open writable and forbids to remove. Of many writes to one
file in a row the first, one in the middle and the last are tried; moments are spread evenly over what is left.

The command must end with 0, or with 1 and words (no traceback), and leave nothing half-written if it may remove it. Gone on with
once the disk is as it should be, it must end with the bits of the undisturbed run.
"""

import argparse
import errno
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from full_disk import half_written
from kill import SMALL, Lives, same

ERRORS = {"full": errno.ENOSPC, "once": errno.ENOSPC, "read-only": errno.EROFS}


def built(place: Path) -> Path:
    """The library."""
    made = place / "failing_writes.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(made), str(source), "-ldl"], check=True)
    return made


def changes(log: Path) -> list[str]:
    """What the command changed, in order."""
    return log.read_text("utf-8").splitlines() if log.exists() else []


def moments(told: list[str], most: int) -> list[int]:
    """The numbers of the changes that are to fail."""
    rows: list[list[int]] = []
    before = ""
    for line in told:
        number, change = line.split(" ", 1)
        rows = rows if change == before and rows else [*rows, []]
        rows[-1].append(int(number))
        before = change
    each = sorted({row[place] for row in rows for place in (0, len(row) // 2, -1)})
    return sorted({each[place * (len(each) - 1) // max(most - 1, 1)] for place in range(most)})


def trial(
    lives: Lives, place: Path, arguments: list[str], whole: Path, which: str, how: str, at: int
) -> tuple[str, str, list[str]]:
    """One run of which a change fails.

    returns  the change, what was said, and what went wrong
    """
    run, cache, log = place / "run", place / "cache", place / "log"
    around = {
        "FAILING_UNDER": str(place / which),
        "FAILING_AT": str(at),
        "FAILING_ON": str(int(how != "once")),
        "FAILING_WITH": str(ERRORS[how]),
        "FAILING_LOG": str(log),
    }
    began = [*arguments, "--run", str(run)]
    life = lives.live(began, cache, environment=around)
    failed = next((line for line in changes(log) if " FAILS " in line), "none")
    wrong = []
    if life.status not in (0, 1) or "Traceback" in life.words:
        wrong.append(f"status {life.status}: {life.words[-1500:]}")
    said = life.words.strip().splitlines()[-1] if life.status and life.words.strip() else ""
    if how != "read-only":
        wrong += [f"left half-written: {each}" for each in half_written(place)]
    if life.status:
        again = lives.live(["--resume", str(run)] if (run / "recipe.json").exists() else began, cache)
        if again.status:
            return failed, said, [*wrong, f"did not go on: {again.words[-1500:]}"]
    return failed, said, wrong + [f"differs: {each}" for each in same(whole, run)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="good", choices=SMALL)
    parser.add_argument("--which", default="run,cache")
    parser.add_argument("--how", default="full,once,read-only")
    parser.add_argument("--trials", type=int, default=40, help="of each, at the most")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between checkpoints")
    parser.set_defaults(started=False)
    options = parser.parse_args()
    from ikebana.demo_data import paper_flowers

    with tempfile.TemporaryDirectory(prefix="ikebana-writes-") as scratch:
        place = Path(scratch)
        os.environ["LD_PRELOAD"] = str(built(place))  # of the processes to come
        lives = Lives(options, place)
        paper_flowers.draw_collection(place / "photos", photos_per_kind=10)
        arguments = [
            str(place / "photos"),
            "--recipe",
            options.recipe,
            "--precision",
            "float32",
            *SMALL[options.recipe],
        ]
        sys.exit(told(options, lives, place, arguments))


def told(options: argparse.Namespace, lives: Lives, place: Path, arguments: list[str]) -> int:
    """The table; 1 if anything went wrong."""
    failed, trials, start = 0, 0, time.monotonic()
    for which, how in itertools.product(options.which.split(","), options.how.split(",")):
        first = place / f"undisturbed-{which}-{how}"
        first.mkdir()
        around = {"FAILING_UNDER": str(first / which), "FAILING_WITH": str(ERRORS[how]), "FAILING_AT": "0"}
        around["FAILING_LOG"] = str(first / "log")
        life = lives.live([*arguments, "--run", str(first / "run")], first / "cache", environment=around)
        if life.status:
            sys.exit(life.words)
        kinds = Counter(line.split()[1] for line in changes(first / "log"))
        print(f"{which} {how}: {kinds.total()} changes: {dict(kinds)}", flush=True)
        for at in moments(changes(first / "log"), options.trials):
            with tempfile.TemporaryDirectory(dir=place) as folder:
                change, said, wrong = trial(lives, Path(folder), arguments, first / "run", which, how, at)
            failed, trials = failed + bool(wrong), trials + 1
            state = "WRONG" if wrong else "ok"
            print(f"{which:<6} {how:<10} {state:<6} {change[:60]:<60} {said[:110]}", flush=True)
            for line in wrong:
                print(f"    {line}", flush=True)
    print(f"{trials} trials, {failed} wrong, {time.monotonic() - start:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    main()
