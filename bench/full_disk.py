"""Takes the disk away from `ikebana fit`, at each of its stages, and sees that it says so and goes on when it is back.

    python bench/full_disk.py                       # as root, since small disks are mounted (tmpfs)

For the run's folder and for the cache, each on a disk of its own, and for each stage of the road: the disk is filled to the
last byte, made read-only, or emptied while the command is at it. Then the same with disks that are too small from the start.
The command must end with 0, or with 1 and words (MachineError, no traceback), and leave nothing half-written. Once the disk
is as it should be, `--resume` (a new beginning, where there is no run yet) must end with the bits of an undisturbed run.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kill import SMALL, same

ROOM = "2g"  # of a disk that is large enough
KINDS = ("MachineError", "RunError")  # of what may be said; the second where a run has gone


@dataclass
class Life:
    """One process: its end, its words, its stages."""

    status: int
    kind: str  # of the error, if it ended with one
    words: str
    stages: list[str]


def lived(arguments: list[str], cache: Path, at: str = "", act: Callable[[], None] | None = None) -> Life:
    """Run the command; do something to it as soon as it says that it is at that stage."""
    command = [sys.executable, "-m", "ikebana", "fit", *arguments, "--json"]
    environment = {**os.environ, "IKEBANA_CACHE": str(cache)}
    stages, words, kind = [], [], ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        for line in process.stdout or ():
            event = json.loads(line)
            if event["event"] == "message":
                words.append(event["text"])
            elif event["event"] == "error":
                kind = event["kind"]
                words.append(f"{event['what']} | {event['where']} | {event['advice']}")
            name = {"stage": event.get("stage", ""), "stage_end": f"after {event.get('stage')}"}.get(event["event"], "")
            if name and name not in stages:
                stages.append(name)
                if name == at and act is not None:
                    act()
        errors = process.stderr.read() if process.stderr else ""
        status = process.wait()
    return Life(status, kind, "\n".join([*words, errors]), stages)


class Disk:
    """A small disk in memory."""

    def __init__(self, place: Path, size: str = ROOM):
        self.place, self.busy = place, False
        place.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))

    def fill(self) -> None:
        """No page more than lies there now."""
        for _ in range(100):  # something may be written between the looking and the doing
            used = shutil.disk_usage(self.place).used
            command = ["mount", "-o", f"remount,size={max(used, 4096)}", str(self.place)]
            if subprocess.run(command, check=False, capture_output=True).returncode == 0:
                return
        raise RuntimeError("the disk could not be filled")

    def lock(self) -> None:
        """Read-only; the kernel refuses that while a file on it is open for writing, as some of the cache's are."""
        for _ in range(200):
            if not subprocess.run(
                ["mount", "-o", "remount,ro", str(self.place)], check=False, capture_output=True
            ).returncode:
                return
            time.sleep(0.01)
        self.busy = True

    def empty(self) -> None:
        """As if somebody had deleted all that is on it."""
        for each in [each for each in self.place.iterdir() if not each.name.startswith(".")]:
            gone = each.rename(each.with_name(f".gone-{each.name}"))  # at once, not file by file
            shutil.rmtree(gone, ignore_errors=True)

    def mend(self) -> None:
        """As it should be; what is on it stays."""
        _mount("-o", f"remount,rw,size={ROOM}", str(self.place))

    def drop(self) -> None:
        subprocess.run(["umount", "-l", str(self.place)], check=False)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def half_written(folder: Path) -> list[str]:
    """What must not be left behind."""
    return [
        str(each.relative_to(folder))
        for each in folder.rglob("*")
        if each.name.startswith(".tmp") or each.name.endswith((".partial", ".partial.lock"))
    ]


