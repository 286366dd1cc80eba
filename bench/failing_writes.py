"""Test `ikebana fit` with failing writes, as on a full or read-only disk.

    python bench/failing_writes.py [--recipe good|quick|augmented] [--which run,cache] [--how full,once,read-only]
                                   [--trials 40]

Needs Linux and a C compiler. A library loaded with LD_PRELOAD (failing_writes.c) counts the changes
below a folder: opening a file for writing, writing, extending, renaming and making a folder. An
undisturbed run gives their number. Then each run has one change that fails:

    once        "no space left" for one change
    full        "no space left" for this change and all later ones
    read-only   "read-only file system" from this change on; open files stay writable, and no file can
                be removed

Of consecutive writes to one file, the first, the middle and the last are tried. The remaining
changes are sampled evenly.

The command must exit with 0, or with 1 and an error message (no traceback), and leave no partial
file that it can remove. When it is resumed on a working disk, its results must be bit-identical to
those of the undisturbed run.
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

from full_disk import find_partial_files
from kill import SMALL_OPTIONS, CommandRunner, list_differences

ERRORS = {"full": errno.ENOSPC, "once": errno.ENOSPC, "read-only": errno.EROFS}


def build_library(folder: Path) -> Path:
    """Compile the library, and return its path."""
    library = folder / "failing_writes.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def read_changes(log: Path) -> list[str]:
    """Read the changes of the command in their order."""
    return log.read_text("utf-8").splitlines() if log.exists() else []


def choose_changes(changes: list[str], most: int) -> list[int]:
    """Choose the numbers of at most `most` changes that should fail."""
    rows: list[list[int]] = []
    before = ""
    for line in changes:
        number, change = line.split(" ", 1)
        rows = rows if change == before and rows else [*rows, []]
        rows[-1].append(int(number))
        before = change
    candidates = sorted({row[index] for row in rows for index in (0, len(row) // 2, -1)})
    last = len(candidates) - 1
    return sorted({candidates[index * last // max(most - 1, 1)] for index in range(most)})


def run_trial(
    runner: CommandRunner, folder: Path, arguments: list[str], reference: Path, which: str, how: str, at: int
) -> tuple[str, str, list[str]]:
    """Run the command with one failing change, resume it, and compare it with the reference.

    Returns: the failed change, the last message, and a list of problems
    """
    run, cache, log = folder / "run", folder / "cache", folder / "log"
    variables = {
        "FAILING_UNDER": str(folder / which),
        "FAILING_AT": str(at),
        "FAILING_ON": str(int(how != "once")),
        "FAILING_WITH": str(ERRORS[how]),
        "FAILING_LOG": str(log),
    }
    arguments = [*arguments, "--run", str(run)]
    outcome = runner.run_command(arguments, cache, environment=variables)
    failed_change = next((line for line in read_changes(log) if " FAILS " in line), "none")
    problems = []
    if outcome.status not in (0, 1) or "Traceback" in outcome.output:
        problems.append(f"status {outcome.status}: {outcome.output[-1500:]}")
    message = outcome.output.strip().splitlines()[-1] if outcome.status and outcome.output.strip() else ""
    if how != "read-only":
        problems += [f"partial file: {file}" for file in find_partial_files(folder)]
    # A run whose pictures could not be written is complete, and a resume draws them.
    has_pictures = (run / "figures").is_dir() and (run / "thumbnails").is_dir()
    if outcome.status or not has_pictures:
        resumed = runner.run_command(["--resume", str(run)] if (run / "recipe.json").exists() else arguments, cache)
        if resumed.status:
            return failed_change, message, [*problems, f"resume failed: {resumed.output[-1500:]}"]
    return failed_change, message, problems + [f"differs: {name}" for name in list_differences(reference, run)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="good", choices=SMALL_OPTIONS)
    parser.add_argument("--which", default="run,cache")
    parser.add_argument("--how", default="full,once,read-only")
    parser.add_argument("--trials", type=int, default=40, help="maximum number for each combination")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between checkpoints")
    parser.set_defaults(started=False)
    options = parser.parse_args()
    from ikebana.demo_data import paper_flowers

    with tempfile.TemporaryDirectory(prefix="ikebana-writes-") as scratch:
        folder = Path(scratch)
        # Inherited by the processes that are started below.
        os.environ["LD_PRELOAD"] = str(build_library(folder))
        runner = CommandRunner(options, folder)
        paper_flowers.draw_collection(folder / "photos", photos_per_kind=10)
        arguments = [
            str(folder / "photos"),
            "--recipe",
            options.recipe,
            "--precision",
            "float32",
            *SMALL_OPTIONS[options.recipe],
        ]
        sys.exit(run_trials(options, runner, folder, arguments))


def run_trials(options: argparse.Namespace, runner: CommandRunner, folder: Path, arguments: list[str]) -> int:
    """Run all trials, print a table, and return 1 if there was a problem."""
    n_failed, trials, start = 0, 0, time.monotonic()
    for which, how in itertools.product(options.which.split(","), options.how.split(",")):
        first = folder / f"undisturbed-{which}-{how}"
        first.mkdir()
        variables = {"FAILING_UNDER": str(first / which), "FAILING_WITH": str(ERRORS[how]), "FAILING_AT": "0"}
        variables["FAILING_LOG"] = str(first / "log")
        outcome = runner.run_command([*arguments, "--run", str(first / "run")], first / "cache", environment=variables)
        if outcome.status:
            sys.exit(outcome.output)
        kinds = Counter(line.split()[1] for line in read_changes(first / "log"))
        print(f"{which} {how}: {kinds.total()} changes: {dict(kinds)}", flush=True)
        for at in choose_changes(read_changes(first / "log"), options.trials):
            with tempfile.TemporaryDirectory(dir=folder) as trial_folder:
                change, message, problems = run_trial(
                    runner, Path(trial_folder), arguments, first / "run", which, how, at
                )
            n_failed, trials = n_failed + bool(problems), trials + 1
            state = "WRONG" if problems else "ok"
            print(f"{which:<6} {how:<10} {state:<6} {change[:60]:<60} {message[:110]}", flush=True)
            for line in problems:
                print(f"    {line}", flush=True)
    print(f"{trials} trials, {n_failed} wrong, {time.monotonic() - start:.0f} s")
    return int(n_failed > 0)


if __name__ == "__main__":
    main()
