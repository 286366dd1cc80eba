"""Measure recall and false pairs of the near-duplicate search on generated copies.

    python bench/near_duplicates.py --photos DIR [--seeds 0,1,2] [--each 40] [--sheet FILE.jpg]
    python bench/near_duplicates.py --drawn 10000
    python bench/near_duplicates.py --planted 1000000 [--copies 1440] [--queries 4096] [--recoloured]

Links the photos into a folder and adds copies of some of them: resized to 50 to 80 %, re-encoded at
quality 50 to 80, cropped by up to 10 % per side, mirrored, rotated by 90, 180 or 270 degrees, and
all of these combined. The search is that of `ikebana audit`. A pair is false if it was not added,
is not found in the original photos, and does not follow from such pairs. --sheet draws all pairs of
the original photos side by side, for visual inspection.

`--drawn N` instead searches N small drawings (64 px, as in the pixel cache), a tenth of them
mirrored copies. It reports seconds, peak anonymous memory and recall.

`--planted N` searches N such drawings, among them copies of the kinds above, made from drawings of
256 px. Only originals and copies, and some others for the time per photo, are queries. Each pair is
found or missed as in a search of all photos, which takes N times the time per photo. --recoloured
also changes contrast by up to 5% and each colour by up to 3 levels. The thumbnails take 12 kB per
photo below IKEBANA_CACHE.
"""

import argparse
import io
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
from ikebana.data.duplicates import near_duplicates, search
from ikebana.data.pixel_cache import PixelCache
from ikebana.data.split import find_connected_components
from ikebana.system import progress
from ikebana.system.cache_folder import cache_folder

# Width and height of a photo on the sheet.
CELL_PIXELS = 200


def resize(photo: Image.Image, rng: random.Random) -> Image.Image:
    share = rng.uniform(0.5, 0.8)
    return photo.resize(
        (max(1, round(photo.width * share)), max(1, round(photo.height * share))), Image.Resampling.LANCZOS
    )


def crop(photo: Image.Image, rng: random.Random) -> Image.Image:
    left, top, right, bottom = (rng.uniform(0, 0.1) for _ in range(4))
    width, height = photo.size
    return photo.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def mirror(photo: Image.Image, _: random.Random) -> Image.Image:
    return ImageOps.mirror(photo)


def rotate(photo: Image.Image, rng: random.Random) -> Image.Image:
    return photo.rotate(rng.choice((90, 180, 270)), expand=True)


def combine(photo: Image.Image, rng: random.Random) -> Image.Image:
    return resize(rng.choice((mirror, rotate))(crop(photo, rng), rng), rng)


# The transformation, and the range of the JPEG quality at which the copy is saved.
COPY_KINDS = {
    "resized": (resize, (90, 90)),
    "saved again": (lambda photo, _: photo, (50, 80)),
    "cropped": (crop, (90, 90)),
    "mirrored": (mirror, (90, 90)),
    "turned": (rotate, (90, 90)),
    "several": (combine, (50, 80)),
}


def add_copies(photos: Path, folder: Path, copies_per_kind: int, seed: int) -> dict[str, tuple[str, str]]:
    """Link all photos and add copies.

    Returns: {path of a copy: (kind, path of its original)}
    """
    files = sorted(file for file in photos.glob("*/*") if file.is_file())
    for file in files:
        target = folder / file.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file.resolve())
    rng = random.Random(seed)
    originals = rng.sample(files, copies_per_kind * len(COPY_KINDS))
    copies = {}
    for number, file in enumerate(originals):
        kind = list(COPY_KINDS)[number % len(COPY_KINDS)]
        change, (low, high) = COPY_KINDS[kind]
        original = file.relative_to(photos).as_posix()
        copy = f"{Path(original).parent}/copy {number}.jpg"
        with Image.open(file) as photo:
            change(photo.convert("RGB"), rng).save(folder / copy, quality=rng.randint(low, high))
        copies[copy] = kind, original
    return copies


def find_near_duplicates(photos: Path) -> tuple[Dataset, PixelCache, float]:
    """Search a folder for near-duplicates.

    Returns: the dataset with its near-duplicates, the pixel cache, and the seconds of the search
    """
    dataset, cache = pixel_cache.open_pixel_cache(sources.read(photos), 32, "squash")
    start = time.perf_counter()
    result = near_duplicates.find_near_duplicates(dataset, cache)
    return result, cache, time.perf_counter() - start


def list_pairs(dataset: Dataset) -> dict[frozenset[str], str]:
    """List {two paths: transformation}, exact duplicates included."""
    paths = dataset.photos["path"].to_list()
    near = {frozenset((paths[pair.first], paths[pair.second])): pair.transformation for pair in dataset.near_duplicates}
    identical = dataset.photos.group_by("sha256").agg("path")["path"].to_list()
    return near | {frozenset((names[0], name)): "the same bytes" for names in identical for name in names[1:]}