def trial(which: str, how: str, at: str, arguments: list[str], whole: Path, size: str = ROOM) -> tuple[str, list[str]]:
    """One disturbance.

    which    the disk: run or cache
    how      what is done to it: a method of Disk; or 'small' from the start
    returns  what became of it, and what went wrong
    """
    with tempfile.TemporaryDirectory() as place:
        disks = {name: Disk(Path(place) / name, size if name == which else ROOM) for name in ("run", "cache")}
        run, cache, wrong = disks["run"].place / "run", disks["cache"].place / "cache", []
        try:
            began = [*arguments, "--run", str(run)]
            act = getattr(disks[which], how) if how != "small" else None
            life = lived(began, cache, at, act)
            if life.status not in (0, 1) or "Traceback" in life.words or (life.status and life.kind not in KINDS):
                wrong.append(f"status {life.status} {life.kind}: {life.words[-1500:]}")
            said = life.words.strip().splitlines()[-1] if life.status else ""
            disks[which].mend()
            if how == "empty" and which == "run" and run.exists():
                wrong.append(f"left of a run that had gone: {sorted(each.name for each in run.rglob('*'))}")
            wrong += [f"left half-written: {each}" for disk in disks.values() for each in half_written(disk.place)]
            if life.status:
                there = (run / "recipe.json").exists()
                again = lived(["--resume", str(run)] if there else began, cache)
                if again.status:
                    return said, [*wrong, f"did not go on: {again.words[-1500:]}"]
            differing = same(whole, run) if how != "empty" or life.status else []
            wrong += [f"differs: {each}" for each in differing]
            if disks[which].busy:
                said = "it could not be made read-only: files were open"
            return (said or "went on to its end"), wrong
        finally:
            for disk in disks.values():
                disk.drop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="good", choices=SMALL)
    parser.add_argument("--how", default="fill,lock,empty,small")
    parser.add_argument("--which", default="run,cache")
    parser.add_argument("--stages", help="those alone, joined by commas; as --json names them, or 'after' that")
    parser.add_argument("--sizes", type=int, default=6, help="of disks that are too small from the start")
    options = parser.parse_args()
    if os.name != "posix" or os.geteuid() != 0:
        sys.exit("small disks are mounted: this bench needs root")
    from ikebana.demo_data import paper_flowers

    with tempfile.TemporaryDirectory(prefix="ikebana-disk-") as scratch:
        photos, whole, cache = (Path(scratch) / name for name in ("photos", "whole", "cache"))
        paper_flowers.draw_collection(photos, photos_per_kind=10)
        arguments = [str(photos), "--recipe", options.recipe, "--precision", "float32", *SMALL[options.recipe]]
        undisturbed = lived([*arguments, "--run", str(whole)], cache)
        if undisturbed.status:
            sys.exit(undisturbed.words)
        bytes_of = {"run": _size(whole), "cache": _size(cache)}
        trials = [
            (which, how, at, ROOM)
            for which in options.which.split(",")
            for how in options.how.split(",")
            if how != "small"
            for at in (options.stages.split(",") if options.stages else undisturbed.stages)
        ]
        if "small" in options.how:
            trials += [
                (which, "small", "", str(int(bytes_of[which] * (number + 0.5) / options.sizes)))
                for which in options.which.split(",")
                for number in range(options.sizes)
            ]
        sys.exit(told(trials, arguments, whole))


def told(trials: list[tuple[str, str, str, str]], arguments: list[str], whole: Path) -> int:
    """The table; 1 if anything went wrong."""
    failed, begun = 0, time.monotonic()
    for which, how, at, size in trials:
        said, wrong = trial(which, how, at, arguments, whole, size)
        failed += bool(wrong)
        where = at or f"{int(size) / 1e6:.1f} MB from the start"
        print(f"{which:<6} {how:<7} {where:<28} {'WRONG' if wrong else 'ok':<6} {said}", flush=True)
        for line in wrong:
            print(f"    {line}", flush=True)
    print(f"{len(trials)} trials, {failed} wrong, {time.monotonic() - begun:.0f} s")
    return int(failed > 0)


def _size(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


if __name__ == "__main__":
    main()
