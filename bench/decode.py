"""Compare the decoding throughput of the pixel cache, libjpeg-turbo and torchvision.

    python bench/decode.py --photos DIR [--image-size 150] [--rounds 5] [--count 100 --megapixels 12]

All three read the same files with one worker per processor, interleaved. The first round is dropped
because it warms the file cache. The time of ikebana is `open_pixel_cache` with an empty cache:
sha256, EXIF, colour conversion, the array and its checksums included. libjpeg-turbo decodes through
Pillow at the scale that ikebana uses, and does nothing else. torchvision applies the same resize to
an ImageFolder in a DataLoader. --megapixels first enlarges --count photos and adds camera-like
noise, because users' photos have more than 0.08 megapixels.
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
from machine import format_header, format_spread
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ikebana.data import decoding, pixel_cache, sources
from ikebana.system import progress
from ikebana.system.threads import count_threads

NOISE_STD_GREY_LEVELS = 6.0
JPEG_QUALITY = 90


def read_with_ikebana(photos: Path, side: int) -> int:
    """Fill an empty pixel cache once."""
    cache_folder = tempfile.mkdtemp()
    os.environ["IKEBANA_CACHE"] = cache_folder
    dataset, cache = pixel_cache.open_pixel_cache(sources.read(photos), side, "squash")
    assert cache.pixels.shape[1:] == (side, side, 3)
    count = dataset.used_photos.height
    del cache
    shutil.rmtree(cache_folder)
    return count


def read_with_torchvision(photos: Path, side: int) -> int:
    """Iterate once over an ImageFolder with a DataLoader."""
    resize = v2.Compose([v2.Resize((side, side), antialias=True), v2.PILToTensor()])
    loader = torch.utils.data.DataLoader(ImageFolder(str(photos), resize), batch_size=128, num_workers=count_threads())
    return sum(len(labels) for _, labels in loader)


def decode_with_libjpeg(photos: Path, side: int) -> int:
    """Read and decode every file in a thread pool."""

    def decode(file: Path) -> None:
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            image.draft(None, (decoding.JPEG_DRAFT_SCALE * side, decoding.JPEG_DRAFT_SCALE * side))  # pyright: ignore[reportArgumentType]
            image.load()

    files = sorted(photos.glob("*/*.jpg"))
    with ThreadPoolExecutor(count_threads()) as pool:
        return sum(1 for _ in pool.map(decode, files))


def enlarge(photos: Path, count: int, megapixels: float, folder: Path) -> Path:
    """Enlarge `count` evenly spaced photos and add camera-like noise."""
    files = sorted(photos.glob("*/*.jpg"))
    rng = np.random.default_rng(0)
    for file in files[:: max(1, len(files) // count)][:count]:
        with Image.open(file) as image:
            scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
            large = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
        values = np.asarray(large) + rng.normal(0, NOISE_STD_GREY_LEVELS, (large.height, large.width, 1)).astype(
            np.float32
        )
        target = folder / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(target, quality=JPEG_QUALITY)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--image-size", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--megapixels", type=float)
    options = parser.parse_args()
    progress.set_reporter(progress.SilentReporter())
    readers = {"ikebana": read_with_ikebana, "libjpeg-turbo": decode_with_libjpeg, "torchvision": read_with_torchvision}
    rates: dict[str, list[float]] = {name: [] for name in readers}
    with tempfile.TemporaryDirectory() as scratch:
        photos = options.photos
        if options.megapixels:
            photos = enlarge(photos, options.count, options.megapixels, Path(scratch))
        for number in range(options.rounds + 1):
            for name, read in readers.items():
                start = time.perf_counter()
                count = read(photos, options.image_size)
                if number:
                    rates[name].append(count / (time.perf_counter() - start))
    print(format_header("pillow", "torch", "torchvision"))
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, rates["ikebana"], strict=True)]
        print(
            f"{name:<14} {format_spread(values, 0)} photos/s, n = {len(values)}; "
            f"ratio to ikebana per round: {format_spread(ratios)}"
        )


if __name__ == "__main__":
    main()
