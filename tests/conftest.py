"""What the tests share: a cache of their own, the real photos, and small photos that are drawn."""

import dataclasses
import functools
import io
import json
import os
import shutil
import signal
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from browsing import BROWSER, host
from hypothesis import settings
from PIL import Image, ImageDraw, features

from ikebana.data import decoding
from ikebana.errors import UnreadablePhoto
from ikebana.recipe import Resize

# A shell that starts tests in the background has them ignore Ctrl-C, and so would every command that they start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


try:
    import pillow_heif

    pillow_heif.register_heif_opener()
except ImportError:
    pillow_heif = None

# Test workers side by side, each with a thread for every processor, would wait for one another at every step.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

REPOSITORY = Path(__file__).resolve().parents[1]

# A shared machine may hold up any example; what takes long is shown by pytest's --durations.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@contextmanager
def failing_after(steps: int, error: BaseException) -> Iterator[None]:
    """Within this block the step of training after so many raises this, and so do those after it."""
    from ikebana.learning.training.trainer import Trainer

    real, left = Trainer.step, [steps]

    def step(*given):
        if not left[0]:
            raise error
        left[0] -= 1
        return real(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        yield


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Within this block Ctrl-C comes in the step of training after so many, and must."""
    with failing_after(steps, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        yield


@pytest.fixture(autouse=True)
def ikebana_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the cache of whoever runs it."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("IKEBANA_CACHE", str(place))
    return place


@pytest.fixture
def on_processor(monkeypatch):
    """Within this test ikebana takes no GPU, whatever there is."""
    from ikebana.learning import device

    monkeypatch.setattr(device, "_select_device", lambda: ("cpu", "the tests want it"))


@pytest.fixture
def stages() -> Iterator[list[str]]:
    """The names of all stages of work begun within the test, in order; nothing is printed."""
    from ikebana.system import progress

    begun: list[str] = []

    class Recorder(progress.SilentReporter):
        def open(self, name: str, total: int, unit: str) -> progress.Bar:
            begun.append(name)
            return super().open(name, total, unit)

    with progress.use_reporter(Recorder()):
        yield begun


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for all tests of a module."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Callable[[int], Path]:
    """So many photos of each kind of paper flower, drawn once for all tests: they are only looked at."""
    from ikebana.demo_data import paper_flowers

    @functools.cache
    def of(photos_per_kind: int) -> Path:
        folder = tmp_path_factory.mktemp("drawn") / "photos"
        paper_flowers.draw_collection(folder, photos_per_kind=photos_per_kind)
        return folder

    return of


@pytest.fixture
def shared_cache(cache, monkeypatch, ikebana_cache):
    """The module's cache instead of one of the test's own."""
    monkeypatch.setenv("IKEBANA_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def paper_run(tmp_path_factory):
    """A small network of the tutorial's kind that has learned 50 photos of paper flowers, which lie beside it."""
    import ikebana
    from ikebana.demo_data import paper_flowers

    place = tmp_path_factory.mktemp("paper")
    paper_flowers.draw_collection(place / "photos", photos_per_kind=10)
    choices = {"image_size": 48, "batch_size": 16, "epochs": 30, "precision": "float32"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKEBANA_CACHE", str(place / "cache"))
        return ikebana.fit(place / "photos", "baseline", run=place / "run", **choices)


@pytest.fixture(scope="session")
def paper_photos(paper_run) -> Path:
    """The photos that it has learned, faults included."""
    return paper_run.folder.parent / "photos"


@pytest.fixture(scope="session")
def good_photos(paper_run, paper_photos) -> list[Path]:
    """Those of them that are not broken."""
    return [paper_photos / path for path in paper_run.dataset.filter(status="used")["path"]]


@pytest.fixture(scope="session")
def paper_model(paper_run) -> Path:
    """The file that was made of it."""
    import ikebana

    file = paper_run.folder.parent / "paper.onnx"
    ikebana.export(paper_run, file)
    return file


@pytest.fixture(scope="session")
def paper_classifier(paper_model):
    """The classifier in that file."""
    from ikebana.inference.classifier import load

    return load(paper_model)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Opens the page, and tells afterwards if one of its scripts failed."""
    failed = []

    def opened(url, **options):
        page = browser.new_page(**options)
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(url)
        return page

    yield opened
    assert not failed
    for context in browser.contexts:
        context.close()


@pytest.fixture(scope="module")
def folder(paper_run, paper_classifier, paper_model, tmp_path_factory):
    """The exported page of the paper flowers, which is sure of little: it says "not sure" below 0.5."""
    from ikebana.commands import export

    place = tmp_path_factory.mktemp("web")

    def copied(run, file, **_):
        shutil.copy(paper_model, file)
        return dataclasses.replace(paper_classifier, threshold=0.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKEBANA_CACHE", str(place / "cache"))
        patch.setattr(export, "export", copied)  # tests/test_export.py tries the export itself
        export.export_web(paper_run, place / "flowers")
    return place / "flowers"


@pytest.fixture
def hosted(folder):
    """Its address on such a host."""
    from ikebana.exporting import web

    if json.loads((folder / "model.json").read_text("utf-8"))["runtime"]["place"] == web.RUNTIME_CDN_URL:
        pytest.skip("npm cannot give onnxruntime-web here")
    with host(folder) as address:
        yield address


@pytest.fixture(scope="session")
def flowers() -> Path:
    """The 4,317 photos of Flowers Recognition, five class folders."""
    return _shared("data/flowers")


@pytest.fixture(scope="session")
def awkward() -> Path:
    """Real files that break image loaders."""
    return _shared("data/awkward")


def _shared(name: str) -> Path:
    place = Path(os.path.normpath(REPOSITORY / ".." / "shared" / name))
    if not place.exists():
        pytest.skip(f"{place} is not there: real photos are never part of the project")
    return place


def drawing(side: int = 48, seed: int = 0) -> Image.Image:
    """A small picture that looks different from every side: a slope of colours, a disc, a corner and a line."""
    across, down = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    slope = np.stack([40 + 160 * across, 60 + 130 * down, 200 - 90 * across - 60 * down], axis=-1)
    picture = Image.fromarray(slope.astype(np.uint8))
    draw, dice = ImageDraw.Draw(picture), np.random.default_rng(seed)
    first, second, third = (tuple(int(level) for level in dice.integers(0, 256, 3)) for _ in range(3))
    draw.ellipse((side * 0.55, side * 0.1, side * 0.9, side * 0.4), fill=first)
    draw.rectangle((0, side * 0.7, side * 0.3, side), fill=second)
    draw.line((side * 0.1, side * 0.1, side * 0.5, side * 0.8), fill=third, width=max(1, side // 16))
    return picture


def encoded(picture: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """A picture as the bytes of a file."""
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def photo(seed: int) -> bytes:
    """A small JPEG; every seed gives other bytes."""
    return encoded(drawing(24, seed), "JPEG", quality=90)


def grow(folder: Path, files: Mapping[str, bytes]) -> Path:
    """A folder with these files in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder


def two_classes(photos: int = 3) -> dict[str, bytes]:
    """Names and contents of the simplest data set: so many photos of each of two classes."""
    return {
        f"{name}/{number}.jpg": photo(100 * row + number) for row, name in enumerate("ab") for number in range(photos)
    }


def need(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    if kind == "HEIF" and pillow_heif is None:
        pytest.skip("pillow_heif is not installed")


def seen(data: bytes, side: int = 48, fit: Resize = "squash") -> np.ndarray:
    """What the network sees, as whole numbers that can be subtracted."""
    return decoding.decode(data, side, fit).pixels.astype(int)


def levels(picture):
    return np.asarray(picture.convert("RGB")).astype(int)


def away(one, other):
    """Mean distance in grey levels."""
    return np.abs(one - other).mean()


def reason(data, side=32):
    with pytest.raises(UnreadablePhoto) as refusal:
        decoding.decode(data, side)
    return refusal.value.what


def noisy(width, height, seed=0):
    """A picture with detail in every corner."""
    noise = np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    return Image.fromarray((levels(drawing(64, seed).resize((width, height))) + noise).clip(0, 255).astype(np.uint8))


SLOPE = np.tile(np.linspace(0, 255, 48).round().astype(np.uint8), (48, 1))  # from black to white, left to right


def tiff(data, bits, photometric=1, sample_format=1, height=48):
    """A grey TIFF of one strip, as TIFF 6.0 has it: Pillow writes none with 12 bits, signs, or white as zero."""
    entries = [
        (256, 4, 48), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
        (277, 3, 1), (278, 4, 48), (279, 4, len(data)), (339, 3, sample_format),
    ]  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(entries)) + table + bytes(4)
