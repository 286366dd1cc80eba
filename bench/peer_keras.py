"""Compare training in ikebana and in Keras on TensorFlow on CPU.

    python bench/peer_keras.py --photos flowers/                       # makes an environment for Keras, then removes it
    python bench/peer_keras.py --photos flowers/ --peer-python keras-env/bin/python --epochs 5 --out result.json

All contestants use the same photos, split, network and machine. Each is a separate process
(`peer_keras_worker.py` has the details):
    tutorial       Keras exactly as the tutorial uses it
    keras_tuned    Keras as an experienced user would set it up
    ikebana        this project, under the Python that runs this file

They alternate epoch by epoch, and the others wait. Other load affects all of them, so the ratios
within a round are more reliable than the seconds. The first epoch of each is dropped, because it
traces graphs and fills caches. An epoch is training and validation. `--to-the-end` then trains each
alone for the recipe's full number of epochs and scores the test photos. Its total is setup, all
epochs (the first included) and the test.

Without `--peer-python`, `venv` and `pip` make the environment in a temporary folder (about 2 GB):
tensorflow-cpu, keras, pillow, scipy, scikit-learn, newest versions, from the index that your pip
uses.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peer_keras_worker import CONTESTANTS, RECIPES, list_classes, list_files

PEER_PACKAGES = ["tensorflow-cpu", "keras", "pillow", "scipy", "scikit-learn"]
PRECISION_FLAGS = ["avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"]
# Lines of a contestant's output that are shown when it fails.
LOG_LINES = 15

Answers = dict[str, list[dict[str, Any]]]  # contestant -> its epochs


class ContestantError(Exception):
    """A contestant could not start, or died; the message has the end of its log."""


class Worker:
    """A contestant's process, which exchanges lines on standard input and output."""

    def __init__(self, name: str, recipe: str, options: argparse.Namespace, peer: Path, scratch: Path) -> None:
        """Start the process, and wait until its setup is complete."""
        self.name = name
        folder = scratch / f"{recipe}-{name}"
        folder.mkdir(parents=True)
        self.log = folder.with_suffix(".log")
        command = [
            str(sys.executable if name == "ikebana" else peer),
            str(Path(__file__).with_name("peer_keras_worker.py")),
            *("--contestant", name, "--recipe", recipe, "--photos", str(options.photos), "--scratch", str(folder)),
        ]
        if name == "keras_tuned":
            command += ["--precision", options.precision, *(["--jit"] if options.jit else [])]
        # No contestant uses a GPU. Only this process receives Ctrl-C, and it ends the contestants.
        variables = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": "tensorflow"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env={**os.environ, **variables},
            )
        try:
            self.ready = self.answer()
        # On Ctrl-C too: no other code knows of this process yet.
        except BaseException:
            self.stop()
            raise

    def answer(self) -> dict[str, Any]:
        """Read the next line of the process."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._describe_end()
        return json.loads(line)

    def ask(self, command: str) -> dict[str, Any]:
        """Send `epoch` or `test`, and wait for the answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._describe_end() from None
        return self.answer()

    def _describe_end(self) -> ContestantError:
        """Build the error for a process that has ended, with the end of its log."""
        end = "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        return ContestantError(f"{self.name} stopped (status {self.process.wait()}):\n{end}")

    def stop(self) -> None:
        """Kill the process; it has nothing to save."""
        self.process.kill()
        self.process.wait()


def start_workers(
    recipe: str, names: list[str], options: argparse.Namespace, peer: Path, scratch: Path
) -> list[Worker]:
    """Start the contestants one after another, and report those that cannot start."""
    workers: list[Worker] = []
    try:
        for name in names:
            try:
                workers.append(Worker(name, recipe, options, peer, scratch))
            except ContestantError as problem:
                options.failed.append(f"{recipe}: {problem}")
                log(f"! left out of {recipe}: {problem}")
            else:
                log(f"  {recipe}: {name} ready after {workers[-1].ready['setup_seconds']:.1f} s")
    except BaseException:
        stop_workers(workers)
        raise
    return workers


def stop_workers(workers: list[Worker]) -> None:
    """Stop all workers."""
    for worker in workers:
        worker.stop()


def log(text: str) -> None:
    """Print progress to standard error; standard output has only the results."""
    print(text, file=sys.stderr, flush=True)


