"""Photos a second into the pixel cache, against torchvision's ImageFolder in a DataLoader doing the same resize.

    python bench/decode.py --photos DIR [--side 150] [--rounds 5]

Both read the same files with as many workers as there are processors, interleaved, the first round dropped (it warms
the file cache). ikebana's time is a cold `kept.opened`: sha256, EXIF, colour, the array and its checksums included.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
from machine import header, spread
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ikebana import progress
from ikebana.photos import intake, kept


def ours(photos: Path, side: int) -> int:
    """One cold run into an empty cache."""
    cache = tempfile.mkdtemp()
    os.environ["IKEBANA_CACHE"] = cache
    opened, keep = kept.opened(intake.read(photos), side, "squash")
    assert keep.pixels.shape[1:] == (side, side, 3)
    count = opened.used.height
    del keep
    shutil.rmtree(cache)
    return count


def torchvisions(photos: Path, side: int) -> int:
    """One pass of a DataLoader over an ImageFolder."""
    resize = v2.Compose([v2.Resize((side, side), antialias=True), v2.PILToTensor()])
    loader = torch.utils.data.DataLoader(ImageFolder(str(photos), resize), batch_size=128, num_workers=kept.threads())
    return sum(len(labels) for _, labels in loader)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--photos", type=Path, required=True)
    flags.add_argument("--side", type=int, default=150)
    flags.add_argument("--rounds", type=int, default=5)
    chosen = flags.parse_args()
    progress.listen(progress.Silence())
    rates: dict[str, list[float]] = {"ikebana": [], "torchvision": []}
    for number in range(chosen.rounds + 1):
        for name, read in (("ikebana", ours), ("torchvision", torchvisions)):
            begun = time.perf_counter()
            count = read(chosen.photos, chosen.side)
            if number:
                rates[name].append(count / (time.perf_counter() - begun))
    print(header("pillow", "torch", "torchvision"))
    for name, values in rates.items():
        print(f"{name:<12} {spread(values, 0)} photos/s, n = {len(values)}")
    ratios = [a / b for a, b in zip(rates["ikebana"], rates["torchvision"], strict=True)]
    print(f"ikebana / torchvision, round by round: {spread(ratios)}")


if __name__ == "__main__":
    main()
