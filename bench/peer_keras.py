"""Measure ikebana's training against Keras on TensorFlow: same photos, split, network and machine, on its processor.

    python bench/peer_keras.py --photos flowers/                       # makes an environment for Keras, then removes it
    python bench/peer_keras.py --photos flowers/ --peer-python keras-env/bin/python --epochs 5 --out result.json

Contestants (each its own process; what each does is told in `peer_keras_worker.py`):
    tutorial       Keras exactly as the tutorial uses it
    keras_tuned    Keras as someone who knows it well would set it up by hand
    ikebana        this project, under the Python that runs this file

They take turns, epoch by epoch, and the others wait: a machine that is busy for a while is busy for all of them, so
trust the ratios of a round more than the seconds. The first epoch of each is dropped: it traces graphs, fills caches.
An epoch is training and validation. `--to-the-end` then trains each alone for the recipe's full number of epochs and
scores the test photos; its total is setup, all epochs (the first included) and the test.

Without `--peer-python`, the standard `venv` and `pip` make the peer's environment in a temporary folder (about 2 GB):
tensorflow-cpu, keras, pillow, scipy, scikit-learn, newest versions, from whatever index your pip is set up to use.
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

from peer_keras_worker import CONTESTANTS, RECIPES, classes_of, files_of

PEER_PACKAGES = ["tensorflow-cpu", "keras", "pillow", "scipy", "scikit-learn"]
TELLING_FLAGS = ["avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"]  # what decides which number format is fast
LOG_LINES = 15  # of a contestant's own output, shown when it fails

Answers = dict[str, list[dict[str, Any]]]  # contestant -> its epochs


class ContestantError(Exception):
    """A contestant could not start, or died; the message has the end of its log."""


class Worker:
    """A contestant's process, spoken to in lines."""

    def __init__(self, name: str, recipe: str, chosen: argparse.Namespace, peer: Path, scratch: Path) -> None:
        """Start it and wait until it is ready, so that nobody sets up while another trains."""
        self.name = name
        folder = scratch / f"{recipe}-{name}"
        folder.mkdir(parents=True)
        self.log = folder.with_suffix(".log")
        command = [
            str(sys.executable if name == "ikebana" else peer),
            str(Path(__file__).with_name("peer_keras_worker.py")),
            *("--contestant", name, "--recipe", recipe, "--photos", str(chosen.photos), "--scratch", str(folder)),
        ]
        if name == "keras_tuned":
            command += ["--precision", chosen.precision, *(["--jit"] if chosen.jit else [])]
        # No GPU for anyone (the peer's TensorFlow has none). Ctrl-C is for the orchestrator alone: it ends the others.
        surroundings = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": "tensorflow"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env={**os.environ, **surroundings},
            )
        try:
            self.ready = self.answer()
        except BaseException:  # Ctrl-C too: nobody else knows of this process yet
            self.stop()
            raise

    def answer(self) -> dict[str, Any]:
        """The next line it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            end = "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])
            raise ContestantError(f"{self.name} stopped (status {self.process.wait()}):\n{end}")
        return json.loads(line)

    def ask(self, command: str) -> dict[str, Any]:
        """Send `epoch` or `test`, wait for the answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it is dead; `answer` finds that out and tells why
        return self.answer()

    def stop(self) -> None:
        """End it now; it has nothing to save."""
        self.process.kill()
        self.process.wait()


def started(recipe: str, names: list[str], chosen: argparse.Namespace, peer: Path, scratch: Path) -> list[Worker]:
    """Start the contestants one after another; one that cannot start is named aloud and the others go on."""
    workers: list[Worker] = []
    try:
        for name in names:
            try:
                workers.append(Worker(name, recipe, chosen, peer, scratch))
            except ContestantError as problem:
                chosen.failed.append(f"{recipe}: {problem}")
                tell(f"! left out of {recipe}: {problem}")
            else:
                tell(f"  {recipe}: {name} ready after {workers[-1].ready['setup_seconds']:.1f} s")
    except BaseException:
        stop(workers)
        raise
    return workers


def stop(workers: list[Worker]) -> None:
    """End them all."""
    for worker in workers:
        worker.stop()


def tell(text: str) -> None:
    """What goes on, for people; the results alone go to standard output."""
    print(text, file=sys.stderr, flush=True)


