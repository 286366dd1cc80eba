"""Test `ikebana fit` on disks that become full, read-only or empty.

    python bench/full_disk.py                       # as root, since small disks are mounted (tmpfs)

The run folder and the cache are each on their own small disk. In each stage of the command one disk
is filled to the last byte, made read-only, or emptied. The same is tried with disks that are too
small from the start. The command must exit with 0, or with 1 and an error message (MachineError, no
traceback), and leave no partial file. After the disk is restored, `--resume` must finish with
results bit-identical to an undisturbed run. Where no run exists yet, the command starts again.
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

from kill import SMALL_OPTIONS, list_differences

# The size of a disk that is large enough, as an option of tmpfs.
DISK_SIZE = "2g"
# RunError is expected where the run folder was deleted.
EXPECTED_ERRORS = ("MachineError", "RunError")


@dataclass
class Outcome:
    """Exit status, kind of error ("" if none), output and stages of a process."""

    status: int
    kind: str
    output: str
    stages: list[str]


def run_fit(arguments: list[str], cache: Path, at: str = "", disturb: Callable[[], None] | None = None) -> Outcome:
    """Run `ikebana fit`, and call `disturb` as soon as it reports the stage `at`."""
    command = [sys.executable, "-m", "ikebana", "fit", *arguments, "--json"]
    environment = {**os.environ, "IKEBANA_CACHE": str(cache)}
    stages, output, kind = [], [], ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        for line in process.stdout or ():
            event = json.loads(line)
            if event["event"] == "message":
                output.append(event["text"])
            elif event["event"] == "error":
                kind = event["kind"]
                output.append(f"{event['what']} | {event['where']} | {event['advice']}")
            name = {"stage": event.get("stage", ""), "stage_end": f"after {event.get('stage')}"}.get(event["event"], "")
            if name and name not in stages:
                stages.append(name)
                if name == at and disturb is not None:
                    disturb()
        errors = process.stderr.read() if process.stderr else ""
        status = process.wait()
    return Outcome(status, kind, "\n".join([*output, errors]), stages)


class Disk:
    """A small disk in memory (tmpfs)."""

    def __init__(self, mount_point: Path, size: str = DISK_SIZE):
        self.mount_point, self.busy = mount_point, False
        mount_point.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount_point))

    def fill(self) -> None:
        """Shrink the disk to its current contents, so that no further page fits."""
        # The command may write between the measurement and the remount.
        for _ in range(100):
            used = shutil.disk_usage(self.mount_point).used
            command = ["mount", "-o", f"remount,size={max(used, 4096)}", str(self.mount_point)]
            if subprocess.run(command, check=False, capture_output=True).returncode == 0:
                return
        raise RuntimeError("the disk could not be filled")

    def lock(self) -> None:
        """Make the disk read-only.

        The kernel refuses this while a file is open for writing, as some files of the cache are.
        Then `busy` becomes true.
        """
        for _ in range(200):
            if not subprocess.run(
                ["mount", "-o", "remount,ro", str(self.mount_point)], check=False, capture_output=True
            ).returncode:
                return
            time.sleep(0.01)
        self.busy = True

    def empty(self) -> None:
        """Delete everything on the disk."""
        for entry in [entry for entry in self.mount_point.iterdir() if not entry.name.startswith(".")]:
            # Renaming removes a folder at once, not file by file.
            trash = entry.rename(entry.with_name(f".gone-{entry.name}"))
            shutil.rmtree(trash, ignore_errors=True)

    def restore(self) -> None:
        """Make the disk writable and large again. Its contents stay."""
        _mount("-o", f"remount,rw,size={DISK_SIZE}", str(self.mount_point))

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.mount_point)], check=False)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def find_partial_files(folder: Path) -> list[str]:
    """List the temporary files, none of which may remain."""
    return [
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.name.startswith(".tmp") or file.name.endswith((".partial", ".partial.lock"))
    ]


def run_trial(
    disk_name: str, action: str, at: str, arguments: list[str], reference: Path, size: str = DISK_SIZE
) -> tuple[str, list[str]]:
    """Disturb one run of the command, resume it, and compare it with the reference.

    Args:
        disk_name: "run" or "cache"
        action: a method of Disk, or "small" for a disk that is too small from the start
        at: the stage in which the disk changes

    Returns: the last message of the command, and a list of problems
    """
    with tempfile.TemporaryDirectory() as folder:
        disks = {name: Disk(Path(folder) / name, size if name == disk_name else DISK_SIZE) for name in ("run", "cache")}
        run, cache, problems = disks["run"].mount_point / "run", disks["cache"].mount_point / "cache", []
        try:
            fit_arguments = [*arguments, "--run", str(run)]
            disturb = getattr(disks[disk_name], action) if action != "small" else None
            outcome = run_fit(fit_arguments, cache, at, disturb)
            if (
                outcome.status not in (0, 1)
                or "Traceback" in outcome.output
                or (outcome.status and outcome.kind not in EXPECTED_ERRORS)
            ):
                problems.append(f"status {outcome.status} {outcome.kind}: {outcome.output[-1500:]}")
            message = outcome.output.strip().splitlines()[-1] if outcome.status else ""
            disks[disk_name].restore()
            if action == "empty" and disk_name == "run" and run.exists():
                problems.append(f"files of a deleted run: {sorted(file.name for file in run.rglob('*'))}")
            for disk in disks.values():
                problems += [f"partial file: {file}" for file in find_partial_files(disk.mount_point)]
            if outcome.status:
                is_resumable = (run / "recipe.json").exists()
                resumed = run_fit(["--resume", str(run)] if is_resumable else fit_arguments, cache)
                if resumed.status:
                    return message, [*problems, f"resume failed: {resumed.output[-1500:]}"]
            differing = list_differences(reference, run) if action != "empty" or outcome.status else []
            problems += [f"differs: {name}" for name in differing]
            if disks[disk_name].busy:
                message = "the disk could not be made read-only: files were open"
            return (message or "finished"), problems
        finally:
            for disk in disks.values():
                disk.unmount()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="good", choices=SMALL_OPTIONS)
    parser.add_argument("--how", default="fill,lock,empty,small")
    parser.add_argument("--which", default="run,cache")
    parser.add_argument("--stages", help="comma-separated stages as in --json, or 'after STAGE'; default all")
    parser.add_argument(
        "--sizes", type=int, default=6, help="number of sizes for disks that are too small from the start"
    )
    options = parser.parse_args()
    if os.name != "posix" or os.geteuid() != 0:
        sys.exit("small disks are mounted: this bench needs root")
    from ikebana.demo_data import paper_flowers

    with tempfile.TemporaryDirectory(prefix="ikebana-disk-") as scratch:
        photos, reference, cache = (Path(scratch) / name for name in ("photos", "whole", "cache"))
        paper_flowers.draw_collection(photos, photos_per_kind=10)
        arguments = [str(photos), "--recipe", options.recipe, "--precision", "float32", *SMALL_OPTIONS[options.recipe]]
        undisturbed = run_fit([*arguments, "--run", str(reference)], cache)
        if undisturbed.status:
            sys.exit(undisturbed.output)
        sizes = {"run": measure_size(reference), "cache": measure_size(cache)}
        trials = [
            (which, how, at, DISK_SIZE)
            for which in options.which.split(",")
            for how in options.how.split(",")
            if how != "small"
            for at in (options.stages.split(",") if options.stages else undisturbed.stages)
        ]
        if "small" in options.how:
            trials += [
                (which, "small", "", str(int(sizes[which] * (number + 0.5) / options.sizes)))
                for which in options.which.split(",")
                for number in range(options.sizes)
            ]
        sys.exit(run_trials(trials, arguments, reference))


def run_trials(trials: list[tuple[str, str, str, str]], arguments: list[str], reference: Path) -> int:
    """Run all trials, print a table, and return 1 if there was a problem."""
    failed, start = 0, time.monotonic()
    for which, how, at, size in trials:
        message, problems = run_trial(which, how, at, arguments, reference, size)
        failed += bool(problems)
        where = at or f"{int(size) / 1e6:.1f} MB from the start"
        print(f"{which:<6} {how:<7} {where:<28} {'WRONG' if problems else 'ok':<6} {message}", flush=True)
        for line in problems:
            print(f"    {line}", flush=True)
    print(f"{len(trials)} trials, {failed} wrong, {time.monotonic() - start:.0f} s")
    return int(failed > 0)


def measure_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
