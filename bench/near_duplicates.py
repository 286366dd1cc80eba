"""Near-twins planted among real photos: how many of each kind are found, and what else is taken for twins?

    python bench/near_duplicates.py --photos DIR [--seeds 0,1,2] [--each 40] [--sheet FILE.jpg]
    python bench/near_duplicates.py --drawn 10000

A folder of links to the photos, and beside them copies of some: resized to 50 to 80 %, saved again at quality 50 to 80, cropped
by up to 10 % a side, mirrored, turned by quarters; and one row of cropped, turned or mirrored, resized and saved again. The
search is the audit's own (`photos/twins.py`). A pair is false if it was neither planted, nor found without the planted ones, nor
follows from these; all pairs of the untouched photos are drawn side by side on a sheet, for eyes to judge.

`--drawn N` instead makes N drawings in small (64 px, as they are kept), a tenth of them mirrored copies, and reports seconds
of the search, the peak of its anonymous memory, and the recall.
"""

import argparse
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from machine import format_header, format_spread
from PIL import Image, ImageDraw, ImageOps

from ikebana.data import pixel_cache, sources
from ikebana.data.dataset import Dataset
from ikebana.data.duplicates import near_duplicates
from ikebana.data.pixel_cache import PixelCache
from ikebana.data.split import find_connected_components
from ikebana.system import progress

CELL = 200  # pixels of a photo on the sheet


def resized(photo: Image.Image, dice: random.Random) -> Image.Image:
    share = dice.uniform(0.5, 0.8)
    return photo.resize(
        (max(1, round(photo.width * share)), max(1, round(photo.height * share))), Image.Resampling.LANCZOS
    )


def cropped(photo: Image.Image, dice: random.Random) -> Image.Image:
    left, top, right, bottom = (dice.uniform(0, 0.1) for _ in range(4))
    width, height = photo.size
    return photo.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def mirrored(photo: Image.Image, _: random.Random) -> Image.Image:
    return ImageOps.mirror(photo)


def turned(photo: Image.Image, dice: random.Random) -> Image.Image:
    return photo.rotate(dice.choice((90, 180, 270)), expand=True)


def several(photo: Image.Image, dice: random.Random) -> Image.Image:
    return resized(dice.choice((mirrored, turned))(cropped(photo, dice), dice), dice)


# What is done, and the JPEG qualities it is saved at afterwards.
KINDS = {
    "resized": (resized, (90, 90)),
    "saved again": (lambda photo, _: photo, (50, 80)),
    "cropped": (cropped, (90, 90)),
    "mirrored": (mirrored, (90, 90)),
    "turned": (turned, (90, 90)),
    "several": (several, (50, 80)),
}


def plant(photos: Path, place: Path, each: int, seed: int) -> dict[str, tuple[str, str]]:
    """Links to all photos, and the copies: {path of a copy: (kind, path of its original)}."""
    files = sorted(file for file in photos.glob("*/*") if file.is_file())
    for file in files:
        target = place / file.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file.resolve())
    dice = random.Random(seed)
    originals = dice.sample(files, each * len(KINDS))
    planted = {}
    for number, file in enumerate(originals):
        kind = list(KINDS)[number % len(KINDS)]
        change, (low, high) = KINDS[kind]
        original = file.relative_to(photos).as_posix()
        copy = f"{Path(original).parent}/planted {number}.jpg"
        with Image.open(file) as photo:
            change(photo.convert("RGB"), dice).save(place / copy, quality=dice.randint(low, high))
        planted[copy] = kind, original
    return planted


def searched(photos: Path) -> tuple[Dataset, PixelCache, float]:
    """The photos with their twins, and the seconds of the search alone."""
    opened, keep = pixel_cache.open_pixel_cache(sources.read(photos), 32, "squash")
    start = time.perf_counter()
    found = near_duplicates.find_near_duplicates(opened, keep)
    return found, keep, time.perf_counter() - start


def pairs(found: Dataset) -> dict[frozenset[str], str]:
    """{two paths: what was done}, exact copies among them."""
    paths = found.photos["path"].to_list()
    near = {frozenset((paths[each.first], paths[each.second])): each.transformation for each in found.near_duplicates}
    same = found.photos.group_by("sha256").agg("path")["path"].to_list()
    return near | {frozenset((names[0], name)): "the same bytes" for names in same for name in names[1:]}


def joined(found: set[frozenset[str]]) -> set[frozenset[str]]:
    """Every two photos that are joined in any number of steps."""
    names = sorted(set().union(*found)) if found else []
    row = {name: number for number, name in enumerate(names)}
    groups = find_connected_components((row[min(pair)], row[max(pair)]) for pair in found)
    return {
        frozenset((names[one], names[other])) for group in groups for one in group for other in group if one < other
    }


