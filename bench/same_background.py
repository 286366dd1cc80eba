"""Compare poor copies of photos with different things before the same background.

    python bench/same_background.py --photos DIR [--count 900] [--seed 0]

Copies are cropped by up to 10 % per side, some mirrored or turned, reduced to 15 to 60 %, some
blurred, and saved at JPEG quality 8 to 70. For the other kind, two photos' detail is pasted into an
ellipse of 5 to 25 % of a third photo, which keeps its own colours. For each range of similarity,
prints how many pairs there are, and the lowest correlation of any patch: its minimum, median and
maximum, and the share above the threshold.
"""

import argparse
import io
import itertools
import random
from pathlib import Path

import numpy as np
from machine import format_header
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from ikebana.data.duplicates import similarity
from ikebana.data.duplicates.candidates import (
    COLOUR_BANDS,
    UNCROPPED_WINDOW,
    WINDOW_CROPS,
    CandidateIndex,
    compute_invariants,
    describe_photos,
    describe_shapes,
    lift_descriptions,
)
from ikebana.data.pixel_cache import THUMBNAIL_SIZE

# The last bound is above 1, so that similarities of 1 are included.
RANGES = (0.8, 0.83, 0.86, 0.9, 1.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--count", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(format_header("numpy", "pillow"), flush=True)
    # So that all pairs count that the other checks accept.
    similarity.MIN_UNIFORM_CORRELATION = 0.0
    rng = random.Random(options.seed)
    files = rng.sample(sorted(file for file in options.photos.glob("*/*") if file.is_file()), options.count)
    results: dict[str, list[tuple[float, float]]] = {"copies": [], "other things": []}
    for file in files:
        photo = _open(file)
        results["copies"] += compare(photo, make_poor_copy(photo, rng))
        first, second = (_open(rng.choice(files)).resize(photo.size) for _ in range(2))
        results["other things"] += compare(*place_things(photo, first, second, rng))
    for name, pairs in results.items():
        print(f"{name}: {len(pairs)} pairs similar enough to be compared")
        print_ranges(np.array(pairs).reshape(-1, 2))


def _open(file: Path) -> Image.Image:
    with Image.open(file) as photo:
        return photo.convert("RGB")


def _save_again(photo: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    photo.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def make_poor_copy(photo: Image.Image, rng: random.Random) -> Image.Image:
    """Crop, mirror or turn, reduce, blur and save with many artefacts."""
    left, top, right, bottom = (rng.uniform(0, 0.1) for _ in range(4))
    width, height = photo.size
    box = round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height)
    copy = rng.choice((ImageOps.mirror, lambda crop: crop.rotate(90, expand=True), lambda crop: crop))(photo.crop(box))
    share = rng.choice((0.15, 0.25, 0.4, 0.6))
    copy = copy.resize(
        (max(8, round(copy.width * share)), max(8, round(copy.height * share))), Image.Resampling.LANCZOS
    )
    if rng.random() < 0.3:
        copy = copy.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    return _save_again(copy, rng.choice((8, 12, 20, 40, 70)))


def place_things(
    background: Image.Image, first: Image.Image, second: Image.Image, rng: random.Random
) -> tuple[Image.Image, Image.Image]:
    """Give an ellipse of the background the detail of one photo, and of another."""
    width, height = background.size
    share = rng.uniform(0.05, 0.25)
    radius_x, radius_y = (side * (share / np.pi) ** 0.5 * rng.uniform(0.8, 1.25) for side in (width, height))
    x, y = rng.uniform(radius_x, width - radius_x), rng.uniform(radius_y, height - radius_y)
    mask = Image.new("L", background.size)
    ImageDraw.Draw(mask).ellipse((x - radius_x, y - radius_y, x + radius_x, y + radius_y), fill=255)
    mask, blur = mask.filter(ImageFilter.GaussianBlur(2)), ImageFilter.GaussianBlur(rng.choice((4, 6, 10, 15)))
    colours = np.asarray(background.filter(blur), float)
    results = []
    for thing in (first, second):
        levels = colours + np.asarray(thing, float) - np.asarray(thing.filter(blur), float)
        result = background.copy()
        result.paste(Image.fromarray(levels.clip(0, 255).astype(np.uint8)), (0, 0), mask)
        results.append(result)
    return results[0], _save_again(results[1], 80)


def compare(first: Image.Image, second: Image.Image) -> list[tuple[float, float]]:
    """Return the similarity, and the lowest correlation of a patch.

    Empty for pairs that another check excludes.
    """
    size = (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    squares = np.stack([np.asarray(photo.resize(size, Image.Resampling.BILINEAR)) for photo in (first, second)])
    grey = np.rint(squares.astype(np.float32) @ COLOUR_BANDS[0]).astype(np.uint8)
    colour = np.rint(similarity.average_blocks(squares, similarity.COLOUR_SIZE)).astype(np.uint8)
    descriptions = describe_photos(squares)
    uncropped = descriptions[:, UNCROPPED_WINDOW]
    shapes = describe_shapes(compute_invariants(uncropped))
    pairs = CandidateIndex(uncropped, lift_descriptions(uncropped), shapes).find_candidates(range(1), descriptions[:1])
    if not len(pairs.first):
        return []
    left, right = (similarity.ReducedImages(grey[rows], colour[rows]) for rows in (pairs.first, pairs.second))
    details = similarity.compare_pairs(left, right, WINDOW_CROPS[pairs.window], pairs.symmetry)
    if not details.is_duplicate[0]:
        return []
    return [(float(details.correlation[0]), float(details.patch_correlation[0]))]


def print_ranges(pairs: np.ndarray) -> None:
    """Print the lowest correlations of patches by range of similarity."""
    for low, high in itertools.pairwise(RANGES):
        lowest = pairs[(pairs[:, 0] >= low) & (pairs[:, 0] < high), 1]
        if len(lowest):
            above = (lowest >= similarity.MIN_PATCH_CORRELATION).mean()
            print(
                f"  similarity {low} to {min(high, 1)}: {len(lowest)} pairs, lowest patch {lowest.min():.2f}, "
                f"median {np.median(lowest):.2f}, highest {lowest.max():.2f}; {above:.1%} pass"
            )


if __name__ == "__main__":
    main()