def connect_pairs(pairs: set[frozenset[str]]) -> set[frozenset[str]]:
    """Return all pairs of photos in the same connected component."""
    names = sorted(set().union(*pairs)) if pairs else []
    row = {name: number for number, name in enumerate(names)}
    groups = find_connected_components((row[min(pair)], row[max(pair)]) for pair in pairs)
    return {
        frozenset((names[first], names[second]))
        for group in groups
        for first in group
        for second in group
        if first < second
    }


def measure_recall(photos: Path, seeds: list[int], copies_per_kind: int, sheet: Path | None) -> None:
    untouched, cache, seconds = find_near_duplicates(photos)
    untouched_pairs = list_pairs(untouched)
    print(
        f"untouched: {untouched.used_photos.height} photos, {len(untouched_pairs)} pairs, {seconds:.1f} s", flush=True
    )
    if sheet is not None:
        draw_sheet(untouched, cache, sheet)
    recalls, times = {kind: [] for kind in COPY_KINDS}, []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as scratch:
            copies = add_copies(photos, Path(scratch), copies_per_kind, seed)
            dataset, _, seconds = find_near_duplicates(Path(scratch))
            found_pairs = list_pairs(dataset)
        by_kind = {kind: [] for kind in COPY_KINDS}
        for copy, (kind, original) in copies.items():
            by_kind[kind].append(frozenset((copy, original)) in found_pairs)
        expected = connect_pairs(
            {frozenset((copy, original)) for copy, (_, original) in copies.items()} | untouched_pairs.keys()
        )
        false_pairs = [
            (sorted(pair), transformation) for pair, transformation in found_pairs.items() if pair not in expected
        ]
        times.append(seconds)
        for kind, hits in by_kind.items():
            recalls[kind].append(sum(hits) / len(hits))
        recall_text = "  ".join(f"{kind} {sum(hits)}/{len(hits)}" for kind, hits in by_kind.items())
        print(f"seed {seed}: {recall_text}; false pairs {len(false_pairs)}; {seconds:.1f} s", flush=True)
        for names, transformation in false_pairs:
            print(f"  false: {names[0]}  {names[1]}  {transformation}", flush=True)
    print("recall: " + "  ".join(f"{kind} {format_spread(values, 3)}" for kind, values in recalls.items()))
    print(f"search seconds: {format_spread(times, 1)}")