def interleaved(recipe: str, chosen: argparse.Namespace, peer: Path, scratch: Path) -> dict[str, Any]:
    """Rounds of one epoch each; only one contestant computes at a time."""
    workers = started(recipe, chosen.contestants, chosen, peer, scratch / "rounds")
    epochs: Answers = {worker.name: [] for worker in workers}
    try:
        for number in range(1, chosen.epochs + 1):
            for worker in workers:
                epochs[worker.name].append(worker.ask("epoch"))
            times = ", ".join(f"{name} {done[-1]['seconds']:.1f} s" for name, done in epochs.items())
            tell(f"  {recipe}: epoch {number} of {chosen.epochs}{' (dropped)' if number == 1 else ''}: {times}")
    finally:
        stop(workers)
    return {"epochs": epochs, "ready": {worker.name: worker.ready for worker in workers}}


def to_the_end(recipe: str, chosen: argparse.Namespace, peer: Path, scratch: Path) -> dict[str, Any]:
    """Each contestant alone, for the recipe's full number of epochs, then the test photos."""
    ends: dict[str, Any] = {}
    for name in chosen.contestants:
        workers = started(recipe, [name], chosen, peer, scratch / "end")
        try:
            for worker in workers:
                epochs = [worker.ask("epoch") for _ in range(RECIPES[recipe].epochs)]
                test = worker.ask("test")
                total = worker.ready["setup_seconds"] + sum(epoch["seconds"] for epoch in epochs) + test["seconds"]
                ends[name] = {"total_seconds": total, "test": test, "epochs": epochs, "ready": worker.ready}
        finally:
            stop(workers)
    return ends


def spread(values: list[float], form: str) -> str:
    """Median and range, as `12.3 (11.9 to 13.0)`."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def rounds_table(recipe: str, epochs: Answers) -> list[str]:
    """Seconds an epoch, and how many times ikebana's, round by round; the first round is dropped."""
    seconds = {name: [epoch["seconds"] for epoch in done[1:]] for name, done in epochs.items()}
    rounds = len(next(iter(seconds.values()), []))
    lines = [
        f"{recipe}: seconds an epoch, {rounds} round{'' if rounds == 1 else 's'} (the first epoch dropped)",
        f"  {'contestant':<14}{'median (min to max)':<28}times ikebana's, per round",
    ]
    for name, own in seconds.items():
        ours = seconds.get("ikebana")
        ratios = [one / other for one, other in zip(own, ours, strict=True)] if ours else []
        lines.append(f"  {name:<14}{spread(own, '.2f'):<28}{spread(ratios, '.2f') if ratios else '-'}")
    return lines


def ends_table(recipe: str, ends: dict[str, Any]) -> list[str]:
    """Test accuracy and total seconds."""
    head = f"  {'contestant':<14}{'test accuracy':<16}seconds"
    lines = [f"{recipe}: {RECIPES[recipe].epochs} epochs, each alone", head]
    lines += [
        f"  {name:<14}{end['test']['test_accuracy']:<16.3f}{end['total_seconds']:.0f}" for name, end in ends.items()
    ]
    return lines


def _fit_for_it() -> str:
    """The number format that whoever tunes Keras would find fastest: a processor without bfloat16 takes thrice the time in it."""
    return "mixed_bfloat16" if {"avx512_bf16", "amx_bf16"} & set(machine()["flags"]) else "float32"


def machine() -> dict[str, Any]:
    """The processor and what it can do, as far as the system tells."""
    model, flags = platform.processor() or platform.machine(), []
    if (info := Path("/proc/cpuinfo")).exists():
        facts = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in facts.items()}
        model = facts.get("model name", model)
        flags = [flag for flag in TELLING_FLAGS if flag in facts.get("flags", "").split()]
    return {"processor": model, "flags": flags, "cores": os.cpu_count(), "system": platform.platform()}


