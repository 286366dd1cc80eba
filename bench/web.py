"""The exported page against Python: what a browser says of test photos, and how far that is from what the model file says here.

    python bench/web.py --run RUN [--where DIR] [--count 100] [--megapixels N] [--picture FILE.png]

RUN is a finished run; its photos lie where they were, or in DIR. Needs Chromium and npm. The photos are spread evenly over the
test part. Differences come from decoding alone: the graph is the same, to the bit. --megapixels enlarges
copies of the photos to that size first, JPEG quality 90, as they come from a phone: both sides then decode at reduced scale.
"""

import argparse
import functools
import http.server
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
from machine import format_header
from PIL import Image

import ikebana

TIE = 0.02  # two probabilities that near are no order


class Files(http.server.SimpleHTTPRequestHandler):
    """A host of files that says nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the name is the standard library's
        pass


@contextmanager
def hosted(folder: Path) -> Iterator[str]:
    """The folder's address."""
    handler = functools.partial(Files, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_photos(run: ikebana.Run, where: Path | None, count: int) -> list[Path]:
    """So many of them, evenly spread."""
    folder = where or Path(run.source["photos"])
    paths = run.dataset.filter(pl.col("split") == "test")["path"].sort().to_list()
    step = max(len(paths) // count, 1)
    return [folder / path for path in paths[::step][:count]]


def enlarged(photos: list[Path], megapixels: float, folder: Path) -> list[Path]:
    """Copies of that size."""
    copies = []
    for number, photo in enumerate(photos):
        with Image.open(photo) as image:
            scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
            size = round(image.width * scale), round(image.height * scale)
            copies.append(folder / f"{number}.jpg")
            image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(copies[-1], quality=90)
    return copies


def in_browser(address: str, photos: list[Path], picture: Path | None) -> tuple[list[dict[str, float]], float, float]:
    """What the page shows for each, in order; seconds to the page's first answer, and for each photo after it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        start = time.perf_counter()
        page.goto(address)
        page.wait_for_selector("body[data-ready]", timeout=120_000)
        asked(page, photos[:1])
        first = time.perf_counter() - start
        start = time.perf_counter()
        asked(page, photos[1:])
        each = (time.perf_counter() - start) / (len(photos) - 1)
        if picture:
            page.wait_for_timeout(800)
            page.screenshot(path=picture)
        *later, earliest = page.locator(".card").all()  # what was given last lies on top
        return [shares(card) for card in (earliest, *later)], first, each


def asked(page, photos: list[Path]) -> None:
    page.set_input_files("#choose", [str(photo) for photo in photos])
    while page.locator(".card.waiting").count():
        page.wait_for_timeout(50)


def shares(card) -> dict[str, float]:
    """The bars' own numbers, which are not rounded."""
    values = card.locator(".fill").evaluate_all("all => all.map(each => +each.style.getPropertyValue('--share'))")
    return dict(zip(card.locator(".label").all_inner_texts(), values, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--where", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--megapixels", type=float)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    print(format_header("onnxruntime", "pillow", "playwright"), flush=True)
    run = ikebana.open_run(options.run)
    photos = test_photos(run, options.where, options.count)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "web"
        if options.megapixels:
            photos = enlarged(photos, options.megapixels, Path(scratch))
        classifier = ikebana.export_web(run, folder, photos=options.where)
        sizes = {each.name: each.stat().st_size / 1e6 for each in folder.rglob("*") if each.is_file()}
        print(
            f"{sum(sizes.values()):.1f} MB in {len(sizes)} files, of them",
            {k: round(v, 1) for k, v in sizes.items() if v > 1},
        )
        with hosted(folder) as address:
            seen, first, each = in_browser(address, photos, options.picture)
        differences, otherwise = [], 0
        for photo, said in zip(photos, seen, strict=True):
            expected = classifier.predict(photo).probabilities
            differences += [abs(said[name] - share) for name, share in expected.items()]
            best = max(said, key=lambda name: said[name])
            otherwise += max(expected.values()) - expected[best] > TIE
    print(
        f"{len(photos)} test photos: top-1 the same in {len(photos) - otherwise} (ties within {TIE} apart); probabilities "
        f"differ by {statistics.mean(differences):.1e} on average, by {max(differences):.1e} at most\n"
        f"first answer after {first:.1f} s, network loaded; then {each:.3f} s a photo"
    )


if __name__ == "__main__":
    main()