def train_interleaved(recipe: str, options: argparse.Namespace, peer: Path, scratch: Path) -> dict[str, Any]:
    """Train in rounds of one epoch each; only one contestant computes at a time."""
    workers = start_workers(recipe, options.contestants, options, peer, scratch / "rounds")
    epochs: Answers = {worker.name: [] for worker in workers}
    try:
        for number in range(1, options.epochs + 1):
            for worker in workers:
                epochs[worker.name].append(worker.ask("epoch"))
            times = ", ".join(f"{name} {done[-1]['seconds']:.1f} s" for name, done in epochs.items())
            log(f"  {recipe}: epoch {number} of {options.epochs}{' (dropped)' if number == 1 else ''}: {times}")
    finally:
        stop_workers(workers)
    return {"epochs": epochs, "ready": {worker.name: worker.ready for worker in workers}}


def train_fully(recipe: str, options: argparse.Namespace, peer: Path, scratch: Path) -> dict[str, Any]:
    """Train each contestant alone for all epochs of the recipe, then score the test photos."""
    ends: dict[str, Any] = {}
    for name in options.contestants:
        workers = start_workers(recipe, [name], options, peer, scratch / "end")
        try:
            for worker in workers:
                epochs = [worker.ask("epoch") for _ in range(RECIPES[recipe].epochs)]
                test = worker.ask("test")
                total = worker.ready["setup_seconds"] + sum(epoch["seconds"] for epoch in epochs) + test["seconds"]
                ends[name] = {"total_seconds": total, "test": test, "epochs": epochs, "ready": worker.ready}
        finally:
            stop_workers(workers)
    return ends


def format_spread(values: list[float], form: str) -> str:
    """Format median and range, as `12.3 (11.9 to 13.0)`."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def format_rounds(recipe: str, epochs: Answers) -> list[str]:
    """Format seconds per epoch and ratios to ikebana; the first round is dropped."""
    seconds = {name: [epoch["seconds"] for epoch in done[1:]] for name, done in epochs.items()}
    rounds = len(next(iter(seconds.values()), []))
    lines = [
        f"{recipe}: seconds per epoch, {rounds} round{'' if rounds == 1 else 's'} (the first epoch dropped)",
        f"  {'contestant':<14}{'median (min to max)':<28}ratio to ikebana, per round",
    ]
    for name, values in seconds.items():
        reference = seconds.get("ikebana")
        ratios = [value / reference for value, reference in zip(values, reference, strict=True)] if reference else []
        lines.append(f"  {name:<14}{format_spread(values, '.2f'):<28}{format_spread(ratios, '.2f') if ratios else '-'}")
    return lines


def format_ends(recipe: str, ends: dict[str, Any]) -> list[str]:
    """Format test accuracy and total seconds."""
    head = f"  {'contestant':<14}{'test accuracy':<16}seconds"
    lines = [f"{recipe}: {RECIPES[recipe].epochs} epochs, each alone", head]
    lines += [
        f"  {name:<14}{end['test']['test_accuracy']:<16.3f}{end['total_seconds']:.0f}" for name, end in ends.items()
    ]
    return lines


def choose_precision() -> str:
    """Choose the fastest precision: bfloat16 takes three times as long without hardware support."""
    return "mixed_bfloat16" if {"avx512_bf16", "amx_bf16"} & set(describe_machine()["flags"]) else "float32"


def describe_machine() -> dict[str, Any]:
    """Describe the processor and its vector extensions."""
    model, flags = platform.processor() or platform.machine(), []
    if (info := Path("/proc/cpuinfo")).exists():
        facts = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in facts.items()}
        model = facts.get("model name", model)
        flags = [flag for flag in PRECISION_FLAGS if flag in facts.get("flags", "").split()]
    return {"processor": model, "flags": flags, "cores": os.cpu_count(), "system": platform.platform()}


def get_load_average() -> float | None:
    """Return the load average of the last minute, which shows other load."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def make_peer_environment(folder: Path) -> Path:
    """Make an environment with Keras, and return its Python."""
    log(f"making an environment for the peer ({', '.join(PEER_PACKAGES)}); --peer-python PATH saves this")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True, stdout=sys.stderr)
    return python


def refuse(what: str, where: object, advice: str) -> SystemExit:
    """Build an exception with an error message in the format of ikebana."""
    return SystemExit(f"PeerError: {what}\n  in   {where}\n  try  {advice}")