def draw_sheet(dataset: Dataset, cache: PixelCache, file: Path) -> None:
    """Draw all near-duplicates of the original photos side by side."""
    paths = dataset.photos["path"].to_list()
    cells = []
    for pair in dataset.near_duplicates:
        cell = Image.new("RGB", (2 * CELL_PIXELS, CELL_PIXELS + 16), "white")
        for column, row in enumerate((pair.first, pair.second)):
            cell.paste(
                Image.open(dataset.resolve_path(paths[row])).convert("RGB").resize((CELL_PIXELS, CELL_PIXELS)),
                (column * CELL_PIXELS, 16),
            )
        text = f"{pair.similarity:.2f} {pair.transformation}: {paths[pair.first]} {paths[pair.second]}"
        ImageDraw.Draw(cell).text((2, 2), text[:66], fill="black")
        cells.append(cell)
    columns = 4
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (2 * CELL_PIXELS + 8), max(rows, 1) * (CELL_PIXELS + 16)), "white")
    for number, cell in enumerate(cells):
        sheet.paste(cell, (number % columns * (2 * CELL_PIXELS + 8), number // columns * (CELL_PIXELS + 16)))
    sheet.save(file)


def draw_picture(rng: np.random.Generator, size: int = 64) -> Image.Image:
    """Draw random shapes on a smooth background."""
    ground = Image.fromarray(rng.integers(0, 256, (5, 5, 3)).astype(np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    factor = size / 64
    draw = ImageDraw.Draw(ground)
    for _ in range(6):
        x, y, wide, high = (int(number) for number in rng.integers(2, 50, 4))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        box = (x * factor, y * factor, (x + wide // 2) * factor, (y + high // 2) * factor)
        shape(box, fill=tuple(int(level) for level in rng.integers(0, 256, 3)))
    return ground


def measure_search_time(number: int) -> None:
    """Measure seconds and memory of the search among `number` drawings."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "small.npy"
        pixel_cache.reserve_array(file, (number, 64, 64, 3), np.dtype(np.uint8))
        photos = np.load(file, mmap_mode="r+")
        originals = number - number // 10
        for row in range(originals):
            photos[row] = np.asarray(draw_picture(rng))
        for row in range(originals, number):
            photos[row] = photos[row - originals][:, ::-1]
        process, peak_memory, is_done = psutil.Process(), [0.0], threading.Event()

        def sample_memory() -> None:
            while not is_done.wait(0.02):
                memory = process.memory_info()
                peak_memory[0] = max(peak_memory[0], (memory.rss - memory.shared) / 1e6)

        memory_before = (process.memory_info().rss - process.memory_info().shared) / 1e6
        watcher = threading.Thread(target=sample_memory)
        watcher.start()
        start, cpu_seconds = time.perf_counter(), time.process_time()
        results = near_duplicates.find_pairs(photos, np.arange(number))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_seconds
        is_done.set()
        watcher.join()
    expected = {(row - originals, row) for row in range(originals, number)}
    found_pairs = {(first, second) for first, second, _, _ in results}
    print(
        f"{number:,} drawings: {seconds:.1f} s, CPU {cpu_seconds:.1f} s, {cpu_seconds / number * 1e3:.2f} ms per photo; "
        f"anonymous memory {memory_before:.0f} MB before, "
        f"peak {peak_memory[0]:.0f} MB; "
        f"recall {len(expected & found_pairs) / len(expected):.4f}, other pairs {len(found_pairs - expected)}"
    )


def plant_copies(photos: np.ndarray, copies: int, is_recoloured: bool) -> None:
    """Draw all photos; the last ones are copies of the first ones, kind by kind."""
    drawing_rng, rng = np.random.default_rng(1), random.Random(0)
    kinds = [*COPY_KINDS.values()]
    for row in range(copies):
        original = draw_picture(np.random.default_rng([0, row]), 256)
        photos[row] = _make_thumbnail(original)
        change, (low, high) = kinds[row % len(kinds)]
        source = original
        if is_recoloured:
            shift = np.array([rng.uniform(-3, 3) for _ in range(3)])
            levels = np.asarray(original, np.float32) * rng.uniform(0.95, 1.05) + shift
            source = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
        stream = io.BytesIO()
        change(source, rng).save(stream, "JPEG", quality=rng.randint(low, high))
        photos[len(photos) - copies + row] = _make_thumbnail(Image.open(stream))
    for row in range(copies, len(photos) - copies):
        photos[row] = np.asarray(draw_picture(drawing_rng))


def _make_thumbnail(photo: Image.Image) -> np.ndarray:
    return np.asarray(photo.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC))


def measure_planted(number: int, copies: int, queries: int, is_recoloured: bool) -> None:
    """Measure the recall of planted copies and the time per photo among `number` drawings."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        file = Path(scratch) / "small.npy"
        pixel_cache.reserve_array(file, (number, 64, 64, 3), np.dtype(np.uint8))
        photos, rows = np.load(file, mmap_mode="r+"), np.arange(number)
        plant_copies(photos, copies, is_recoloured)
        seconds, matches = [], []
        with search.CopySearch(photos, rows) as copies_search:
            # The first photo shows what the description of all photos takes.
            for part in (
                range(copies, copies + 1),
                range(copies, copies + queries),
                range(copies),
                range(number - copies, number),
            ):
                start = time.process_time()
                matches.append(copies_search.find_matches(part))
                seconds.append(time.process_time() - start)
    pairs = {(first, second) for first, second, *_ in search.list_pairs(matches)}
    is_found = np.array([(row, number - copies + row) in pairs for row in range(copies)])
    kinds = "  ".join(
        f"{kind} {is_found[place :: len(COPY_KINDS)].sum()}/{len(is_found[place :: len(COPY_KINDS)])}"
        for place, kind in enumerate(COPY_KINDS)
    )
    print(
        f"{number:,} drawings: {is_found.sum()} of {copies} copies found ({kinds}), other pairs {len(pairs) - is_found.sum()}; "
        f"CPU per photo: description {seconds[0] / number * 1e3:.2f} ms, "
        f"search {seconds[1] / queries * 1e3:.2f} ms, of originals {seconds[2] / copies * 1e3:.2f}, "
        f"of copies {seconds[3] / copies * 1e3:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--each", type=int, default=40)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--drawn", type=int)
    parser.add_argument("--planted", type=int)
    parser.add_argument("--copies", type=int, default=1440)
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--recoloured", action="store_true")
    options = parser.parse_args()
    progress.set_reporter(progress.SilentReporter())
    print(format_header("numpy", "pillow", "scipy"), flush=True)
    if options.drawn:
        measure_search_time(options.drawn)
    elif options.planted:
        measure_planted(options.planted, options.copies, options.queries, options.recoloured)
    elif options.photos:
        measure_recall(options.photos, [int(seed) for seed in options.seeds.split(",")], options.each, options.sheet)
    else:
        sys.exit("--photos DIR, --drawn N or --planted N")


if __name__ == "__main__":
    main()
