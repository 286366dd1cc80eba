"""Compare the fine-tuning throughput of ikebana with common training loops.

    python bench/finetune.py --photos DIR [--rounds 3] [--steps 12] [--peer-python ENV/bin/python] [--contestants A,B]

Each contestant is a separate process. They run alternately, some steps each, while the others wait:
    ikebana       a step of `good`: EfficientNet-Lite0 at 224 px, trained from its third stage on,
                  with augmentation and weight averaging (EMA)
    naive         the same network and layers in a simple torch loop: ImageFolder, a DataLoader with
                  one worker per processor, RandomResizedCrop and flip, float32, AdamW
    reference     the defaults of torchvision's reference script for classification: all layers, SGD
                  with momentum 0.9, float32, the same photos and augmentation as `naive`
    ultralytics   the trainer of its classifier with its own smallest network, random weights, at
                  224 px (another network: compare photos/s per GFLOP)
The throughput is that of complete steps, decoding and augmentation included. The first steps of
each turn are dropped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from machine import format_header, format_spread

CONTESTANTS = ("ikebana", "naive", "reference", "ultralytics")


class Worker:
    """A contestant's process, which answers each line on standard input with one line."""

    def __init__(self, name: str, options: argparse.Namespace):
        python = options.peer_python if name == "ultralytics" and options.peer_python else sys.executable
        worker = Path(__file__).with_name("finetune_worker.py")
        command = [python, str(worker), name, str(options.photos), str(options.steps)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self.read_answer()

    def read_answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # Libraries may print other lines.
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"a contestant exited with status {self.process.wait()}")

    def measure_rate(self) -> float:
        """Let the contestant run some steps, and return photos per second."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.read_answer()["rate"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--peer-python", help="a Python with ultralytics; default this one")
    parser.add_argument("--contestants", type=lambda text: text.split(","), default=list(CONTESTANTS))
    options = parser.parse_args()
    print(format_header("torch", "torchvision", "timm"), flush=True)
    workers = {name: Worker(name, options) for name in options.contestants}
    rates: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(options.rounds):
        for name, worker in workers.items():
            rates[name].append(worker.measure_rate())
            print(f"  {name}: {rates[name][-1]:.1f} photos/s", flush=True)
    for worker in workers.values():
        worker.process.kill()
    ours = rates.get("ikebana")
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(ours or values, values, strict=True)]
        gflop = workers[name].facts["gflop"]
        print(
            f"{name:<12} {format_spread(values, 1)} photos/s, n = {len(values)}; {gflop:.2f} GFLOP per photo, forward; "
            f"ours / this {format_spread(ratios)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