def bench(photos: Path, seeds: list[int], each: int, sheet: Path | None) -> None:
    untouched, keep, seconds = searched(photos)
    real = pairs(untouched)
    print(f"untouched: {untouched.used_photos.height} photos, {len(real)} pairs, {seconds:.1f} s", flush=True)
    if sheet is not None:
        draw_sheet(untouched, keep, sheet)
    recalls, times = {kind: [] for kind in KINDS}, []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as scratch:
            planted = plant(photos, Path(scratch), each, seed)
            found, _, seconds = searched(Path(scratch))
            got = pairs(found)
        by_kind = {kind: [] for kind in KINDS}
        for copy, (kind, original) in planted.items():
            by_kind[kind].append(frozenset((copy, original)) in got)
        expected = joined({frozenset((copy, original)) for copy, (_, original) in planted.items()} | real.keys())
        false = [(sorted(pair), how) for pair, how in got.items() if pair not in expected]
        times.append(seconds)
        for kind, hits in by_kind.items():
            recalls[kind].append(sum(hits) / len(hits))
        told = "  ".join(f"{kind} {sum(hits)}/{len(hits)}" for kind, hits in by_kind.items())
        print(f"seed {seed}: {told}; false pairs {len(false)}; {seconds:.1f} s", flush=True)
        for names, how in false:
            print(f"  false: {names[0]}  {names[1]}  {how}", flush=True)
    print("recall: " + "  ".join(f"{kind} {format_spread(values, 3)}" for kind, values in recalls.items()))
    print(f"seconds of the search: {format_spread(times, 1)}")


def draw_sheet(found: Dataset, keep: PixelCache, file: Path) -> None:
    """All twins of the untouched photos side by side."""
    paths = found.photos["path"].to_list()
    cells = []
    for each in found.near_duplicates:
        cell = Image.new("RGB", (2 * CELL, CELL + 16), "white")
        for place, row in enumerate((each.first, each.second)):
            cell.paste(
                Image.open(found.resolve_path(paths[row])).convert("RGB").resize((CELL, CELL)), (place * CELL, 16)
            )
        text = f"{each.similarity:.2f} {each.transformation}: {paths[each.first]} {paths[each.second]}"
        ImageDraw.Draw(cell).text((2, 2), text[:66], fill="black")
        cells.append(cell)
    columns = 4
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (2 * CELL + 8), max(rows, 1) * (CELL + 16)), "white")
    for number, cell in enumerate(cells):
        sheet.paste(cell, (number % columns * (2 * CELL + 8), number // columns * (CELL + 16)))
    sheet.save(file)


def drawing(dice: np.random.Generator) -> Image.Image:
    """A picture of a soft ground and some shapes, no two alike."""
    ground = Image.fromarray(dice.integers(0, 256, (5, 5, 3)).astype(np.uint8)).resize(
        (64, 64), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(ground)
    for _ in range(6):
        x, y, wide, high = (int(number) for number in dice.integers(2, 50, 4))
        shape = draw.ellipse if dice.random() < 0.5 else draw.rectangle
        shape((x, y, x + wide // 2, y + high // 2), fill=tuple(int(level) for level in dice.integers(0, 256, 3)))
    return ground


def scale(number: int) -> None:
    """Seconds and memory of the search among so many drawings."""
    dice = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "small.npy"
        pixel_cache.reserve_array(file, (number, 64, 64, 3), np.dtype(np.uint8))
        photos = np.load(file, mmap_mode="r+")
        originals = number - number // 10
        for row in range(originals):
            photos[row] = np.asarray(drawing(dice))
        for row in range(originals, number):
            photos[row] = photos[row - originals][:, ::-1]
        process, peak, over = psutil.Process(), [0.0], threading.Event()

        def watch() -> None:
            while not over.wait(0.02):
                told = process.memory_info()
                peak[0] = max(peak[0], (told.rss - told.shared) / 1e6)

        base = (process.memory_info().rss - process.memory_info().shared) / 1e6
        watcher = threading.Thread(target=watch)
        watcher.start()
        start, busy = time.perf_counter(), time.process_time()
        found = near_duplicates.find_pairs(photos, np.arange(number))
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        over.set()
        watcher.join()
    expected = {(row - originals, row) for row in range(originals, number)}
    got = {(one, other) for one, other, _, _ in found}
    print(
        f"{number:,} drawings: {seconds:.1f} s, of a processor {busy:.1f} s, {busy / number * 1e3:.2f} ms a photo; "
        f"anonymous memory {base:.0f} MB before, "
        f"{peak[0]:.0f} MB at most; recall {len(expected & got) / len(expected):.4f}, other pairs {len(got - expected)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--each", type=int, default=40)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--drawn", type=int)
    options = parser.parse_args()
    progress.set_reporter(progress.SilentReporter())
    print(format_header("numpy", "pillow", "scipy"), flush=True)
    if options.drawn:
        scale(options.drawn)
    elif options.photos:
        bench(options.photos, [int(seed) for seed in options.seeds.split(",")], options.each, options.sheet)
    else:
        sys.exit("--photos DIR or --drawn N")


if __name__ == "__main__":
    main()
