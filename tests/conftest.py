"""Fixtures that test modules share: a cache of their own, real photos, a trained run, a browser."""

import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support import images  # noqa: F401 -- registers HEIF with Pillow
from support.browser import CHROMIUM, serve_files

# A shell that starts tests in the background has them ignore Ctrl-C, and so would every command that they start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Test workers side by side, each with a thread for every processor, would wait for one another at every step.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

REPOSITORY = Path(__file__).resolve().parents[1]

# A shared machine may hold up any example; what takes long is shown by pytest's --durations.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

# Fixtures that train a network, start a browser or read thousands of photos: all tests that use them are slow.
SLOW_FIXTURES = frozenset(("paper_run", "browser", "flowers"))


# Tests whose last digits depend on the processor.
NUMERICAL_MODULES = frozenset(
    f"test_{name}"
    for name in (
        "calibration", "depthwise", "feature_cache", "feature_rows", "fused_inference", "fused_training", "imbalance",
        "label_errors", "logistic_head", "optimisers", "pooling", "resize",
    )
)  # fmt: skip


def pytest_ignore_collect(collection_path, config):
    """Do not even import modules that are slow as a whole: Keras, timm and torch.onnx take seconds."""
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py":
        return None
    is_slow = re.search(r"^pytestmark = (\[\s*)?pytest\.mark\.slow", collection_path.read_text("utf-8"), re.MULTILINE)
    return True if is_slow else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the tests that use a slow fixture and the numerical ones, before `-m` selects."""
    for item in items:
        if item.path.stem in NUMERICAL_MODULES:
            item.add_marker(pytest.mark.numerical)
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def ikebana_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the cache of whoever runs it."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("IKEBANA_CACHE", str(place))
    return place


@pytest.fixture(autouse=True, scope="session")
def uncontended():
    """Let no other process, such as a second test worker, disturb the measurements of speed."""
    from ikebana.system.contention import WaitMeter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WaitMeter, "is_contended", False)
        yield


@pytest.fixture
def on_processor(monkeypatch):
    """Within this test ikebana takes no GPU, whatever there is."""
    from ikebana.learning import device

    monkeypatch.setattr(device, "_select_device", lambda: ("cpu", "the tests want it"))


@pytest.fixture
def terminal() -> Iterator[None]:
    """Messages and bars of Python calls are printed, as by the command line."""
    from ikebana.system import progress

    with progress.use_reporter(progress.TerminalReporter()):
        yield


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


@pytest.fixture(scope="module")
def fit_in_cache(cache, tmp_path_factory):
    """A function that makes a run with the module's cache, for fixtures of a module."""
    import ikebana

    def fit(photos, recipe=None, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("IKEBANA_CACHE", str(cache))
            return ikebana.fit(photos, recipe, run=tmp_path_factory.mktemp("runs") / "run", **options)

    return fit


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk in memory of so many bytes."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*arguments):
        return subprocess.run(["mount", *arguments, str(place)], check=False, capture_output=True).returncode == 0

    if sys.platform != "linux" or os.geteuid() != 0 or not mount("-t", "tmpfs", "-o", "size=1g", "tmpfs"):
        pytest.skip("a small disk can only be mounted by root on Linux")
    yield place, lambda options: mount("-o", f"remount,{options}")
    subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


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
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
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
    from ikebana.evaluation.candidate_sets import CandidateRule

    place = tmp_path_factory.mktemp("web")

    def copied(run, file, **_):
        shutil.copy(paper_model, file)
        return dataclasses.replace(paper_classifier, threshold=0.5, candidate_rule=CandidateRule(0.9, 0.3, 0.6))

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
    with serve_files(folder) as address:
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