def check_options(options: argparse.Namespace) -> None:
    """Check the options before anything is installed or started."""
    advice = "--photos with a folder that has one sub-folder of photos per class"
    if not options.photos.is_dir():
        raise refuse("there is no such folder", options.photos, advice)
    classes = list_classes(options.photos)
    if len(classes) < 2:
        raise refuse(f"{len(classes)} class folders, and at least 2 are needed", options.photos, advice)
    if empty := [name for name in classes if not list_files(options.photos / name)]:
        raise refuse(f"no photos in {', '.join(empty)}", options.photos, advice)
    if options.peer_python and not os.access(options.peer_python, os.X_OK):
        raise refuse("this is not a Python that can be run", options.peer_python, "leave --peer-python out")
    for given, known in ((options.recipes, RECIPES), (options.contestants, CONTESTANTS)):
        if unknown := [name for name in given if name not in known]:
            raise refuse(f"unknown: {', '.join(unknown)}", "--recipes or --contestants", f"of {', '.join(known)}")
    if options.epochs == 1 or options.epochs < 0 or not (options.epochs or options.to_the_end):
        raise refuse("the first epoch is dropped, so nothing would be left", "--epochs", "2 or more; 5 is usual")
    if options.out and not options.out.absolute().parent.is_dir():
        raise refuse("the folder for the result does not exist", options.out, "make it first")


def parse_arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="one sub-folder per class")
    parser.add_argument("--peer-python", type=Path, metavar="PATH", help="a Python that has TensorFlow and Keras")
    parser.add_argument("--epochs", type=int, default=5, help="in turns, the first dropped; 0: no turns")
    parser.add_argument("--to-the-end", action="store_true", help="then train each fully, alone, and test")
    parser.add_argument("--recipes", type=lambda text: text.split(","), default=list(RECIPES), metavar="A,B")
    parser.add_argument("--contestants", type=lambda text: text.split(","), default=list(CONTESTANTS), metavar="A,B")
    parser.add_argument("--precision", default=choose_precision(), help="of keras_tuned: a Keras dtype policy")
    parser.add_argument("--jit", action="store_true", help="XLA for keras_tuned")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="everything measured, every epoch")
    return parser.parse_args()


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Measure and print everything, and return the contents of --out."""
    peer = options.peer_python or make_peer_environment(scratch / "peer")
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "photos": {name: len(list_files(options.photos / name)) for name in list_classes(options.photos)},
        "load_before": get_load_average(),
        "recipes": {},
    }
    machine_facts = result["machine"]
    flags = " ".join(machine_facts["flags"]) or "no flags known"
    print(f"{result['date']}  {machine_facts['processor']}, {machine_facts['cores']} cores, {flags}")
    for recipe in options.recipes:
        measurements = result["recipes"][recipe] = {}
        ready: dict[str, Any] = {}
        if options.epochs:
            measurements["rounds"] = train_interleaved(recipe, options, peer, scratch)
            ready = measurements["rounds"]["ready"]
            print("", *format_rounds(recipe, measurements["rounds"]["epochs"]), sep="\n", flush=True)
        if options.to_the_end:
            measurements["to_the_end"] = train_fully(recipe, options, peer, scratch)
            ready = {name: end["ready"] for name, end in measurements["to_the_end"].items()}
            print("", *format_ends(recipe, measurements["to_the_end"]), sep="\n", flush=True)
        for name, answer in ready.items():
            print(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in answer["versions"].items()))
    result["load_after"], result["failed"] = get_load_average(), options.failed
    print(f"\nload average before {result['load_before']}, after {result['load_after']}")
    return result


def main() -> int:
    """Run the benchmark, and remove everything but the result."""
    options = parse_arguments()
    check_options(options)
    options.failed = []
    # On SIGTERM, `finally` blocks must run so that the contestants end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory(prefix="peer-keras-") as scratch:
            result = measure(options, Path(scratch))
    except KeyboardInterrupt:
        log("interrupted; the contestants are ended and the temporary folder is removed")
        return 130
    except ContestantError as problem:
        raise refuse("a contestant died while training", problem, "--contestants without it") from None
    except subprocess.CalledProcessError as problem:
        advice = "--peer-python with an environment that exists"
        raise refuse("the peer's environment could not be made", problem, advice) from None
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if options.failed else 0


if __name__ == "__main__":
    sys.exit(main())