def load() -> float | None:
    """Processes that wanted the processor in the last minute: whether the benchmark had the machine for itself."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def peer_environment(folder: Path) -> Path:
    """Make an environment with Keras in it; returns its Python."""
    tell(f"making an environment for the peer ({', '.join(PEER_PACKAGES)}); --peer-python PATH saves this")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True, stdout=sys.stderr)
    return python


def refuse(what: str, where: object, advice: str) -> SystemExit:
    """An error as ikebana writes them: what, where, what to try. Status 1."""
    return SystemExit(f"PeerError: {what}\n  in   {where}\n  try  {advice}")


def check(chosen: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is installed or started."""
    advice = "--photos with a folder that has one sub-folder of photos a class"
    if not chosen.photos.is_dir():
        raise refuse("there is no such folder", chosen.photos, advice)
    classes = classes_of(chosen.photos)
    if len(classes) < 2:
        raise refuse(f"{len(classes)} class folders, and at least 2 are needed", chosen.photos, advice)
    if empty := [name for name in classes if not files_of(chosen.photos / name)]:
        raise refuse(f"no photos in {', '.join(empty)}", chosen.photos, advice)
    if chosen.peer_python and not os.access(chosen.peer_python, os.X_OK):
        raise refuse("this is not a Python that can be run", chosen.peer_python, "leave --peer-python out")
    for given, known in ((chosen.recipes, RECIPES), (chosen.contestants, CONTESTANTS)):
        if unknown := [name for name in given if name not in known]:
            raise refuse(f"unknown: {', '.join(unknown)}", "--recipes or --contestants", f"of {', '.join(known)}")
    if chosen.epochs == 1 or chosen.epochs < 0 or not (chosen.epochs or chosen.to_the_end):
        raise refuse("the first epoch is dropped, so nothing would be left", "--epochs", "2 or more; 5 is usual")
    if chosen.out and not chosen.out.absolute().parent.is_dir():
        raise refuse("the folder for the result does not exist", chosen.out, "make it first")


def arguments() -> argparse.Namespace:
    """The flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--photos", type=Path, required=True, metavar="DIR", help="one sub-folder a class")
    flags.add_argument("--peer-python", type=Path, metavar="PATH", help="a Python that has TensorFlow and Keras")
    flags.add_argument("--epochs", type=int, default=5, help="in turns, the first dropped; 0: no turns")
    flags.add_argument("--to-the-end", action="store_true", help="then train each fully, alone, and test")
    flags.add_argument("--recipes", type=lambda text: text.split(","), default=list(RECIPES), metavar="A,B")
    flags.add_argument("--contestants", type=lambda text: text.split(","), default=list(CONTESTANTS), metavar="A,B")
    flags.add_argument("--precision", default=_fit_for_it(), help="of keras_tuned: a Keras dtype policy")
    flags.add_argument("--jit", action="store_true", help="XLA for keras_tuned")
    flags.add_argument("--out", type=Path, metavar="FILE.json", help="everything measured, every epoch")
    return flags.parse_args()


def measured(chosen: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Everything asked for, printed as it comes; returns what --out writes."""
    peer = chosen.peer_python or peer_environment(scratch / "peer")
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "photos": {name: len(files_of(chosen.photos / name)) for name in classes_of(chosen.photos)},
        "load_before": load(),
        "recipes": {},
    }
    facts = result["machine"]
    flags = " ".join(facts["flags"]) or "no flags known"
    print(f"{result['date']}  {facts['processor']}, {facts['cores']} cores, {flags}")
    for recipe in chosen.recipes:
        measures = result["recipes"][recipe] = {}
        ready: dict[str, Any] = {}
        if chosen.epochs:
            measures["rounds"] = interleaved(recipe, chosen, peer, scratch)
            ready = measures["rounds"]["ready"]
            print("", *rounds_table(recipe, measures["rounds"]["epochs"]), sep="\n", flush=True)
        if chosen.to_the_end:
            measures["to_the_end"] = to_the_end(recipe, chosen, peer, scratch)
            ready = {name: end["ready"] for name, end in measures["to_the_end"].items()}
            print("", *ends_table(recipe, measures["to_the_end"]), sep="\n", flush=True)
        for name, answer in ready.items():
            print(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in answer["versions"].items()))
    result["load_after"], result["failed"] = load(), chosen.failed
    print(f"\nload average before {result['load_before']}, after {result['load_after']}")
    return result


def main() -> int:
    """Measure, and leave nothing behind but the result."""
    chosen = arguments()
    check(chosen)
    chosen.failed = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` runs and the contestants end
    try:
        with tempfile.TemporaryDirectory(prefix="peer-keras-") as scratch:
            result = measured(chosen, Path(scratch))
    except KeyboardInterrupt:
        tell("interrupted; the contestants are ended and the temporary folder is removed")
        return 130
    except ContestantError as problem:
        raise refuse("a contestant died while training", problem, "--contestants without it") from None
    except subprocess.CalledProcessError as problem:
        advice = "--peer-python with an environment that exists"
        raise refuse("the peer's environment could not be made", problem, advice) from None
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if chosen.failed else 0


if __name__ == "__main__":
    sys.exit(main())
