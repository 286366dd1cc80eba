"""Compare the predictions of the exported web page with those of Python.

    python bench/web.py --run RUN [--where DIR] [--count 100] [--megapixels N] [--picture FILE.png]

RUN is a finished run. If its photos have moved, DIR has them. Needs Chromium and npm. The photos
are sampled evenly from the test set. Differences come from decoding alone, because the graph is
bit-identical. --megapixels first enlarges copies of the photos (JPEG quality 90), as large as those
of a phone. Both sides then decode at a reduced scale. Familiarity, candidates and status are compared
too, with the worker of the page.
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
from typing import Any

import polars as pl
from machine import format_header
from PIL import Image

import ikebana

MAX_TIE_DIFFERENCE = 0.02
# Defines `predictPhoto` in the page: the name of a file beside it → the prediction of the worker.
START_WORKER = """() => {
  const worker = new Worker("engine-worker.js", { type: "module" });
  window.predictPhoto = async (name) => {
    const blob = await (await fetch(name)).blob();
    return new Promise((resolve, reject) => {
      worker.onmessage = ({ data }) => (data.error ? reject(new Error(data.error)) : resolve(data.result));
      worker.postMessage({ id: 0, file: new File([blob], name, { type: blob.type }) });
    });
  };
}"""
# The page shows no more photos.
MAX_SHOWN_PHOTOS = 500


class SilentHandler(http.server.SimpleHTTPRequestHandler):
    """A file server without a log."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the name is the standard library's
        pass


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Serve a folder, and yield its URL."""
    handler = functools.partial(SilentHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def choose_test_photos(run: ikebana.Run, where: Path | None, count: int) -> list[Path]:
    """Choose `count` test photos, evenly spaced."""
    folder = where or Path(run.source["photos"])
    paths = run.dataset.filter(pl.col("split") == "test")["path"].sort().to_list()
    step = max(len(paths) // count, 1)
    return [folder / path for path in paths[::step][:count]]


def enlarge(photos: list[Path], megapixels: float, folder: Path) -> list[Path]:
    """Enlarge copies of the photos to this size."""
    copies = []
    for number, photo in enumerate(photos):
        with Image.open(photo) as image:
            scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
            size = round(image.width * scale), round(image.height * scale)
            copies.append(folder / f"{number}.jpg")
            image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(copies[-1], quality=90)
    return copies


def predict_in_browser(
    address: str, photos: list[Path], picture: Path | None
) -> tuple[list[dict[str, float]], float, float]:
    """Predict the photos with the page.

    Returns: the probabilities per photo, seconds to the first prediction, seconds per later photo
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        start = time.perf_counter()
        page.goto(address)
        page.wait_for_selector("body[data-ready]", timeout=120_000)
        submit_photos(page, photos[:1])
        first = time.perf_counter() - start
        start = time.perf_counter()
        submit_photos(page, photos[1:])
        seconds_per_photo = (time.perf_counter() - start) / (len(photos) - 1)
        if picture:
            page.wait_for_timeout(800)
            page.screenshot(path=picture)
        # The page shows the newest card first.
        *later, earliest = page.locator(".card").all()
        return [read_probabilities(card) for card in (earliest, *later)], first, seconds_per_photo


def predict_in_worker(address: str, photos: list[Path], folder: Path) -> list[dict[str, Any]]:
    """Predict the photos with the page's worker, which returns more than the page shows.

    Args:
        folder: that of the page; the photos are copied into it, so that the page can read them.
    """
    from playwright.sync_api import sync_playwright

    for number, photo in enumerate(photos):
        shutil.copyfile(photo, folder / f"photo-{number}{photo.suffix}")
    names = [f"photo-{number}{photo.suffix}" for number, photo in enumerate(photos)]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("body[data-ready]", timeout=120_000)
        page.evaluate(START_WORKER)
        return [page.evaluate("(name) => predictPhoto(name)", name) for name in names]


def submit_photos(page, photos: list[Path]) -> None:
    page.set_input_files("#choose", [str(photo) for photo in photos])
    while page.locator(".card.waiting").count():
        page.wait_for_timeout(50)


def read_probabilities(card) -> dict[str, float]:
    """Read the unrounded probabilities from the bars."""
    values = card.locator(".fill").evaluate_all("all => all.map(each => +each.style.getPropertyValue('--share'))")
    return dict(zip(card.locator(".label").all_inner_texts(), values, strict=True))


def compare_worker(of_worker: list[dict[str, Any]], expected: list[ikebana.Prediction]) -> None:
    """Print how often status and candidates agree, and how much familiarity differs."""
    pairs = list(zip(of_worker, expected, strict=True))
    same_status = sum(result["status"] == prediction.status for result, prediction in pairs)
    same_candidates = sum(tuple(result["candidates"]) == prediction.candidates for result, prediction in pairs)
    differences = [
        abs(result["familiarity"] - prediction.familiarity)
        for result, prediction in pairs
        if prediction.familiarity is not None
    ]
    print(
        f"{len(pairs)} test photos: same status for {same_status}, same candidates for {same_candidates}; familiarity "
        f"differs by {statistics.mean(differences):.1e} on average, {max(differences):.1e} at most"
    )


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
    photos = choose_test_photos(run, options.where, options.count)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "web"
        if options.megapixels:
            photos = enlarge(photos, options.megapixels, Path(scratch))
        classifier = ikebana.export_web(run, folder, photos=options.where)
        sizes = {file.name: file.stat().st_size / 1e6 for file in folder.rglob("*") if file.is_file()}
        print(
            f"{sum(sizes.values()):.1f} MB in {len(sizes)} files, of them",
            {k: round(v, 1) for k, v in sizes.items() if v > 1},
        )
        with serve_folder(folder) as address:
            shown = photos[:MAX_SHOWN_PHOTOS]
            predictions, first, seconds_per_photo = predict_in_browser(address, shown, options.picture)
            of_worker = predict_in_worker(address, photos, folder)
        differences, n_different = [], 0
        for photo, predicted in zip(shown, predictions, strict=True):
            expected = classifier.predict(photo).probabilities
            differences += [abs(predicted[name] - probability) for name, probability in expected.items()]
            best = max(predicted, key=lambda name: predicted[name])
            n_different += max(expected.values()) - expected[best] > MAX_TIE_DIFFERENCE
    compare_worker(of_worker, classifier.predict(photos))
    print(
        f"{len(shown)} test photos: same top-1 class in {len(shown) - n_different} "
        f"(ties within {MAX_TIE_DIFFERENCE} ignored); "
        f"probabilities differ by {statistics.mean(differences):.1e} on average, {max(differences):.1e} at most\n"
        f"first answer after {first:.1f} s, including the network; then {seconds_per_photo:.3f} s per photo"
    )


if __name__ == "__main__":
    main()
