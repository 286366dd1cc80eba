"""Photos a second into the pixel cache, against libjpeg-turbo alone, and torchvision's ImageFolder in a DataLoader doing the same
resize.

    python bench/decode.py --photos DIR [--image-size 150] [--rounds 5] [--count 100 --megapixels 12]

All read the same files with as many workers as there are processors, interleaved, the first round dropped (it warms
the file cache). ikebana's time is a cold `kept.opened`: sha256, EXIF, colour, the array and its checksums included. libjpeg-turbo
decodes as Pillow lets it, at the scale that ikebana would take, and does nothing else. --megapixels enlarges a number of the
photos first, with noise as a camera's, since photos of 0.08 megapixels are not what people have.
"""

import argparse
import io
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from machine import header, spread
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ikebana.data import decoding, pixel_cache, sources
from ikebana.system import progress
from ikebana.system.threads import count_threads

NOISE = 6.0  # grey levels, one standard deviation
QUALITY = 90


def ours(photos: Path, side: int) -> int:
    """One cold run into an empty cache."""
    cache = tempfile.mkdtemp()
    os.environ["IKEBANA_CACHE"] = cache
    opened, keep = pixel_cache.open_pixel_cache(sources.read(photos), side, "squash")
    assert keep.pixels.shape[1:] == (side, side, 3)
    count = opened.used_photos.height
    del keep
    shutil.rmtree(cache)
    return count


def torchvisions(photos: Path, side: int) -> int:
    """One pass of a DataLoader over an ImageFolder."""
    resize = v2.Compose([v2.Resize((side, side), antialias=True), v2.PILToTensor()])
    loader = torch.utils.data.DataLoader(ImageFolder(str(photos), resize), batch_size=128, num_workers=count_threads())
    return sum(len(labels) for _, labels in loader)


def libjpegs(photos: Path, side: int) -> int:
    """Every file read and decoded, by as many threads."""

    def decode(file: Path) -> None:
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            image.draft(None, (decoding.JPEG_DRAFT_SCALE * side, decoding.JPEG_DRAFT_SCALE * side))  # pyright: ignore[reportArgumentType]
            image.load()

    files = sorted(photos.glob("*/*.jpg"))
    with ThreadPoolExecutor(count_threads()) as pool:
        return sum(1 for _ in pool.map(decode, files))


def enlarged(photos: Path, count: int, megapixels: float, folder: Path) -> Path:
    """So many of the photos, spread over all of them, as a camera would have taken them."""
    files = sorted(photos.glob("*/*.jpg"))
    dice = np.random.default_rng(0)
    for file in files[:: max(1, len(files) // count)][:count]:
        with Image.open(file) as image:
            scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
            large = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
        values = np.asarray(large) + dice.normal(0, NOISE, (large.height, large.width, 1)).astype(np.float32)
        place = folder / file.parent.name / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(place, quality=QUALITY)
    return folder


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--photos", type=Path, required=True)
    flags.add_argument("--image-size", type=int, default=150)
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--count", type=int, default=100)
    flags.add_argument("--megapixels", type=float)
    chosen = flags.parse_args()
    progress.set_reporter(progress.SilentReporter())
    ways = {"ikebana": ours, "libjpeg-turbo": libjpegs, "torchvision": torchvisions}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as scratch:
        photos = chosen.photos
        if chosen.megapixels:
            photos = enlarged(photos, chosen.count, chosen.megapixels, Path(scratch))
        for number in range(chosen.rounds + 1):
            for name, read in ways.items():
                begun = time.perf_counter()
                count = read(photos, chosen.image_size)
                if number:
                    rates[name].append(count / (time.perf_counter() - begun))
    print(header("pillow", "torch", "torchvision"))
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, rates["ikebana"], strict=True)]
        print(
            f"{name:<14} {spread(values, 0)} photos/s, n = {len(values)}; times ikebana's, round by round: {spread(ratios)}"
        )


if __name__ == "__main__":
    main()
