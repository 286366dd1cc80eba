"""Photos a second while a pretrained network is fine-tuned: ours beside the loops that people write or start from.

    python bench/finetune.py --photos DIR [--rounds 3] [--steps 12] [--peer-python ENV/bin/python] [--contestants A,B]

Contestants, each a process of its own; they take turns, some steps each, while the others wait:
    ikebana       a step of `good`: EfficientNet-Lite0 at 224 px from its third stage on, changed photos, mean of the weights
    naive         the same network, the same layers, as a first loop in torch has it: ImageFolder, a DataLoader with a worker a
                  processor, RandomResizedCrop and flip, float32, AdamW
    reference     what torchvision's reference script for classification does with it by default: the whole network, SGD with
                  momentum 0.9, float32, the same photos and changes
    ultralytics   its classifier's trainer with its own smallest network, random weights, at 224 px as it comes (another network:
                  what counts there is photos a second for each GFLOP)
Photos a second are whole steps, reading and changing of photos included; the first steps of each turn are dropped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from machine import header, spread

CONTESTANTS = ("ikebana", "naive", "reference", "ultralytics")


class Worker:
    """A contestant's process: it answers each line it is given with one."""

    def __init__(self, name: str, options: argparse.Namespace):
        python = options.peer_python if name == "ultralytics" and options.peer_python else sys.executable
        worker = Path(__file__).with_name("finetune_worker.py")
        command = [python, str(worker), name, str(options.photos), str(options.steps)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self.answer()

    def answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # whatever else its libraries print
                return json.loads(line)
        raise SystemExit(f"a contestant stopped: status {self.process.wait()}")

    def turn(self) -> float:
        """Photos a second of some steps."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.answer()["rate"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--peer-python", help="a Python that has ultralytics; this one if not given")
    parser.add_argument("--contestants", type=lambda text: text.split(","), default=list(CONTESTANTS))
    options = parser.parse_args()
    print(header("torch", "torchvision", "timm"), flush=True)
    workers = {name: Worker(name, options) for name in options.contestants}
    rates: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(options.rounds):
        for name, worker in workers.items():
            rates[name].append(worker.turn())
            print(f"  {name}: {rates[name][-1]:.1f} photos/s", flush=True)
    for worker in workers.values():
        worker.process.kill()
    ours = rates.get("ikebana")
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(ours or values, values, strict=True)]
        gflop = workers[name].about["gflop"]
        print(
            f"{name:<12} {spread(values, 1)} photos/s, n = {len(values)}; {gflop:.2f} GFLOP a photo, forward; "
            f"ours / this {spread(ratios)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
